"""One chunk of a prefill, one step of decoding: programs of their own, cache donated.

The body is that of `decode.generate_tokens`, so that what is compiled, planned or
measured here is what the sampler runs in its loops. Knows shapes and shardings;
refuses to know weights and prompts.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from phi4_jax.common.axes import Params
from phi4_jax.common.errors import ConfigError
from phi4_jax.common.sampler import SamplingLaw
from phi4_jax.model.cache_dtype import CacheDtype, resolve_cache_dtype
from phi4_jax.model.config import ModelConfig
from phi4_jax.model.inference_sharding import (
  cache_shardings,
  check_serving_mesh,
  check_serving_rows,
  row_axes,
)
from phi4_jax.model.kv_cache import KVCache, init_cache
from phi4_jax.model.quantize import cast_for_inference
from phi4_jax.model.sharding import param_shardings
from phi4_jax.model.transformer import abstract_params, unstack_layers
from phi4_jax.sampling.decode import DecodeCarry, decode_step, read_chunk


def make_decode_step(
  config: ModelConfig,
  law: SamplingLaw,
  stop_ids: tuple[int, ...],
  pad_id: int,
  mesh: Mesh,
  cache_dtype: CacheDtype | None = None,
) -> Any:
  """Returns the jitted `(params, carry, lengths, row_keys) -> carry`; carry donated.

  Trace and call it under `jax.set_mesh(mesh)`, with arguments of the shapes and
  shardings of `abstract_decode_arguments`.

  Raises:
    ConfigError: if the mesh does not fit the model, or (while tracing) the carry's
      cache has another dtype.
  """
  check_serving_mesh(mesh, config)
  dtype = resolve_cache_dtype(cache_dtype, config)

  def step(params, carry, lengths, row_keys):
    _check_cache(carry.cache, dtype)
    return decode_step(
      params,
      carry,
      lengths,
      row_keys,
      config=_roomy(config, carry.cache.capacity),
      law=law,
      stop_ids=stop_ids,
      pad_id=pad_id,
    )

  return jax.jit(step, donate_argnums=1, out_shardings=carry_shardings(mesh, config))


def make_prefill_step(
  config: ModelConfig, mesh: Mesh, cache_dtype: CacheDtype | None = None
) -> Any:
  """Returns the jitted `(params, cache, ids, start, lengths) -> (cache, hidden)`.

  It reads one chunk of every row's prefix (`decode.read_chunk`); the cache is donated.

  Raises:
    ConfigError: as `make_decode_step`.
  """
  check_serving_mesh(mesh, config)
  dtype = resolve_cache_dtype(cache_dtype, config)

  def step(params, cache, ids, start, lengths):
    _check_cache(cache, dtype)
    roomy = _roomy(config, cache.capacity)
    return read_chunk(params, cache, ids, start, lengths, config=roomy)

  rows = NamedSharding(mesh, PartitionSpec(row_axes(mesh, config)))
  placed = (cache_shardings(mesh, config), rows)
  return jax.jit(step, donate_argnums=1, out_shardings=placed)


def carry_shardings(mesh: Mesh, config: ModelConfig) -> DecodeCarry:
  """Returns a carry whose leaves are shardings: rows as the cache's rows lie."""
  rows = NamedSharding(mesh, PartitionSpec(row_axes(mesh, config)))
  return DecodeCarry(
    step=NamedSharding(mesh, PartitionSpec()),
    cache=cache_shardings(mesh, config),
    token=rows,
    tokens=rows,
    logprobs=rows,
    num_new=rows,
    stopped=rows,
    done=rows,
  )


def abstract_decode_arguments(
  config: ModelConfig,
  mesh: Mesh,
  batch: int,
  capacity: int,
  cache_dtype: CacheDtype | None = None,
  params_dtype: Any = None,
) -> tuple[Params, DecodeCarry, jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
  """Returns shapes and shardings of what a decode step takes.

  Args:
    config: the model.
    mesh: where to run.
    batch: rows; a multiple of the mesh's row shards.
    capacity: slots of the cache, and room for new tokens.
    cache_dtype: of keys and values; None means the compute dtype.
    params_dtype: of the weights; None means the compute dtype.

  Returns:
    Parameters, carry, lengths of the prefixes, and the rows' keys.

  Raises:
    ConfigError: if the sizes do not fit each other.
  """
  params, cache, lengths = _abstract_state(
    config, mesh, batch, capacity, cache_dtype, params_dtype
  )
  row = functools.partial(_on, lengths.sharding)
  carry = DecodeCarry(
    step=_on(NamedSharding(mesh, PartitionSpec()), (), jnp.int32),
    cache=cache,
    token=row((batch,), jnp.int32),
    tokens=row((batch, capacity), jnp.int32),
    logprobs=row((batch, capacity), jnp.float32),
    num_new=row((batch,), jnp.int32),
    stopped=row((batch,), jnp.bool_),
    done=row((batch,), jnp.bool_),
  )
  return params, carry, lengths, row((batch, 2), jnp.uint32)


def abstract_prefill_arguments(
  config: ModelConfig,
  mesh: Mesh,
  batch: int,
  capacity: int,
  chunk: int,
  cache_dtype: CacheDtype | None = None,
  params_dtype: Any = None,
) -> tuple[
  Params,
  KVCache,
  jax.ShapeDtypeStruct,
  jax.ShapeDtypeStruct,
  jax.ShapeDtypeStruct,
]:
  """Returns shapes and shardings of what `make_prefill_step` takes.

  `chunk` is how many tokens of each row are read; the rest as
  `abstract_decode_arguments`.
  """
  params, cache, lengths = _abstract_state(
    config, mesh, batch, capacity, cache_dtype, params_dtype
  )
  ids = _on(lengths.sharding, (batch, chunk), jnp.int32)
  start = _on(NamedSharding(mesh, PartitionSpec()), (), jnp.int32)
  return params, cache, ids, start, lengths


def abstract_serving_params(
  config: ModelConfig, mesh: Mesh, params_dtype: Any = None
) -> Params:
  """Returns shapes and shardings of weights as samplers hold them.

  The arguments are those of `abstract_decode_arguments`.

  Raises:
    ConfigError: if the mesh does not fit the model.
  """
  check_serving_mesh(mesh, config)

  def prepare(params):
    return cast_for_inference(
      unstack_layers(params, config), params_dtype or config.dtype
    )

  params = jax.eval_shape(prepare, abstract_params(config))
  return jax.tree.map(_place, param_shardings(mesh, params), params)


def _abstract_state(config, mesh, batch, capacity, cache_dtype, params_dtype):
  """Returns shapes and shardings of parameters, cache and lengths."""
  check_serving_rows(mesh, config, batch)
  params = abstract_serving_params(config, mesh, params_dtype)
  cache = jax.eval_shape(
    lambda: init_cache(_roomy(config, capacity), batch, capacity, cache_dtype)
  )
  cache = jax.tree.map(
    lambda sharding, part: jax.tree.map(functools.partial(_place, sharding), part),
    cache_shardings(mesh, config),
    cache,
  )
  rows = NamedSharding(mesh, PartitionSpec(row_axes(mesh, config)))
  return params, cache, _on(rows, (batch,), jnp.int32)


def _place(sharding, leaf):
  return _on(sharding, leaf.shape, leaf.dtype)


def _on(sharding, shape, dtype):
  return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def _roomy(config: ModelConfig, capacity: int) -> ModelConfig:
  """Padding has slots but no positions of its own: slots may exceed the positions."""
  limit = max(capacity, config.max_position_embeddings)
  return dataclasses.replace(config, max_position_embeddings=limit)


def _check_cache(cache: KVCache, dtype: Any) -> None:
  found = cache.keys[0].dtype
  if found != dtype:
    raise ConfigError(
      f"The program was made for cache_dtype {jnp.dtype(dtype).name!r} and got a cache "
      f"of {found.name!r}."
    )
