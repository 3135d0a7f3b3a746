"""Orders of rows: exact shares at every point, and epochs that are permutations."""

import grain
import numpy as np
import pytest

from phi4_jax.data.mixture import RowPlan, mix_rows, shuffle_epochs


@pytest.mark.parametrize(
  "weights",
  [[0.3, 0.1], [1.0, 2.0, 4.0], [0.15, 0.7, 0.15], [0.9999, 0.0001], [1 / 3, 0.5]],
)
def test_mixture_is_exact_at_every_point(weights):
  plan = RowPlan([10**9] * len(weights), weights)
  counts = [0] * len(weights)
  for k in range(12_000):
    dataset, index = plan[k]
    assert index == counts[dataset]  # every row of a dataset in turn, none left out
    counts[dataset] += 1
    if k % 97 == 0 or k == 11_999:
      for count, weight in zip(counts, weights, strict=True):
        assert abs(count - (k + 1) * weight / sum(weights)) < len(weights)


@pytest.mark.parametrize("lengths", [[5, 5, 50], [1, 100, 100], [40, 3, 7]])
def test_a_mixture_never_runs_over_its_first_end(lengths):
  plan = RowPlan(lengths, [0.5, 0.3, 0.2])
  counts = [0, 0, 0]
  for k in range(len(plan)):
    counts[plan[k][0]] += 1
  assert all(count <= length for count, length in zip(counts, lengths, strict=True))
  # It could not have gone on for much longer, either.
  assert any(count >= length - 2 for count, length in zip(counts, lengths, strict=True))


def test_one_dataset_needs_no_plan():
  rows = grain.MapDataset.range(5)
  assert mix_rows([rows], [0.7]) is rows


@pytest.mark.parametrize("count", [1, 2, 7, 300, 5000])
def test_each_epoch_is_a_permutation_of_its_own(count):
  rows = shuffle_epochs(grain.MapDataset.range(count), seed=3, epochs=2)
  assert len(rows) == 2 * count
  order = np.asarray([rows[i] for i in range(2 * count)]).reshape(2, count)
  assert (np.sort(order, axis=1) == np.arange(count)).all()
  if count > 2:
    assert (order[0] != order[1]).any() and (order[0] != np.arange(count)).any()
    other = shuffle_epochs(grain.MapDataset.range(count), seed=4, epochs=2)
    assert [other[i] for i in range(count)] != order[0].tolist()


def test_shuffles_never_change_between_versions():
  """A saved run has to go on in the same order after an upgrade."""
  small = shuffle_epochs(grain.MapDataset.range(8), seed=1, epochs=None)
  large = shuffle_epochs(grain.MapDataset.range(5000), seed=1, epochs=None)
  assert [small[i] for i in range(8, 16)] == [7, 1, 6, 3, 5, 0, 2, 4]
  assert [large[i] for i in range(5000, 5004)] == [1982, 1510, 1976, 1895]


def test_a_small_shuffle_is_uniform():
  rows = shuffle_epochs(grain.MapDataset.range(4), seed=0, epochs=None)
  counts = np.zeros((4, 4))
  for epoch in range(400):
    for i in range(4):
      counts[i, rows[4 * epoch + i]] += 1
  assert abs(counts / 400 - 0.25).max() < 0.1
