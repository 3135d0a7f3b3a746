"""Documents of any length to rows of one length.

A row is an int32 array [3, T + 1], T = row_length: token ids, segment ids (1, 2, ...
for the documents in it, 0 for padding), and the loss mask. It has T + 1 tokens so
that a batch has T inputs and T targets. Knows ids and masks only; no files.

Differs: the paper does not describe its packing (arXiv:2412.08905 §3).
"""

import bisect
import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import numpy as np

from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.data.chat import EncodedDocument

Row = np.ndarray
Strategy = Literal["concat_split", "best_fit", "single"]
Overlong = Literal["error", "truncate", "drop"]

# How many half-filled rows best_fit keeps; more fill better and cost memory.
_MAX_OPEN_ROWS = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackingConfig:
  """How documents are laid into rows.

  Attributes:
    row_length: T, the tokens that a batch row feeds to the model.
    strategy: "concat_split" joins all documents and cuts every T tokens (fill 1;
      documents are cut); "best_fit" puts whole documents where they leave least
      room; "single" gives each document a row.
    overlong: what becomes of a document of more than T + 1 tokens when it may not
      be cut: "error", "truncate" (its end is lost) or "drop". Both are counted.
    min_tokens: shorter documents are dropped, and counted as "short".
    max_tokens: longer documents are dropped, and counted as "long"; None keeps all.
      With both, one source gives several datasets by length, each with a weight of its
      own. Source: arXiv:2412.08905 section 3.3 (samples above 8K; those of 16K and
      more are up-weighted).
  """

  row_length: int
  strategy: Strategy = "concat_split"
  overlong: Overlong = "error"
  min_tokens: int = 0
  max_tokens: int | None = None

  def __post_init__(self):
    if self.row_length < 1:
      raise ConfigError(f"PackingConfig.row_length ({self.row_length}) must be 1 up.")
    if self.strategy not in ("concat_split", "best_fit", "single"):
      raise ConfigError(
        f"PackingConfig.strategy ({self.strategy!r}) must be one of concat_split, "
        "best_fit, single."
      )
    if self.overlong not in ("error", "truncate", "drop"):
      raise ConfigError(
        f"PackingConfig.overlong ({self.overlong!r}) must be one of error, truncate, "
        "drop."
      )
    if self.min_tokens < 0:
      raise ConfigError(
        f"PackingConfig.min_tokens ({self.min_tokens}) must be 0 or more."
      )
    if self.max_tokens is not None and self.max_tokens < max(self.min_tokens, 1):
      raise ConfigError(
        f"PackingConfig.max_tokens ({self.max_tokens}) must be positive and at least "
        f"min_tokens ({self.min_tokens}), or None."
      )
    if self.strategy == "concat_split" and self.overlong != "error":
      raise ConfigError(
        f"PackingConfig.overlong ({self.overlong!r}) has no effect with strategy "
        "concat_split, which cuts every document. Leave it out, or use best_fit."
      )

  @property
  def overlap(self) -> int:
    """Tokens that a row shares with the one before it."""
    return 1 if self.strategy == "concat_split" else 0

  def recipe(self) -> dict[str, Any]:
    """Returns what decides the rows, as small JSON.

    Limits that are not set are left out: data made before there were any stay known.
    """
    fields = dataclasses.asdict(self)
    if not self.min_tokens:
      del fields["min_tokens"]
    if self.max_tokens is None:
      del fields["max_tokens"]
    return fields


@dataclasses.dataclass(kw_only=True)
class PackingStats:
  """Counts that `pack` keeps while it runs.

  Attributes:
    documents: how many came in.
    tokens: their tokens, as far as they went into rows.
    loss_tokens: targets that count in the loss.
    rows: how many came out.
    filled: slots of all rows that are not padding.
    truncated: documents that lost their end.
    truncated_tokens: what they lost.
    dropped: documents left out, by reason: "short" and "long" (outside min_tokens
      to max_tokens), "overlong", "no_loss" (no token of it would count in the loss).
  """

  documents: int = 0
  tokens: int = 0
  loss_tokens: int = 0
  rows: int = 0
  filled: int = 0
  truncated: int = 0
  truncated_tokens: int = 0
  dropped: dict[str, int] = dataclasses.field(default_factory=dict)


def pack(
  documents: Iterable[EncodedDocument], config: PackingConfig, stats: PackingStats
) -> Iterator[Row]:
  """Packs documents into rows, in an order that depends on the input only.

  With row_length 4, documents `a b c` and `d e` give

    concat_split   [a b c d e]  segments [1 1 1 2 2]
    single         [a b c . .]  [1 1 1 0 0]  and  [d e . . .]  [1 1 0 0 0]

  concat_split rows overlap by one token: the last token of a row, a target there,
  is the first input of the next. So every token but a document's first is a target
  exactly once, whatever the strategy.

  Args:
    documents: what to pack.
    config: how.
    stats: filled in while rows are drawn.

  Raises:
    DataError: naming the document, if it is too long and the policy is "error", or
      if ids and mask differ in length.
  """
  kept = _keep(documents, config, stats)
  if config.strategy == "concat_split":
    rows = _concat_split(kept, config.row_length + 1)
  elif config.strategy == "best_fit":
    rows = _best_fit(kept, config.row_length + 1)
  else:
    rows = (_make_row([document], config.row_length + 1) for document in kept)
  for row in rows:
    stats.rows += 1
    stats.filled += int(np.count_nonzero(row[1]))
    yield row


def _keep(
  documents: Iterable[EncodedDocument], config: PackingConfig, stats: PackingStats
) -> Iterator[EncodedDocument]:
  """Counts documents, and applies the policies that drop or shorten one."""
  slots = config.row_length + 1
  for document in documents:
    stats.documents += 1
    name, token_ids, loss_mask = document
    if token_ids.shape != loss_mask.shape or token_ids.ndim != 1:
      raise DataError(
        f"Document {name} has ids of shape {token_ids.shape} and a loss mask of shape "
        f"{loss_mask.shape}; both must be [tokens]."
      )
    if len(token_ids) < config.min_tokens:
      stats.dropped["short"] = stats.dropped.get("short", 0) + 1
      continue
    if config.max_tokens is not None and len(token_ids) > config.max_tokens:
      stats.dropped["long"] = stats.dropped.get("long", 0) + 1
      continue
    if config.strategy != "concat_split" and len(token_ids) > slots:
      if config.overlong == "error":
        raise DataError(
          f"Document {name} has {len(token_ids)} tokens; a row of PackingConfig."
          f"row_length {config.row_length} holds {slots}: so many inputs, and one more "
          "that is the last target. Raise PackingConfig.row_length (--row_length), or "
          "set PackingConfig.overlong (--overlong) to 'truncate' or 'drop'."
        )
      if config.overlong == "drop":
        stats.dropped["overlong"] = stats.dropped.get("overlong", 0) + 1
        continue
      stats.truncated += 1
      stats.truncated_tokens += len(token_ids) - slots
      token_ids, loss_mask = token_ids[:slots], loss_mask[:slots]
    # The first token has nothing before it and is never a target.
    num_targets = int(np.count_nonzero(loss_mask[1:]))
    if not num_targets:
      stats.dropped["no_loss"] = stats.dropped.get("no_loss", 0) + 1
      continue
    stats.tokens += len(token_ids)
    stats.loss_tokens += num_targets
    yield EncodedDocument(name, token_ids, loss_mask)


def _make_row(documents: list[EncodedDocument], slots: int) -> Row:
  # Padding is id 0 (valid in every vocabulary); segment 0 is what marks it.
  row = np.zeros((3, slots), np.int32)
  start = 0
  for segment, document in enumerate(documents, start=1):
    end = start + len(document.token_ids)
    row[0, start:end] = document.token_ids
    row[1, start:end] = segment
    row[2, start:end] = document.loss_mask
    start = end
  return row


def _concat_split(documents: Iterable[EncodedDocument], slots: int) -> Iterator[Row]:
  """Cuts the stream of all tokens every `slots - 1` tokens, overlapping by one."""
  waiting: list[np.ndarray] = []  # each [3, n]; the middle line numbers documents
  size = 0
  for number, (_, token_ids, loss_mask) in enumerate(documents):
    part = np.empty((3, len(token_ids)), np.int32)
    part[0], part[1], part[2] = token_ids, number, loss_mask
    waiting.append(part)
    size += len(token_ids)
    if size < slots:
      continue
    stream = np.concatenate(waiting, axis=1)
    start = 0
    while start + slots <= size:
      row = stream[:, start : start + slots].copy()
      row[1] -= row[1, 0] - 1
      yield row
      start += slots - 1
    waiting, size = [stream[:, start:]], size - start
  if size > 1:  # 1 is the overlap alone: nothing left to predict
    rest = np.concatenate(waiting, axis=1)
    row = np.zeros((3, slots), np.int32)
    row[:, :size] = rest
    row[1, :size] -= rest[1, 0] - 1
    yield row


def _best_fit(documents: Iterable[EncodedDocument], slots: int) -> Iterator[Row]:
  """Puts each document into the open row that it leaves fullest."""
  open_rows: dict[int, list[EncodedDocument]] = {}
  by_room: list[tuple[int, int]] = []  # (free slots, row number), sorted
  for number, document in enumerate(documents):
    size = len(document.token_ids)
    at = bisect.bisect_left(by_room, (size, -1))
    if at < len(by_room):
      room, key = by_room.pop(at)
    else:
      room, key = slots, number
      open_rows[key] = []
    open_rows[key].append(document)
    # A document that is kept has at least two tokens.
    if room - size < 2:
      yield _make_row(open_rows.pop(key), slots)
      continue
    bisect.insort(by_room, (room - size, key))
    if len(by_room) > _MAX_OPEN_ROWS:
      _, fullest = by_room.pop(0)
      yield _make_row(open_rows.pop(fullest), slots)
  for held in open_rows.values():
    yield _make_row(held, slots)
