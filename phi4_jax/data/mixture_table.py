"""A mixture as the paper states it: fractions, unique tokens, and the epochs they mean.

Arithmetic on numbers of tokens, for a run of any size, whether its data exist or not.
Knows no rows and no files.

Source: arXiv:2412.08905 section 3.2, Table 5.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from phi4_jax.common.errors import ConfigError
from phi4_jax.common.text import format_table
from phi4_jax.data.data_config import WhenExhausted


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceShare:
  """What one source gives to a run.

  Attributes:
    name: of the source.
    fraction: of the run's tokens, as asked for.
    tokens: that the run takes of it, repetitions included.
    unique_tokens: in one pass over it; None where that is not known.
    epochs_before: passes that earlier stages have made.
    cap: the most passes, earlier ones included; None sets no limit.
  """

  name: str
  fraction: float
  tokens: int | float
  unique_tokens: int | float | None
  epochs_before: float = 0.0
  cap: int | float | None = None

  @property
  def epochs(self) -> float | None:
    """Passes over the source when the run ends, those of earlier stages included."""
    if self.unique_tokens is None:
      return None
    return self.epochs_before + self.tokens / self.unique_tokens

  @property
  def is_over(self) -> bool:
    """Whether the run takes more of the source than its cap allows."""
    return self.cap is not None and (self.epochs or 0.0) > self.cap * (1 + 1e-9)


def plan_mixture(
  weights: Mapping[str, float],
  total_tokens: int | float,
  *,
  unique_tokens: Mapping[str, int | float] | None = None,
  caps: Mapping[str, int | float] | None = None,
  when_exhausted: WhenExhausted = "error",
) -> list[SourceShare]:
  """Returns what each source gives to a run of `total_tokens` tokens.

  Table 5 of the paper: `plan_mixture({"web": 0.15, ...}, 10e12, unique_tokens={"web":
  1.3e12, ...})` gives web 1.15 epochs.

  Differs: Table 5 prints 1.2, 5.2, 13.8, 2.4 and 1.7 epochs, one decimal of these.

  Args:
    weights: relative fractions of tokens.
    total_tokens: of the run.
    unique_tokens: of the sources of which it is known.
    caps: the most epochs, by source; each needs the source's unique tokens.
    when_exhausted: as in `DataConfig`. With "stop" and "renormalize" the result may
      hold fewer tokens than were asked for: then the sources have no more.

  Raises:
    ConfigError: with "error", if a source would be read more often than its cap; or a
      cap is given for a source whose size is not known.
  """
  unique_tokens, caps = unique_tokens or {}, caps or {}
  unknown = [name for name in caps if name not in unique_tokens]
  if unknown:
    raise ConfigError(
      f"DataConfig.epochs limits {', '.join(unknown)}, whose size is not known. Give "
      "it in DataConfig.unique_tokens, or materialize the data."
    )
  tokens = dict.fromkeys(weights, 0.0)
  limits = dict.fromkeys(weights, math.inf)
  if when_exhausted in ("stop", "renormalize"):
    limits |= {name: cap * unique_tokens[name] for name, cap in caps.items()}
  left, active = float(total_tokens), dict(weights)
  while left > 0 and active:
    total = sum(active.values())
    room = {
      name: (limits[name] - tokens[name]) * total / w for name, w in active.items()
    }
    step = min(left, *room.values())
    for name, weight in active.items():
      tokens[name] += step * weight / total
    left -= step
    if left <= 0 or when_exhausted == "stop":
      break
    active = {name: w for name, w in active.items() if room[name] > step}
  total = sum(weights.values())
  shares = [
    SourceShare(
      name=name,
      fraction=weight / total,
      tokens=tokens[name],
      unique_tokens=unique_tokens.get(name),
      cap=caps.get(name),
    )
    for name, weight in weights.items()
  ]
  if when_exhausted == "error":
    refuse_excess(shares)
  return shares


def refuse_excess(shares: Sequence[SourceShare]) -> None:
  """Refuses a run that needs more of a source than its cap allows.

  Raises:
    ConfigError: names each such source, the epochs that the run needs, and the cap.
  """
  over = [
    f"{share.name} {share.epochs:.2f} epochs (cap {share.cap:g})"
    for share in shares
    if share.is_over
  ]
  if over:
    raise ConfigError(
      f"The run needs more than DataConfig.epochs allows: {', '.join(over)}. Raise the "
      "cap, lower the weight or the number of steps, add data, or choose another "
      "DataConfig.when_exhausted ('stop', 'renormalize' or 'repeat').\n"
      f"{format_mixture(shares)}"
    )


def format_mixture(shares: Sequence[SourceShare]) -> str:
  """Returns the table: source, fraction, tokens, unique tokens, epochs, cap.

  The fractions are those of the tokens in the table. Where caps make them others than
  those that were asked for, these have a column, too.
  """
  total = sum(share.tokens for share in shares) or 1
  realised = [share.tokens / total for share in shares]
  are_others = any(
    abs(part - share.fraction) > 0.005
    for part, share in zip(realised, shares, strict=True)
  )
  rows = [
    [
      share.name,
      f"{part:.4g}",
      *([f"{share.fraction:.4g}"] if are_others else []),
      _amount(share.tokens),
      "?" if share.unique_tokens is None else _amount(share.unique_tokens),
      "?" if share.epochs is None else f"{share.epochs:.2f}",
      "-" if share.cap is None else f"{share.cap:g}" + " (exceeded)" * share.is_over,
    ]
    for share, part in zip(shares, realised, strict=True)
  ]
  asked = ["asked for"] if are_others else []
  header = ["source", "fraction", *asked, "tokens", "unique tokens", "epochs", "cap"]
  return format_table(header, rows)


def _amount(tokens: int | float) -> str:
  """Spells a number of tokens as the paper does: 290B, 1.3T."""
  for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
    if tokens >= size:
      return f"{tokens / size:.4g}{unit}"
  return f"{tokens:.0f}"
