"""Whole searches in mode "comb" on a process whose truth is known, as files.

What is drawn is a function of the key path, so that searches whose branches end in
another order, or that die and go on, must end with the same files.
"""

import json
import random

from phi4_jax.common.sampler import BatchedBranches
from phi4_jax.pts.analytic import AnalyticProcess, AnalyticSampler, make_process
from phi4_jax.pts.find import find_pivotal_tokens
from phi4_jax.pts.search import SearchConfig

SEED = 4
CONFIG = SearchConfig(rollouts_per_question=16)
FILES = (
  *("settings.json", "rollouts.jsonl", "questions.jsonl", "hypotheses.jsonl"),
  *("pivotal_tokens.jsonl", "pairs.jsonl", "traces.jsonl"),
)


class DiedError(Exception):
  pass


class Shuffled:
  """Ends branches in another order; dies after so many; notes what it drew."""

  can_exclude = True

  def __init__(self, process, order=None, dies_after=None, places=37):
    self.drawn = []
    sampler = AnalyticSampler(process, SEED)
    self.law = sampler.law
    self._inner = BatchedBranches(sampler, rows_per_call=places, can_exclude=True)
    self._order = None if order is None else random.Random(order)
    self._dies_after = dies_after

  def run(self, branches):
    branches = list(branches)
    if self._order is not None:
      self._order.shuffle(branches)
    for branch, completion in self._inner.run(iter(branches)):
      if len(self.drawn) == self._dies_after:
        raise DiedError
      self.drawn.append(branch.key_path)
      yield branch, completion


class Searches:
  """Searches of the questions of one process."""

  def __init__(self, num_questions, **settings):
    """`settings` are arguments of `find_pivotal_tokens` that all searches have."""
    made = make_process(0, num_steps=16, forks=0.12)
    self.process = AnalyticProcess(
      made.probs, made.next_states, made.rewards, num_questions=num_questions
    )
    self._settings = settings

  def sampler(self, *args, **kwargs):
    return Shuffled(self.process, *args, **kwargs)

  def find(self, out_dir, sampler=None, config=CONFIG, **kwargs):
    """Returns the counts of a search without its time, which is never the same."""
    found = find_pivotal_tokens(
      sampler or AnalyticSampler(self.process, SEED),
      self.process.questions,
      self.process,
      config,
      out_dir=out_dir,
      seed=SEED,
      **self._settings | kwargs,
    )
    assert found.pop("seconds") >= 0
    return found


def read(folder, name):
  return [json.loads(line) for line in (folder / name).open()]


def assert_same_files(first, second):
  for name in FILES:
    assert (first / name).read_bytes() == (second / name).read_bytes(), name
