"""Training batches from materialized datasets, with Grain and nothing else.

Each dataset is shuffled anew in every epoch, rows (never documents) are mixed by
weight, and the global order is cut into batches. All of it is a function of a
batch's number, so the state is one integer, and the same global batches come out
for any number of hosts.

Rows of a batch are dealt to hosts in turn: host h of H reads rows h, h + H, h + 2H
... of the global order.

Source: arXiv:2412.08905 §3.2 (mixture weights are fractions of training tokens).
"""

import dataclasses
import hashlib
import json
import logging
import zlib
from pathlib import Path
from typing import Any, Literal

import grain
import numpy as np

from phi4_jax.common.errors import ConfigError, DataError, OutOfData
from phi4_jax.data.batch import make_batch
from phi4_jax.data.mixture import mix_rows, shuffle_epochs
from phi4_jax.data.rows import Manifest, decode_row, read_manifest, verify_dataset

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
  """Which rows are trained on, how often, and in which order.

  Attributes:
    datasets: folder name -> weight, the fraction of rows (so of tokens, since all
      rows have one length). Weights are relative and hold for the whole run.
    batch_size: rows of the global batch, all hosts together.
    seed: of the shuffles; 0 or more.
    shuffle: off for evaluation, where order should be that of the files.
    epochs: passes over each dataset; a mixture ends where its first dataset does.
      None repeats for ever.
    verify: "full" reads and checks every row before the first batch; "manifest"
      only that the files are there with their sizes (for large data).
    read_threads: threads that read ahead; 0 reads when a batch is asked for.
  """

  datasets: dict[str, float]
  batch_size: int
  seed: int = 0
  shuffle: bool = True
  epochs: int | None = None
  verify: Literal["full", "manifest"] = "full"
  read_threads: int = 2

  def __post_init__(self):
    if not self.datasets:
      raise ConfigError("DataConfig.datasets must name at least one dataset.")
    for name, weight in self.datasets.items():
      if not 0 < weight < float("inf"):
        raise ConfigError(
          f"DataConfig.datasets[{name!r}] ({weight}) must be a positive weight. Leave "
          "the dataset out to give it none."
        )
    if self.batch_size < 1:
      raise ConfigError(f"DataConfig.batch_size ({self.batch_size}) must be positive.")
    if not 0 <= self.seed < 2**32:
      raise ConfigError(f"DataConfig.seed ({self.seed}) must lie in [0, 2**32).")
    if self.epochs is not None and self.epochs < 1:
      raise ConfigError(f"DataConfig.epochs ({self.epochs}) must be positive, or None.")
    if self.verify not in ("full", "manifest"):
      raise ConfigError(
        f"DataConfig.verify ({self.verify!r}) must be 'full' or 'manifest'."
      )
    if self.read_threads < 0:
      raise ConfigError(
        f"DataConfig.read_threads ({self.read_threads}) must be 0 or more."
      )


class Loader:
  """An iterator over this host's part of the global batches; see `make_loader`.

  Attributes:
    manifests: of each dataset, by name.
    row_length: T of every batch.
    slots_per_batch: token slots of a global batch, padding included.
    fill: share of the slots that hold a token, over the whole mixture.
    vocabulary_fingerprint: of the vocabulary that made all datasets.
    vocabulary_size: ids lie in [0, vocabulary_size).
    num_batches: how many there are; None if they never end.
    dropped_rows: rows at the end that do not fill a batch.
  """

  def __init__(
    self,
    manifests: dict[str, Manifest],
    batches: grain.MapDataset,
    config: DataConfig,
    *,
    num_rows: int | None,
  ):
    first = next(iter(manifests.values()))
    self.manifests = manifests
    self.row_length = first.row_length
    self.slots_per_batch = config.batch_size * first.row_length
    weights = config.datasets
    self.fill = sum(w * manifests[name].fill for name, w in weights.items())
    self.fill /= sum(weights.values())
    self.vocabulary_fingerprint = first.vocabulary_fingerprint
    self.vocabulary_size = first.vocabulary_size
    self.num_batches = None if num_rows is None else num_rows // config.batch_size
    self.dropped_rows = 0 if num_rows is None else num_rows % config.batch_size
    self._config = config
    self._plan = _plan_fingerprint(manifests, config)
    options = grain.ReadOptions(
      num_threads=config.read_threads,
      prefetch_buffer_size=max(4 * config.read_threads, 1),
    )
    self._iterator = iter(batches.to_iter_dataset(options))

  def __iter__(self) -> "Loader":
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    """Returns the next batch; see `batch.make_batch`.

    Raises:
      OutOfData: after the last one, and again if asked again.
    """
    try:
      return next(self._iterator)
    except StopIteration:
      raise OutOfData(
        f"The data ended after {self.num_batches} batches of {self._config.batch_size} "
        f"rows ({self._config.epochs} epochs of {', '.join(self.manifests)}). Raise "
        "DataConfig.epochs (None repeats for ever), or ask for fewer steps."
      ) from None

  def get_state(self) -> dict[str, Any]:
    """Returns the position as small JSON: the same on every host."""
    state = self._iterator.get_state()
    return {"next_batch": int(state["next_index"]), "plan": self._plan}

  def set_state(self, state: dict[str, Any]) -> None:
    """Goes to a position, at once. The number of hosts may have changed.

    Raises:
      DataError: if the state is of other data, weights, batch size, seed or epochs:
        going on from it would silently leave rows out or repeat them.
    """
    position = state.get("next_batch")
    if set(state) != {"next_batch", "plan"} or not isinstance(position, int):
      raise DataError(f"{state!r} is not a state of this loader.")
    if state["plan"] != self._plan:
      raise DataError(
        "The saved data position belongs to other datasets, weights, batch_size, seed, "
        "shuffle or epochs than this DataConfig. Restore these, or start a new run "
        "from the saved parameters."
      )
    if position < 0 or (self.num_batches is not None and position > self.num_batches):
      raise DataError(
        f"The saved data position is batch {position}, but there are "
        f"{self.num_batches} batches."
      )
    self._iterator.set_state({"next_index": position})

  def describe(self) -> list[str]:
    """Says in a few lines what is read, for logs."""
    total = sum(self._config.datasets.values())
    lines = [
      f"{name}: {manifest.rows} rows of {self.row_length} tokens, fill "
      f"{manifest.fill:.3f}, weight {self._config.datasets[name] / total:.3f}"
      for name, manifest in self.manifests.items()
    ]
    if self.num_batches is not None:
      lines.append(
        f"{self.num_batches} batches of {self._config.batch_size} rows; the last "
        f"{self.dropped_rows} rows do not fill a batch and are dropped"
      )
    return lines


def make_loader(
  data_dir: str | Path,
  config: DataConfig,
  *,
  host_index: int = 0,
  host_count: int = 1,
) -> Loader:
  """Opens and checks datasets, and returns an iterator over batches.

  Args:
    data_dir: the folder in which DataConfig.datasets are folders.
    config: what to read.
    host_index: which host this is; it reads batch_size / host_count rows a batch.
    host_count: how many hosts read together.

  Raises:
    ConfigError: if the batch does not divide among hosts, a dataset does not exist,
      or the data do not fill one batch.
    DataError: if a dataset is incomplete or damaged (file and row are named), or if
      datasets differ in row length or vocabulary.
  """
  data_dir = Path(data_dir)
  if not 0 <= host_index < host_count:
    raise ConfigError(f"host_index ({host_index}) must lie in [0, {host_count}).")
  if config.batch_size % host_count:
    raise ConfigError(
      f"DataConfig.batch_size ({config.batch_size}) must be a multiple of the number "
      f"of hosts ({host_count})."
    )
  manifests = {name: _open(data_dir, name) for name in config.datasets}
  _check_agreement(manifests)
  for name, manifest in manifests.items():
    verify_dataset(data_dir / name, manifest, config.verify)
  mixed = mix_rows(
    [_rows(data_dir / name, manifests[name], name, config) for name in manifests],
    list(config.datasets.values()),
  )
  num_rows = None if config.epochs is None else len(mixed)
  if num_rows is not None:
    whole = num_rows - num_rows % config.batch_size
    if not whole:
      raise ConfigError(
        f"DataConfig.batch_size ({config.batch_size}) is above the {num_rows} rows of "
        f"{config.epochs} epochs. Lower it, or raise DataConfig.epochs."
      )
    # Cut before rows are dealt to hosts, or one host could have a batch more.
    mixed = mixed[:whole]
  batches = (
    mixed[host_index::host_count]
    .map(decode_row)
    .batch(config.batch_size // host_count, drop_remainder=True)
    .map(make_batch)
  )
  loader = Loader(manifests, batches, config, num_rows=num_rows)
  for line in loader.describe():
    _log.info("%s", line)
  return loader


def _open(data_dir: Path, name: str) -> Manifest:
  if not (data_dir / name).is_dir():
    found = sorted(path.parent.name for path in data_dir.glob("*/manifest.json"))
    raise ConfigError(
      f"DataConfig.datasets names {name!r}, which is not in {data_dir}. Found: "
      f"{', '.join(found) or 'no dataset'}."
    )
  return read_manifest(data_dir / name)


def _check_agreement(manifests: dict[str, Manifest]) -> None:
  """Refuses datasets that cannot be mixed."""
  (first, reference), *others = manifests.items()
  for name, manifest in others:
    for field in ("row_length", "vocabulary_fingerprint", "vocabulary_size"):
      ours, theirs = getattr(reference, field), getattr(manifest, field)
      if ours != theirs:
        raise DataError(
          f"Datasets {first!r} and {name!r} differ in {field} ({ours} and {theirs}). "
          "Materialize both with the same vocabulary and packing."
        )


def _rows(
  path: Path, manifest: Manifest, name: str, config: DataConfig
) -> grain.MapDataset:
  """All epochs of one dataset's records."""
  source = grain.sources.ArrayRecordDataSource(
    [str(path / shard.file) for shard in manifest.shards]
  )
  rows = grain.MapDataset.source(source)  # pyright: ignore
  if not config.shuffle:
    return rows.repeat(config.epochs)
  # A seed of its own for each name: adding a dataset changes no other's order.
  seeds = np.random.SeedSequence([config.seed, zlib.crc32(name.encode())])
  return shuffle_epochs(
    rows, seed=int(seeds.generate_state(1)[0]), epochs=config.epochs
  )


def _plan_fingerprint(manifests: dict[str, Manifest], config: DataConfig) -> str:
  """Names the global order of rows; hosts, threads and checks do not change it."""
  datasets = [
    [name, float(config.datasets[name]), manifest.fingerprint()]
    for name, manifest in manifests.items()
  ]
  plan = [
    datasets,
    config.batch_size,
    config.seed,
    config.shuffle,
    config.epochs,
  ]
  return hashlib.sha256(json.dumps(plan).encode()).hexdigest()[:16]
