"""What a pipeline will do: its shards, its passes over them, and the names of results.

A pass reads each shard once: it takes out what the corpus step before it has dropped,
judges by a run of document steps, and makes the keys of the corpus step behind it.

  steps   D1 D2 C1 D3 C2
  passes  [D1 D2 keys of C1]  [C1 applied, D3, keys of C2]  [C2 applied]

Results are named by a digest of all that decides them, so that what an interrupted or
changed run left behind is either exactly right or not found.
"""

import contextlib
import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from phi4_jax.common import io
from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.curation.pipeline_files import Compression
from phi4_jax.curation.steps import CorpusStep, DocumentStep, Step
from phi4_jax.data.files import Stamp, check_same_files, check_unchanged
from phi4_jax.data.hashing import watch_reading
from phi4_jax.data.sources import Source

# Raised whenever the same steps on the same documents write other files or counts.
_FORMAT = 2
# The position of what comes before all steps: rows that a source leaves out.
SOURCE = -1
_NAME = re.compile(r"[A-Za-z0-9_][\w.-]*", re.ASCII)


# What `PipelineProgress.part` begins with while files are read to be hashed.
READING = "reading "


@dataclasses.dataclass(frozen=True, kw_only=True)
class PipelineProgress:
  """How far a pass is; documents and bytes are those that this process has seen.

  Attributes:
    part: "pass 1/2", or the name of the corpus step that compares keys; before them
      "reading files of NAME", a source whose large files are cut, and "reading shards",
      to hash them.
    done: finished shards of the pass, keys, or files.
    total: shards, keys or files in all.
    documents: since the part began; shards finished by an earlier run do not count.
    num_bytes: as `documents`.
  """

  part: str
  done: int
  total: int
  documents: int
  num_bytes: int


OnProgress = Callable[[PipelineProgress], None]


def watch_hashing(
  on_progress: OnProgress | None, what: str
) -> contextlib.AbstractContextManager[None]:
  """Gives a context that tells of files that are read in it to be hashed."""
  if on_progress is None:
    return contextlib.nullcontext()

  def tell(done: int, total: int, num_bytes: int) -> None:
    on_progress(
      PipelineProgress(
        part=READING + what, done=done, total=total, documents=0, num_bytes=num_bytes
      )
    )

  return watch_reading(tell)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
  """A part of a source that one process reads from beginning to end.

  Attributes:
    name: of its files; no other shard has it.
    source: yields its documents.
    group: what its counts are shown under: the name of the source that it is part of.
  """

  name: str
  source: Source
  group: str = ""


def make_shards(
  sources: Mapping[str, Source], on_progress: OnProgress | None = None
) -> list[Shard]:
  """Returns the shards of named sources, in the order of the corpus.

  A source with a method `shards()` says its parts itself; another one is one shard.
  Large files are read to cut them, of which `on_progress` is told as `run_pipeline`'s.

  Raises:
    ConfigError: if a name cannot be that of a file.
  """
  found = []
  for name, source in sources.items():
    split = getattr(source, "shards", None)
    with watch_hashing(on_progress, f"files of {name}"):
      parts = [source] if split is None else list(split())
    for i, part in enumerate(parts):
      shard = f"{name}-{i:05d}-of-{len(parts):05d}"
      found.append(Shard(name=shard, source=part, group=name))
  check_shards(found)
  return found


def take_stamps(source: Source) -> dict[str, Stamp | None]:
  """Returns the stamps of a source's files as they are now; none if it reads none."""
  return getattr(source, "stamps", dict)()


def check_shards(shards: Sequence[Shard]) -> None:
  """Refuses names that two shards share, or that are no file names.

  Raises:
    ConfigError: naming the shard.
  """
  seen: set[str] = set()
  for shard in shards:
    if not _NAME.fullmatch(shard.name):
      raise ConfigError(
        f"The shard name {shard.name!r} cannot be that of a file. Use letters, digits, "
        "'_', '-' and '.' only."
      )
    # Some file systems take no notice of case.
    if shard.name.lower() in seen:
      raise ConfigError(
        f"Two shards are named {shard.name!r}; their files would overwrite each other. "
        "Rename one."
      )
    seen.add(shard.name.lower())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pass:
  """One reading of all shards; `position`s count the pipeline's steps from 0.

  Attributes:
    index: which one it is.
    names: of all steps of the pipeline.
    verdicts_of: position of the corpus step whose verdicts are applied first.
    steps: the document steps, by position.
    keys_of: position of the corpus step whose keys are made last, and the step.
  """

  index: int
  names: tuple[str, ...]
  verdicts_of: int | None
  steps: tuple[tuple[int, DocumentStep], ...]
  keys_of: tuple[int, CorpusStep] | None


def make_passes(steps: Sequence[Step]) -> list[Pass]:
  """Returns the passes that steps need."""
  names = name_steps(steps)
  passes: list[Pass] = []
  verdicts_of: int | None = None
  pending: list[tuple[int, DocumentStep]] = []

  def close(keys_of: tuple[int, CorpusStep] | None) -> None:
    passes.append(
      Pass(
        index=len(passes),
        names=names,
        verdicts_of=verdicts_of,
        steps=tuple(pending),
        keys_of=keys_of,
      )
    )
    pending.clear()

  for position, step in enumerate(steps):
    if isinstance(step, CorpusStep):
      close((position, step))
      verdicts_of = position
    else:
      pending.append((position, step))
  close(None)
  return passes


def step_name(names: Sequence[str], position: int) -> str:
  """Returns the name of a step, or of what stands before all: the source."""
  return "source" if position == SOURCE else names[position]


def name_steps(steps: Sequence[Any]) -> tuple[str, ...]:
  """Returns a name for each step: its class, and a number where that is not enough.

  Raises:
    ConfigError: if something is no step, or is of both kinds.
  """
  names: list[str] = []
  for step in steps:
    name = type(step).__name__
    kinds = isinstance(step, DocumentStep), isinstance(step, CorpusStep)
    if kinds == (False, False):
      raise ConfigError(
        f"{name} is no step of curation: it needs make_judge() and recipe(), or "
        "make_key(), judge_keys() and recipe()."
      )
    if kinds == (True, True):
      raise ConfigError(
        f"{name} has both make_judge() and judge_keys(); a step is of one kind. Make "
        "two steps of it."
      )
    count = sum(n.partition("#")[0] == name for n in names)
    names.append(f"{name}#{count + 1}" if count else name)
  return tuple(names)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardTask:
  """All that the process needs which runs one pass over one shard.

  Attributes:
    token: of this call of the pipeline: judges are shared by tasks that have it.
    work: the folder of all results.
    key: names this task's results.
    previous: names those of the pass before, if there is one.
    places: a file with the place in the corpus of each shard's first document of the
      pass before, and the name of that shard's results: what "#17" is looked up in.
    num_samples: of each step and reason.
    stamps: of the files that the shard is read from, taken before they were hashed.
  """

  token: str
  pass_: Pass
  shard: Shard
  work: Path
  key: str
  previous: str | None
  places: Path | None
  compression: Compression
  num_samples: int
  stamps: Mapping[str, Stamp | None] = dataclasses.field(default_factory=dict)

  def check_files(self) -> None:
    """Refuses files that have changed, have come or are gone since they were hashed.

    Raises:
      ChangedFileError: naming the first.
    """
    for file, stamp in self.stamps.items():
      check_unchanged(file, stamp)
    # A source that is one shard lists its folder or pattern again when it is read.
    check_same_files(self.stamps, take_stamps(self.shard.source))

  def file(self, kind: str) -> Path:
    """Returns a result's path: "documents", "dropped", "keys", "ids", "summary"."""
    return result_file(self.work, self.key, kind, self.compression)

  @property
  def verdicts(self) -> Path:
    assert self.previous is not None, "a first pass has no verdicts"
    return self.work / f"{self.key}.verdicts.jsonl.gz"

  def load_summary(self) -> dict[str, Any] | None:
    """Returns what the finished task has counted; None if it is not finished."""
    file = self.file("summary")
    if not file.exists():
      return None
    summary = io.read_json(file)
    for kind, size in summary["sizes"].items():
      path = self.file(kind)
      found = path.stat().st_size if path.exists() else None
      if found != size:
        raise DataError(
          f"{path} should be {size} bytes long and "
          f"{'is gone' if found is None else f'has {found}'}. Delete {file} to make it "
          "again."
        )
    return summary


def result_file(work: Path, key: str, kind: str, compression: Compression) -> Path:
  suffix = {
    "documents": f"jsonl.{compression}",
    "dropped": "jsonl.gz",
    "keys": "blobs",
    "ids": "blobs",
    "summary": "json",
  }[kind]
  return work / f"{key}.{kind}.{suffix}"


def digest(value: Any) -> str:
  """Returns a digest of JSON."""
  text = json.dumps(value, sort_keys=True, ensure_ascii=True)
  return hashlib.sha256(text.encode("ascii")).hexdigest()


def step_recipes(steps: Sequence[Step]) -> list[str]:
  """Returns a digest of each step's recipe.

  Raises:
    ConfigError: if a recipe is no JSON.
  """
  found = []
  for name, step in zip(name_steps(steps), steps, strict=True):
    try:
      found.append(digest(step.recipe()))
    except (TypeError, ValueError) as error:
      if isinstance(error, ConfigError | DataError):
        raise
      raise ConfigError(f"The recipe of {name} is not JSON: {error}.") from error
  return found


def task_key(
  pass_: Pass,
  shard: Shard,
  *,
  source_recipe: str,
  corpus: str,
  recipes: Sequence[str],
  settings: Any,
) -> str:
  """Returns the name of a task's results.

  A first pass depends on the recipe of its own shard alone; the verdicts that a later
  one applies depend on all of them, of which `corpus` is the digest.
  """
  last = max(
    [position for position, _ in pass_.steps]
    + [-1 if pass_.verdicts_of is None else pass_.verdicts_of]
    + [-1 if pass_.keys_of is None else pass_.keys_of[0]]
  )
  inputs = corpus if pass_.index else source_recipe
  decides = [_FORMAT, pass_.index, inputs, recipes[: last + 1], settings]
  # Two runs of equal steps may end their passes at different ones.
  decides.append(pass_.keys_of is None)
  decides.append(shard.name)
  return f"{pass_.index}-{shard.name}-{digest(decides)[:16]}"
