"""Complete training runs that nothing was trained in, to start other runs from."""

import dataclasses
import json
from pathlib import Path

from phi4_jax.model.config import ModelConfig
from phi4_jax.training.checkpoint import CheckpointConfig, Checkpoints
from phi4_jax.training.digest import params_digest
from phi4_jax.training.guard import GuardConfig
from phi4_jax.training.optimizer import OptimizerConfig, make_optimizer
from phi4_jax.training.state import create_state
from tests.training.problems import mesh_of


def write_parent(folder: Path, model: ModelConfig, params, *, vocabulary: str) -> Path:
  """Writes what a next stage reads of a finished run: weights, settings, result."""
  guard = GuardConfig()
  tx = make_optimizer(OptimizerConfig(peak_lr=1e-3, warmup_steps=0), 1)
  state = create_state(lambda p: p, params, tx=tx, guard=guard, mesh=mesh_of(1, 1))
  with Checkpoints(
    folder / "checkpoints", CheckpointConfig(every_steps=1)
  ) as checkpoints:
    checkpoints.save(1, state, {}, {})
    checkpoints.wait()
  result = {
    "verb": "sft",
    "vocabulary": vocabulary,
    "checkpoint": "step_00000001",
    "fingerprint": params_digest(state.params),
  }
  config = {"verb": "sft", "config": {"model": dataclasses.asdict(model)}}
  (folder / "config.json").write_text(json.dumps(config))
  (folder / "result.json").write_text(json.dumps(result))
  return folder
