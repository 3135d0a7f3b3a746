"""Sources of binary records: ArrayRecord, TFRecord, and datasets that TFDS prepared.

None of them imports TensorFlow.
"""

import contextlib
import dataclasses
import json
import re
from collections.abc import Iterator
from typing import Any, Literal

from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.common.io import json_kind
from phi4_jax.data import files as files_lib
from phi4_jax.data.example_proto import parse_example, read_tfrecords
from phi4_jax.data.source_files import BadRow
from phi4_jax.data.source_records import RecordSource, decode_text

Encoding = Literal["example", "json", "text"]
_ENCODINGS = ("example", "json", "text")
_READ_RECORDS = 256
_READ_BYTES = 8 << 20  # about so much is held of an ArrayRecord file


@dataclasses.dataclass(frozen=True, kw_only=True)
class _BinarySource(RecordSource):
  """Records that are bytes.

  Attributes:
    encoding: what a record is: "example" (tf.train.Example), "json" (an object) or
      "text" (UTF-8; it becomes the field `text_field`).
  """

  encoding: Encoding = "example"

  def __post_init__(self):
    super().__post_init__()
    if self.encoding not in _ENCODINGS:
      raise ConfigError(
        f"{type(self).__name__}.encoding ({self.encoding!r}) must be one of "
        f"{', '.join(_ENCODINGS)}."
      )

  def _decode(self, data: bytes | int, where: str) -> dict[str, Any] | BadRow:
    """Returns the fields of a record, or why it has none; an int is a large size."""
    size = data if isinstance(data, int) else len(data)
    if isinstance(data, int) or size > self.max_row_bytes:
      return BadRow(
        "too_long",
        f"{where} has {size:,} bytes, more than the {self.max_row_bytes:,} of "
        f"{type(self).__name__}.max_row_bytes.",
      )
    try:
      if self.encoding == "text":
        return {self.text_field: decode_text(data, where)}
      if self.encoding == "json":
        record = json.loads(decode_text(data, where))
        if not isinstance(record, dict):
          return BadRow("not_an_object", f"{where} is {json_kind(record)}, no object.")
        return record
      return parse_example(data)
    except BadRow as error:
      return error
    except (ValueError, RecursionError) as error:  # DataError among them
      reason = "not_json" if self.encoding == "json" else "not_an_example"
      return BadRow(reason, f"{where} cannot be read as {self.encoding}: {error}")

  def _read_tfrecord(self, file: str) -> Iterator[tuple[str, Any]]:
    with files_lib.open_file(file) as opened:
      records = read_tfrecords(opened, file, self.max_row_bytes)
      for row, data in enumerate(records, start=1):
        yield str(row), self._decode(data, f"Row {row} of {file}")

  def _read_array_record(self, file: str) -> Iterator[tuple[str, Any]]:
    with files_lib.local_copy(file) as path:
      for row, data in enumerate(read_array_records(path, file), start=1):
        yield str(row), self._decode(data, f"Row {row} of {file}")


def read_array_records(path: str, name: str) -> Iterator[bytes]:
  """Yields the records of a local ArrayRecord file, called `name` in errors.

  Raises:
    DataError: if it is none or is damaged.
  """
  from array_record.python import array_record_module  # pyright: ignore

  reader = None
  try:
    reader = array_record_module.ArrayRecordReader(path)
    count, at, block = reader.num_records(), 0, 1
    while at < count:
      records = reader.read(at, min(at + block, count))
      yield from records
      at += len(records)
      mean = sum(map(len, records)) // len(records) + 1
      block = max(1, min(_READ_RECORDS, _READ_BYTES // mean))
    # A file that is cut off has no records, and says why only here.
    closing, reader = reader, None
    closing.close()
  except (IndexError, RuntimeError, ValueError) as error:
    raise DataError(f"{name} cannot be read as ArrayRecord: {error}.") from error
  finally:
    if reader is not None:
      with contextlib.suppress(RuntimeError):
        reader.close()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArrayRecordSource(_BinarySource):
  """Documents from ArrayRecord files; a file behind a protocol is fetched first."""

  encoding: Encoding = "json"

  def files(self) -> list[str]:
    suffixes = (".arrayrecord", ".array_record")
    return files_lib.list_files(self.path, suffixes=suffixes)

  def read_file(self, file: str) -> Iterator[tuple[str, Any]]:
    return self._read_array_record(file)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TFRecordSource(_BinarySource):
  """Documents from TFRecord files, perhaps .gz."""

  def read_file(self, file: str) -> Iterator[tuple[str, Any]]:
    return self._read_tfrecord(file)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TfdsSource(_BinarySource):
  """Documents of a dataset that TFDS prepared, of flat or nested texts and numbers.

  `path` is the folder of a version (`.../gsm8k/1.0.0`), which has dataset_info.json,
  or files of it.

  Attributes:
    split: which one; the names are those of the folder. No slices (`train[:10%]`).
  """

  split: str = "train"

  def files(self) -> list[str]:
    files = files_lib.list_files(self.path)
    kinds = [(file, _SHARD.search(file.rpartition("/")[2])) for file in files]
    shards = [(file, kind["split"]) for file, kind in kinds if kind]
    if not shards:
      raise DataError(
        f"{self.path} has no files of a dataset that TFDS prepared (NAME-SPLIT."
        "tfrecord-00000-of-00001). Name the folder of its version."
      )
    found = [file for file, split in shards if split == self.split]
    if not found:
      known = ", ".join(sorted({split for _, split in shards}))
      raise DataError(f"{self.path} has no split {self.split!r}; it has {known}.")
    _check_complete(found, self.split)
    return found

  def read_file(self, file: str) -> Iterator[tuple[str, Any]]:
    if ".array_record" in file:
      return self._read_array_record(file)
    return self._read_tfrecord(file)


_SHARD = re.compile(
  r"^(?P<name>.+)-(?P<split>[^-]+)\.(?:tfrecord|array_record)"
  r"-(?P<number>\d{5})-of-(?P<count>\d{5})$"
)


def _check_complete(files: list[str], split: str) -> None:
  """Refuses a split of which some files are there and some are not."""
  parts = [match for file in files if (match := _SHARD.search(file.rpartition("/")[2]))]
  if len(parts) == 1 and int(parts[0]["count"]) > 1:
    return  # a shard of a source is one file of the split, by name
  found = [(int(part["number"]), int(part["count"])) for part in parts]
  if found != [(i, len(parts)) for i in range(len(parts))]:
    raise DataError(
      f"Split {split!r} is not complete: it has {len(parts)} files, {files[0]} to "
      f"{files[-1]}. Prepare the dataset again."
    )
