"""Small files of every format that sources read, made here."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import zstandard
from array_record.python import array_record_module

from phi4_jax.data.example_proto import frame_tfrecord, write_example


def jsonl(records) -> bytes:
  return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def write_parquet(path: Path, records, **kwargs) -> str:
  pa.parquet.write_table(pa.Table.from_pylist(list(records)), path, **kwargs)
  return str(path)


def write_arrow(path: Path, records) -> str:
  table = pa.Table.from_pylist(list(records))
  with pa.ipc.new_stream(str(path), table.schema) as writer:
    writer.write_table(table)
  return str(path)


def write_tfrecord(path: Path, records) -> str:
  path.write_bytes(b"".join(frame_tfrecord(write_example(r)) for r in records))
  return str(path)


def write_array_record(path: Path, records) -> str:
  writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
  for record in records:
    data = record if isinstance(record, bytes) else json.dumps(record).encode()
    writer.write(data)
  writer.close()
  return str(path)


def write_gzip(path: Path, data: bytes) -> str:
  path.write_bytes(gzip.compress(data))
  return str(path)


def write_zstd(path: Path, data: bytes) -> str:
  path.write_bytes(zstandard.compress(data))
  return str(path)


def save_to_disk(folder: Path, splits) -> str:
  """Writes what `DatasetDict.save_to_disk` writes, as far as it is read."""
  for split, records in splits.items():
    (folder / split).mkdir(parents=True)
    names = []
    for i in range(2):
      names.append({"filename": f"data-{i:05d}-of-00002.arrow"})
      write_arrow(folder / split / names[-1]["filename"], records[i::2])
    state = {"_data_files": names, "_split": split}
    (folder / split / "state.json").write_text(json.dumps(state))
    (folder / split / "dataset_info.json").write_text("{}")
  (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(splits)}))
  return str(folder)
