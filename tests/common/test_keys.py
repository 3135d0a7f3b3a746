"""A draw's key is its path folded into the root, whatever else is drawn."""

import jax
import numpy as np
import pytest

from phi4_jax.common.keys import fold_in_path, make_row_keys


def test_fold_in_path_folds_left_to_right():
  key = jax.random.key(0)
  by_hand = jax.random.fold_in(jax.random.fold_in(key, 3), 1)
  assert fold_in_path(key, (3, 1)) == by_hand
  assert fold_in_path(key, (1, 3)) != by_hand
  assert fold_in_path(key, ()) == key


def test_row_keys_are_the_folded_keys():
  paths = [(3, 1), (0, 0), (2**32 - 1, 7)]
  rows = make_row_keys(11, paths)
  assert rows.shape == (3, 2) and rows.dtype == np.uint32
  for row, path in zip(rows, paths, strict=True):
    key = fold_in_path(jax.random.key(11), path)
    np.testing.assert_array_equal(row, jax.random.key_data(key))


def test_a_key_does_not_depend_on_the_rest_of_the_call():
  alone = make_row_keys(0, [(5, 2)])[0]
  among = make_row_keys(0, [(1, 1), (5, 2), (5, 3)])[1]
  np.testing.assert_array_equal(alone, among)


def test_keys_differ_by_seed_and_path():
  paths = [(a, b) for a in range(20) for b in range(20)]
  rows = np.concatenate([make_row_keys(seed, paths) for seed in (0, 1)])
  assert len(np.unique(rows, axis=0)) == 800


def test_unusable_paths_are_refused():
  with pytest.raises(ValueError, match=r"one length, got \[1, 2\]"):
    make_row_keys(0, [(1,), (1, 2)])
  with pytest.raises(ValueError, match="must not be negative, got -4"):
    make_row_keys(0, [(1, 2), (3, -4)])
