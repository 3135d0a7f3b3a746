"""Stopping and going on changes nothing, to the last bit."""

import json

import jax

from phi4_jax.training.checkpoint import CheckpointConfig, Checkpoints
from phi4_jax.training.guard import GuardConfig
from phi4_jax.training.loop import train
from phi4_jax.training.losses import make_language_model_loss
from phi4_jax.training.metrics import MetricsWriter
from phi4_jax.training.optimizer import OptimizerConfig, make_optimizer, make_schedule
from phi4_jax.training.state import abstract_state, create_state
from phi4_jax.training.step import make_train_step
from tests.training.problems import (
  TINY_MODEL,
  assert_trees_equal,
  mesh_of,
  tiny_params,
  token_batch,
)

PARAMS = tiny_params()
NUM_STEPS = 7
STOP = 4
OPTIMIZER = OptimizerConfig(peak_lr=0.01, warmup_steps=2)
GUARD = GuardConfig(window=4, num_std=3.0)


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
  mesh = mesh_of(2, 4)
  tx = make_optimizer(OPTIMIZER, NUM_STEPS)
  options = {"tx": tx, "guard": GUARD, "mesh": mesh}
  wanted = abstract_state(lambda p: p, PARAMS, **options)
  batches = Batches()
  with Checkpoints(directory, CheckpointConfig(every_steps=STOP)) as checkpoints:
    restored = checkpoints.restore(wanted)
    if restored is None:
      state, first = create_state(lambda p: p, PARAMS, **options), 0
    else:
      state, first = restored.state, restored.step
      batches.position = restored.data_state["position"]
    step = make_train_step(
      make_language_model_loss(TINY_MODEL, num_loss_chunks=1),
      tx,
      mesh=mesh,
      state_shardings=jax.tree.map(lambda x: x.sharding, wanted),
      num_microbatches=2,
      guard=GUARD,
      schedule=make_schedule(OPTIMIZER, NUM_STEPS),
    )
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
