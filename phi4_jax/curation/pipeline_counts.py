"""What a pipeline counts and samples: numbers that add up over shards in any order.

Knows documents and verdicts; refuses to know files and processes. Counts are plain
JSON, so that each shard's can be stored and added later.
"""

import bisect
import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from phi4_jax.common.errors import DataError
from phi4_jax.curation.pipeline_files import printable
from phi4_jax.curation.steps import Drop
from phi4_jax.data.documents import Document
from phi4_jax.data.source_files import DAMAGED_FILE

# A document that its step could not judge is dropped for this reason.
STEP_FAILED = "step_failed"
_EXCERPT = 400
_WINDOW = 160
# More values than this in one shard, and the further ones are counted together.
_MAX_VALUES = 200
OTHER_VALUES = "(other values)"


class CountsError(RuntimeError):
  """Documents have come up or gone missing: a bug of the pipeline, never hidden."""


def document_size(document: Document) -> int:
  """Returns the bytes of a document's text, messages or data."""
  if document.text is not None:
    return len(document.text.encode("utf-8"))
  if document.data is not None:
    return len(document.data)
  return sum(len(m["content"].encode("utf-8")) for m in document.messages or ())


def document_rank(document_id: str, salt: str = "") -> str:
  """Returns a pseudo-random number that a document's id decides, as 16 hex digits."""
  data = f"{salt}\0{document_id}".encode("utf-8", "backslashreplace")
  return hashlib.blake2b(data, digest_size=8).hexdigest()


def shown_text(document: Document, limit: int = _EXCERPT) -> str:
  """Returns the beginning of a document for a person."""
  if document.text is not None:
    text = document.text[: limit + 1]
  elif document.data is not None:
    # Bytes as a person can read them: what is no letter is escaped.
    start = document.data[:limit].decode("ascii", "backslashreplace")
    text = f"{len(document.data):,} bytes of {document.media_type}: {start}"
  else:
    text = "\n".join(f"{m['role']}: {m['content']}" for m in document.messages or ())
  return printable(text, limit)


class Samples:
  """The documents with the smallest ranks: the same ones in whatever order they come.

  A bottom-k sample by a hash of the id: each set of documents of a given size is as
  likely as any other, and nothing but the ids decides.
  """

  def __init__(self, size: int):
    self._size = size
    self._kept: list[tuple[str, str, int]] = []
    self._entries: dict[tuple[str, str, int], dict[str, Any]] = {}

  def add(
    self, document: Document, shard: str, row: int, describe: Callable[[], dict]
  ) -> None:
    """Offers a document; `describe` is called if it is among the smallest so far."""
    key = (document_rank(document.id), shard, row)
    if self._size == 0 or (len(self._kept) == self._size and key > self._kept[-1]):
      return
    bisect.insort(self._kept, key)
    self._entries[key] = {
      "rank": key[0],
      "shard": shard,
      "row": row,
      "id": printable(document.id),
      "source": printable(document.source),
      **describe(),
    }
    if len(self._kept) > self._size:
      del self._entries[self._kept.pop()]

  def to_json(self) -> list[dict[str, Any]]:
    return [self._entries[key] for key in self._kept]


def merge_samples(parts: Iterable[list[dict[str, Any]]], size: int) -> list[Any]:
  """Returns the samples of the union of what `parts` were sampled from."""
  entries = [entry for part in parts for entry in part]
  entries.sort(key=lambda entry: (entry["rank"], entry["shard"], entry["row"]))
  return entries[:size]


class StepTally:
  """Counts what one step does with the documents of one shard."""

  def __init__(self, shard: str, num_samples: int):
    self._shard = shard
    self._num_samples = num_samples
    self.seconds = 0.0
    self._in = self._out = self._bytes_in = self._bytes_out = 0
    self._changed = self._labelled = 0
    self._reasons: dict[str, dict[str, Any]] = {}
    self._reason_samples: dict[str, Samples] = {}
    self._changes = Samples(num_samples)

  def enter(self, num_bytes: int) -> None:
    self._in += 1
    self._bytes_in += num_bytes

  def leave(self, num_bytes: int) -> None:
    self._out += 1
    self._bytes_out += num_bytes

  def change(self, before: Document, after: Document, row: int) -> None:
    """Notes that the step has put `after` in the place of `before`."""
    if _content(before) == _content(after):
      self._labelled += 1
    else:
      self._changed += 1
    self._changes.add(before, self._shard, row, lambda: _difference(before, after))

  def drop(self, document: Document, drop: Drop, row: int, num_bytes: int) -> None:
    found = self._reasons.setdefault(drop.reason, {"count": 0, "bytes": 0})
    found["count"] += 1
    found["bytes"] += num_bytes
    samples = self._reason_samples.setdefault(
      drop.reason, Samples(_num_samples(drop.reason, self._num_samples))
    )
    samples.add(
      document,
      self._shard,
      row,
      lambda: {"detail": printable(drop.detail), "text": shown_text(document)},
    )

  @property
  def num_in(self) -> int:
    return self._in

  @property
  def num_failed(self) -> int:
    return self._reasons.get(STEP_FAILED, {"count": 0})["count"]

  def to_json(self) -> dict[str, Any]:
    return {
      "in": self._in,
      "out": self._out,
      "bytes_in": self._bytes_in,
      "bytes_out": self._bytes_out,
      "changed": self._changed,
      "labelled": self._labelled,
      "seconds": self.seconds,
      "reasons": {
        reason: {**found, "samples": self._reason_samples[reason].to_json()}
        for reason, found in self._reasons.items()
      },
      "changes": self._changes.to_json(),
    }


def _num_samples(reason: str, asked: int) -> int:
  # These are always shown.
  return max(1, asked) if reason in (STEP_FAILED, DAMAGED_FILE) else asked


def _content(document: Document) -> tuple[Any, ...]:
  return document.text, document.messages, document.data


def _difference(before: Document, after: Document) -> dict[str, Any]:
  """Shows two versions of a document round the first place where they differ."""
  if before.text is None or after.text is None:
    return {"before": shown_text(before), "after": shown_text(after)}
  if before.text == after.text:
    found = {
      name: [shown, value]
      for name in ("labels", "license", "source", "media_type")
      if (shown := getattr(before, name)) != (value := getattr(after, name))
    }
    both = [{name: pair[i] for name, pair in found.items()} for i in (0, 1)]
    return {"before": printable(str(both[0])), "after": printable(str(both[1]))}
  at = next(
    (
      i for i, (a, b) in enumerate(zip(before.text, after.text, strict=False)) if a != b
    ),
    min(len(before.text), len(after.text)),
  )
  start = max(0, at - _WINDOW // 2)
  cut = "... " if start else ""
  return {
    "before": cut + printable(before.text[start : start + 2 * _WINDOW]),
    "after": cut + printable(after.text[start : start + 2 * _WINDOW]),
  }


def merge_tallies(parts: Iterable[dict[str, Any]], size: int) -> dict[str, Any]:
  """Adds what `StepTally.to_json` returned for several shards."""
  parts = list(parts)
  names = ("in", "out", "bytes_in", "bytes_out", "changed", "labelled", "seconds")
  merged: dict[str, Any] = {name: sum(part[name] for part in parts) for name in names}
  reasons = sorted({reason for part in parts for reason in part["reasons"]})
  merged["reasons"] = {}
  for reason in reasons:
    found = [part["reasons"][reason] for part in parts if reason in part["reasons"]]
    merged["reasons"][reason] = {
      "count": sum(entry["count"] for entry in found),
      "bytes": sum(entry["bytes"] for entry in found),
      "samples": merge_samples(
        (entry["samples"] for entry in found), _num_samples(reason, size)
      ),
    }
  merged["changes"] = merge_samples((part["changes"] for part in parts), size)
  return merged


def check_balance(where: str, num_in: int, kept: int, dropped: int) -> None:
  """Refuses counts that do not add up.

  Raises:
    CountsError: if documents in are not those kept and those dropped.
  """
  if num_in != kept + dropped:
    raise CountsError(
      f"{where}: {num_in} documents went in, but {kept} were kept and {dropped} "
      "dropped. This is a bug; nothing of this shard has been written."
    )


class LabelCounts:
  """How often each value of each label occurs among the documents that are kept."""

  def __init__(self):
    self._labels: dict[str, dict[str, Any]] = {}

  def add(self, labels: Mapping[str, Any]) -> None:
    for name, value in labels.items():
      kind = _kind(value)
      if kind is None:
        continue
      found = self._labels.setdefault(
        str(name), {"documents": 0, "numbers": {}, "values": {}}
      )
      found["documents"] += 1
      group, key = found[kind], _bin(value) if kind == "numbers" else str(value)
      if kind == "values":
        key = printable(key, 60)
        if key not in group and len(group) >= _MAX_VALUES:
          key = OTHER_VALUES
      group[key] = group.get(key, 0) + 1

  def to_json(self) -> dict[str, Any]:
    return self._labels


def _kind(value: Any) -> str | None:
  if isinstance(value, str | bool):
    return "values"
  if isinstance(value, int | float) and -1e300 < value < 1e300:
    return "numbers"
  return None  # no histogram of lists and objects, nor of NaN


def _bin(value: float) -> str:
  """Returns the lower end of a number's bin.

  Bins are 0.05 wide from -1 to 1 (shares, probabilities); beyond, they double.
  """
  if -1 <= value <= 1:
    return f"{math.floor(round(value * 20, 9)) / 20:.2f}"
  edge = 2.0 ** math.floor(math.log2(abs(value)))
  return f"{edge if value > 0 else -2 * edge:g}"


def merge_labels(parts: Iterable[dict[str, Any]]) -> dict[str, Any]:
  """Adds what `LabelCounts.to_json` returned for several shards; sorts it."""
  merged: dict[str, Any] = {}
  for part in parts:
    for name, found in part.items():
      into = merged.setdefault(name, {"documents": 0, "numbers": {}, "values": {}})
      into["documents"] += found["documents"]
      for group in ("numbers", "values"):
        for key, count in found[group].items():
          into[group][key] = into[group].get(key, 0) + count
  for found in merged.values():
    found["numbers"] = dict(
      sorted(found["numbers"].items(), key=lambda item: float(item[0]))
    )
    found["values"] = dict(
      sorted(found["values"].items(), key=lambda item: (-item[1], item[0]))
    )
  return dict(sorted(merged.items()))


def raise_if_all_failed(tally: dict[str, Any], step: str, where: str) -> None:
  """Refuses a step that could judge no document at all: it is broken, not they.

  Raises:
    DataError: naming the step and what it said of one document.
  """
  failed = tally["reasons"].get(STEP_FAILED, {"count": 0, "samples": []})
  if tally["in"] and failed["count"] == tally["in"]:
    said = failed["samples"][0]["detail"] if failed["samples"] else "(no sample kept)"
    raise DataError(
      f"{step} failed on every one of the {tally['in']} documents of {where}, for "
      f"example with {said}. Mend the step or take it out; shards that were finished "
      "before are kept."
    )
