"""Where documents come from: a generator of arithmetic, or JSON-lines files.

A source is a frozen config with `documents()`, which may be called again and then
yields the same documents in the same order, `recipe()`, which names its content
exactly, so that data made from it can be recognised later, and `shards()`, which cuts
it at the borders of files. Tables, binary records and folders of files are in the
`sources_*.py` beside this file.
"""

import dataclasses
import random
from collections.abc import Iterator
from typing import Any, Literal

from phi4_jax.common.compression import COMPRESSED
from phi4_jax.common.errors import ConfigError
from phi4_jax.common.io import NoObject, parse_object, skip_byte_order_mark
from phi4_jax.data import files as files_lib
from phi4_jax.data import toy
from phi4_jax.data.documents import Document
from phi4_jax.data.file_parts import FilePart, plan_parts, read_part
from phi4_jax.data.source_files import BadRow, OnDrop, Source, SourceConfig
from phi4_jax.data.source_records import RecordSource, make_exchange

__all__ = ["ArithmeticSource", "JsonlSource", "Source", "SourceConfig"]

_FORMS = ("web", "synthetic", "chat")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArithmeticSource(SourceConfig):
  """Documents of the toy task (`toy.py`); only training questions are used.

  Attributes:
    form: "web" (junk and bare answers), "synthetic" (`q:EXPR? a:TRACE`) or "chat"
      (a user's question and an assistant's trace).
    num_documents: how many to make.
    seed: 0 or more; another seed gives other documents.
    max_digit: digits of a question are 1 to this. 5 is learned about twice as fast
      as 9.
    min_ops: fewest operations; None means 4 for chat and 2 otherwise.
    max_ops: most operations.
  """

  form: Literal["web", "synthetic", "chat"]
  num_documents: int
  seed: int
  max_digit: int = 5
  min_ops: int | None = None
  max_ops: int = 6

  def __post_init__(self):
    if self.form not in _FORMS:
      raise ConfigError(
        f"ArithmeticSource.form ({self.form!r}) must be one of {', '.join(_FORMS)}."
      )
    if self.num_documents < 1:
      raise ConfigError(
        f"ArithmeticSource.num_documents ({self.num_documents}) must be positive."
      )
    if self.seed < 0:
      raise ConfigError(f"ArithmeticSource.seed ({self.seed}) must be 0 or more.")
    toy.check_difficulty(
      min_ops=self._min_ops,
      max_ops=self.max_ops,
      max_digit=self.max_digit,
      where="ArithmeticSource",
    )

  @property
  def _min_ops(self) -> int:
    if self.min_ops is not None:
      return self.min_ops
    return 4 if self.form == "chat" else 2

  def documents(self, on_drop: OnDrop | None = None) -> Iterator[Document]:
    del on_drop  # every question is good
    # An integer seed for each (seed, form): the three forms share no questions'
    # order, and Python keeps integer seeding stable between versions.
    rng = random.Random(self.seed * 8 + _FORMS.index(self.form))
    for i in range(self.num_documents):
      question = toy.draw_question(
        rng,
        split="train",
        min_ops=self._min_ops,
        max_ops=self.max_ops,
        max_digit=self.max_digit,
      )
      name = f"arithmetic-{self.form}-{self.seed}:{i}"
      if self.form == "web":
        yield Document(id=name, text=toy.draw_web(rng, question))
      elif self.form == "synthetic":
        yield Document(id=name, text=toy.draw_synthetic(rng, question))
      else:
        asked, answered = toy.draw_chat(rng, question)
        yield Document(id=name, messages=make_exchange(asked, answered))

  def recipe(self) -> dict[str, Any]:
    return {"source": "ArithmeticSource", **dataclasses.asdict(self)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class JsonlSource(RecordSource):
  """Documents from JSON-lines files: one object a line, perhaps .gz or .zst."""

  def files(self) -> list[str]:
    return files_lib.list_files(self.path, suffixes=_JSONL)

  def read_file(self, file: str) -> Iterator[tuple[str, Any]]:
    return self.read_part(file, None)

  def read_part(self, file: str, part: FilePart | None) -> Iterator[tuple[str, Any]]:
    """As `read_file`, of a part."""
    for row, line in read_part(file, part, self.max_row_bytes):
      if line is None:
        where = f"Row {row} of {file}"
        yield str(row), _too_long(where, self)
      elif line.strip():
        yield str(row), _parse(line, file, row)

  def cut(self, files: list[str], base: str) -> list[SourceConfig]:
    """Returns a source for each file, and several for a large one (file_parts.py).

    A file is not cut where repeated ids are looked for in it.
    """
    wholes = super().cut(files, base)
    if self.id_field and self.duplicate_ids != "allow":
      return wholes
    found: list[SourceConfig] = []
    for whole, parts in zip(wholes, plan_parts(files), strict=True):
      assert isinstance(whole, JsonlSource), "a shard is of its source's class"
      found += [JsonlPart(whole=whole, part=part) for part in parts] or [whole]
    return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class JsonlPart(SourceConfig):
  """The documents of a part of one file: a shard, nothing that a gin file names.

  Attributes:
    whole: yields all documents of the file.
    part: which lines.
  """

  whole: JsonlSource
  part: FilePart

  def documents(self, on_drop: OnDrop | None = None) -> Iterator[Document]:
    file = str(self.whole.path)
    rows = self.whole.read_part(file, self.part)
    named = self.whole.name_rows(self.whole.base or "", file, rows)
    return self.whole.documents_of(named, on_drop)

  def recipe(self) -> dict[str, Any]:
    rows = [self.part.first_row, self.part.num_rows]
    return {**self.whole.recipe_of(self.part.sha256), "rows": rows}


_JSONL = tuple(kind + end for kind in (".jsonl", ".json") for end in ("", *COMPRESSED))


def _too_long(where: str, source: RecordSource) -> BadRow:
  return BadRow(
    "too_long",
    f"{where} has more than {source.max_row_bytes:,} bytes. Raise "
    f"{type(source).__name__}.max_row_bytes if it is meant.",
  )


def _parse(line: bytes, file: str, row: int) -> dict[str, Any] | BadRow:
  """Returns the object that a line holds, or why it holds none."""
  record = parse_object(skip_byte_order_mark(line) if row == 1 else line)
  if isinstance(record, NoObject):
    return BadRow(record.reason, f"Row {row} of {file} {record.detail}")
  return record
