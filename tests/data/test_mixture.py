"""Orders of rows: exact shares at every point, and epochs that are permutations."""

import sys

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
  # It could not have gone on for one row more.
  more = RowPlan([None] * 3, [0.5, 0.3, 0.2])[len(plan)][0]
  assert counts[more] == lengths[more]


@pytest.mark.parametrize("lengths", [[5, 5, 50], [1, 100, 100], [40, 3, 7], [0, 2, 9]])
def test_others_take_the_share_of_what_has_run_out(lengths):
  weights = [0.5, 0.3, 0.2]
  plan = RowPlan(lengths, weights, renormalize=True)
  assert len(plan) == sum(lengths)  # every row exactly once
  found = [plan[k] for k in range(len(plan))]
  for dataset, length in enumerate(lengths):
    assert [i for d, i in found if d == dataset] == list(range(length))
  for k in range(len(plan) + 1):
    expected = [sum(d == dataset for d, _ in found[:k]) for dataset in range(3)]
    assert plan.counts(k) == expected


def test_the_rest_keep_their_weights():
  plan = RowPlan([5, 90, 90], [0.5, 0.3, 0.2], renormalize=True)
  found = [plan[k][0] for k in range(60)]
  after = max(k for k, dataset in enumerate(found) if dataset == 0) + 1
  assert after == 9  # the fifth row of dataset 0; it would have had the eleventh, too
  tail = found[10:60]
  assert [tail.count(dataset) for dataset in (1, 2)] == [30, 20]


def test_an_endless_dataset_takes_over():
  plan = RowPlan([3, None], [0.75, 0.25], renormalize=True)
  found = [plan[k] for k in range(10)]
  assert [i for d, i in found if d == 0] == [0, 1, 2]
  assert [i for d, i in found if d == 1] == list(range(7))
  assert plan[10**15] == (1, 10**15 - 3)
  assert plan.counts(10**15) == [3, 10**15 - 3]
  assert len(plan) == sys.maxsize


def test_counts_are_those_of_the_rows():
  plan = RowPlan([None] * 3, [1 / 3, 0.5, 0.05])
  counts = [0, 0, 0]
  for k in range(3000):
    assert plan.counts(k) == counts
    counts[plan[k][0]] += 1


def test_one_dataset_needs_no_plan():
  rows = grain.MapDataset.range(5)
  assert mix_rows([rows], RowPlan([5], [0.7])) is rows


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
