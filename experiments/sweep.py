"""phi4 sweep: a grid of settings times seeds, resumable, with one table.

Every point is an ordinary run of another verb in a process of its own, in
<workdir>/runs/POINT. Complete points are skipped, so the same command continues
a stopped sweep; `ledger.jsonl` records every attempt.
"""

import dataclasses
import itertools
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from experiments import cli, plots, process, registry, report_tables
from experiments import config as config_lib
from experiments.run_directory import RunDirectory, is_current, load_result
from experiments.stage import StageConfig, run_stage
from phi4_jax.common import io
from phi4_jax.common.errors import ConfigError
from phi4_jax.common.text import format_duration


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepConfig(StageConfig):
  """A grid of settings times seeds over one verb.

  Attributes:
    run: the verb that each point runs, for example "pretrain".
    gin_file: the configuration that the points vary.
    bindings: gin bindings common to all points.
    axes: gin path -> values; the grid is their product.
    seeds: values given to `seed_binding`, once for each point of the grid.
    seed_binding: the gin path (or macro) that takes the seed.
    metrics: paths into result.json, joined by dots, for example "metrics.loss".
      The first one orders the table.
    goal: whether the first metric should be small or large.
  """

  verb: ClassVar[str] = "sweep"

  run: str
  gin_file: str
  bindings: tuple[str, ...] = ()
  axes: dict[str, tuple[bool | int | float | str, ...]]
  seeds: tuple[int, ...] = (0,)
  seed_binding: str = "SEED"
  metrics: tuple[str, ...]
  goal: Literal["min", "max"]

  def __post_init__(self):
    # A report is no run: it has no gin file and no result of its own.
    known = [verb for verb in cli.VERBS if verb not in (self.verb, "report")]
    if self.run not in known:
      raise ConfigError(
        f"SweepConfig.run ({self.run!r}) must be one of {', '.join(known)}."
      )
    if not self.metrics:
      raise ConfigError("SweepConfig.metrics is empty: name what the table shows.")
    for path, values in self.axes.items():
      if not values:
        raise ConfigError(f"SweepConfig.axes[{path!r}] has no value.")
    if not self.seeds or len(set(self.seeds)) != len(self.seeds):
      raise ConfigError(
        f"SweepConfig.seeds {self.seeds} must be one or more different seeds."
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
  """One run of the sweep: the settings of its grid cell, and a seed."""

  cell: tuple[tuple[str, Any], ...]
  seed: int

  @property
  def name(self) -> str:
    """A folder name: the varied settings' last words and values, and the seed."""
    parts = [f"{path.rpartition('.')[2]}={value}" for path, value in self.cell]
    return ",".join([*parts, f"seed={self.seed}"]).replace("/", "_")


def make_points(config: SweepConfig) -> list[Point]:
  """All points, seeds in the outer loop (so that an early stop has whole grids)."""
  cells = [
    tuple(zip(config.axes, values, strict=True))
    for values in itertools.product(*config.axes.values())
  ]
  points = [Point(cell=cell, seed=seed) for seed in config.seeds for cell in cells]
  if len({point.name for point in points}) != len(points):
    raise ConfigError(
      "SweepConfig.axes: two points would share a folder, because their settings are "
      "written alike. Give each value of an axis once."
    )
  return points


def run(config: SweepConfig, directory: RunDirectory) -> dict[str, Any]:
  points = make_points(config)
  ledger = io.JsonlLog(directory.path / "ledger.jsonl")
  done: list[tuple[Point, dict[str, Any]]] = []
  failed: list[str] = []
  spent: list[float] = []
  for number, point in enumerate(points, start=1):
    folder = directory.path / "runs" / point.name
    settings = [(config.seed_binding, point.seed), *point.cell]
    bindings = [*config.bindings, *(f"{path}={value!r}" for path, value in settings)]
    result = load_result(folder)
    if result is not None:
      _check_current(config, bindings, folder)
    left = ""
    if spent:
      mean = sum(spent) / len(spent)
      left = f", about {format_duration(mean * (len(points) - number + 1))} left"
    print(f"[{number}/{len(points)}] {point.name}{left}", flush=True)
    if result is None:
      began = time.monotonic()
      ledger.append({"point": point.name, "event": "started"})
      arguments = [
        f"--gin_file={config.gin_file}",
        f"--workdir={folder}",
        *(f"--gin.{binding}" for binding in bindings),
      ]
      try:
        code = process.run_verb_child(config.run, arguments)
      except process.Interrupted as stop:
        message = f"stopped in point {point.name}"
        raise process.Interrupted(stop.signum, message) from None
      spent.append(time.monotonic() - began)
      result = load_result(folder)
      if code or result is None:
        ledger.append({"point": point.name, "event": "failed", "exit_code": code})
        failed.append(point.name)
        continue
      ledger.append({"point": point.name, "event": "complete"})
    done.append((point, result))
  if failed:
    raise ConfigError(
      f"{len(failed)} of {len(points)} points failed: {'; '.join(failed)}. Their "
      "messages stand above; the same command tries them again."
    )
  rows = report_tables.summarise_points(
    [(point.cell, point.seed, result) for point, result in done],
    metrics=config.metrics,
    goal=config.goal,
  )
  table = report_tables.sweep_table(rows, metrics=config.metrics)
  print(table)
  io.write_atomic(directory.path / "table.md", table + "\n")
  plots.plot_sweep(rows, config.metrics[0], directory.path / "sweep.png")
  print(f"table.md, sweep.png, result.json in {directory.path}")
  return {
    "rows": rows,
    "points": {point.name: result["fingerprint"] for point, result in done},
    "fingerprint": io.text_sha256(
      "\n".join(f"{point.name} {result['fingerprint']}" for point, result in done)
    ),
  }


def _check_current(config: SweepConfig, bindings: Sequence[str], folder: Path) -> None:
  """Refuses a finished point that was made from other settings than these."""
  roots = map(registry.find_class, registry.STAGES)
  root = next(cls for cls in roots if cls.verb == config.run)
  # As the command line reads them: text needs no quotes.
  texts = [config_lib.binding_text(*b.split("=", maxsplit=1)) for b in bindings]
  wanted = config_lib.load(root, [config.gin_file], texts)
  if not is_current(folder, config.run, wanted):
    raise ConfigError(
      f"{folder} was made with other settings than {config.gin_file} and this sweep "
      "give now. Remove it to run it again, or choose another --workdir."
    )


def main(argv: Sequence[str] | None = None) -> int:
  return run_stage(
    SweepConfig,
    run,
    argv,
    description="Runs a grid of settings times seeds and tabulates the results.",
  )


if __name__ == "__main__":
  sys.exit(main())
