"""Training batches from materialized datasets, with Grain and nothing else.

Each dataset is shuffled anew in every epoch, rows (never documents) are mixed by
weight, and the global order is cut into batches. All of it is a function of a
batch's number, so the position is one integer, and the same global batches come out
for any number of hosts: rows were packed before training, and no host packs any. Beside
the integer a state holds what follows from it, the rows read of each dataset, from
which a later stage with other weights or datasets goes on.

Rows of a batch are dealt to hosts in turn: host h of H reads rows h, h + H, h + 2H
... of the global order.

Source: arXiv:2412.08905 §3.2 (mixture weights are fractions of training tokens).
"""

import hashlib
import json
import logging
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import grain
import numpy as np

from phi4_jax.common.errors import ConfigError, DataError, OutOfData
from phi4_jax.data.data_config import DataConfig
from phi4_jax.data.mixture import RowPlan, mix_rows
from phi4_jax.data.mixture_table import SourceShare, format_mixture, refuse_excess
from phi4_jax.data.row_sources import (
  EarlierStage,
  RowSource,
  make_batches,
  open_sources,
)

__all__ = ["DataConfig", "EarlierStage", "Loader", "make_loader"]

_log = logging.getLogger(__name__)
# Of a state: raised whenever the fingerprint of a plan is made of other things.
_FORMAT = 1


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
    sources: list[RowSource],
    plan: RowPlan,
    batches: grain.MapDataset,
    config: DataConfig,
    *,
    carried: dict[str, Any],
  ):
    """`carried` is what earlier stages have read of datasets, also of others."""
    first = sources[0].manifest
    self.manifests = {source.name: source.manifest for source in sources}
    self.row_length = first.row_length * sources[0].joined
    self.slots_per_batch = config.batch_size * self.row_length
    shares = _row_weights(sources, config)
    self.fill = float(
      sum(w * s.manifest.fill for w, s in zip(shares, sources, strict=True))
      / sum(shares)
    )
    self.vocabulary_fingerprint = first.vocabulary_fingerprint
    self.vocabulary_size = first.vocabulary_size
    endless = len(plan) == sys.maxsize
    self.num_batches = None if endless else len(plan) // config.batch_size
    self.dropped_rows = 0 if endless else len(plan) % config.batch_size
    self._sources = sources
    self._plan = plan
    self._config = config
    self._carried = carried
    self._fingerprint = _plan_fingerprint(sources, config)
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
        f"rows (DataConfig.epochs {self._config.epochs} of "
        f"{', '.join(self.manifests)}, when_exhausted "
        f"{self._config.when_exhausted!r}). Raise DataConfig.epochs (None repeats for "
        "ever), or ask for fewer steps."
      ) from None

  def get_state(self) -> dict[str, Any]:
    """Returns the position as small JSON: the same on every host."""
    position = int(self._iterator.get_state()["next_index"])
    return {
      "format": _FORMAT,
      "next_batch": position,
      "plan": self._fingerprint,
      "seed": self._config.seed,
      "shuffle": self._config.shuffle,
      "sources": self._carried
      | {
        source.name: {
          "rows": source.rows_read(count),
          "data": source.manifest.fingerprint(),
        }
        for source, count in self._count_rows(position)
      },
    }

  def set_state(self, state: dict[str, Any]) -> None:
    """Goes to a position, at once. The number of hosts may have changed.

    Raises:
      DataError: if the state is of other data, weights, batch size, seed or epochs:
        going on from it would silently leave rows out or repeat them. Or if another
        version has written it, whose plan says nothing here.
    """
    position, plan = state.get("next_batch"), state.get("plan")
    is_state = isinstance(position, int) and isinstance(plan, str)
    known = state.get("format")
    if is_state and known != _FORMAT and plan != self._fingerprint:
      had, which = f"format {known}", "another"
      if known is None:
        had, which = "no format", "an earlier"
      raise DataError(
        f"The saved data position has {had}: {which} version of phi4_jax wrote it, "
        f"and this one, which reads format {_FORMAT}, cannot tell which rows come "
        "next. If DataConfig was changed since, restore it; otherwise go on with the "
        "version that began the run (git.txt in its folder names the commit), or start "
        "a new run from the saved parameters."
      )
    fields = {"next_batch", "plan", "seed", "shuffle", "sources"}
    if set(state) - {"format"} != fields or not isinstance(position, int):
      raise DataError(f"{state!r} is not a state of this loader.")
    if plan != self._fingerprint:
      raise DataError(
        "The saved data position belongs to other datasets, weights, batch_size, seed, "
        "shuffle, epochs, when_exhausted or an earlier stage of other length than this "
        "DataConfig. Restore these, or start a new run from the saved parameters."
      )
    if position < 0 or (self.num_batches is not None and position > self.num_batches):
      raise DataError(
        f"The saved data position is batch {position}, but there are "
        f"{self.num_batches} batches."
      )
    self._iterator.set_state({"next_index": position})

  def _count_rows(self, num_batches: int) -> list[tuple[RowSource, int]]:
    """Returns each source and how many rows of the mixture it has given."""
    counts = self._plan.counts(num_batches * self._config.batch_size)
    return list(zip(self._sources, counts, strict=True))

  def mixture_metrics(self, num_batches: int) -> dict[str, float]:
    """Returns what the first `num_batches` batches are made of.

    `data/epoch/NAME` is the number of passes made over the dataset, exactly, those of
    earlier stages included. `data/fraction/NAME` is its fraction of the tokens that
    were read, each row counting as the mean of its dataset's rows: exact after whole
    epochs and where rows are equally full, an estimate within an epoch of rows that
    are not.
    """
    counted = self._count_rows(num_batches)
    tokens = [count * source.tokens_per_row for source, count in counted]
    total = sum(tokens) or Fraction(1)
    metrics = {}
    for (source, count), part in zip(counted, tokens, strict=True):
      metrics[f"data/fraction/{source.name}"] = float(part / total)
      metrics[f"data/epoch/{source.name}"] = source.epochs(count)
    return metrics

  def shares(self, num_batches: int) -> list[SourceShare]:
    """Returns what the first `num_batches` batches take of each dataset."""
    return _shares(self._count_rows(num_batches), self._config)

  def describe(self, num_batches: int | None = None) -> list[str]:
    """Says in a few lines what is read, for logs; `num_batches` are to be read."""
    lines = [
      f"{source.name}: {source.manifest.rows} rows of {source.manifest.row_length} "
      f"tokens, fill {source.manifest.fill:.3f}"
      + f", {source.joined} to a row" * (source.joined > 1)
      + f", from row {source.start}" * (source.start > 0)
      for source in self._sources
    ]
    if num_batches is not None:
      if self.num_batches is not None:
        num_batches = min(num_batches, self.num_batches)
      lines += format_mixture(self.shares(num_batches)).splitlines()
    weights = self._config.datasets.values()
    if len(weights) > 1 and abs(sum(weights) - 1) > 1e-9:
      lines.append(
        f"the weights of DataConfig.datasets sum to {sum(weights):.4g}: each is "
        "divided by that to be a fraction"
      )
    if self.num_batches is not None:
      line = f"{self.num_batches} batches of {self._config.batch_size} rows"
      if self.dropped_rows == 1:
        line += "; the last row does not fill a batch and is dropped"
      elif self.dropped_rows:
        line += (
          f"; the last {self.dropped_rows} rows do not fill a batch and are dropped"
        )
      lines.append(line)
    return lines


def make_loader(
  data_dir: str | Path,
  config: DataConfig,
  *,
  host_index: int = 0,
  host_count: int = 1,
  num_batches: int | None = None,
  earlier: EarlierStage | None = None,
) -> Loader:
  """Opens and checks datasets, and returns an iterator over batches.

  Args:
    data_dir: the folder in which DataConfig.datasets are folders.
    config: what to read.
    host_index: which host this is; it reads batch_size / host_count rows a batch.
    host_count: how many hosts read together.
    num_batches: how many will be read, if known: then a run that needs more epochs
      than DataConfig allows is refused here, where when_exhausted is "error".
    earlier: the stage before; datasets that it has read go on at their next unread row.

  Raises:
    ConfigError: if the batch does not divide among hosts, a dataset does not exist,
      or the data do not fill one batch, or do not last.
    DataError: if a dataset is incomplete or damaged (file and row are named), or if
      datasets differ in vocabulary or have row lengths that do not fit.
  """
  if not 0 <= host_index < host_count:
    raise ConfigError(f"host_index ({host_index}) must lie in [0, {host_count}).")
  if config.batch_size % host_count:
    raise ConfigError(
      f"DataConfig.batch_size ({config.batch_size}) must be a multiple of the number "
      f"of hosts ({host_count})."
    )
  sources = open_sources(Path(data_dir), config, earlier)
  plan = _make_plan(sources, config, num_batches)
  mixed = mix_rows([source.read(config) for source in sources], plan)
  if len(plan) < sys.maxsize:
    whole = len(plan) - len(plan) % config.batch_size
    if not whole:
      raise ConfigError(
        f"DataConfig.batch_size ({config.batch_size}) is above the {len(plan)} rows "
        f"that DataConfig.epochs ({config.epochs}) leaves. Lower it, or raise epochs."
      )
    # Cut before rows are dealt to hosts, or one host could have a batch more.
    mixed = mixed[:whole]
  batches = make_batches(
    sources, mixed[host_index::host_count], config.batch_size // host_count
  )
  carried = {} if earlier is None else dict(earlier.state["sources"])
  loader = Loader(sources, plan, batches, config, carried=carried)
  for line in loader.describe(num_batches):
    _log.info("%s", line)
  return loader


def _row_weights(sources: list[RowSource], config: DataConfig) -> list[Fraction]:
  """Returns shares of rows that make the weights fractions of tokens."""
  return [
    Fraction(repr(float(config.datasets[source.name]))) / source.tokens_per_row
    for source in sources
  ]


def _make_plan(
  sources: list[RowSource], config: DataConfig, num_batches: int | None
) -> RowPlan:
  weights, caps = _row_weights(sources, config), config.caps()
  limits: list[int | None] = [None] * len(sources)
  if config.when_exhausted != "repeat":
    limits = [source.rows_until(caps.get(source.name)) for source in sources]
  plan = RowPlan(limits, weights, renormalize=config.when_exhausted == "renormalize")
  if config.when_exhausted == "error" and num_batches is not None:
    needed = num_batches * config.batch_size
    if len(plan) < needed:
      counts = RowPlan([None] * len(sources), weights).counts(needed)
      refuse_excess(_shares(list(zip(sources, counts, strict=True)), config))
  return plan


def _shares(
  counted: list[tuple[RowSource, int]], config: DataConfig
) -> list[SourceShare]:
  total, caps = sum(config.datasets.values()), config.caps()
  return [
    SourceShare(
      name=source.name,
      fraction=config.datasets[source.name] / total,
      tokens=float(count * source.tokens_per_row),
      unique_tokens=source.manifest.tokens,
      epochs_before=source.epochs(0),
      cap=caps.get(source.name),
    )
    for source, count in counted
  ]


def _plan_fingerprint(sources: list[RowSource], config: DataConfig) -> str:
  """Names the global order of rows; hosts, threads and checks do not change it."""
  caps = config.caps()
  datasets = [
    [
      source.name,
      float(config.datasets[source.name]),
      source.manifest.fingerprint(),
      # Weights of rows follow from it, and no checksum of rows tells it.
      str(source.tokens_per_row),
      source.start,
      caps.get(source.name),
    ]
    for source in sources
  ]
  ends = config.when_exhausted in ("renormalize", "repeat") and config.when_exhausted
  plan = [datasets, config.batch_size, config.seed, config.shuffle, ends]
  return hashlib.sha256(json.dumps(plan).encode()).hexdigest()[:16]
