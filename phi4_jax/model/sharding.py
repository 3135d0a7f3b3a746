"""Where parameters and activations lie on a mesh: one table, one constraint.

The table goes from a leaf's owner (q_proj, norm, ...) to the mesh axes of its
dimensions. Everything between parameters and the residual stream is left to XLA.
"""

from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from phi4_jax.common.axes import Array, Float
from phi4_jax.common.errors import ConfigError
from phi4_jax.common.mesh import BATCH_AXES
from phi4_jax.model.config import ModelConfig

# Owner of a `weight` leaf -> mesh axis of each dimension (a stacked leaf has one
# more in front, which is never split: the scan walks along it).
PARAM_SPECS: dict[str, tuple[str | None, ...]] = {
  "embed_tokens": ("tensor", "fsdp"),  # [V, D]
  "lm_head": ("fsdp", "tensor"),  # [D, V]
  "q_proj": ("fsdp", "tensor"),  # [D, N*H]
  "k_proj": ("fsdp", "tensor"),  # [D, K*H]
  "v_proj": ("fsdp", "tensor"),  # [D, K*H]
  "o_proj": ("tensor", "fsdp"),  # [N*H, D]
  "gate_proj": ("fsdp", "tensor"),  # [D, F]
  "up_proj": ("fsdp", "tensor"),  # [D, F]
  "down_proj": ("tensor", "fsdp"),  # [F, D]
  "input_layernorm": (None,),
  "post_attention_layernorm": (None,),
  "norm": (None,),
}
# An adapter's leaves beside `weight` [in, out]; their rank is never split.
_LORA_AXES = {
  "lora_a": lambda axes: (axes[0], None),  # [in, r]
  "lora_b": lambda axes: (None, axes[1]),  # [r, out]
  "lora_scale": lambda axes: (),
}
# The vocabulary stays whole when `tensor` does not divide it: 100,352 is no
# multiple of 5, and padding it would change the model.
_VOCABULARY_DIMENSION = {"embed_tokens": 0, "lm_head": 1}


def check_mesh(mesh: Mesh | AbstractMesh, config: ModelConfig) -> None:
  """Refuses a mesh that the model's dimensions cannot be split over.

  Raises:
    ConfigError: if `tensor` does not divide the key-value heads or the MLP width,
      or `fsdp` not the model width; names the sizes that would work.
  """
  tensor = mesh.shape.get("tensor", 1)
  fsdp = mesh.shape.get("fsdp", 1)
  kv_heads, width = config.num_key_value_heads, config.intermediate_size
  if kv_heads % tensor or width % tensor:
    works = [n for n in range(1, kv_heads + 1) if not kv_heads % n and not width % n]
    raise ConfigError(
      f"MeshConfig.tensor ({tensor}) must divide ModelConfig.num_key_value_heads "
      f"({kv_heads}) and intermediate_size ({width}). Sizes that work: "
      f"{', '.join(map(str, works))}. Use MeshConfig.fsdp for the other devices."
    )
  if config.hidden_size % fsdp:
    raise ConfigError(
      f"MeshConfig.fsdp ({fsdp}) must divide ModelConfig.hidden_size "
      f"({config.hidden_size}). Change MeshConfig.fsdp and put the other devices on "
      "MeshConfig.data."
    )


def param_spec(
  path: tuple[str, ...], shape: tuple[int, ...], mesh: Any
) -> PartitionSpec:
  """Returns the mesh axes of one leaf, found by its path in the parameter tree.

  `("layers", "mlp", "down_proj", "weight")` of shape [L, F, D] gives
  `PartitionSpec(None, "tensor", "fsdp")`.

  Raises:
    ConfigError: if the path is unknown, or an axis does not divide its dimension.
  """
  *_, owner, name = ("", "", *path)
  is_adapter = name in _LORA_AXES and owner.endswith("_proj")
  is_scale = name == "scale" and len(PARAM_SPECS.get(owner, ())) == 2
  if owner not in PARAM_SPECS or not (name == "weight" or is_adapter or is_scale):
    raise ConfigError(
      f"No sharding rule for parameter {'.'.join(path)}. Known: "
      f"{', '.join(f'{name}.weight' for name in PARAM_SPECS)}; and "
      f"{', '.join(_LORA_AXES)} beside the weights of projections."
    )
  axes = list(PARAM_SPECS[owner])
  if is_adapter:
    axes = list(_LORA_AXES[name](axes))
  vocabulary = _VOCABULARY_DIMENSION.get(owner)
  if is_scale:  # one for each column of a matrix, each row of the embedding
    axes = axes[:1] if owner == "embed_tokens" else axes[1:]
    vocabulary = None if vocabulary is None else 0
  if vocabulary is not None and shape[vocabulary] % mesh.shape.get("tensor", 1):
    axes[vocabulary] = None
  axes = [None] * (len(shape) - len(axes)) + axes
  for size, axis in zip(shape, axes, strict=True):
    if axis is not None and size % mesh.shape.get(axis, 1):
      raise ConfigError(
        f"MeshConfig.{axis} ({mesh.shape[axis]}) must divide {size}, a dimension of "
        f"{'.'.join(path)} {list(shape)}."
      )
  return PartitionSpec(*(axis if axis in mesh.shape else None for axis in axes))


def param_shardings(mesh: Mesh, params: Any, config: ModelConfig | None = None) -> Any:
  """Returns a NamedSharding for every leaf of a (possibly abstract) parameter tree.

  Args:
    mesh: the device mesh.
    params: parameters or their shapes; layers stacked or separate.
    config: when given, the mesh is checked against it here; `forward` checks in
      any case (head counts cannot be read off the shapes).

  Raises:
    ConfigError: if a leaf is unknown or the mesh does not fit.
  """
  if config is not None:
    check_mesh(mesh, config)

  def sharding(path, leaf):
    names = tuple(entry.key for entry in path)
    return NamedSharding(mesh, param_spec(names, leaf.shape, mesh))

  return jax.tree_util.tree_map_with_path(sharding, params)


def constrain_activations(x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
  """Pins the residual stream: rows over data and fsdp, positions over context.

  Without this XLA may keep partial sums over fsdp and use 1.7 times the temporary
  memory. Does nothing when no mesh is set (`jax.set_mesh`). An axis that does not
  divide its dimension (one decoded position, a single row) leaves it whole.
  """
  mesh = jax.sharding.get_abstract_mesh()
  free = {
    name: size
    for name, size, kind in zip(
      mesh.axis_names, mesh.axis_sizes, mesh.axis_types, strict=True
    )
    if kind == AxisType.Auto  # inside shard_map an axis is Manual: hands off
  }
  if not free:
    return x
  rows: list[str] = []
  shards = 1
  for axis in BATCH_AXES:
    if axis in free and x.shape[0] % (shards * free[axis]) == 0:
      rows.append(axis)
      shards *= free[axis]
  context = "context" if x.shape[1] % free.get("context", 1) == 0 else None
  spec = PartitionSpec(tuple(rows) or None, context if context in free else None, None)
  return jax.lax.with_sharding_constraint(x, spec)
