"""Who stands in which row, and what is read for it, on a made-up device."""

import itertools
import random
from typing import Any

import numpy as np
import pytest

from phi4_jax.common.sampler import Branch, SamplingLaw
from phi4_jax.sampling.engine_bases import Bases, Copy
from phi4_jax.sampling.engine_schedule import Schedule, make_job
from phi4_jax.sampling.engine_shapes import EngineShapes, derive_shapes
from tests.model.tiny import tiny_config

# Tokens of GSM8K's test answers by SmolLM2's vocabulary: mean 127, median 117.
LOG_MEAN, LOG_DEVIATION, LONGEST = 4.756, 0.423, 415


def make_shapes(**sizes) -> EngineShapes:
  config = tiny_config(
    vocab_size=8,
    hidden_size=8,
    intermediate_size=8,
    num_hidden_layers=1,
    num_attention_heads=1,
    num_key_value_heads=1,
    max_position_embeddings=1024,
  )
  settings: dict[str, Any] = {"batch_size": 64, "prompt_chunk": 4}
  return derive_shapes(config, SamplingLaw(max_length=1024), **(settings | sizes))


class FakeDevice:
  """Rows that take a known number of steps, in place of programs."""

  def __init__(self, shapes: EngineShapes, block_steps: int):
    self.left = np.zeros(shapes.num_rows, int)
    self.block_steps = block_steps
    self.row_steps = self.busy_steps = self.blocks = 0

  def run(self, allowed_idle: int) -> list[int]:
    """Steps until too many rows stand idle; returns those that have finished."""
    before = self.left > 0
    for _ in range(self.block_steps):
      busy = self.left > 0
      if not busy.any() or (~busy).sum() > allowed_idle:
        break
      self.left -= busy
      self.row_steps += len(busy)
      self.busy_steps += busy.sum()
    self.blocks += 1
    return np.flatnonzero(before & (self.left == 0)).tolist()


def simulate(shapes: EngineShapes, branches, lengths) -> tuple[FakeDevice, int, int]:
  """Runs a queue as `RolloutEngine._advance` does.

  Returns the device, tokens of texts read, and branches finished.
  """
  bases = Bases(shapes)
  schedule = Schedule(shapes, bases)
  device = FakeDevice(shapes, shapes.block_steps)
  schedule.start(
    branches, lambda part: [make_job(branch, None) for branch in part], per_read=128
  )
  num_read = finished = 0
  while True:
    schedule.read_ahead()
    placed = schedule.place()
    wanted = schedule.wanted(placed)
    while wanted:
      _, chunks = bases.plan(wanted)
      if not chunks:
        break
      for chunk in chunks:
        bases.note(chunk, None)
        num_read += len(chunk.ids)
    for row, job in placed:
      assert bases.num_read(row // shapes.rows_per_group) >= job.cut
      device.left[row] = lengths[job.branch.key_path]
    idle = shapes.num_rows - schedule.num_running
    allowed = shapes.num_rows
    if not schedule.is_drained:
      allowed = idle + shapes.allowed_idle
    for row in device.run(allowed):
      schedule.release(row)
      finished += 1
    if schedule.is_drained and not schedule.num_running:
      return device, num_read, finished


def draw_lengths(count: int, seed: int) -> np.ndarray:
  normal = np.random.default_rng(seed).normal(LOG_MEAN, LOG_DEVIATION, count)
  return np.clip(np.exp(normal), 1, LONGEST).astype(int)


@pytest.mark.parametrize(
  "rows_per_group, rollouts, questions",
  [(2, 64, 40), (8, 256, 10), (1, 1, 2560)],
  ids=["search", "reference", "evaluation"],
)
def test_rows_are_busy_on_lengths_of_gsm8k_answers(rows_per_group, rollouts, questions):
  shapes = make_shapes(rows_per_group=rows_per_group, prompt_chunk=16, allowed_idle=2)
  rng = random.Random(1)
  texts = [tuple(rng.randrange(8) for _ in range(80)) for _ in range(questions)]
  paths = list(itertools.product(range(questions), range(rollouts)))
  drawn = draw_lengths(len(paths), seed=2)
  assert drawn.mean() == pytest.approx(127, rel=0.03)
  lengths = dict(zip(paths, drawn, strict=True))
  branches = (Branch(text=texts[q], position=80, key_path=(q, k)) for q, k in paths)
  device, num_read, finished = simulate(shapes, branches, lengths)
  assert finished == len(paths)
  assert device.busy_steps == drawn.sum()
  assert device.busy_steps / device.row_steps >= 0.9
  assert num_read == questions * 80  # every text once


def test_steps_stop_for_work_and_not_for_its_end():
  """Rows are refilled long before all have finished; the last ones run together."""
  shapes = make_shapes(rows_per_group=64, block_steps=1000, allowed_idle=0)
  branches = [Branch(text=(1, 2), position=2, key_path=(i,)) for i in range(65)]
  lengths = {(i,): 10 + i for i in range(65)}
  device, _, _ = simulate(shapes, branches, lengths)
  assert device.blocks == 2
  assert device.row_steps == 64 * (10 + 74)


def test_the_queue_is_read_a_bounded_distance_ahead():
  shapes = make_shapes(rows_per_group=8)
  read = []

  def queue():
    for i in itertools.count():
      read.append(i)
      yield Branch(text=(i % 4, 2), position=1, key_path=(i,))

  schedule = Schedule(shapes, Bases(shapes))
  schedule.start(queue(), lambda part: [make_job(b, None) for b in part], per_read=16)
  schedule.read_ahead()
  placed = schedule.place()
  assert len(placed) == 64 and len(read) == 32 * 64
  schedule.read_ahead()
  assert len(read) == 33 * 64
  assert sorted(schedule.clear()) == sorted(row for row, _ in placed)
  assert schedule.is_drained and schedule.num_running == 0


def test_reading_ahead_ends_when_every_group_has_a_text_of_its_own():
  shapes = make_shapes(rows_per_group=8)
  branches = (
    Branch(text=(i // 32, 2), position=1, key_path=(i,)) for i in range(10**4)
  )
  schedule = Schedule(shapes, Bases(shapes))
  schedule.start(branches, lambda part: [make_job(b, None) for b in part], per_read=16)
  schedule.read_ahead()
  assert schedule.num_waiting == 8 * 32 + 16
  texts = [job.branch.text for _, job in schedule.place()]
  assert texts == [(i, 2) for i in range(8) for _ in range(8)]


def test_equal_texts_share_a_group_though_they_are_not_the_same_object():
  shapes = make_shapes(rows_per_group=8)
  schedule = Schedule(shapes, Bases(shapes))
  branches = [
    Branch(text=tuple([1, 2, 3]), position=3, key_path=(i,)) for i in range(8)
  ]
  schedule.start(branches, lambda part: [make_job(b, None) for b in part], per_read=8)
  schedule.read_ahead()
  rows = {row // 8 for row, _ in schedule.place()}
  assert rows == {0}


def plan_all(bases: Bases, wanted: dict[int, int]) -> tuple[list[Any], list[Any]]:
  """Reads everything; returns all copies and chunks in order."""
  copies, chunks = [], []
  while True:
    more_copies, more_chunks = bases.plan(wanted)
    copies += more_copies
    chunks += more_chunks
    if not more_chunks:
      return copies, chunks
    for chunk in more_chunks:
      bases.note(chunk, None)


def test_a_text_is_read_in_chunks_up_to_what_is_wanted():
  bases = Bases(make_shapes())
  text = tuple(range(10))
  bases.give(0, text)
  _, chunks = plan_all(bases, {0: 5})
  assert [(c.start, c.ids) for c in chunks] == [(0, text[:4]), (4, text[4:8])]
  assert plan_all(bases, {0: 8}) == ([], [])
  _, chunks = plan_all(bases, {0: 10})
  assert [(c.start, c.ids) for c in chunks] == [(8, text[8:])]
  assert bases.num_read(0) == 10


def test_what_two_texts_share_is_kept_and_copied():
  bases = Bases(make_shapes())
  first, second = (0, 1, 2, 3, 4, 5, 6, 7), (0, 1, 2, 3, 9, 9, 9, 9)
  bases.give(0, first)
  plan_all(bases, {0: 8})
  # The same group: what is shared in whole chunks stays.
  bases.give(0, second)
  copies, chunks = plan_all(bases, {0: 8})
  assert not copies and [c.start for c in chunks] == [4]
  # Another group: everything is copied, nothing read.
  bases.give(3, second)
  copies, chunks = plan_all(bases, {3: 8})
  assert copies == [Copy(source=0, target=3)] and not chunks
  assert bases.count_gained(5, (0, 1, 2, 3, 4)) == 4
  # Nobody holds the first text any more.
  assert bases.count_gained(5, first) == 4


def test_one_of_many_groups_reads_and_the_others_copy():
  bases = Bases(make_shapes())
  text = tuple(range(8))
  for group in range(4):
    bases.give(group, text)
  copies, chunks = plan_all(bases, dict.fromkeys(range(4), 8))
  assert len(chunks) == 2 and {c.group for c in chunks} == {0}
  assert {copy.target for copy in copies} == {1, 2, 3}
  assert all(bases.num_read(group) == 8 for group in range(4))


def run_round(bases: Bases, shapes: EngineShapes, texts) -> int:
  """Gives groups these texts in turn; returns how many of them are read."""
  bases.start_run()
  reads = 0
  for number, text in enumerate(texts):
    group = number % shapes.groups
    bases.give(group, text)
    reads += bool(plan_all(bases, {group: len(text)})[1])
  return reads


@pytest.mark.parametrize("places", [0, 8, 32, 60, 96])
def test_a_store_serves_its_share_of_texts_that_come_in_turn(places):
  """Of N texts C are found in every round, and all of them when they fit."""
  shapes = make_shapes(batch_size=8, held_texts=places)
  bases = Bases(shapes)
  texts = [(number % 8, number // 8, 1, 2, 3) for number in range(96)]
  assert run_round(bases, shapes, texts) == len(texts)
  for _ in range(5):
    # No text is found in one of the two groups here.
    assert run_round(bases, shapes, texts) == len(texts) - places


def test_rounds_of_two_kinds_keep_each_others_texts():
  shapes = make_shapes(batch_size=8, held_texts=20)
  bases = Bases(shapes)
  kinds = [[(kind, number % 8, number // 8) for number in range(10)] for kind in (0, 1)]
  for texts in kinds:
    assert run_round(bases, shapes, texts) == 10
  for number in range(6):
    assert run_round(bases, shapes, kinds[number % 2]) == 0
  # And lose them when they are not asked for any more.
  other = [(2, number % 8, number // 8) for number in range(20)]
  reads = [run_round(bases, shapes, other) for _ in range(4)]
  assert reads[0] == 20 and reads[-1] == 0 and reads == sorted(reads, reverse=True)


def test_a_text_does_not_take_the_place_of_one_that_was_asked_for_later():
  shapes = make_shapes(held_texts=1)
  bases = Bases(shapes)
  old, held, new = (1, 1, 1), (2, 2, 2), (3, 3, 3)
  bases.start_run()
  bases.give(1, old)
  plan_all(bases, {1: 3})
  bases.start_run()
  bases.start_run()
  for text in (held, new):
    bases.give(0, text)
    plan_all(bases, {0: 3})
  for _ in range(3):
    bases.start_run()
  bases.give(1, new)
  plan_all(bases, {1: 3})
  assert bases.count_gained(0, held) == 3 and bases.count_gained(0, old) == 0
  # One that was asked for as late takes it.
  bases.give(0, (4, 4, 4))
  plan_all(bases, {0: 3})
  bases.give(1, (4, 4, 4))
  plan_all(bases, {1: 3})
  assert bases.count_gained(0, held) == 0 and bases.count_gained(0, new) == 3


def test_a_longer_text_takes_the_place_of_its_beginning():
  shapes = make_shapes(batch_size=8, held_texts=1)
  bases = Bases(shapes)
  prompt, response = (1, 2, 3, 4, 5, 6), (1, 2, 3, 4, 5, 6, 7, 7, 7, 7)
  others = [(5, 5), (6, 6), (7, 7)]
  run_round(bases, shapes, [prompt, *others, response, *others])
  assert run_round(bases, shapes, [response]) == 0
  assert bases.count_gained(0, prompt) == 4


def test_a_broken_token_is_remembered_by_whoever_holds_it():
  bases = Bases(make_shapes())
  text = tuple(range(8))
  bases.give(0, text)
  for bad_at in (None, 2):
    (chunk,) = bases.plan({0: 8})[1]
    bases.note(chunk, bad_at)
  bases.give(1, text)
  plan_all(bases, {1: 8})
  assert bases.bad_from(0) == bases.bad_from(1) == 6
  bases.give(1, text[:4])
  assert bases.bad_from(1) is None
  bases.forget()
  assert bases.num_read(0) == 0 and bases.bad_from(0) is None
