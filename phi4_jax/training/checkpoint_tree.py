"""Names of leaves on disk, and what to say when a checkpoint does not fit.

A state is stored as nested dicts of strings, whatever classes it is made of, so
that a checkpoint does not depend on the version of the optimizer library. Refuses
to know folders and steps.
"""

from collections.abc import Mapping
from typing import Any

import jax

from phi4_jax.common.errors import CheckpointError

_MAX_LINES = 12


def leaf_names(tree: Any) -> list[str]:
  """Returns `a/b/0` style names of the leaves, in the order of flattening."""
  paths = jax.tree_util.tree_leaves_with_path(tree)
  return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths]


def to_nested(tree: Any) -> dict[str, Any]:
  """Turns any pytree into nested dicts with names for keys.

  `(x, {"y": z})` becomes `{"0": x, "1": {"y": z}}`.
  """
  nested: dict[str, Any] = {}
  for name, leaf in zip(leaf_names(tree), jax.tree.leaves(tree), strict=True):
    *parents, last = name.split("/")
    at = nested
    for parent in parents:
      at = at.setdefault(parent, {})
    at[last] = leaf
  return nested


def from_nested(nested: Mapping[str, Any], like: Any) -> Any:
  """Undoes `to_nested`, with the structure of `like`."""
  leaves = []
  for name in leaf_names(like):
    leaf: Any = nested
    for part in name.split("/"):
      leaf = leaf[part]
    leaves.append(leaf)
  return jax.tree.unflatten(jax.tree.structure(like), leaves)


def check_fits(saved: Any, wanted: Any, *, where: str, same_dtype: bool) -> None:
  """Compares shapes (and dtypes) of what is on disk with what is to be filled.

  Args:
    saved: nested dicts whose leaves have `shape` and `dtype`.
    wanted: likewise.
    where: the checkpoint's folder, for the message.
    same_dtype: False allows a conversion on loading.

  Raises:
    CheckpointError: naming every missing, extra and different leaf together.
  """
  old = dict(zip(leaf_names(saved), jax.tree.leaves(saved), strict=True))
  new = dict(zip(leaf_names(wanted), jax.tree.leaves(wanted), strict=True))
  lines = []
  for name in sorted(new.keys() | old.keys()):
    if name not in old:
      shape = list(new[name].shape)
      lines.append(f"{name}: not in the checkpoint, but wanted as {shape}")
    elif name not in new:
      shape = list(old[name].shape)
      lines.append(f"{name}: in the checkpoint as {shape}, but not wanted")
    elif tuple(old[name].shape) != tuple(new[name].shape):
      lines.append(
        f"{name}: {list(old[name].shape)} in the checkpoint, "
        f"{list(new[name].shape)} wanted"
      )
    elif same_dtype and old[name].dtype != new[name].dtype:
      lines.append(
        f"{name}: {old[name].dtype} in the checkpoint, {new[name].dtype} wanted"
      )
  if not lines:
    return
  differ = {line.split(":", 1)[0].split("/", 1)[0] for line in lines}
  shown = [*lines[:_MAX_LINES]]
  if len(lines) > _MAX_LINES:
    shown.append(f"and {len(lines) - _MAX_LINES} more")
  raise CheckpointError(
    f"Checkpoint {where} does not fit: {len(lines)} leaves differ.\n  "
    + "\n  ".join(shown)
    + f"\n{_likely_cause(differ)} The configuration it was made with stands in "
    f"{where}/run.json."
  )


def _likely_cause(groups: set[str]) -> str:
  if "params" in groups:
    return (
      "Likely cause: ModelConfig differs from the one that the checkpoint was made "
      "with (sizes, num_hidden_layers, tie_word_embeddings or scan_layers)."
    )
  if groups == {"guard"}:
    return "Likely cause: GuardConfig.window differs."
  return "Likely cause: another optimizer, or another version of this program."
