"""How large the arrays of a rollout engine are; what is not given is derived."""

import dataclasses
from typing import Any

import jax
from jax.sharding import Mesh

from phi4_jax.common.errors import ConfigError
from phi4_jax.common.sampler import SamplingLaw
from phi4_jax.model.branch_cache import count_base_bytes
from phi4_jax.model.cache_dtype import CacheDtype, resolve_cache_dtype
from phi4_jax.model.config import ModelConfig
from phi4_jax.model.inference_sharding import (
  attention_split,
  check_serving_mesh,
  num_row_shards,
)
from phi4_jax.model.rope_scaling import LongRope

_MOST_SHARED_ROWS = 4
_SLOT_MULTIPLE = 8  # what a TPU's kernels want
_LEAST_PIECE = 64  # of a suffix; with less to spare, nothing is gained


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineShapes:
  """Sizes of the arrays of a rollout engine.

  Attributes:
    groups: P, texts that are held at a time.
    rows_per_group: R, continuations of one held text at a time.
    base_capacity: S, tokens of a text that can be held.
    suffix_capacity: S2, tokens that a row can read behind its cut: at least as many
      as the most new tokens of a completion.
    block_steps: most decode steps of one call of the program.
    allowed_idle: rows that may stand idle before a call ends early, as long as there
      is other work for them.
    prompt_chunk: T, tokens of a text that are read at a time.
    prefill_lanes: Q, texts that are read at a time.
    shards: parts that the groups are split into over a mesh.
    held_texts: texts that are kept beside those of the groups, in a store; 0 for none.
    suffix_buckets: numbers of slots that a call of the program reads of every suffix:
      it takes the first one that its rows do not outgrow. The last is S2, and all are
      multiples of the first, so that sums do not depend on which is taken.
  """

  groups: int
  rows_per_group: int
  base_capacity: int
  suffix_capacity: int
  block_steps: int
  allowed_idle: int
  prompt_chunk: int
  prefill_lanes: int
  shards: int = 1
  held_texts: int = 0
  suffix_buckets: tuple[int, ...] = ()

  @property
  def suffix_piece(self) -> int | None:
    """Slots that are summed at a time; None where there is one bucket."""
    return self.suffix_buckets[0] if len(self.suffix_buckets) > 1 else None

  def choose_slots(self, longest: int) -> int:
    """Slots of a suffix that a call must read, if the longest has so many tokens."""
    needed = longest + self.block_steps
    fitting = (slots for slots in self.suffix_buckets if slots >= needed)
    return next(fitting, self.suffix_capacity)

  @property
  def num_rows(self) -> int:
    """A = P * R."""
    return self.groups * self.rows_per_group

  def shard_of(self, base: int) -> int:
    """The part of the mesh that a group lies on, or from P on a place of the store."""
    if base >= self.groups:
      return (base - self.groups) // (self.held_texts // self.shards)
    return base // (self.groups // self.shards)

  def local(self, base: int) -> int:
    """A group, or a place of the store, as its own part of the mesh counts it."""
    if base >= self.groups:
      return (base - self.groups) % (self.held_texts // self.shards)
    return base % (self.groups // self.shards)


def derive_shapes(
  config: ModelConfig,
  law: SamplingLaw,
  *,
  batch_size: int,
  mesh: Mesh | None = None,
  rows_per_group: int | None = None,
  base_capacity: int | None = None,
  suffix_capacity: int | None = None,
  block_steps: int = 32,
  allowed_idle: int | None = None,
  prompt_chunk: int = 64,
  prefill_lanes: int | None = None,
  held_texts: int = 0,
  suffix_buckets: tuple[int, ...] | None = None,
) -> EngineShapes:
  """Checks sizes, and derives those that are None.

  Args:
    config: the model.
    law: the distribution; its max_length bounds both capacities.
    batch_size: rows that decode at once, P * R.
    mesh: where to run.
    rows_per_group: None means the largest divisor of a device's rows up to 4. Give 1
      where every prefix is drawn from once, and more where hundreds of draws share a
      text: a group takes another text when its last row has finished.
    base_capacity: None means max_length - 1, rounded up.
    suffix_capacity: None likewise, which is always enough.
    block_steps: see `EngineShapes`.
    allowed_idle: None means a sixteenth of the rows.
    prompt_chunk: see `EngineShapes`.
    prefill_lanes: None means an eighth of the groups.
    held_texts: a text that a group gives up for another one goes there, and is not
      read again when it is asked for once more. Each takes the memory of one group's
      base, see `fit_held_texts`.
    suffix_buckets: None means a quarter, half and all of S2 on a CPU where a quarter is
      64 or more, otherwise S2: a TPU's kernel reads what is seen and no more. Each is
      compiled when it is first needed.

  Raises:
    ConfigError: if sizes do not fit each other, or the model cannot run so.
  """
  _check_model(config, law, mesh)
  shards = 1 if mesh is None else num_row_shards(mesh, config)
  if batch_size < 1 or batch_size % shards:
    axes = "data * fsdp"
    if mesh is not None and attention_split(mesh, config) == "rows":
      axes += " * tensor"
    raise ConfigError(
      f"The sampler's batch_size ({batch_size}) must be a positive multiple of the "
      f"mesh's {axes} ({shards})."
    )
  rows = batch_size // shards
  if rows_per_group is None:
    fitting = range(1, min(rows, _MOST_SHARED_ROWS) + 1)
    rows_per_group = max(count for count in fitting if rows % count == 0)
  if rows_per_group < 1 or rows % rows_per_group:
    raise ConfigError(
      f"rows_per_group ({rows_per_group}) must divide the rows of one device "
      f"({batch_size} / {shards}). Change it or the sampler's batch_size."
    )
  groups = batch_size // rows_per_group
  rounded = _derive_capacity(law)
  base_capacity = rounded if base_capacity is None else base_capacity
  suffix_capacity = rounded if suffix_capacity is None else suffix_capacity
  if suffix_buckets is None:
    quarter, rest = divmod(suffix_capacity, 4)
    suffix_buckets = (suffix_capacity,)
    if _runs_on_cpu(mesh) and rest == 0 and quarter >= _LEAST_PIECE:
      suffix_buckets = (quarter, 2 * quarter, 4 * quarter)
  lanes = prefill_lanes or max(1, groups // shards // 8) * shards
  shapes = EngineShapes(
    groups=groups,
    rows_per_group=rows_per_group,
    base_capacity=base_capacity,
    suffix_capacity=suffix_capacity,
    block_steps=block_steps,
    allowed_idle=batch_size // 16 if allowed_idle is None else allowed_idle,
    prompt_chunk=min(prompt_chunk, base_capacity),
    prefill_lanes=lanes,
    shards=shards,
    held_texts=held_texts,
    suffix_buckets=suffix_buckets,
  )
  _check_sizes(shapes)
  return shapes


def fit_capacities(law: SamplingLaw, prompt_lengths: tuple[int, int]) -> dict[str, int]:
  """Returns capacities for texts that are prompts and nothing else.

  With `SamplingLaw.max_length` 100 and prompts of 20 to 41 tokens, 40 are held of a
  text and up to 80 of what follows.

  Args:
    law: its max_length bounds what follows a prompt.
    prompt_lengths: of the shortest and of the longest prompt, in tokens.
  """
  shortest, longest = prompt_lengths
  return {
    "base_capacity": _round_up(max(1, longest - 1)),
    "suffix_capacity": _round_up(max(1, law.max_length - shortest)),
  }


def outgrows_shared_texts(config: ModelConfig, law: SamplingLaw) -> bool:
  """Whether a text may outgrow LongRope's original context.

  It turns with other frequencies from its first token on then, so that branches cannot
  share what was read of it.
  """
  scaling = config.rope_scaling
  return (
    isinstance(scaling, LongRope)
    and law.max_length > scaling.original_max_position_embeddings
  )


def fit_held_texts(
  config: ModelConfig,
  law: SamplingLaw,
  *,
  gib: float,
  most: int,
  mesh: Mesh | None = None,
  cache_dtype: CacheDtype | None = None,
) -> int:
  """Returns `held_texts` for a budget of memory, with the capacity that is derived.

  A text takes 2 * L * K * S * H numbers of the cache's dtype, however much of it has
  been read: of phi-4 in bfloat16, 200 KiB a token of SamplingLaw.max_length.

  Args:
    config: the model.
    law: its max_length tells S.
    gib: GiB of each device that may be spent.
    most: texts that there are; no more places are made than one for each.
    mesh: where to run.
    cache_dtype: as `RolloutEngine` takes it.

  Raises:
    ConfigError: if the budget is negative, or the dtype is not known.
  """
  if gib < 0:
    raise ConfigError(f"The memory for held texts ({gib} GiB) must be 0 or more.")
  dtype = choose_cache_dtype(cache_dtype, config, mesh)
  size = count_base_bytes(config, _derive_capacity(law), dtype)
  devices = 1 if mesh is None else mesh.size
  shards = 1 if mesh is None else num_row_shards(mesh, config)
  # A base lies on a part of the mesh, which has devices / shards devices.
  each = int(gib * 2**30 * devices / shards // size)
  return min(each, -(-most // shards)) * shards


def choose_cache_dtype(
  cache_dtype: CacheDtype | None, config: ModelConfig, mesh: Mesh | None
) -> Any:
  """Returns the dtype of keys and values.

  None means the model's compute_dtype, on a CPU float32: XLA widens a narrower cache
  at every step there.

  Raises:
    ConfigError: if the dtype is not known.
  """
  if cache_dtype is None and _runs_on_cpu(mesh):
    cache_dtype = "float32"
  return resolve_cache_dtype(cache_dtype, config)


def _runs_on_cpu(mesh: Mesh | None) -> bool:
  device = jax.devices()[0] if mesh is None else mesh.devices.flat[0]
  return device.platform == "cpu"


def _derive_capacity(law: SamplingLaw) -> int:
  """The longest text that is read has one token less than max_length."""
  return _round_up(law.max_length - 1)


def _round_up(slots: int) -> int:
  return -(-slots // _SLOT_MULTIPLE) * _SLOT_MULTIPLE


def _check_sizes(shapes: EngineShapes) -> None:
  for name in (
    "base_capacity",
    "suffix_capacity",
    "block_steps",
    "prompt_chunk",
    "prefill_lanes",
  ):
    if getattr(shapes, name) < 1:
      raise ConfigError(f"{name} ({getattr(shapes, name)}) must be 1 or more.")
  if shapes.allowed_idle < 0:
    raise ConfigError(f"allowed_idle ({shapes.allowed_idle}) must be 0 or more.")
  if shapes.prefill_lanes % shapes.shards or shapes.prefill_lanes > shapes.groups:
    raise ConfigError(
      f"prefill_lanes ({shapes.prefill_lanes}) must be a multiple of the mesh's parts "
      f"({shapes.shards}) and at most the groups ({shapes.groups})."
    )
  buckets = shapes.suffix_buckets
  if (
    list(buckets) != sorted({*buckets, shapes.suffix_capacity})
    or buckets[0] < 1
    or any(slots % buckets[0] for slots in buckets)
    or buckets[-1] != shapes.suffix_capacity
  ):
    raise ConfigError(
      f"suffix_buckets {buckets} must rise to suffix_capacity "
      f"({shapes.suffix_capacity}), and be multiples of the first one."
    )
  if shapes.held_texts < 0 or shapes.held_texts % shapes.shards:
    raise ConfigError(
      f"held_texts ({shapes.held_texts}) must be 0 or a positive multiple of the "
      f"mesh's parts ({shapes.shards})."
    )


def _check_model(config: ModelConfig, law: SamplingLaw, mesh: Mesh | None) -> None:
  if law.max_length > config.max_position_embeddings:
    raise ConfigError(
      f"SamplingLaw.max_length ({law.max_length}) must be at most "
      f"ModelConfig.max_position_embeddings ({config.max_position_embeddings})."
    )
  scaling = config.rope_scaling
  if isinstance(scaling, LongRope) and outgrows_shared_texts(config, law):
    raise ConfigError(
      f"SamplingLaw.max_length ({law.max_length}) exceeds LongRope's original context "
      f"({scaling.original_max_position_embeddings}): a text that outgrows it turns "
      "with other frequencies from its first token on, so that branches cannot share "
      "what was read of it. Lower max_length, or use phi4_jax.sampling.generate."
      "JaxSampler."
    )
  if mesh is None:
    return
  if mesh.shape["context"] != 1:
    raise ConfigError(
      "Sampling works on one position at a time, so MeshConfig.context "
      f"({mesh.shape['context']}) must be 1. Make a mesh for sampling with these "
      "devices along MeshConfig.data."
    )
  check_serving_mesh(mesh, config)
