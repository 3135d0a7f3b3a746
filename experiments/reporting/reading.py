"""Reads finished runs from disk for the pages: configuration, result, curves, code.

Refuses to know how anything is shown.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.compare import load_arms
from experiments.run_directory import load_result, resolve_input
from phi4_jax.common import io
from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.data.tokenizer import Vocabulary, load_vocabulary
from phi4_jax.eval import comparison
from phi4_jax.pts import records


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
  """The folder of one complete run.

  Attributes:
    name: of its stage in a chain, else of the folder.
    folder: where it is.
    verb: what made it.
    config: every setting, as JSON.
    result: what it came to.
  """

  name: str
  folder: Path
  verb: str
  config: dict[str, Any]
  result: dict[str, Any]

  @property
  def metrics(self) -> dict[str, Any]:
    return self.result.get("metrics", {})

  @property
  def command(self) -> str:
    """What makes this run again (or finds it complete)."""
    gin_file = self.folder / "config.gin"
    return f"phi4 {self.verb} --gin_file={gin_file} --workdir={self.folder}"

  @property
  def settings(self) -> str:
    """All settings, as gin."""
    return (self.folder / "config.gin").read_text("utf-8")

  @property
  def versions(self) -> str:
    return (self.folder / "versions.txt").read_text("utf-8").strip()

  @property
  def commit(self) -> str:
    """The commit of the code, with a word on uncommitted changes, or ""."""
    text = (self.folder / "git.txt").read_text("utf-8")
    # A run that went on with other code has a block for each; the last one counts.
    found = re.findall(r"^commit (\w+)\n(clean|uncommitted)", text, re.MULTILINE)
    if not found:
      return ""
    commit, state = found[-1]
    return commit if state == "clean" else f"{commit} with uncommitted changes"

  @property
  def machine(self) -> str:
    """The platform that it ran on."""
    platform = re.search(r"^platform (.*)$", self.versions, re.MULTILINE)
    return platform[1] if platform else ""

  @property
  def peak(self) -> str | None:
    """The peak of the devices and where it is from, as a training stage noted it."""
    file = self.folder / "peak_flops.json"
    if not file.exists():
      return None
    noted = io.read_json(file)
    return f"{noted['flops'] / 1e9:,.0f} GFLOP/s ({noted['source']})"


class SearchCall(Run):
  """The folder of a search that was called from Python: it knows no more of itself."""

  @property
  def command(self) -> str:
    return (
      "find_pivotal_tokens(sampler, questions, oracle, config, "
      f"out_dir={str(self.folder)!r})"
    )

  @property
  def settings(self) -> str:
    return (self.folder / records.SETTINGS).read_text("utf-8")

  @property
  def versions(self) -> str:
    return "not noted: the search was called from Python"

  @property
  def commit(self) -> str:
    return ""


def open_run(folder: Path, name: str | None = None) -> Run:
  """Opens the folder of a complete run, or of a search that Python code has called.

  Raises:
    DataError: if it is neither, or not complete.
  """
  file = folder / "config.json"
  if not file.exists():
    settings = folder / records.SETTINGS
    asked = io.read_json(settings) if settings.exists() else {}
    if "search" in asked:
      return _open_call(folder, name, asked)
    raise DataError(
      f"{folder} is not a run: it has no config.json. Give the --workdir of a finished "
      "pipeline, sweep or find_pivotal_tokens, or the out_dir of a call of the latter."
    )
  described, result = io.read_json(file), load_result(folder)
  if result is None:
    raise DataError(
      f"The run in {folder} is not complete (it has no result.json). Finish it first: "
      f"phi4 {described['verb']} --gin_file={folder / 'config.gin'} --workdir={folder}"
    )
  return Run(
    name=name or folder.name,
    folder=folder,
    verb=described["verb"],
    config=described["config"],
    result=result,
  )


def _open_call(folder: Path, name: str | None, asked: dict[str, Any]) -> SearchCall:
  file = folder / records.COUNTS
  if not file.exists():
    raise DataError(
      f"The search in {folder} is not complete (it has no {file.name}). Call "
      "find_pivotal_tokens with it once more: it goes on from its log."
    )
  metrics = io.read_json(file)
  seconds = metrics.pop("seconds")
  return SearchCall(
    name=name or folder.name,
    folder=folder,
    verb="find_pivotal_tokens",
    config=asked,
    result={
      "metrics": metrics,
      "perf": {"search_seconds": seconds},
      "minutes": seconds / 60,
    },
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chain:
  """A finished pipeline that ends in a comparison.

  Attributes:
    run: the pipeline.
    stages: in their order.
    compare: the last stage with the verb compare.
    search: the first pivotal token search, None if the chain has none.
  """

  run: Run
  stages: tuple[Run, ...]
  compare: Run
  search: Run | None

  @functools.cached_property
  def answers(self) -> dict[str, list[comparison.Answers]]:
    """What each run of each arm answered."""
    return load_arms(self.compare.folder, self.compare.config["arms"])

  @property
  def baseline(self) -> str:
    return self.compare.config["baseline"]

  def arm_of(self, stage: str) -> str | None:
    """The arm that a stage belongs to."""
    for arm, paths in self.compare.config["arms"].items():
      if f"stage:{stage}" in paths:
        return arm
    return None


def open_chain(run: Run) -> Chain:
  """Opens the stages of a finished pipeline.

  Raises:
    DataError: if no stage compares arms.
  """
  stages = tuple(open_run(run.folder / name, name) for name in run.config["stages"])
  compared = [stage for stage in stages if stage.verb == "compare"]
  if not compared:
    raise DataError(
      f"The pipeline in {run.folder} has no stage of the verb compare, so there is no "
      "ladder to report (its summary.md has the results of its stages). Add a "
      "@CompareConfig() to PipelineConfig.stages."
    )
  searched = [stage for stage in stages if stage.verb == "find_pivotal_tokens"]
  return Chain(
    run=run,
    stages=stages,
    compare=compared[-1],
    search=searched[0] if searched else None,
  )


def open_chains(sweep: Run) -> list[Chain]:
  """Opens the chains of a sweep over seeds.

  Raises:
    DataError: if the sweep varies anything else, or its chains cannot be compared.
  """
  if sweep.config["run"] != "pipeline":
    raise DataError(
      f"The sweep in {sweep.folder} runs {sweep.config['run']!r}; a report needs a "
      "sweep of pipelines over seeds. Its table.md has its results."
    )
  if sweep.config["axes"]:
    raise DataError(
      f"The sweep in {sweep.folder} varies more than the seed "
      f"({', '.join(sweep.config['axes'])}), so its chains are no repetitions of one "
      "another. Its table.md has its results; a report needs SweepConfig.axes = {}."
    )
  chains = [
    open_chain(open_run(sweep.folder / "runs" / point))
    for point in sweep.result["points"]
  ]
  first = chains[0]
  for chain in chains[1:]:
    if list(chain.answers) != list(first.answers) or chain.baseline != first.baseline:
      raise DataError(
        f"{chain.compare.folder} and {first.compare.folder} compare different arms."
      )
  return chains


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curve:
  """One metric of one run by step."""

  steps: list[int]
  values: list[float]


def read_curves(run: Run, *, max_points: int = 160) -> dict[str, Curve]:
  """Returns every metric in a run's metrics.jsonl; long curves are thinned.

  A number that was not finite becomes NaN.
  """
  file = run.folder / "metrics.jsonl"
  if not file.exists():
    return {}
  found: dict[str, Curve] = {}
  for _, record in io.read_jsonl(file):
    for name, value in record.items():
      if name != "step" and not name.startswith("time/"):
        curve = found.setdefault(name, Curve(steps=[], values=[]))
        curve.steps.append(record["step"])
        curve.values.append(float(value))
  return {name: _thin(curve, max_points) for name, curve in found.items()}


def _thin(curve: Curve, max_points: int) -> Curve:
  stride = math.ceil(len(curve.steps) / max_points)
  # Counted from the end, so that the last point stays.
  return Curve(
    steps=curve.steps[::-1][::stride][::-1], values=curve.values[::-1][::stride][::-1]
  )


def read_records(run: Run, name: str) -> list[dict[str, Any]]:
  """Returns the objects of a JSONL file of a run; none if the file is empty.

  Raises:
    DataError: if the file is missing or damaged.
  """
  path = run.folder / name
  if path.is_file() and not path.stat().st_size:
    return []
  return [record for _, record in io.read_jsonl(path)]


def open_vocabulary(run: Run) -> Vocabulary:
  """Returns the vocabulary that a run names as its input.

  Raises:
    ConfigError: if it names none.
  """
  if "vocabulary" not in run.config:
    raise ConfigError(f"{run.folder} names no vocabulary.")
  folder = resolve_input(run.config["vocabulary"], run.folder)
  return load_vocabulary(folder / "vocabulary")


def walk_stages(chains: list[Chain]) -> Iterator[tuple[Chain, Run]]:
  """Every stage of every chain, stage by stage."""
  for number in range(len(chains[0].stages)):
    for chain in chains:
      yield chain, chain.stages[number]
