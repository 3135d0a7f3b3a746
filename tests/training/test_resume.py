"""Stopping and going on changes nothing, to the last bit."""

import json

from phi4_jax.training.checkpoint import CheckpointConfig, Checkpoints
from phi4_jax.training.loop import train
from phi4_jax.training.metrics import MetricsWriter
from tests.training.problems import (
  assert_trees_equal,
  mesh_of,
  tiny_model_run,
  token_batch,
)

NUM_STEPS = 7
STOP = 4


class Batches:
  """An endless stream of batches whose whole state is one integer."""

  def __init__(self, position=0):
    self.position = position

  def __next__(self):
    self.position += 1
    batch = token_batch(seed=self.position, rows=16)
    if self.position == 3:  # one that the guard refuses, before the stop
      batch["loss_weights"] = batch["loss_weights"] * float("nan")
    return batch


def run(directory, until_step):
  """One process of a run, all objects new: restore, train, save, log."""
  step, wanted, first_state = tiny_model_run(
    mesh_of(2, 4), num_microbatches=2, num_steps=NUM_STEPS
  )
  batches = Batches()
  with Checkpoints(directory, CheckpointConfig(every_steps=STOP)) as checkpoints:
    restored = checkpoints.restore(wanted)
    if restored is None:
      state, first = first_state(), 0
    else:
      state, first = restored.state, restored.step
      batches.position = restored.data_state["position"]
    with MetricsWriter(directory / "metrics", resume_step=first) as writer:
      for record in train(state, batches, step, until_step=until_step):
        writer.write(record.step, record.metrics)
        if checkpoints.is_due(record.step):
          checkpoints.save(
            record.step, record.state, {"position": batches.position}, {}
          )
    assert step.num_compilations() == 1
  return first, record.state


def logged(directory):
  lines = (directory / "metrics" / "metrics.jsonl").read_text().splitlines()
  records = [json.loads(line) for line in lines]
  return [
    {name: v for name, v in record.items() if not name.startswith(("time/", "perf/"))}
    for record in records
  ]


def test_resumed_equals_straight(tmp_path):
  first, straight = run(tmp_path / "straight", NUM_STEPS)
  assert first == 0
  run(tmp_path / "resumed", STOP + 2)  # two steps are lost and made again
  first, resumed = run(tmp_path / "resumed", NUM_STEPS)
  assert first == STOP
  assert_trees_equal(straight, resumed)
  assert int(resumed.guard.num_nonfinite) == 1
  records = logged(tmp_path / "straight")
  assert [record["step"] for record in records] == list(range(1, NUM_STEPS + 1))
  assert logged(tmp_path / "resumed") == records
