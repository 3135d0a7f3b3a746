"""Low-rank adapters: which projections have one, its leaves, and its merged form.

An adapter of a projection with weight W [in, out] is `lora_a` [in, r] and `lora_b`
[r, out]; the adapted projection is x @ W + scale * (x @ a) @ b with scale = alpha / r.
Adapters are a tree of their own, with the paths of the base's tree:

    layers.self_attn.q_proj.lora_a   [L, D, r]
    layers.self_attn.q_proj.lora_b   [L, r, N*H]

so that what is trained, and what an optimizer has moments for, is this tree alone.
Refuses to know files, losses and how the base was loaded.

Source: arXiv:2106.09685 section 4.1; initial values as PEFT's.
Differs: not in the Phi-4 paper, whose post-training changes all weights.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from phi4_jax.common.axes import Params
from phi4_jax.common.errors import ConfigError
from phi4_jax.common.keys import fold_in_path
from phi4_jax.model.config import ModelConfig
from phi4_jax.model.counting import count_params, model_flops_per_token
from phi4_jax.model.transformer import abstract_params, unstack_layers

# Modules that may have an adapter. Their order numbers the keys of the initial draws:
# append only.
ADAPTABLE = (
  "self_attn/q_proj",
  "self_attn/k_proj",
  "self_attn/v_proj",
  "self_attn/o_proj",
  "mlp/gate_proj",
  "mlp/up_proj",
  "mlp/down_proj",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig:
  """Low-rank adapters of some projections, the same in every layer.

  Differs: no dropout on the adapter's input and no rank-stabilised scale (alpha /
  sqrt(rank)); the embedding, the output head and norms have no adapters.

  Attributes:
    rank: r, the inner dimension.
    alpha: the adapter's product is scaled by alpha / rank.
    targets: regular expression that a projection's whole name must match, for
      example `self_attn/(q|v)_proj|mlp/.*`. Names: self_attn/q_proj, k_proj, v_proj,
      o_proj, mlp/gate_proj, up_proj, down_proj.
  """

  rank: int
  alpha: float
  targets: str = "self_attn/.*|mlp/.*"

  def __post_init__(self):
    if self.rank < 1:
      raise ConfigError(f"LoraConfig.rank ({self.rank}) must be 1 or more.")
    if not 0 < self.alpha < math.inf:
      raise ConfigError(f"LoraConfig.alpha ({self.alpha}) must be positive.")
    try:
      pattern = re.compile(self.targets)
    except re.error as error:
      raise ConfigError(
        f"LoraConfig.targets ({self.targets!r}) is no regular expression: {error}."
      ) from None
    others = ("input_layernorm", "post_attention_layernorm", "norm")
    others += ("embed_tokens", "lm_head")
    refused = [name for name in others if pattern.fullmatch(name)]
    if refused:
      raise ConfigError(
        f"LoraConfig.targets ({self.targets!r}) matches {', '.join(refused)}, which "
        f"can have no adapter. These can: {', '.join(ADAPTABLE)}."
      )
    if not self.modules:
      raise ConfigError(
        f"LoraConfig.targets ({self.targets!r}) matches the whole name of no "
        f"projection. Names: {', '.join(ADAPTABLE)}."
      )

  @property
  def scale(self) -> float:
    """What the product of both matrices is multiplied by."""
    return self.alpha / self.rank

  @property
  def modules(self) -> tuple[str, ...]:
    """Names of the projections that have an adapter."""
    return tuple(name for name in ADAPTABLE if re.fullmatch(self.targets, name))


def init_lora(model: ModelConfig, lora: LoraConfig, key: jax.Array) -> dict[str, Any]:
  """Draws float32 adapters that change nothing yet: `lora_b` is zero.

  `lora_a` is uniform in +-1 / sqrt(in). The same key gives the same numbers with and
  without `scan_layers`, and whichever other projections have adapters.
  """
  stacked = dataclasses.replace(model, scan_layers=True)
  layers = abstract_params(stacked)["layers"]
  adapters: dict[str, Any] = {}
  for module in lora.modules:
    part, projection = module.split("/")
    num_layers, width, out = layers[part][projection]["weight"].shape
    limit = 1 / math.sqrt(width)
    drawn = jax.random.uniform(
      fold_in_path(key, [ADAPTABLE.index(module)]),
      (num_layers, width, lora.rank),
      jnp.float32,
      minval=-limit,
      maxval=limit,
    )
    adapters.setdefault(part, {})[projection] = {
      "lora_a": drawn,
      "lora_b": jnp.zeros((num_layers, lora.rank, out), jnp.float32),
    }
  params = {"layers": adapters}
  return params if model.scan_layers else unstack_layers(params, model)


def abstract_lora(model: ModelConfig, lora: LoraConfig) -> dict[str, Any]:
  """Returns the shapes and dtypes of `init_lora` without making arrays."""
  return jax.eval_shape(lambda key: init_lora(model, lora, key), jax.random.key(0))


def combine(base: Params, adapters: Params, scale: float) -> dict[str, Any]:
  """Puts the adapters beside the weights that they adapt; copies no array.

  `forward` of the result is that of the adapted model. Each adapter also gets a leaf
  `lora_scale`, a scalar a layer, which is not trained.

  Raises:
    ConfigError: if an adapter has no weight beside it.
  """

  def join(base: Params, adapters: Params, path: tuple[str, ...]) -> dict[str, Any]:
    joined = dict(base)
    for name, value in adapters.items():
      where = (*path, name)
      if "lora_a" not in value:
        joined[name] = join(_child(base, name, where), value, where)
        continue
      weight = _child(base, name, where)
      # One number for each layer of a stack, so that the scan can slice it.
      repeats = value["lora_a"].shape[:-2]
      joined[name] = {
        **weight,
        **value,
        "lora_scale": jnp.full(repeats, scale, jnp.float32),
      }
    return joined

  return join(base, adapters, ())


def merge_lora(base: Params, adapters: Params, scale: float) -> dict[str, Any]:
  """Returns the base with W + scale * a @ b in the place of each adapted W.

  Sums and products are float32, and so are the merged leaves, whatever the base's
  dtype: rounding to bfloat16 would lose small changes. All other leaves, and where
  the arrays lie, stay as they are. One leaf is merged at a time.

  Raises:
    ConfigError: if an adapter has no weight beside it.
  """
  merged = combine(base, adapters, scale)
  for path, leaves in list(adapted_modules(merged)):
    *parents, name = path
    at = merged
    for parent in parents:
      at[parent] = dict(at[parent])
      at = at[parent]
    at[name] = {"weight": _merge_leaf(leaves, scale)}
  return merged


def _merge_leaf(leaves: Mapping[str, Any], scale: float) -> jax.Array:
  weight = leaves["weight"]
  placed = getattr(weight, "sharding", None)

  def merge(weight, a, b):
    product = jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
    return weight.astype(jnp.float32) + scale * product

  where = placed if isinstance(placed, NamedSharding) else None
  merge = jax.jit(merge, out_shardings=where)
  return merge(weight, leaves["lora_a"], leaves["lora_b"])


def adapted_modules(params: Params) -> Iterator[tuple[tuple[str, ...], Mapping]]:
  """Yields path and leaves of each module that holds adapter leaves."""

  def walk(tree, path):
    for name, value in tree.items():
      if not isinstance(value, Mapping):
        continue
      if "lora_a" in value:
        yield (*path, name), value
      else:
        yield from walk(value, (*path, name))

  yield from walk(params, ())


def _child(base: Params, name: str, path: tuple[str, ...]) -> Params:
  found = base.get(name)
  if isinstance(found, Mapping):
    return found
  raise ConfigError(
    f"The adapter of {'/'.join(path)} has no weight in the base, which holds "
    f"{', '.join(base)}. Adapters and base must have the same layout "
    "(ModelConfig.num_hidden_layers and scan_layers)."
  )


def count_lora_params(model: ModelConfig, lora: LoraConfig) -> int:
  """Returns the number of parameters that are trained."""
  leaves = jax.tree.leaves(abstract_lora(model, lora))
  return sum(math.prod(leaf.shape) for leaf in leaves)


def lora_flops_per_token(
  model: ModelConfig, lora: LoraConfig, context_length: int
) -> float:
  """Returns what training adapters takes a token; see `model_flops_per_token`.

  The base's weights have no gradient: two operations in the forward and two in the
  backward pass for each of them, in the place of six.
  """
  lookups = 0 if model.tie_word_embeddings else model.vocab_size * model.hidden_size
  frozen = count_params(model) - lookups
  whole = model_flops_per_token(model, context_length)
  return whole - 2 * frozen + 6 * count_lora_params(model, lora)
