"""Runs one pass over one shard: a function of its task that only writes files.

Any process on any machine that sees the work folder may run it, and run it again: the
result is the same bytes. Refuses to know of other shards and of who calls it.
"""

import bisect
import contextlib
import dataclasses
import inspect
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from phi4_jax.common import io
from phi4_jax.common.errors import DataError
from phi4_jax.curation.pipeline_counts import (
  LabelCounts,
  Samples,
  StepTally,
  check_balance,
  document_size,
  raise_if_all_failed,
  shown_text,
)
from phi4_jax.curation.pipeline_files import (
  BlobReader,
  BlobWriter,
  LineWriter,
  printable,
  read_lines,
)
from phi4_jax.curation.pipeline_plan import (
  SOURCE,
  Pass,
  ShardTask,
  result_file,
  step_name,
)
from phi4_jax.curation.pipeline_verdicts import (
  StepFailure,
  check_verdict,
  check_writable,
  make_failure,
)
from phi4_jax.curation.steps import Drop, Judge
from phi4_jax.data.documents import (
  Document,
  document_from_json,
  document_to_json,
)

Tick = Callable[[int, int], None]
_TICK_DOCUMENTS = 64
# A shard of fewer documents may fail as a whole; then all shards together must not.
_MIN_BROKEN = 10
_PLACE = re.compile(r"#(\d+)")
_MAX_DETAIL = 2000

# Judges by thread: a runner of Beam has several in one process, and no judge has
# promised to stand that.
_made = threading.local()


def run_shard(task: ShardTask, tick: Tick = lambda documents, num_bytes: None) -> None:
  """Writes the results of a task, the summary last.

  Args:
    task: what to do.
    tick: called with documents and bytes done since the last call, every now and then;
      an exception that it raises ends the work and leaves nothing.

  Raises:
    DataError: if the source cannot be read, or a step fails on every document.
    CountsError: if documents do not add up.
  """
  with contextlib.ExitStack() as stack:
    run = _ShardRun(task, stack)
    documents = num_bytes = 0
    for row, line_size in run.rows():
      documents, num_bytes = documents + 1, num_bytes + line_size
      if row % _TICK_DOCUMENTS == 0:
        tick(documents, num_bytes)
        documents = num_bytes = 0
    tick(documents, num_bytes)
    summary = run.finish()
  # The files have their names now.
  summary["sizes"] = {
    kind: path.stat().st_size
    for kind in ("documents", "dropped", "keys", "ids")
    if (path := task.file(kind)).exists()
  }
  io.write_json(task.file("summary"), summary)


def _judges(task: ShardTask) -> tuple[list[Judge], Callable[[Document], bytes] | None]:
  """Makes the judges of a pass, once for each pass and thread."""
  wanted = (task.token, task.pass_.index)
  if getattr(_made, "key", None) != wanted:
    pass_ = task.pass_
    _made.judges = (
      [step.make_judge() for _, step in pass_.steps],
      None if pass_.keys_of is None else pass_.keys_of[1].make_key(),
    )
    _made.key = wanted
  return _made.judges


class _ShardRun:
  """The state of one task while it runs."""

  def __init__(self, task: ShardTask, stack: contextlib.ExitStack):
    self._task = task
    self._pass: Pass = task.pass_
    self._judges, self._make_key = _judges(task)
    self._tallies = {
      position: StepTally(task.shard.name, task.num_samples)
      for position in _positions(self._pass)
    }
    self._kept = stack.enter_context(
      LineWriter(task.file("documents"), task.compression)
    )
    self._dropped = stack.enter_context(LineWriter(task.file("dropped"), "gz"))
    self._keys = self._ids = None
    if self._pass.keys_of is not None:
      self._keys = stack.enter_context(BlobWriter(task.file("keys")))
      self._ids = stack.enter_context(BlobWriter(task.file("ids")))
    self._labels = LabelCounts()
    self._samples = Samples(task.num_samples)
    self._started = time.perf_counter()
    self._in = self._bytes_in = self._bytes_kept = 0

  def rows(self) -> Iterator[tuple[int, int]]:
    """Works through the shard; yields (row, bytes) after each document."""
    verdicts = self._read_verdicts()
    waiting = next(verdicts, None)
    for row, document in enumerate(self._read()):
      size = document_size(document)
      self._in += 1
      self._bytes_in += size
      drop = None
      if waiting is not None and waiting[0] == row:
        drop, waiting = waiting[1], next(verdicts, None)
      self._judge(row, document, size, drop)
      yield row, size
    if waiting is not None:
      raise DataError(
        f"{self._task.verdicts} speaks of document {waiting[0]}, but the shard has "
        f"only {self._in}. Delete the folder {self._task.work} and run again."
      )

  def _read(self) -> Iterator[Document]:
    task = self._task
    if task.previous is None:
      task.check_files()
      for document in self._source_documents():
        if not isinstance(document, Document):
          raise DataError(
            f"The source of shard {task.shard.name} yielded a "
            f"{type(document).__name__}; a Document is required."
          )
        yield document
      task.check_files()
      return
    file = result_file(task.work, task.previous, "documents", task.compression)
    for line in read_lines(file):
      yield document_from_json(line)

  def _source_documents(self) -> Iterator[Any]:
    """Yields what the source yields, and counts the rows that it leaves out."""
    documents: Callable[..., Iterator[Any]] = self._task.shard.source.documents
    if "on_drop" in inspect.signature(documents).parameters:
      return documents(on_drop=self._drop_row)
    return documents()

  def _drop_row(self, row: Any) -> None:
    """Puts a row aside of which no document could be made: its id and why."""
    drop = Drop(printable(row.reason, 100), printable(row.detail, _MAX_DETAIL))
    self._in += 1
    tally = self._tallies[SOURCE]
    tally.enter(0)
    stand_in = Document(id=row.id, text="")
    tally.drop(stand_in, drop, self._in - 1, 0)
    body = json.dumps({"id": printable(row.id)}, ensure_ascii=False)
    self._write_dropped(SOURCE, drop, body.encode("utf-8"))

  def _read_verdicts(self) -> Iterator[tuple[int, Drop]]:
    if self._pass.verdicts_of is None:
      return
    places = _Places(self._task)
    for line in read_lines(self._task.verdicts):
      row, reason, detail = json.loads(line)
      yield row, Drop(reason, places.name(detail))
    places.close()

  def _judge(self, row: int, document: Document, size: int, drop: Drop | None) -> None:
    """Takes one document through the pass, and writes it where it ends."""
    if self._pass.index == 0:
      self._tallies[SOURCE].enter(size)
      self._tallies[SOURCE].leave(size)
    if self._pass.verdicts_of is not None:
      # It entered this step in the pass before, where its key was made.
      if drop is not None:
        self._drop(self._pass.verdicts_of, row, document, size, drop)
        return
      self._tallies[self._pass.verdicts_of].leave(size)
    for (position, _), judge in zip(self._pass.steps, self._judges, strict=True):
      tally = self._tallies[position]
      tally.enter(size)
      before, size_before = document, size
      began = time.perf_counter()
      try:
        verdict = check_verdict(judge(document), document)
      except KeyboardInterrupt:
        raise
      except BaseException as error:  # panics of Rust libraries are no Exceptions
        verdict = make_failure(error)
      tally.seconds += time.perf_counter() - began
      if isinstance(verdict, Drop):
        self._drop(position, row, before, size_before, verdict)
        return
      document = verdict.document
      if document is not before:
        size = document_size(document)
        if document != before:
          tally.change(before, document, row)
      tally.leave(size)
    self._keep(row, document, size)

  def _keep(self, row: int, document: Document, size: int) -> None:
    shard = self._task.shard.name
    try:
      check_writable(document)
      line = document_to_json(document).encode("utf-8")
    except Exception as error:
      raise DataError(
        f"Document {printable(document.id)} of shard {shard} cannot be written as JSON "
        f"({printable(str(error))}), and no step has answered so: its source made it "
        "so, or a step changed its labels in place."
      ) from error
    if self._pass.keys_of is not None and not self._write_key(row, document, size):
      return
    self._kept.write(line)
    self._bytes_kept += size
    if self._pass.keys_of is None:
      self._labels.add(document.labels)
      self._samples.add(document, shard, row, lambda: {"text": shown_text(document)})

  def _write_key(self, row: int, document: Document, size: int) -> bool:
    """Writes what the corpus step behind this pass compares; False if it fails."""
    assert self._pass.keys_of is not None and self._make_key is not None
    assert self._keys is not None and self._ids is not None
    position = self._pass.keys_of[0]
    tally = self._tallies[position]
    tally.enter(size)
    began = time.perf_counter()
    try:
      key = self._make_key(document)
      if not isinstance(key, bytes):
        kind = type(key).__name__
        raise StepFailure(f"made a key that is a {kind}; bytes are required")
    except KeyboardInterrupt:
      raise
    except BaseException as error:
      self._drop(position, row, document, size, make_failure(error))
      return False
    finally:
      tally.seconds += time.perf_counter() - began
    self._keys.write(key)
    self._ids.write(document.id.encode("utf-8"))
    return True

  def _drop(
    self, position: int, row: int, document: Document, size: int, drop: Drop
  ) -> None:
    """Puts a document aside as it was when its step saw it."""
    drop = Drop(printable(drop.reason, 100), printable(drop.detail, _MAX_DETAIL))
    self._tallies[position].drop(document, drop, row, size)
    try:
      body = document_to_json(document).encode("utf-8")
    except Exception:  # a label that is no JSON: shown in place of being lost
      labels = {"unwritable": printable(repr(document.labels))}
      whole = dataclasses.replace(document, labels=labels)
      body = document_to_json(whole).encode("utf-8", "backslashreplace")
    self._write_dropped(position, drop, body)

  def _write_dropped(self, position: int, drop: Drop, body: bytes) -> None:
    said = {
      "step": step_name(self._pass.names, position),
      "reason": drop.reason,
      "detail": drop.detail,
    }
    head = json.dumps(said, ensure_ascii=False)
    self._dropped.write(head[:-1].encode("utf-8") + b', "document": ' + body + b"}")

  def finish(self) -> dict[str, Any]:
    """Checks the counts and returns the summary."""
    task, name = self._task, self._task.shard.name
    check_balance(
      f"Pass {self._pass.index} over shard {name}",
      self._in,
      self._kept.count,
      self._dropped.count,
    )
    tallies = {
      str(position): tally.to_json() for position, tally in self._tallies.items()
    }
    for position, tally in tallies.items():
      if tally["in"] >= _MIN_BROKEN:
        step = step_name(self._pass.names, int(position))
        raise_if_all_failed(tally, step, f"shard {name}")
    return {
      "shard": name,
      "group": task.shard.group,
      "in": self._in,
      "bytes_in": self._bytes_in,
      "kept": self._kept.count,
      "bytes_kept": self._bytes_kept,
      "dropped": self._dropped.count,
      "kept_sha256": self._kept.sha256,
      "dropped_sha256": self._dropped.sha256,
      "steps": tallies,
      "labels": self._labels.to_json(),
      "samples": self._samples.to_json(),
      "seconds": time.perf_counter() - self._started,
    }


def _positions(pass_: Pass) -> list[int]:
  found = [SOURCE] if pass_.index == 0 else []
  found += [] if pass_.verdicts_of is None else [pass_.verdicts_of]
  found += [position for position, _ in pass_.steps]
  return found if pass_.keys_of is None else [*found, pass_.keys_of[0]]


class _Places:
  """Turns places in the corpus into the ids of the documents there."""

  def __init__(self, task: ShardTask):
    self._task = task
    assert task.places is not None, "a pass with verdicts has places"
    self._shards = io.read_json(task.places)
    self._firsts = [first for first, _ in self._shards]
    self._readers: dict[str, BlobReader] = {}

  def name(self, detail: str) -> str:
    """Returns a detail with the id of document 17 before each "#17"."""
    return _PLACE.sub(self._find, detail)

  def _find(self, match: re.Match[str]) -> str:
    place = int(match[1])
    at = bisect.bisect_right(self._firsts, place) - 1
    if at < 0:
      return match[0]
    first, key = self._shards[at]
    if key not in self._readers:
      file = result_file(self._task.work, key, "ids", self._task.compression)
      self._readers[key] = BlobReader(file)
    reader = self._readers[key]
    if place - first >= len(reader):
      return match[0]
    return f"{reader[place - first].decode('utf-8')} ({match[0]})"

  def close(self) -> None:
    for reader in self._readers.values():
      reader.close()
