"""Consumes a training loop's records: log, save, validate, stop.

The order matters: what is logged is on disk before the checkpoint that covers it,
and a checkpoint is written before anything long (validation) begins.
"""

import io as io_lib
import json
import math
import time
from typing import Any

import jax

from experiments import config as config_lib
from experiments.objective import Objective
from experiments.process import Interrupted, StopRequest
from experiments.run_directory import RunDirectory
from phi4_jax.common import io
from phi4_jax.common.errors import CheckpointError
from phi4_jax.model import counting, lora
from phi4_jax.training import distributed, loop
from phi4_jax.training.checkpoint import Checkpoints
from phi4_jax.training.digest import params_digest
from phi4_jax.training.metrics import MetricsWriter, Throughput, find_peak_flops
from phi4_jax.training.progress import Progress
from phi4_jax.training.step import TrainStep


class NonFiniteLoss(CheckpointError):
  """The loss or its gradient stopped being finite."""


class TrainingRun:
  """One process's part of a run: from a state to the end, or to a signal."""

  def __init__(
    self,
    config: Any,
    directory: RunDirectory,
    objective: Objective,
    checkpoints: Checkpoints,
    step_fn: TrainStep,
    *,
    seconds_before: float,
  ):
    """`config` is a `runner.TrainConfig`; `seconds_before` were spent earlier."""
    self._config = config
    self._directory = directory
    self._objective = objective
    self._loader = objective.loader
    self._checkpoints = checkpoints
    self._step_fn = step_fn
    self._validation = objective.make_validation(step_fn)
    self._seconds_before = seconds_before
    self._processes = distributed.current()
    self._began = time.perf_counter()
    self._last: dict[str, Any] = {}

  def train(self, state) -> dict[str, Any]:
    """Trains, and returns the run's result.

    Raises:
      Interrupted: after a signal; the state has been saved.
      NonFiniteLoss: names the last good checkpoint; nothing after it was saved.
    """
    config = self._config
    peak = find_peak_flops()
    if self._processes.is_first:
      io.write_json(self._directory.path / "peak_flops.json", peak._asdict())
    throughput = Throughput(
      flops_per_token=counting.model_flops_per_token(
        config.model, self._loader.row_length
      )
      if config.lora is None
      else lora.lora_flops_per_token(
        config.model, config.lora, self._loader.row_length
      ),
      peak_flops=peak.flops,
    )
    first = int(state.step)
    # What an earlier process of this run has reported is not reported again.
    known_bad = int(state.guard.num_nonfinite)
    progress = Progress(
      config.verb,
      config.num_steps,
      stream=None if self._processes.is_first else io_lib.StringIO(),
    )
    with (
      StopRequest() as stop,
      MetricsWriter(self._directory.path, resume_step=first) as writer,
    ):
      self._processes.follow_stop(lambda: stop.signum)
      # Process 0 alone knows the records: the others do not write them.
      if self._processes.on_first("validation", lambda: self._lacks_validation(first)):
        self._write_validation(writer, first, state)
      if first < config.num_steps:
        self._meet_compiled(state)
      records = loop.train(
        state, self._loader, self._step_fn, until_step=config.num_steps
      )
      for step, state, metrics in records:
        throughput.count(self._count_tokens(1), metrics)
        signum, last = self._processes.stop_signal(step), step == config.num_steps
        stopping = signum is not None
        validates = self._is_validation_due(step)
        saves = last or stopping or validates or self._checkpoints.is_due(step)
        logs = last or step % config.log_every_steps == 0
        if saves or logs:
          self._check_finite(step, metrics, known_bad, progress)
        if logs:
          mixture = self._loader.mixture_metrics(step)
          values = writer.write(step, {**metrics, **mixture, **throughput.read()})
          self._last |= values
          rate = values.get("perf/tokens_per_second")
          progress.update(step, loss=values["loss/total"], rate=rate)
        if saves:
          with throughput.excluded():
            writer.sync()
            self._save(step, state)
            if validates and not stopping:
              self._write_validation(writer, step, state)
        if stopping and not last:
          self._checkpoints.wait()
          progress.close()
          raise Interrupted(
            signum, f"stopped and saved at step {step} of {config.num_steps}"
          )
      progress.close()
      self._checkpoints.wait()
    return self._result(state)

  def _meet_compiled(self, state) -> None:
    """On CPUs, lets no process begin its first step long before the others.

    gloo, which joins them there, waits 30 seconds and not longer; compiling can take
    one process as long.
    """
    if self._processes.count == 1 or jax.default_backend() != "cpu":
      return
    position = self._loader.get_state()
    batch = self._step_fn.put_batch(next(self._loader))
    self._loader.set_state(position)
    self._step_fn.lower(state, batch).compile()
    self._processes.barrier("first step")

  def _is_validation_due(self, step: int) -> bool:
    if self._validation is None or step == 0:
      return False
    every_steps = self._validation.every_steps
    return step == self._config.num_steps or step % every_steps == 0

  def _write_validation(self, writer: MetricsWriter, step: int, state) -> None:
    assert self._validation is not None
    params = self._step_fn.model_params(state.params)
    self._last |= writer.write(step, self._validation.measure(params))

  def _count_tokens(self, steps: int) -> int:
    # Padding is no token: rates and totals count the filled share of the rows.
    return round(steps * self._loader.slots_per_batch * self._loader.fill)

  def _records(self) -> list[dict[str, Any]]:
    lines = (self._directory.path / "metrics.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]

  def _lacks_validation(self, step: int) -> bool:
    """Takes up what was recorded before; whether a validation is missing at `step`."""
    found: dict[str, Any] = {}
    for record in self._records():
      self._last |= record
      if record["step"] == step:
        found |= record
    return self._is_validation_due(step) and "validation/loss" not in found

  def _save(self, step: int, state) -> None:
    lineage = self._directory.path / "lineage.json"
    self._checkpoints.save(
      step,
      state,
      {"loader": self._loader.get_state(), "seconds": self._seconds},
      config_lib.to_json(self._config),
      {
        "inputs": io.read_json(lineage) if lineage.exists() else {},
        "mesh": dict(self._step_fn.mesh.shape),
        "processes": self._processes.count,
      },
    )

  @property
  def _seconds(self) -> float:
    return self._seconds_before + time.perf_counter() - self._began

  def _check_finite(self, step: int, metrics, known_bad: int, progress) -> None:
    names = ("loss/total", "optimizer/grad_norm", "guard/num_nonfinite")
    loss, norm, bad = (float(metrics[name]) for name in names)
    if math.isfinite(loss) and math.isfinite(norm) and bad <= known_bad:
      return
    progress.close()
    self._checkpoints.wait()
    saved = self._checkpoints.latest_step()
    good = (
      f"The last good checkpoint is {self._checkpoints.path(saved)}"
      if saved is not None
      else "No checkpoint had been written yet"
    )
    applied = "not applied" if self._config.guard.enabled else "applied"
    raise NonFiniteLoss(
      f"The loss or its gradient was not finite at or before step {step} (the update "
      f"was {applied}). {good}. Lower OptimizerConfig.peak_lr or look at the batch, "
      "then continue with --allow_config_change, or in a new --workdir."
    )

  def _result(self, state) -> dict[str, Any]:
    names = {
      "loss/total": "loss",
      **self._objective.result_metrics,
      "guard/num_spikes": "spikes",
    }
    steps, adapters = self._config.num_steps, self._config.lora
    trained = {}
    if adapters is not None:
      count = lora.count_lora_params(self._config.model, adapters)
      trained = {"trained_parameters": count}
    return {
      "metrics": {
        short: self._last[name] for name, short in names.items() if name in self._last
      }
      | dict(self._objective.summary),
      "perf": {
        name.partition("/")[2]: value
        for name, value in self._last.items()
        if name.startswith("perf/")
      },
      "steps": steps,
      "tokens": self._count_tokens(steps),
      "parameters": counting.count_params(self._config.model),
      **trained,
      "vocabulary": self._loader.vocabulary_fingerprint,
      "checkpoint": self._checkpoints.path(steps).name,
      "fingerprint": params_digest(state.params),
      "seconds": self._seconds,
    }
