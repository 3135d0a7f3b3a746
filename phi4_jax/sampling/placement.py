"""Weights as a sampler wants them: separate layers, compute dtype, on the mesh."""

from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from phi4_jax.common.axes import Params
from phi4_jax.common.mesh import replicated
from phi4_jax.model.config import ModelConfig
from phi4_jax.model.quantize import cast_for_inference
from phi4_jax.model.sharding import param_shardings
from phi4_jax.model.transformer import unstack_layers
from phi4_jax.model.transposed import transpose_matrices


def place_params(
  params: Params, config: ModelConfig, mesh: Mesh | None
) -> dict[str, Any]:
  """Casts to the compute dtype, once instead of at every step; int8 stays int8.

  Leaves that lie on `mesh` already stay as they are; others are split over `tensor`
  if that is above 1, and replicated otherwise. Leaves that need neither cast nor copy
  are kept: call this again after a step that donates them. On a CPU matrices are laid
  as [out, in], which is a copy, unless they are split over `tensor`.
  """
  ready = cast_for_inference(unstack_layers(params, config), config.dtype)
  if runs_on_cpu(mesh) and (mesh is None or mesh.shape["tensor"] == 1):
    ready = transpose_matrices(ready)
  if mesh is None:
    return ready
  if mesh.shape["tensor"] > 1:
    shardings = param_shardings(mesh, ready)
  else:
    whole = replicated(mesh)
    shardings = jax.tree.map(lambda leaf: whole, ready)

  def place(leaf: jax.Array, sharding: NamedSharding) -> jax.Array:
    placed = leaf.sharding
    if isinstance(placed, NamedSharding) and placed.mesh == mesh:
      return leaf
    return jax.device_put(leaf, sharding)

  return jax.tree.map(place, ready, shardings)


def runs_on_cpu(mesh: Mesh | None) -> bool:
  """Tells whether programs on the mesh, or on the default device, run on a CPU."""
  device = jax.devices()[0] if mesh is None else mesh.devices.flat[0]
  return device.platform == "cpu"
