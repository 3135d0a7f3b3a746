"""The sampling law refuses nonsense; the scripted sampler keeps the protocol."""

import dataclasses

import pytest

from phi4_jax.common.errors import ConfigError
from phi4_jax.common.sampler import (
  BatchedBranches,
  Branch,
  BranchSampler,
  Completion,
  Sampler,
  SamplingLaw,
  ScriptedSampler,
  as_branches,
)


@pytest.mark.parametrize(
  "settings, message",
  [
    ({"temperature": -0.1}, r"SamplingLaw\.temperature \(-0\.1\) must be 0 or more"),
    ({"top_k": -1}, r"SamplingLaw\.top_k \(-1\) must be 0 or more"),
    ({"top_p": 0.0}, r"SamplingLaw\.top_p \(0\.0\) must lie in \(0, 1\]"),
    ({"top_p": 1.5}, r"SamplingLaw\.top_p \(1\.5\)"),
    ({"max_length": 1}, r"SamplingLaw\.max_length \(1\) must be 2 or more"),
  ],
)
def test_law_refuses(settings, message):
  with pytest.raises(ConfigError, match=message):
    SamplingLaw(**({"max_length": 8} | settings))


def test_law_is_a_frozen_value():
  law = SamplingLaw(max_length=8)
  assert (law.temperature, law.top_k, law.top_p) == (1.0, 0, 1.0)
  assert hash(law) == hash(SamplingLaw(max_length=8))
  with pytest.raises(dataclasses.FrozenInstanceError):
    law.top_k = 3


def _draw(sampler: Sampler) -> list[Completion]:
  return sampler.sample([[1, 2], [1, 2, 3, 4]], [(0, 0), (5, 1)])


def test_scripted_sampler_answers_by_prefix_and_path():
  seen = []

  def answer(prefix, path):
    seen.append((prefix, path))
    return [7, 9] if path[1] else [7, 7, 7, 7, 7, 7]

  law = SamplingLaw(max_length=6)
  sampler = ScriptedSampler(answer, law, stop_ids=[9])
  assert sampler.law is law
  cut, stopped = _draw(sampler)
  assert seen == [((1, 2), (0, 0)), ((1, 2, 3, 4), (5, 1))]
  # The cap counts the prefix, so that four tokens are left to the first row.
  assert cut == Completion(token_ids=(7,) * 4, logprobs=(0.0,) * 4, finish="length")
  assert stopped == Completion(token_ids=(7, 9), logprobs=(0.0, 0.0), finish="stop")


def test_a_stop_token_beyond_the_cap_does_not_count():
  law = SamplingLaw(max_length=5)
  sampler = ScriptedSampler(lambda prefix, path: [7, 7, 7, 9], law, stop_ids=[9])
  assert [completion.finish for completion in _draw(sampler)] == ["length", "length"]


def test_prefixes_and_paths_must_pair():
  sampler = ScriptedSampler(lambda prefix, path: [], SamplingLaw(max_length=5))
  with pytest.raises(ValueError):
    sampler.sample([[1]], [(0,), (1,)])


def test_a_branch_names_its_prefix():
  branch = Branch(text=(5, 6, 7, 8), position=2, first_id=9, key_path=(0,))
  assert branch.prefix_ids == (5, 6, 9)
  assert branch.prefix_length == 3
  assert Branch(text=(5, 6), position=2, key_path=(0,)).prefix_ids == (5, 6)


def test_branches_of_a_plain_sampler_come_in_calls_of_so_many_rows():
  calls = []

  class Counting(ScriptedSampler):
    def sample(self, prefixes, key_paths):
      calls.append(len(prefixes))
      return super().sample(prefixes, key_paths)

  law = SamplingLaw(max_length=8)
  sampler = Counting(lambda prefix, path: (prefix[-1], *path), law)
  batched = BatchedBranches(sampler, rows_per_call=2, can_exclude=False)
  branches = [Branch(text=(4, 5), position=1, key_path=(k,)) for k in range(3)]
  found = list(batched.run(iter(branches)))
  assert [branch for branch, _ in found] == branches
  assert [completion.token_ids for _, completion in found] == [(4, 0), (4, 1), (4, 2)]
  assert calls == [2, 1]
  assert isinstance(batched, BranchSampler) and not isinstance(sampler, BranchSampler)


def test_a_sampler_that_cannot_exclude_says_so():
  sampler = ScriptedSampler(lambda prefix, path: (1,), SamplingLaw(max_length=8))
  batched = BatchedBranches(sampler, rows_per_call=2, can_exclude=False)
  branch = Branch(text=(4,), position=1, key_path=(0,), excluded_id=3)
  with pytest.raises(ValueError, match="ScriptedSampler cannot exclude"):
    list(batched.run([branch]))


def test_branches_are_read_only_when_there_is_room():
  read = []

  def source():
    for k in range(10):
      read.append(k)
      yield Branch(text=(4,), position=1, key_path=(k,))

  sampler = ScriptedSampler(lambda prefix, path: (1,), SamplingLaw(max_length=8))
  batched = BatchedBranches(sampler, rows_per_call=2, can_exclude=False)
  next(batched.run(source()))
  assert read == [0, 1]


def test_calls_need_rows():
  with pytest.raises(ConfigError, match="rows_per_call"):
    BatchedBranches(None, rows_per_call=0, can_exclude=False)


class _Plain:
  law = SamplingLaw(max_length=8)

  def sample(self, prefixes, key_paths):
    return []


class _Excluding(_Plain):
  def sample(self, prefixes, key_paths, excluded_ids=None):
    return []


def test_a_branch_sampler_is_taken_as_it_is():
  batched = BatchedBranches(_Plain(), rows_per_call=2, can_exclude=False)
  assert as_branches(batched, rows_per_call=4) is batched


def test_a_plain_sampler_can_exclude_if_it_takes_ids_to_exclude():
  for sampler, can in ((_Plain(), False), (_Excluding(), True)):
    adapted = as_branches(sampler, rows_per_call=4)
    assert isinstance(adapted, BatchedBranches) and adapted.can_exclude is can


def test_an_adapted_sampler_needs_rows():
  batched = BatchedBranches(_Plain(), rows_per_call=2, can_exclude=False)
  for sampler in (_Plain(), batched):
    with pytest.raises(ConfigError, match=r"rows_per_call \(0\)"):
      as_branches(sampler, rows_per_call=0)
