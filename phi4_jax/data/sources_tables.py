"""Sources of tables: Parquet, CSV, and datasets of the Hugging Face library (Arrow).

Arrow is read with pyarrow alone: the `datasets` package is not needed.
"""

import csv
import dataclasses
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from phi4_jax.common.compression import COMPRESSED
from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.common.io import json_kind
from phi4_jax.data import files as files_lib
from phi4_jax.data.source_files import BadRow
from phi4_jax.data.source_records import RecordSource, decode_text

_BATCH_ROWS = 256


def _import_pyarrow() -> Any:
  try:
    import pyarrow
    import pyarrow.ipc
    import pyarrow.parquet
  except ImportError as error:
    raise ConfigError(
      "Parquet and Arrow files need pyarrow: pip install 'phi4_jax[data]'."
    ) from error
  return pyarrow


@dataclasses.dataclass(frozen=True, kw_only=True)
class _TableSource(RecordSource):
  """Rows of Arrow tables."""

  def _rows(self, batch: Any, first: int, file: str) -> Iterator[tuple[str, Any]]:
    """Yields the rows of a batch; texts come as bytes, to be decoded one by one."""
    pa = _import_pyarrow()
    columns = []
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
      if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
      if pa.types.is_string(column.type):
        column = column.view(pa.binary())
      elif pa.types.is_large_string(column.type):
        column = column.view(pa.large_binary())
      columns.append((name, column))
    for i in range(batch.num_rows):
      where = f"Row {first + i} of {file}"
      yield str(first + i), self._row(columns, i, where)

  def _row(self, columns: list[tuple[str, Any]], i: int, where: str) -> Any:
    record, size = {}, 0
    for name, column in columns:
      try:
        record[name] = column[i].as_py()
      except (UnicodeDecodeError, ValueError, OverflowError) as error:
        return BadRow("wrong_type", f"{where}: field {name!r} cannot be read: {error}.")
      size += len(record[name]) if isinstance(record[name], bytes) else 0
    if size > self.max_row_bytes:
      return BadRow(
        "too_long",
        f"{where} has {size:,} bytes of text, more than the {self.max_row_bytes:,} of "
        f"{type(self).__name__}.max_row_bytes.",
      )
    return record

  def _read_parquet(
    self, file: str, columns: Collection[str]
  ) -> Iterator[tuple[str, Any]]:
    pa = _import_pyarrow()
    with files_lib.open_file(file) as opened:
      try:
        table = pa.parquet.ParquetFile(opened)
        wanted = [name for name in table.schema_arrow.names if name in columns]
        row = 1
        # Without any of the fields, the error shall name those that there are.
        for batch in table.iter_batches(_BATCH_ROWS, columns=wanted or None):
          yield from self._rows(batch, row, file)
          row += batch.num_rows
      except (pa.ArrowException, OSError) as error:
        _refuse_unreachable(error)
        raise DataError(f"{file} cannot be read as Parquet: {error}.") from error

  def _read_arrow(self, file: str) -> Iterator[tuple[str, Any]]:
    pa = _import_pyarrow()
    with files_lib.open_file(file) as opened:
      try:
        for first, batch in _arrow_batches(pa, opened):
          for start in range(0, batch.num_rows, _BATCH_ROWS):
            part = batch.slice(start, _BATCH_ROWS)
            yield from self._rows(part, first + start, file)
      except (pa.ArrowException, OSError) as error:
        _refuse_unreachable(error)
        raise DataError(f"{file} cannot be read as Arrow: {error}.") from error


def _refuse_unreachable(error: Exception) -> None:
  """Raises what a disk or a store has said; what Arrow says has no number."""
  if isinstance(error, OSError) and (type(error) is not OSError or error.errno):
    raise error


def _arrow_batches(pa: Any, opened: Any) -> Iterator[tuple[int, Any]]:
  """Yields (first row, batch) of an Arrow stream, or of an Arrow file."""
  is_file = opened.read(6) == b"ARROW1"
  opened.seek(0)
  row = 1
  if is_file:
    reader = pa.ipc.open_file(opened)
    batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
  else:
    batches = iter(pa.ipc.open_stream(opened))
  for batch in batches:
    yield row, batch
    row += batch.num_rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParquetSource(_TableSource):
  """Documents from Parquet files; only the columns that are needed are read."""

  def files(self) -> list[str]:
    return files_lib.list_files(self.path, suffixes=(".parquet",))

  def read_file(self, file: str) -> Iterator[tuple[str, Any]]:
    return self._read_parquet(file, self.field_names())

  def read_columns(
    self, file: str, columns: Collection[str]
  ) -> Iterator[tuple[str, Any]]:
    return self._read_parquet(file, columns)


@dataclasses.dataclass(frozen=True, kw_only=True)
class HuggingFaceSource(_TableSource):
  """Documents of a dataset that the Hugging Face library has on disk.

  `path` is a folder that `save_to_disk` wrote (of a dataset or of a dict of splits), a
  folder of the library's cache (it has dataset_info.json and .arrow files), or .arrow
  files.

  Attributes:
    split: which one, where the folder holds several.
  """

  split: str = "train"

  def files(self) -> list[str]:
    path = self.path
    if isinstance(path, str) and Path(path).is_dir():
      return _find_arrow_files(Path(path), self.split)
    return files_lib.list_files(path, suffixes=(".arrow",))

  def read_file(self, file: str) -> Iterator[tuple[str, Any]]:
    return self._read_arrow(file)


def _find_arrow_files(folder: Path, split: str) -> list[str]:
  """Returns the files of a split, in the order that the dataset gives them.

  Raises:
    DataError: if there is no such split, or a file of it is missing.
  """
  if (folder / "dataset_dict.json").is_file():
    splits = _read_object(folder / "dataset_dict.json").get("splits", [])
    if split not in splits:
      raise DataError(f"{folder} has no split {split!r}; it has {', '.join(splits)}.")
    folder = folder / split
  if (folder / "state.json").is_file():
    state = _read_object(folder / "state.json")
    listed = state.get("_data_files")
    if not isinstance(listed, list) or not listed:
      raise DataError(f"{folder / 'state.json'} names no data files.")
    files = [folder / str(file.get("filename")) for file in listed]
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
      raise DataError(
        f"{missing[0]} is missing, but {folder / 'state.json'} names it. Save the "
        "dataset again."
      )
    return [str(file) for file in files]
  found = sorted(folder.glob("*.arrow"))
  # NAME-SPLIT.arrow or NAME-SPLIT-00000-of-00002.arrow; cache-*.arrow are results of
  # map() and filter(), which nothing names.
  named = {file: _split_of(file.stem) for file in found if file.stem[:6] != "cache-"}
  files = [str(file) for file in found if named.get(file) == split]
  if not files:
    known = ", ".join(sorted(set(filter(None, named.values())))) or "no .arrow file"
    raise DataError(f"{folder} has no split {split!r}; it has {known}.")
  return files


def _split_of(stem: str) -> str:
  parts = stem.split("-")
  if len(parts) > 3 and parts[-2] == "of" and parts[-1].isdigit():
    parts = parts[:-3]
  return parts[-1]


def _read_object(path: Path) -> dict[str, Any]:
  try:
    value = json.loads(path.read_text("utf-8"))
  except ValueError as error:
    raise DataError(f"{path} is not valid JSON: {error}.") from error
  if not isinstance(value, dict):
    raise DataError(f"{path} is {json_kind(value)}; an object is required.")
  return value


@dataclasses.dataclass(frozen=True, kw_only=True)
class CsvSource(RecordSource):
  """Documents from CSV files (or TSV, by their name) whose first row has the names."""

  def files(self) -> list[str]:
    suffixes = tuple(
      kind + end for kind in (".csv", ".tsv") for end in ("", *COMPRESSED)
    )
    return files_lib.list_files(self.path, suffixes=suffixes)

  def read_file(self, file: str) -> Iterator[tuple[str, Any]]:
    delimiter = "\t" if ".tsv" in file.rpartition("/")[2] else ","
    with files_lib.open_file(file) as opened:
      lines = self._lines(opened, file)
      # A field may span lines, so a bad line ends the file: what follows it cannot be
      # told apart from the inside of a field.
      reader = csv.reader(lines, delimiter=delimiter, strict=True)
      csv.field_size_limit(max(csv.field_size_limit(), self.max_row_bytes))
      header: list[str] | None = None
      row = 0
      try:
        for cells in reader:
          if not cells:
            continue
          if header is None:
            header = cells
            continue
          row += 1
          yield str(row), _to_record(header, cells, f"Row {row} of {file}")
      except csv.Error as error:
        raise DataError(
          f"{file} is not CSV after row {row} (line {reader.line_num}): {error}."
        ) from error

  def _lines(self, opened: Any, file: str) -> Iterator[str]:
    for number, line in files_lib.read_lines(opened, self.max_row_bytes):
      where = f"Line {number} of {file}"
      if line is None:
        raise DataError(f"{where} has more than {self.max_row_bytes:,} bytes.")
      try:
        text = decode_text(line, where)
      except BadRow as error:
        raise DataError(f"{error} The rows behind it are not read.") from error
      yield text.removeprefix("\ufeff") if number == 1 else text


def _to_record(header: list[str], cells: list[str], where: str) -> Any:
  if len(cells) != len(header):
    return BadRow(
      "wrong_columns",
      f"{where} has {len(cells)} cells; the first row names {len(header)} columns.",
    )
  return dict(zip(header, cells, strict=True))
