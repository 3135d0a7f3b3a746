"""tf.train.Example and the TFRecord framing, without TensorFlow.

The message types are declared here from their published field numbers, in a pool of
their own, so that TensorFlow may be imported beside them.
"""

import functools
import struct
from collections.abc import Iterator
from typing import Any

from phi4_jax.common.compression import ByteStream
from phi4_jax.common.errors import DataError

_LENGTH = struct.Struct("<Q")
_CRC = struct.Struct("<I")
_POLYNOMIAL = 0x82F63B78  # CRC-32C, bits reversed
_CRC_MASK = 0xA282EAD8


@functools.cache
def _crc_table() -> tuple[int, ...]:
  table = []
  for value in range(256):
    for _ in range(8):
      value = value >> 1 ^ (_POLYNOMIAL if value & 1 else 0)
    table.append(value)
  return tuple(table)


def masked_crc(data: bytes) -> int:
  """Returns the checksum that TFRecord keeps of a few bytes (slow for many)."""
  table, crc = _crc_table(), 0xFFFFFFFF
  for byte in data:
    crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
  crc ^= 0xFFFFFFFF
  return ((crc >> 15 | crc << 17 & 0xFFFFFFFF) + _CRC_MASK) & 0xFFFFFFFF


def read_tfrecords(
  file: ByteStream, path: str, max_bytes: int
) -> Iterator[bytes | int]:
  """Yields the records of a TFRecord file; of one that is too large, its size.

  The length of each record is checked by its checksum, so that a damaged file is seen
  where the damage begins; the checksum of the content is not computed.

  Raises:
    DataError: if the file is damaged or ends inside a record.
  """
  number = 0
  while header := file.read(12):
    number += 1
    where = f"Record {number} of {path}"
    if len(header) < 12:
      raise DataError(f"{where} is cut off: the file ends inside its length.")
    (size,) = _LENGTH.unpack(header[:8])
    if _CRC.unpack(header[8:])[0] != masked_crc(header[:8]):
      raise DataError(
        f"{where} has a length whose checksum is wrong: the file is damaged there, or "
        "is no TFRecord file."
      )
    if size > max_bytes:
      _skip(file, size + 4, where)
      yield size
      continue
    data = file.read(size + 4)
    if len(data) < size + 4:
      raise DataError(f"{where} is cut off: {len(data)} of {size + 4} bytes are there.")
    yield data[:size]


def _skip(file: ByteStream, size: int, where: str) -> None:
  while size:
    block = file.read(min(size, 1 << 20))
    if not block:
      raise DataError(f"{where} is cut off: {size} bytes are missing.")
    size -= len(block)


@functools.cache
def example_class() -> Any:
  """Returns the message class of tf.train.Example."""
  from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

  file = descriptor_pb2.FileDescriptorProto(
    name="phi4_jax/example.proto", package="phi4_jax", syntax="proto3"
  )
  field = descriptor_pb2.FieldDescriptorProto
  for name, kind in (
    ("BytesList", field.TYPE_BYTES),
    ("FloatList", field.TYPE_FLOAT),
    ("Int64List", field.TYPE_INT64),
  ):
    message = file.message_type.add(name=name)
    message.field.add(name="value", number=1, type=kind, label=field.LABEL_REPEATED)
  feature = file.message_type.add(name="Feature")
  feature.oneof_decl.add(name="kind")
  for number, name in enumerate(("BytesList", "FloatList", "Int64List"), start=1):
    feature.field.add(
      name=name.lower().replace("list", "_list"),
      number=number,
      type=field.TYPE_MESSAGE,
      type_name=f".phi4_jax.{name}",
      label=field.LABEL_OPTIONAL,
      oneof_index=0,
    )
  features = file.message_type.add(name="Features")
  entry = features.nested_type.add(name="FeatureEntry")
  entry.options.map_entry = True
  entry.field.add(
    name="key", number=1, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL
  )
  for owner, name, number, label, kind in (
    (entry, "value", 2, field.LABEL_OPTIONAL, "Feature"),
    (features, "feature", 1, field.LABEL_REPEATED, "Features.FeatureEntry"),
    (file.message_type.add(name="Example"), "features", 1, field.LABEL_OPTIONAL,
     "Features"),
  ):  # fmt: skip
    owner.field.add(
      name=name,
      number=number,
      type=field.TYPE_MESSAGE,
      type_name=f".phi4_jax.{kind}",
      label=label,
    )
  pool = descriptor_pool.DescriptorPool()
  pool.Add(file)
  return message_factory.GetMessageClass(pool.FindMessageTypeByName("phi4_jax.Example"))


def parse_example(data: bytes) -> dict[str, Any]:
  """Returns the features of a tf.train.Example by name.

  A feature of one value is that value, of several a list; texts are bytes. TFDS writes
  what is nested with a slash: `choices/text` comes as `{"choices": {"text": ...}}`.

  Raises:
    DataError: if the bytes are no tf.train.Example.
  """
  from google.protobuf.message import DecodeError

  try:
    example = example_class().FromString(data)
  except (DecodeError, RecursionError) as error:
    raise DataError(f"it is no tf.train.Example: {error}.") from error
  record: dict[str, Any] = {}
  for name, feature in sorted(example.features.feature.items()):
    kind = feature.WhichOneof("kind")
    values = list(getattr(feature, kind).value) if kind else []
    *outer, last = name.split("/")
    at = record
    for part in outer:
      inner = at.setdefault(part, {})
      if not isinstance(inner, dict):
        raise DataError(f"feature {name!r} lies in {part!r}, which is one itself.")
      at = inner
    at[last] = values[0] if len(values) == 1 else values
  return record


def write_example(features: dict[str, Any]) -> bytes:
  """Returns a tf.train.Example of texts, bytes, numbers and lists of these."""
  example = example_class()()
  for name, given in features.items():
    values = list(given) if isinstance(given, list | tuple) else [given]
    feature = example.features.feature[name]
    if all(isinstance(value, str | bytes) for value in values):
      feature.bytes_list.value.extend(
        value.encode() if isinstance(value, str) else value for value in values
      )
    elif all(isinstance(value, int) for value in values):
      feature.int64_list.value.extend(values)
    else:
      feature.float_list.value.extend(values)
  return example.SerializeToString(deterministic=True)


def frame_tfrecord(data: bytes) -> bytes:
  """Returns a record as it stands in a TFRecord file."""
  length = _LENGTH.pack(len(data))
  return length + _CRC.pack(masked_crc(length)) + data + _CRC.pack(masked_crc(data))
