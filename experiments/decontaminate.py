"""phi4 decontaminate: training rows without those that hold benchmark questions.

benchmarks.index                what the rows are compared with; `Decontaminate.index`
kept/part-00000.jsonl           rows as they were; partly contaminated ones have a label
noted/part-00000.jsonl          those again, with the item that they are like
contaminated/part-00000.jsonl   rows put aside, with the item that they hold
unreadable/part-00000.jsonl     where rows are that no text could be read from, and why
parts.jsonl                     of which file, and which bytes, each part is
report.html                     both texts side by side
"""

import argparse
import dataclasses
import functools
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from experiments import process
from experiments.benchmark_items import Benchmark, open_benchmark
from experiments.decontaminate_begin import (
  INDEX,
  PARTS,
  describe_files,
  describe_inputs,
  open_index,
  remove_leftovers,
)
from experiments.decontaminate_files import ROOT, find_files, spell
from experiments.decontaminate_parts import (
  Part,
  PartSettings,
  PartWorker,
  do_part,
  is_done,
  plan_parts,
  read_texts,
)
from experiments.decontaminate_report import describe_index, report_parts
from experiments.run_directory import RunDirectory
from experiments.stage import StageConfig, VerbFlags, run_stage
from phi4_jax.common import io, processes
from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.curation.decontaminate import ContaminationRule
from phi4_jax.curation.decontaminate_allowed import find_allowed, load_allowed
from phi4_jax.curation.decontaminate_index import BenchmarkIndex
from phi4_jax.training.progress import Progress

_EXAMPLE = """phi4 decontaminate --train='data/*.jsonl' \\
    --benchmarks=gsm8k=gsm8k_test.jsonl,humaneval=HumanEval.jsonl --out=runs/clean
  phi4 decontaminate --train=data/math.jsonl --benchmarks=gsm8k,math \\
    --benchmark_dir=benchmarks --out=runs/clean      # gsm8k.jsonl, math.jsonl in there
  phi4 decontaminate --workdir=runs/clean            # goes on after a stop"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecontaminateConfig(StageConfig):
  """Training files and the benchmarks that they are to be free of.

  Attributes:
    train: JSON-lines files, plain, .gz, .zst or .zstd; patterns and folders are
      allowed. Tables, binary records and stores are read by `phi4 curate` with the step
      Decontaminate.
    benchmarks: NAME=FILE; or NAME, for the file NAME.jsonl in `benchmark_dir` or a
      published set that is found on this machine (benchmark_items.py).
    benchmark_dir: folder of benchmarks that are given by name.
    rule: what counts as contaminated.
    with_answers: whether a benchmark's answers are part of its items.
    fields: of a training row that hold its text, and nothing else is looked at; none
      means every text that is in a row.
    allow_list: file of 13-grams that contaminate nothing, one a line.
    reference: JSON-lines files of general knowledge; 13-grams of benchmarks that they
      and the training files have are allowed, too.
    part_megabytes: of a training file, done and written at once; a compressed file is
      done as a whole.
    max_row_megabytes: a longer row is unreadable, and is not held in memory.
    num_workers: processes; 0 means one for each core that this process may use. Nothing
      that is written depends on it.
    max_shown: pairs of texts on the page.
  """

  verb: ClassVar[str] = "decontaminate"
  resources: ClassVar[frozenset[str]] = frozenset({"num_workers"})
  preset: ClassVar[tuple[str, ...]] = (f"{ROOT}.rule = @ContaminationRule()",)
  results: ClassVar[tuple[str, ...] | None] = (PARTS, "report.html")

  train: tuple[str, ...]
  benchmarks: tuple[str, ...]
  benchmark_dir: str | None = None
  rule: ContaminationRule = ContaminationRule()
  with_answers: bool = False
  fields: tuple[str, ...] = ()
  allow_list: str | None = None
  reference: tuple[str, ...] = ()
  part_megabytes: int = 32
  max_row_megabytes: int = 64
  num_workers: int = 1
  max_shown: int = 200

  def __post_init__(self):
    for name in ("train", "benchmarks"):
      if not getattr(self, name):
        raise ConfigError(f"{spell(name)} is empty: name a file.")
    least_values = {
      "part_megabytes": 1, "max_row_megabytes": 1, "num_workers": 0, "max_shown": 0,
    }  # fmt: skip
    for name, least in least_values.items():
      if getattr(self, name) < least:
        raise ConfigError(
          f"{ROOT}.{name} ({getattr(self, name)}) must be {least} or more."
        )


def run(config: DecontaminateConfig, directory: RunDirectory) -> dict[str, Any]:
  """Does the parts that are not done, and reports them all."""
  parts = plan_parts(find_files(config.train, "train"), config.part_megabytes << 20)
  if not parts:
    raise DataError(f"{spell('train')}: all files are empty. Give files with rows.")
  folder = directory.path
  allowed = _load_allowed(config)
  benchmarks = _open_benchmarks(config)
  benchmark_files = {one.name: describe_files(one.files) for one in benchmarks}
  others = {
    "reference": find_files(config.reference, "reference"),
    "allow_list": [config.allow_list] if config.allow_list else [],
  }
  index = open_index(
    folder,
    describe_inputs(
      parts,
      _settings_of_rows(config),
      benchmark_files,
      {name: describe_files(paths) for name, paths in others.items()},
    ),
    lambda: _make_index(config, benchmarks, allowed, parts),
    replace=directory.may_replace,
  )
  print(describe_index(index, config.rule), flush=True)
  log = io.JsonlLog(folder / PARTS)
  try:
    logged = log.records()
    records = {r["part"]: r for r in logged if is_done(folder, r)}
    if len(records) < len(logged):
      print(f"{len(logged) - len(records)} parts are done again: files are missing.")
      log.keep_only(lambda record: record["part"] in records)
    settings = PartSettings(
      folder=str(folder),
      index=str(folder / INDEX),
      rule=config.rule,
      fields=config.fields,
      max_row_bytes=config.max_row_megabytes << 20,
    )
    progress = _make_progress(parts, records)
    progress.update(len(records))
    with process.StopRequest() as stop:

      def take(done: list[dict[str, Any]]) -> None:
        for record in done:
          log.append(record)
          records[record["part"]] = record
          progress.update(len(records))
        stop.raise_if_set(f"stopped after {len(records)} of {len(parts)} parts")

      left = [part for part in parts if part.number not in records]
      try:
        _do_parts(left, settings, config.num_workers, take)
      except DataError:
        take([])  # a signal to the whole group ends the workers, too
        raise
      finally:
        progress.close()
        remove_leftovers(folder)
    in_order = [records[part.number] for part in parts]
    log.put_in_order(in_order)
  finally:
    log.close()
  result = report_parts(
    folder, index, in_order,
    rule=config.rule, fields=config.fields, max_shown=config.max_shown,
  )  # fmt: skip
  return {**result, "benchmark_files": benchmark_files}


def _load_allowed(config: DecontaminateConfig) -> Sequence[str]:
  if not config.allow_list:
    return ()
  try:
    return load_allowed(config.allow_list)
  except DataError as error:
    raise DataError(
      f"{error} --gin.{ROOT}.allow_list=FILE names a text file with 13 words a line."
    ) from error


def _settings_of_rows(config: DecontaminateConfig) -> dict[str, Any]:
  """Returns the settings that decide on rows; training files speak for themselves."""
  settings = dataclasses.asdict(config)
  for name in ("num_workers", "max_shown", "train"):
    del settings[name]
  return settings


def _do_parts(
  parts: Sequence[Part],
  settings: PartSettings,
  num_workers: int,
  take: Callable[[list[dict[str, Any]]], None],
) -> None:
  """Does parts in any order and gives their records to `take`, which may raise."""
  num_workers = min(num_workers or processes.count_cores(), len(parts))
  if num_workers > 1:
    processes.run_in_processes(
      functools.partial(do_part, settings),
      parts,
      num_workers,
      take,
      name=lambda part: f"part {part.number} ({part.path})",
      setting=f"{ROOT}.num_workers",
    )
    return
  take([])
  worker = PartWorker(settings) if parts else None
  for part in parts:
    assert worker is not None
    take([worker.do(part)])


def _make_progress(
  parts: Sequence[Part], records: Mapping[int, dict[str, Any]]
) -> Progress:
  """Shows megabytes, those of `records` being done, and how many a second."""
  num_bytes = sum(part.end - part.start for part in parts)
  unit, scale = ("MB", 1e6) if num_bytes >= 1e6 else ("kB", 1e3)
  sizes = {part.number: (part.end - part.start) / scale for part in parts}
  begin, before = time.perf_counter(), sum(sizes[number] for number in records)

  def describe(step: int) -> str:
    del step
    done = sum(sizes[number] for number in records)
    rate = (done - before) / max(1e-9, time.perf_counter() - begin)
    return f"{done:,.1f}/{num_bytes / scale:,.1f} {unit}  {rate:,.1f} {unit}/s"

  return Progress("decontaminate", len(parts), describe=describe)


def _open_benchmarks(config: DecontaminateConfig) -> list[Benchmark]:
  answers = config.with_answers
  opened = [
    open_benchmark(given, config.benchmark_dir, with_answers=answers)
    for given in config.benchmarks
  ]
  counts = Counter(benchmark.name for benchmark in opened)
  ((name, count),) = counts.most_common(1)
  if count > 1:
    raise ConfigError(
      f"{spell('benchmarks')}: {name!r} is named twice. Leave one out, or give "
      "one another name."
    )
  return opened


def _make_index(
  config: DecontaminateConfig,
  benchmarks: Sequence[Benchmark],
  allowed: Sequence[str],
  parts: Sequence[Part],
) -> BenchmarkIndex:
  index = BenchmarkIndex(item for benchmark in benchmarks for item in benchmark.items)
  if config.reference:
    paths = find_files(config.reference, "reference")
    reference = plan_parts(paths, config.part_megabytes << 20)
    most = config.max_row_megabytes << 20
    found = find_allowed(
      index,
      read_texts(reference, config.fields, most),
      # Damage in these is counted when they are done.
      read_texts(parts, config.fields, most, skip_damage=True),
    )
    allowed = [*allowed, *found]
  return index.allowing(allowed) if allowed else index


def _add_flags(parser: argparse.ArgumentParser) -> None:
  add = parser.add_argument
  add(
    "--train",
    action="append",
    metavar="FILES",
    help="JSON lines, a pattern or a folder of them (other formats: phi4 curate)",
  )
  add("--benchmarks", metavar="NAME[=FILE],...", help="what rows are compared with")
  add("--benchmark_dir", metavar="DIR", help="where benchmarks given by name are")
  add("--reference", action="append", metavar="FILES", help="makes an allow-list")


def _apply_flags(arguments: argparse.Namespace) -> None:
  for name, value in (("train", "FILES"), ("benchmarks", "NAME=FILE")):
    by_setting = any(b.startswith(f"{ROOT}.{name} ") for b in arguments.bindings)
    if not (arguments.gin_files or getattr(arguments, name) or by_setting):
      raise ConfigError(
        f"Nothing says with what to begin in {arguments.workdir}: --{name}={value} is "
        "missing."
      )
  bindings = []
  for name in ("train", "reference"):
    if (given := getattr(arguments, name)) is not None:
      bindings.append(f"{ROOT}.{name} = {tuple(given)!r}")
  if arguments.benchmarks is not None:
    names = tuple(name for name in arguments.benchmarks.split(",") if name)
    bindings.append(f"{ROOT}.benchmarks = {names!r}")
  if arguments.benchmark_dir is not None:
    bindings.append(f"{ROOT}.benchmark_dir = {arguments.benchmark_dir!r}")
  arguments.bindings = bindings + arguments.bindings


def main(argv: Sequence[str] | None = None) -> int:
  flags = VerbFlags(
    add=_add_flags,
    apply=_apply_flags,
    finish=lambda _: None,
    example=_EXAMPLE,
    workdir=("--out", "--workdir"),
  )
  return run_stage(
    DecontaminateConfig,
    run,
    argv,
    description="Takes the rows out of training files that hold benchmark questions; "
    "continues when called again.",
    flags=flags,
  )


if __name__ == "__main__":
  sys.exit(main())
