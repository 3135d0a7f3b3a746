"""Personal data in texts: e-mail, phone, IP, card, account and insurance numbers.

What is found is replaced by its kind in brackets and counted. Code and formulas are
full of numbers that look like phone numbers; inside them a number needs a word before
it that says what it is. How each kind is told is in `personal_data_kinds.py`.

Differs: the paper does not say how personal data is treated.
"""

import bisect
import dataclasses
import functools
import io
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, cast

from phi4_jax.common.errors import ConfigError
from phi4_jax.curation.personal_data_kinds import KINDS, SELF_EVIDENT
from phi4_jax.curation.steps import (
  Judge,
  Keep,
  Verdict,
  drop_bytes,
  make_recipe,
)
from phi4_jax.data.documents import Document, Message

Span = tuple[int, int, str]
# A word this close before a number says what it is.
_CUE_CHARACTERS = 40
# No number that is looked for is longer, and no check looks further round it.
_NUMBER_CHARACTERS = 64
# Of the whole text. The third one finds nothing, unless somebody has planned that it
# should; without a limit his text would be searched as often as he likes.
_MAX_SEARCHES = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskPersonalData:
  """Replaces personal data by placeholders; conversations turn by turn.

  Label "personal_data": how often each kind was found, if any was. Nothing is dropped
  but what has not been extracted.

  What is nobody's stays: e-mail at names that are kept for examples and tests (at
  example.com, .net, .org and .edu and what is below them, .test, localhost; RFC 2606)
  and `git@`, which is a place for code; IP addresses that are not global (of private
  networks, documentation, this machine); insurance numbers that are never given out.

  Drops: not_extracted.

  Attributes:
    kinds: some of email, iban, card, ssn, ip, phone.
    placeholder: what is written instead; "{kind}" stands for the kind in capitals.
  """

  kinds: tuple[str, ...] = ("email", "iban", "card", "ssn", "ip", "phone")
  placeholder: str = "[{kind}]"

  def __post_init__(self):
    unknown = sorted(set(self.kinds) - set(KINDS))
    if unknown or not self.kinds:
      raise ConfigError(
        f"MaskPersonalData.kinds ({', '.join(self.kinds) or 'empty'}) must name some "
        f"of {', '.join(KINDS)}."
      )
    try:
      shown = {self.placeholder.format(kind=kind) for kind in ("A", "B")}
    except (KeyError, ValueError, IndexError):
      shown = set()
    if len(shown) < 2 or re.search(r"[\d@]", self.placeholder):
      raise ConfigError(
        f"MaskPersonalData.placeholder ({self.placeholder!r}) must contain {{kind}}, "
        "no other field in braces, no digit and no at sign."
      )

  def make_judge(self) -> Judge:
    def judge(document: Document) -> Verdict:
      if (dropped := drop_bytes(document)) is not None:
        return dropped
      counts: Counter[str] = Counter()
      if document.messages is None:
        text = self._mask(document.text or "", counts)
        changed = dataclasses.replace(document, text=text)
      else:
        messages = tuple(
          cast(Message, {**turn, "content": self._mask(turn["content"], counts)})
          for turn in document.messages
        )
        changed = dataclasses.replace(document, messages=messages)
      if not counts:
        return Keep(document)
      return Keep(
        dataclasses.replace(
          changed,
          lineage=(*document.lineage, "step:MaskPersonalData"),
          labels={**document.labels, "personal_data": dict(sorted(counts.items()))},
        )
      )

    return judge

  def recipe(self) -> dict[str, Any]:
    return make_recipe(self)

  def _mask(self, text: str, counts: Counter[str]) -> str:
    # Again, until nothing is found: a placeholder is shorter than what it stands for,
    # so that a word may come close enough to a number to say what it is.
    for _ in range(_MAX_SEARCHES):
      found = find_personal_data(text, kinds=self.kinds)
      if not found:
        break
      parts, position = [], 0
      for start, end, kind in found:
        parts += [text[position:start], self.placeholder.format(kind=kind.upper())]
        position = end
        counts[kind] += 1
      text = "".join([*parts, text[position:]])
    return text


def find_personal_data(text: str, *, kinds: tuple[str, ...]) -> list[Span]:
  """Returns (start, end, kind) of what is found, in order and without overlaps.

  Where two kinds overlap, the one that is named first in `kinds` has it.

  A number that stands beside another is told more easily once that is gone: what is
  found is blotted out, and what stands round it is searched again, until nothing more
  is found there. The work grows with the length of the text, whatever is in it.
  """
  technical = _Technical(text)
  numbers = tuple(kind for kind in kinds if kind != "email")
  taken: list[Span] = []
  blotted = io.StringIO(text)
  found = _search(text, kinds, technical)
  while found:
    taken += found
    for start, end, kind in found:
      blotted.seek(start)
      blotted.write(_blot(kind, end - start))
    found = [
      span
      for low, high in _neighbourhoods(found)
      for span in _search_part(blotted, low, high, numbers, technical)
    ]
  return sorted(taken)


def _blot(kind: str, size: int) -> str:
  # As long as what it hides, so that places stay; a kind is a word that says what
  # stands behind it.
  return f"{kind.upper()}]".rjust(size, "[")[-size:]


def _neighbourhoods(found: Sequence[Span]) -> list[tuple[int, int]]:
  """Returns where other numbers may be told now, in order, without overlaps."""
  places: list[tuple[int, int]] = []
  for start, end, _ in found:
    low = max(0, start - _NUMBER_CHARACTERS)
    high = end + _CUE_CHARACTERS + _NUMBER_CHARACTERS
    if places and low <= places[-1][1]:
      low, _ = places.pop()
    places.append((low, high))
  return places


def _search_part(
  text: io.StringIO,
  low: int,
  high: int,
  kinds: tuple[str, ...],
  technical: "_Technical",
) -> list[Span]:
  """Returns what is found from `low` to `high`, and no part of what reaches beyond."""
  offset = max(0, low - _NUMBER_CHARACTERS)
  text.seek(offset)
  part = text.read(high + _NUMBER_CHARACTERS - offset)
  found = _search(part, kinds, technical, offset=offset, start=low - offset)
  return [span for span in found if span[1] <= high]


def _search(
  text: str,
  kinds: tuple[str, ...],
  technical: "_Technical",
  *,
  offset: int = 0,
  start: int = 0,
) -> list[Span]:
  """Returns what one search of a text finds that begins at `offset` of the whole."""
  kept = _Spans([])
  for kind in kinds:
    pattern, is_real, cue = KINDS[kind]
    if kind == "email" and "@" not in text:
      continue
    found = []
    for match in pattern.finditer(text, start):
      cued = cue is not None and bool(
        cue.search(text, max(0, match.start() - _CUE_CHARACTERS), match.start())
      )
      span = (offset + match.start(), offset + match.end(), kind)
      if kind not in SELF_EVIDENT and not cued and technical.contains(span[0]):
        continue
      if is_real(match, cued) and not kept.overlaps(span):
        found.append(span)
    if found:
      kept = _Spans(sorted(kept.spans + found))
  return kept.spans


class _Spans:
  """Spans of a text in order, none of which overlaps another."""

  def __init__(self, spans: list[Span]):
    self.spans = spans

  def contains(self, position: int) -> bool:
    return self.overlaps((position, position + 1, ""))

  def overlaps(self, span: Span) -> bool:
    i = bisect.bisect_left(self.spans, span[1], key=lambda other: other[0])
    return i > 0 and self.spans[i - 1][1] > span[0]


class _Technical:
  """Code and formulas of a text; looked for only when somebody asks."""

  def __init__(self, text: str):
    self._text = text

  def contains(self, position: int) -> bool:
    return self._spans.contains(position)

  @functools.cached_property
  def _spans(self) -> _Spans:
    return _Spans([(m.start(), m.end(), "") for m in _TECHNICAL.finditer(self._text)])


_TECHNICAL = re.compile(
  r"^(?P<fence>`{3,}+)[^\n]*+\n.*?(?:^(?P=fence)|\Z)|`[^`\n]{1,300}`"
  r"|\$\$[^$]{1,3000}\$\$|\$[^$\n]{1,300}\$|\\\([^\n]{1,300}?\\\)"
  r"|\\\[.{1,1000}?\\\]|\\begin\{(?P<name>\w+)\*?\}.{1,3000}?\\end\{(?P=name)",
  re.DOTALL | re.MULTILINE,
)
