"""Datasets that a mixture reads: opened, checked, and each at its next unread row.

A dataset's rows have one order for its whole life, epoch after epoch, whatever it is
mixed with. A stage of training begins where the stage before ended, so its position
is one number: how many rows have been read so far.
"""

import dataclasses
import functools
import math
import zlib
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import grain
import numpy as np

from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.data.batch import make_batch
from phi4_jax.data.data_config import DataConfig
from phi4_jax.data.mixture import shuffle_epochs
from phi4_jax.data.rows import Manifest, decode_row, read_manifest, verify_dataset


@dataclasses.dataclass(frozen=True, kw_only=True)
class EarlierStage:
  """The data of the stage that a run goes on from.

  Attributes:
    data_dirs: the folders in which datasets are folders that this stage, or one before
      it, has read.
    state: `Loader.get_state()` at that stage's end.
  """

  data_dirs: tuple[Path, ...]
  state: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowSource:
  """One dataset of a mixture.

  Attributes:
    name: of the dataset.
    path: its folder.
    manifest: what it holds.
    start: rows of it that earlier stages have read.
    joined: how many of its rows make one row of the mixture, when they are shorter.
  """

  name: str
  path: Path
  manifest: Manifest
  start: int
  joined: int

  @property
  def tokens_per_row(self) -> Fraction:
    """Tokens of a row of the mixture that is made of this dataset, on average."""
    return Fraction(self.manifest.tokens * self.joined, self.manifest.rows)

  def rows_read(self, count: int) -> int:
    """Returns the dataset's rows read when the mixture has taken `count` of its own."""
    return self.start + count * self.joined

  def epochs(self, count: int) -> float:
    """Returns the passes made when the mixture has taken `count` rows of its own."""
    return self.rows_read(count) / self.manifest.rows

  def rows_until(self, cap: int | float | None) -> int | None:
    """Returns the rows of the mixture until `cap` passes; None without a cap."""
    if cap is None:
      return None
    rows = math.floor(Fraction(repr(float(cap))) * self.manifest.rows) - self.start
    return max(rows // self.joined, 0)

  def read(self, config: DataConfig) -> grain.MapDataset:
    """Returns decoded rows [joined, 3, S], from the next unread one on, for ever."""
    source = grain.sources.ArrayRecordDataSource(
      [str(self.path / shard.file) for shard in self.manifest.shards]
    )
    rows = grain.MapDataset.source(source)  # pyright: ignore
    if config.shuffle:
      # A seed of its own for each name: adding a dataset changes no other's order.
      seeds = np.random.SeedSequence([config.seed, zlib.crc32(self.name.encode())])
      rows = shuffle_epochs(rows, seed=int(seeds.generate_state(1)[0]), epochs=None)
    else:
      rows = rows.repeat(None)
    if self.start:
      rows = rows[self.start :]
    rows = rows.map(decode_row)
    return rows.batch(self.joined) if self.joined > 1 else rows


def open_sources(
  data_dir: Path, config: DataConfig, earlier: EarlierStage | None
) -> list[RowSource]:
  """Opens every dataset of a configuration, at its next unread row, and checks it.

  A dataset that an earlier stage has read goes on at its next unread row: it comes from
  the first of the earlier folders, or else `data_dir`, that holds those very rows.
  Every other comes from `data_dir` and begins at its first row.

  Raises:
    ConfigError: if a dataset does not exist, or the order of rows would be another
      than the earlier stage's.
    DataError: if a dataset is incomplete or damaged (file and row are named), has
      changed since the earlier stage, or does not fit the others.
  """
  read = {} if earlier is None else _read_before(earlier.state, config)
  found: dict[str, tuple[Path, Manifest]] = {}
  for name in config.datasets:
    if earlier is None or name not in read:
      found[name] = _open((data_dir,), name)
    else:
      folders = tuple(dict.fromkeys([*earlier.data_dirs, data_dir]))
      found[name] = _open(folders, name, read[name]["data"])
  _check_agreement({name: manifest for name, (_, manifest) in found.items()})
  row_length = max(manifest.row_length for _, manifest in found.values())
  for path, manifest in found.values():
    verify_dataset(path, manifest, config.verify)
  return [
    RowSource(
      name=name,
      path=path,
      manifest=manifest,
      start=read[name]["rows"] if name in read else 0,
      joined=row_length // manifest.row_length,
    )
    for name, (path, manifest) in found.items()
  ]


def _read_before(state: Mapping[str, Any], config: DataConfig) -> dict[str, Any]:
  """Returns {name: {"rows", "data"}} of an earlier stage's state."""
  if not isinstance(state.get("sources"), Mapping):
    raise DataError(
      "The earlier stage's checkpoint does not say how many rows of each dataset it "
      "has read: it was not trained on packed rows, or by an earlier version."
    )
  for field in ("seed", "shuffle"):
    if state[field] != getattr(config, field):
      raise ConfigError(
        f"DataConfig.{field} ({getattr(config, field)!r}) differs from the earlier "
        f"stage's ({state[field]!r}): in another order of rows there is no next unread "
        f"one. Set DataConfig.{field} = {state[field]!r}."
      )
  return dict(state["sources"])


def _open(
  folders: tuple[Path, ...], name: str, fingerprint: str | None = None
) -> tuple[Path, Manifest]:
  """Opens a dataset in the first folder that has it, with these rows if any."""
  having = [folder for folder in folders if (folder / name).is_dir()]
  if not having:
    found = {path.parent.name for f in folders for path in f.glob("*/manifest.json")}
    raise ConfigError(
      f"DataConfig.datasets names {name!r}, which is not in "
      f"{' nor in '.join(map(str, folders))}. Found: "
      f"{', '.join(sorted(found)) or 'no dataset'}."
    )
  for folder in having:
    manifest = read_manifest(folder / name)
    if fingerprint is None or manifest.fingerprint() == fingerprint:
      return folder / name, manifest
  raise DataError(
    f"Dataset {name!r} in {' and in '.join(map(str, having))} is not the one that the "
    "earlier stage read, so it has no next unread row. Name the folder of that stage's "
    "data, or give a new dataset a new name."
  )


def _check_agreement(manifests: dict[str, Manifest]) -> None:
  """Refuses datasets that cannot be mixed."""
  (first, reference), *others = manifests.items()
  for name, manifest in others:
    for field in ("vocabulary_fingerprint", "vocabulary_size"):
      ours, theirs = getattr(reference, field), getattr(manifest, field)
      if ours != theirs:
        raise DataError(
          f"Datasets {first!r} and {name!r} differ in {field} ({ours} and {theirs}). "
          "Materialize both with the same vocabulary."
        )
  longest = max(manifests, key=lambda name: manifests[name].row_length)
  for name, manifest in manifests.items():
    if manifests[longest].row_length % manifest.row_length:
      raise DataError(
        f"Datasets {longest!r} and {name!r} differ in row_length "
        f"({manifests[longest].row_length} and {manifest.row_length}), and the shorter "
        "does not divide the longer. Materialize one of them anew."
      )


def make_row(rows: np.ndarray) -> dict[str, np.ndarray]:
  """Makes one row of a batch, [T], of several shorter rows [K, 3, S].

  Each keeps its own documents: nothing in one can attend to another.

  Differs: the paper does not say whether recalled tokens are packed anew for
    midtraining (arXiv:2412.08905 section 3.3); here they keep the rows of pretraining,
    so that each goes on at its next unread one.
  """
  batch = make_batch(rows.reshape(-1, *rows.shape[-2:]))
  segments = batch["segment_ids"]
  # Documents of the k-th row are numbered after those of the rows before it.
  used = np.concatenate([[0], np.cumsum(segments.max(axis=1))[:-1]]).astype(np.int32)
  batch["segment_ids"] = np.where(segments != 0, segments + used[:, None], 0)
  return {name: values.reshape(-1) for name, values in batch.items()}


def make_batches(
  sources: list[RowSource], mixed: grain.MapDataset, rows_per_batch: int
) -> grain.MapDataset:
  """Returns batches of decoded rows; see `batch.make_batch`."""
  batch = functools.partial(
    grain.MapDataset.batch, batch_size=rows_per_batch, drop_remainder=True
  )
  if all(source.joined == 1 for source in sources):
    return batch(mixed).map(make_batch)
  return batch(mixed.map(make_row))
