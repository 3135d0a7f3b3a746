import jax
import numpy as np
import optax
import pytest

from phi4_jax.common.errors import CheckpointError
from phi4_jax.training.checkpoint_tree import (
  check_fits,
  from_nested,
  leaf_names,
  to_nested,
)


def shapes(tree):
  return jax.tree.map(lambda s: jax.ShapeDtypeStruct(*s), tree, is_leaf=is_pair)


def is_pair(x):
  return isinstance(x, tuple) and len(x) == 2 and isinstance(x[1], type)


def test_nested_form_has_names_only():
  assert to_nested((1, {"y": [2, 3]})) == {"0": 1, "1": {"y": {"0": 2, "1": 3}}}
  assert leaf_names((1, {"y": [2, 3]})) == ["0", "1/y/0", "1/y/1"]


def test_round_trip_of_an_optimizer_state():
  tx = optax.chain(optax.clip(1.0), optax.adam(1e-3))
  state = tx.init({"w": np.ones((2, 3)), "b": np.ones(3)})
  back = from_nested(to_nested(state), state)
  assert jax.tree.structure(back) == jax.tree.structure(state)
  assert all(
    a is b for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(state), strict=True)
  )


def test_all_differences_are_named_together():
  saved = shapes({"params": {"a": ((2, 3), float), "b": ((4,), int), "c": ((), int)}})
  wanted = shapes(
    {"params": {"a": ((2, 5), float), "b": ((4,), float), "d": ((), int)}}
  )
  with pytest.raises(CheckpointError) as caught:
    check_fits(saved, wanted, where="runs/x/step_7", same_dtype=True)
  text = str(caught.value)
  assert "runs/x/step_7 does not fit: 4 leaves differ" in text
  assert "params/a: [2, 3] in the checkpoint, [2, 5] wanted" in text
  assert "params/b: " in text and "wanted" in text
  assert "params/c: in the checkpoint as [], but not wanted" in text
  assert "params/d: not in the checkpoint, but wanted as []" in text
  assert "ModelConfig differs" in text


def test_dtype_may_differ_where_it_is_converted():
  saved, wanted = shapes({"a": ((2,), float)}), shapes({"a": ((2,), int)})
  check_fits(saved, wanted, where="x", same_dtype=False)
  with pytest.raises(CheckpointError, match="1 leaves differ"):
    check_fits(saved, wanted, where="x", same_dtype=True)


def test_long_lists_are_cut_and_the_guard_is_named():
  saved = shapes({"guard": {f"leaf{i:02d}": ((1,), int) for i in range(20)}})
  wanted = shapes({"guard": {f"leaf{i:02d}": ((2,), int) for i in range(20)}})
  with pytest.raises(CheckpointError, match=r"and 8 more\nLikely.*GuardConfig.window"):
    check_fits(saved, wanted, where="x", same_dtype=True)
