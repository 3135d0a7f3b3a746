"""Is the state split as far as the mesh promises?

A rule that is missing in a table of shardings costs no error: the leaf is whole on
every device, and a large run dies of it hours later or on the first larger model.
"""

import math
from typing import Any

import jax

from phi4_jax.common.errors import ConfigError

# Norms and counters are whole on purpose; they are far below a percent of a model.
MAX_WHOLE_SHARE = 0.02


def check_sufficiently_sharded(state: Any, mesh: jax.sharding.Mesh) -> None:
  """Refuses a state of which too much is whole on every device.

  Counts what a device holds beyond its equal share of the leaves, as a part of all
  leaves. Replicas along `data` are meant and do not count.

  Args:
    state: (abstract) arrays with shardings on `mesh`.
    mesh: where they lie.

  Raises:
    ConfigError: if more than 2% could be split over `fsdp` and `tensor` and is not;
      names the largest such leaves.
  """
  parts = mesh.shape["fsdp"] * mesh.shape["tensor"]
  if parts == 1:
    return
  total, excess = 0, {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(state):
    size = math.prod(leaf.shape) * leaf.dtype.itemsize
    held = math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    total += size
    # A device holds 1/parts of a leaf that is split as far as it goes.
    if held > size / parts:
      excess[jax.tree_util.keystr(path)] = (held - size / parts) / (1 - 1 / parts)
  share = sum(excess.values()) / max(total, 1)
  if share <= MAX_WHOLE_SHARE:
    return
  largest = sorted(excess, key=excess.__getitem__, reverse=True)[:4]
  raise ConfigError(
    f"{share:.0%} of the training state would be whole on every device instead of "
    f"split over {parts} (MeshConfig.fsdp {mesh.shape['fsdp']} x tensor "
    f"{mesh.shape['tensor']}). Largest: {', '.join(largest)}. Choose sizes that divide "
    "these leaves, or add them to PARAM_SPECS in phi4_jax/model/sharding.py."
  )
