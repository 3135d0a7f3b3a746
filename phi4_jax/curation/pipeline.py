"""Runs steps of curation over sharded documents: kept, dropped with reasons, counted.

  kept/SHARD.jsonl.gz       documents that every step kept, as JSON
  dropped/SHARD.jsonl.gz    the others, with step, reason and detail
  report.json               counts and samples; written last
  pipeline.json  work/      what an interrupted run continues from

The files are the same bytes for any number of workers and any executor. Refuses to
know what steps look for.
"""

import dataclasses
import json
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from phi4_jax.common import io
from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.curation.executors import Executor, LocalExecutor
from phi4_jax.curation.pipeline_counts import (
  check_balance,
  merge_tallies,
  raise_if_all_failed,
)
from phi4_jax.curation.pipeline_files import (
  Compression,
  LineWriter,
  check_compression,
  join_files,
  place_file,
  read_blobs,
)
from phi4_jax.curation.pipeline_plan import (
  OnProgress,
  Pass,
  PipelineProgress,
  Shard,
  ShardTask,
  check_shards,
  digest,
  make_passes,
  name_steps,
  step_name,
  step_recipes,
  take_stamps,
  task_key,
  watch_hashing,
)
from phi4_jax.curation.pipeline_report import make_report
from phi4_jax.curation.steps import CorpusStep, Drop, Step
from phi4_jax.data.files import Stamp
from phi4_jax.data.hashing import map_in_threads

KEPT, DROPPED, REPORT = "kept", "dropped", "report.json"
_PLAN, _WORK = "pipeline.json", "work"
_POLL_KEYS = 256


def run_pipeline(
  shards: Sequence[Shard],
  steps: Sequence[Step],
  out_dir: str | Path,
  *,
  executor: Executor | None = None,
  samples_per_reason: int = 5,
  compression: Compression = "gz",
  keep_work: bool = False,
  replace: bool = False,
  on_progress: OnProgress | None = None,
) -> dict[str, Any]:
  """Runs steps over all documents and returns the report (see `make_report`).

  Called again with the same arguments it continues: a shard whose pass is finished is
  not read again, and a complete folder is only looked at.

  Args:
    shards: what is read, in the order of the corpus; see `make_shards`.
    steps: applied to each document one after the other, until one drops it.
    out_dir: the folder of all files.
    executor: where the work is done; None works in this process.
    samples_per_reason: dropped documents that the report shows of each step and reason.
    compression: of kept files.
    keep_work: keeps the results of each pass at the end, so that a later call with
      other last steps (and `replace`) repeats only those.
    replace: lets other steps, shards or settings than the folder's take it over.
    on_progress: called several times a second; an exception that it raises stops the
      run, which can be continued.

  Raises:
    ConfigError: if the folder belongs to other steps, shards or settings.
    DataError: if a source cannot be read or a step fails on all documents.
    CountsError: if documents in are not those kept and dropped.
  """
  out_dir = Path(out_dir)
  check_compression(compression, "compression")
  if samples_per_reason < 0:
    raise ConfigError(f"samples_per_reason ({samples_per_reason}) must be 0 or more.")
  if not shards:
    raise ConfigError("There is no shard to curate: name a source.")
  check_shards(shards)
  recipes = step_recipes(steps)
  with watch_hashing(on_progress, "shards"):
    stamps, sources = zip(*map_in_threads(_identify, shards), strict=True)
  settings = {"samples": samples_per_reason, "compression": compression}
  plan = {
    "shards": [[s.name, s.group, r] for s, r in zip(shards, sources, strict=True)],
    "steps": [list(pair) for pair in zip(name_steps(steps), recipes, strict=True)],
    "settings": settings,
  }
  _take_folder(out_dir, plan, replace)
  found = _load_complete(out_dir, digest(plan))
  if found is not None:
    return found
  work = out_dir / _WORK
  work.mkdir(parents=True, exist_ok=True)
  io.remove_leftovers(work)
  run = _Run(
    shards=shards,
    passes=make_passes(steps),
    work=work,
    source_recipes={s.name: r for s, r in zip(shards, sources, strict=True)},
    stamps={s.name: found for s, found in zip(shards, stamps, strict=True)},
    recipes=recipes,
    settings=settings,
    executor=executor or LocalExecutor(),
    on_progress=on_progress or (lambda progress: None),
  )
  try:
    summaries = run.run()
  except BaseException:
    io.remove_leftovers(work)  # of workers that were stopped
    raise
  report = make_report(
    name_steps(steps), summaries, samples_per_reason, run.judge_seconds
  )
  report = {"run": digest(plan), **report}
  _publish(out_dir, run, report)
  if not keep_work:
    shutil.rmtree(work)
  return report


def _identify(shard: Shard) -> tuple[dict[str, Stamp | None], str]:
  """Returns the stamps of a shard's files, and a digest of what it yields."""
  return take_stamps(shard.source), digest(shard.source.recipe())


def _take_folder(out_dir: Path, plan: dict[str, Any], replace: bool) -> None:
  """Makes the folder this plan's own.

  Raises:
    ConfigError: if it is another plan's, and `replace` is not said.
  """
  file = out_dir / _PLAN
  before = io.read_json(file) if file.exists() else None
  if before == plan:
    return
  if before is not None and not replace:
    changed = [name for name in plan if before.get(name) != plan[name]]
    raise ConfigError(
      f"{out_dir} was begun with other {' and '.join(changed)}"
      f"{_show_change(before, plan)}. Choose another folder, or say that the folder is "
      "to be taken over (--allow_config_change, or replace=True): documents curated in "
      "two ways are never mixed."
    )
  # The report goes first: without it the rest is nothing.
  (out_dir / REPORT).unlink(missing_ok=True)
  for name in (KEPT, DROPPED):
    shutil.rmtree(out_dir / name, ignore_errors=True)
  io.write_json(file, plan)


def _show_change(before: dict[str, Any], plan: dict[str, Any]) -> str:
  shown = []
  for part in ("shards", "steps"):
    old = {tuple(entry) for entry in before.get(part, [])}
    new = {tuple(entry) for entry in plan[part]}
    names = sorted({entry[0] for entry in old ^ new})
    if names:
      shown.append(", ".join(names[:5]) + (" and more" if len(names) > 5 else ""))
  return f" ({'; '.join(shown)})" if shown else ""


def _load_complete(out_dir: Path, key: str) -> dict[str, Any] | None:
  """Returns the report of a complete folder."""
  file = out_dir / REPORT
  if not file.exists():
    return None
  report = io.read_json(file)
  names = [shard["kept"]["file"] for shard in report["shards"]]
  names += [shard["dropped"]["file"] for shard in report["shards"]]
  missing = [name for name in names if not (out_dir / name).exists()]
  if report["run"] != key or missing:
    file.unlink()
    return None
  return report


def _publish(out_dir: Path, run: "_Run", report: dict[str, Any]) -> None:
  """Gives the results their names; the report comes last."""
  for name in (KEPT, DROPPED):
    (out_dir / name).mkdir(exist_ok=True)
    io.remove_leftovers(out_dir / name)
  for shard, entry in zip(run.shards, report["shards"], strict=True):
    tasks = [tasks[shard.name] for tasks in run.tasks]
    kept = Path(KEPT) / f"{shard.name}.jsonl.{run.settings['compression']}"
    dropped = Path(DROPPED) / f"{shard.name}.jsonl.gz"
    place_file(tasks[-1].file("documents"), out_dir / kept)
    join_files([task.file("dropped") for task in tasks], out_dir / dropped)
    for name, path in (("kept", kept), ("dropped", dropped)):
      entry[name]["file"] = str(path)
  io.write_json(out_dir / REPORT, report)


@dataclasses.dataclass(kw_only=True)
class _Run:
  """One call of the pipeline."""

  shards: Sequence[Shard]
  passes: Sequence[Pass]
  work: Path
  source_recipes: dict[str, str]
  stamps: dict[str, dict[str, Stamp | None]]
  recipes: Sequence[str]
  settings: dict[str, Any]
  executor: Executor
  on_progress: OnProgress
  tasks: list[dict[str, ShardTask]] = dataclasses.field(default_factory=list)
  judge_seconds: dict[str, float] = dataclasses.field(default_factory=dict)

  def run(self) -> list[list[dict[str, Any]]]:
    """Runs all passes; returns the summaries of each, shard by shard."""
    token = secrets.token_hex(8)
    found: list[list[dict[str, Any]]] = []
    for pass_ in self.passes:
      if pass_.index:
        self._check_failures(found[-1])
      tasks = self._make_tasks(pass_, token, found[-1] if found else [])
      if pass_.verdicts_of is not None:
        self._judge(tasks, found[-1])
      found.append(self._run_pass(pass_, list(tasks.values())))
      self.tasks.append(tasks)
    self._check_failures(found[-1])
    self._check_chain(found)
    return found

  def _make_tasks(
    self, pass_: Pass, token: str, before: Sequence[dict[str, Any]]
  ) -> dict[str, ShardTask]:
    previous = self.tasks[-1] if self.tasks else {}
    corpus = digest(list(self.source_recipes.items()))
    places = None
    if pass_.index:
      firsts, place = [], 0
      for shard, summary in zip(self.shards, before, strict=True):
        firsts.append([place, previous[shard.name].key])
        place += summary["kept"]
      places = self.work / f"{digest(firsts)[:16]}.places.json"
      io.write_json(places, firsts)
    return {
      shard.name: ShardTask(
        token=token,
        pass_=pass_,
        shard=shard,
        work=self.work,
        key=task_key(
          pass_,
          shard,
          source_recipe=self.source_recipes[shard.name],
          corpus=corpus,
          recipes=self.recipes,
          settings=self.settings,
        ),
        previous=previous[shard.name].key if previous else None,
        places=places,
        compression=self.settings["compression"],
        num_samples=self.settings["samples"],
        stamps=self.stamps[shard.name],
      )
      for shard in self.shards
    }

  def _run_pass(self, pass_: Pass, tasks: Sequence[ShardTask]) -> list[dict[str, Any]]:
    part = f"pass {pass_.index + 1}/{len(self.passes)}"
    summaries = [task.load_summary() for task in tasks]
    waiting = [t for t, s in zip(tasks, summaries, strict=True) if s is None]
    counts = [len(tasks) - len(waiting), 0, 0]

    def poll(finished: int, documents: int, num_bytes: int) -> None:
      for i, new in enumerate((finished, documents, num_bytes)):
        counts[i] += new
      self._say(part, counts[0], len(tasks), counts[1], counts[2])

    poll(0, 0, 0)
    self.executor.run(waiting, poll)
    found = [task.load_summary() for task in tasks]
    for task, summary in zip(tasks, found, strict=True):
      assert summary is not None, f"the executor has left out {task.shard.name}"
    return [summary for summary in found if summary is not None]

  def _say(self, part: str, done: int, total: int, documents: int, size: int) -> None:
    self.on_progress(
      PipelineProgress(
        part=part, done=done, total=total, documents=documents, num_bytes=size
      )
    )

  def _judge(
    self, tasks: dict[str, ShardTask], before: Sequence[dict[str, Any]]
  ) -> None:
    """Lets a corpus step compare the keys of all shards, and writes its verdicts."""
    marker = self.work / f"{digest([task.key for task in tasks.values()])[:16]}.judged"
    keys_of = self.passes[len(self.tasks) - 1].keys_of
    assert keys_of is not None, "a pass with verdicts follows one with keys"
    step, name = keys_of[1], self.passes[0].names[keys_of[0]]
    if marker.exists():
      self.judge_seconds[name] = io.read_json(marker)["seconds"]
      return
    began = time.perf_counter()
    total = sum(summary["kept"] for summary in before)
    verdicts = self._compare(step, name, total)
    for task, summary in zip(tasks.values(), before, strict=True):
      with LineWriter(task.verdicts, "gz") as lines:
        for row in range(summary["kept"]):
          try:
            drop = next(verdicts)
          except StopIteration:
            raise DataError(
              f"{name}.judge_keys has judged fewer than the {total} documents."
            ) from None
          if drop is None:
            continue
          if not isinstance(drop, Drop) or not isinstance(drop.reason, str):
            raise DataError(
              f"{name}.judge_keys yielded {drop!r}; None or a Drop is required."
            )
          line = json.dumps([row, drop.reason, drop.detail], ensure_ascii=True)
          lines.write(line.encode("ascii"))
    if next(verdicts, self) is not self:
      raise DataError(f"{name}.judge_keys has judged more than the {total} documents.")
    seconds = time.perf_counter() - began
    io.write_json(marker, {"seconds": seconds})
    self.judge_seconds[name] = seconds

  def _compare(self, step: CorpusStep, name: str, total: int) -> Iterator[Drop | None]:
    previous = self.tasks[-1]

    def keys() -> Iterator[bytes]:
      count = 0
      for shard in self.shards:
        for key in read_blobs(previous[shard.name].file("keys")):
          if count % _POLL_KEYS == 0:
            self._say(name, count, total, count, 0)
          count += 1
          yield key

    return iter(step.judge_keys(keys()))

  def _check_failures(self, summaries: Sequence[dict[str, Any]]) -> None:
    """Refuses a step that failed on all documents of all shards."""
    for position in summaries[0]["steps"]:
      tally = merge_tallies((s["steps"][position] for s in summaries), 1)
      name = step_name(self.passes[0].names, int(position))
      raise_if_all_failed(tally, name, "all shards")

  def _check_chain(self, found: Sequence[Sequence[dict[str, Any]]]) -> None:
    """Checks that each pass has read what the pass before had kept, and all in all."""
    for i, shard in enumerate(self.shards):
      passes = [summaries[i] for summaries in found]
      for before, after in zip(passes, passes[1:], strict=False):
        check_balance(
          f"Shard {shard.name} between two passes", before["kept"], after["in"], 0
        )
      dropped = sum(summary["dropped"] for summary in passes)
      check_balance(f"Shard {shard.name}", passes[0]["in"], passes[-1]["kept"], dropped)
