"""The data of a search's page: a table in plain JSON, and responses packed away.

What stands in the page, each in a script element that browsers do not run:

  search-index   questions, hypotheses and pairs by column, as JSON
  search-0 ...   some questions each, with their responses: JSON, deflated, base64

So a page of ten thousand pivots opens with a parse of a few megabytes, and a question's
responses are unpacked when somebody looks at them. Probabilities are whole numbers of
1e-4, p(success) of 1e-3, and -1 stands for "not known"; counts are exact. The scripts
beside this file are the readers. Knows numbers and names; refuses to know the page.
"""

import base64
import dataclasses
import json
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.reporting.markup import Markup, tag
from experiments.reporting.search_data import Hypothesis, Question, Search
from experiments.reporting.search_responses import Searched
from phi4_jax.pts.counts import Value

INDEX_ID, CHUNK_ID = "search-index", "search-{}"
# Characters of JSON in a chunk: about 30 responses of 200 tokens.
_CHUNK = 150_000
# A question's own page has all of its text.
_PROMPT, _CONTEXT, _OTHERS = 110, 32, 12


class Strings:
  """A list of texts, each kept once; everything else names them by number."""

  def __init__(self):
    self._numbers: dict[str, int] = {}

  def __call__(self, text: str) -> int:
    return self._numbers.setdefault(text, len(self._numbers))

  def as_list(self) -> list[str]:
    return list(self._numbers)


def data_element(name: str, content: str, kind: str) -> Markup:
  """A script element that holds data.

  `content` must not be able to end the element: see `to_json`.
  """
  return tag("script", Markup(content), id=name, type=kind)


def to_json(value: Any) -> str:
  """Compact JSON that cannot end or open anything in HTML.

  >>> to_json("</script>")
  '"\\\\u003c/script\\\\u003e"'
  """
  text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
  for character in "<>&\u2028\u2029":
    text = text.replace(character, f"\\u{ord(character):04x}")
  # Halves of a character, as tokens of bytes can have, are no UTF-8.
  return text.encode("utf-8", "replace").decode("utf-8")


class Packer:
  """Collects questions with their responses into chunks."""

  def __init__(self):
    self.chunk_of: dict[int, int] = {}
    self._chunks: list[str] = []
    self._strings, self._questions, self._size = Strings(), [], 0

  def add(
    self, question: Question, members: Sequence[Searched], search: Search
  ) -> None:
    """Adds a question, with its whole text, and its searched responses."""
    packed = {
      "n": question.number,
      "p": question.prompt,
      "a": question.reference,
      "r": [pack_response(each, self._strings, search) for each in members],
    }
    self._questions.append(packed)
    self._size += sum(8 * len(m.tokens) + 200 for m in members) + len(question.prompt)
    self.chunk_of[question.number] = len(self._chunks)
    if self._size >= _CHUNK:
      self._close()

  def finish(self) -> list[str]:
    """Returns the chunks as base64."""
    if self._questions:
      self._close()
    return self._chunks

  def _close(self) -> None:
    text = json.dumps(
      {"s": self._strings.as_list(), "q": self._questions}, separators=(",", ":")
    )
    # ASCII, with \u escapes, so that any text survives.
    packed = zlib.compress(text.encode("ascii"), 6)
    self._chunks.append(base64.b64encode(packed).decode("ascii"))
    self._strings, self._questions, self._size = Strings(), [], 0


def pack_response(each: Searched, strings: Strings, search: Search) -> dict[str, Any]:
  """A response as the figure needs it."""
  others = dict(each.alternatives)
  for position, numbers in each.hypotheses.items():
    for number in numbers:
      others[position] = _more(others.get(position), search.hypotheses[number])
  packed = {
    "i": each.index,
    "ok": int(each.correct),
    "t": [strings(token) for token in each.tokens],
    "p": np.rint(np.array(each.probs) * 1e4).astype(int).tolist(),
    "m": _thousandths(each.estimates),
    "l": _thousandths(each.lows),
    "u": _thousandths(each.highs),
    "c": [[i, *value[:2]] for i, value in sorted(each.counts.items())],
    "o": [[i, *value[:2]] for i, value in sorted(each.left.items())],
    "x": [
      [i, [[strings(a.token), *a.value[:2]] for a in drawn[:_OTHERS]]]
      for i, drawn in sorted(others.items())
      if drawn
    ],
    "h": [[i, *numbers] for i, numbers in sorted(each.hypotheses.items())],
  }
  return {name: value for name, value in packed.items() if value != []}


def _more(drawn, hypothesis: Hypothesis):
  """Of two tallies of one position that may share rollouts, the larger one."""

  def count(tally):
    return sum(each.value.rollouts for each in tally)

  return max(drawn or (), hypothesis.alternatives, key=count)


def make_index(
  search: Search, chunk_of: Mapping[int, int], contexts: Sequence[str]
) -> dict[str, Any]:
  """The tables of a page, by column.

  Args:
    search: whose.
    chunk_of: where the responses of a question are.
    contexts: of each hypothesis the text before its token.
  """
  strings = Strings()
  counted: dict[int, int] = {}
  for pivot in search.pivots:
    counted[pivot.question] = counted.get(pivot.question, 0) + 1
  return {
    "mode": search.mode,
    "gap": search.gap,
    "q": _columns(
      _question(q, counted.get(q.number, 0), chunk_of.get(q.number, -1), strings)
      for q in search.questions.values()
    ),
    "h": _columns(
      _hypothesis(h, context, strings)
      for h, context in zip(search.hypotheses, contexts, strict=True)
    ),
    "pair": _columns(
      {
        "q": pair["question"],
        "r": pair["response"],
        "i": pair["position"],
        "g": 1 if pair["sign"] == "positive" else -1,
        "a": strings(pair["accepted"]),
        "ak": pair["accepted_counts"][0],
        "an": pair["accepted_counts"][1],
        "b": strings(pair["rejected"]),
        "bk": pair["rejected_counts"][0],
        "bn": pair["rejected_counts"][1],
      }
      for pair in search.pairs
    ),
    "s": strings.as_list(),
  }


def _question(q: Question, pivots: int, chunk: int, strings: Strings) -> dict[str, Any]:
  return {
    "n": q.number,
    "id": q.id,
    "p": _shorten(q.prompt),
    "c": strings(q.category),
    "k": q.value.successes if q.value else 0,
    "r": q.value.rollouts if q.value else 0,
    "s": strings(q.state),
    "w": strings(q.reason),
    "u": q.cut,
    "v": pivots,
    "b": chunk,
  }


def _hypothesis(h: Hypothesis, context: str, strings: Strings) -> dict[str, Any]:
  (first, a), (second, b) = (*h.arms, ("", None), ("", None))[:2]
  other = max(h.alternatives, key=lambda each: each.value.rollouts, default=None)
  low, high = h.interval or (None, None)
  before, after = (h.values or (None, None)) if h.stay else (None, None)
  stay, end_value = h.stay or (None, None)
  return {
    "q": h.question,
    "r": h.response,
    "i": h.position,
    "t": strings(h.token),
    "x": context,
    "p": round(h.prob * 1e4),
    "g": h.sign,
    "s": strings(h.state),
    "w": strings(h.reason),
    "d": _rounded(h.delta),
    "l": _rounded(low),
    "u": _rounded(high),
    "vb": _rounded(before),
    "va": _rounded(after),
    "y": _rounded(stay),
    "v": _rounded(end_value),
    "b": _rounded(h.lower),
    "e": _rounded(None if h.log_e is None else h.log_e / math.log(10), 2),
    "z": _rounded(h.posterior),
    "an": strings(first),
    "a": _counts(a),
    "bn": strings(second),
    "c": _counts(b),
    "o": [strings(other.token), *other.value[:2]] if other else None,
  }


def _counts(value: Value | None) -> list[int] | None:
  if value is None:
    return None
  return [value.successes, value.rollouts, *([1] if value.exact else [])]


def _columns(rows: Iterable[dict[str, Any]]) -> dict[str, list[Any]]:
  columns: dict[str, list[Any]] = {}
  for row in rows:
    for name, value in row.items():
      columns.setdefault(name, []).append(value)
  # A column that says nothing is left out.
  return {
    name: values
    for name, values in columns.items()
    if any(value is not None for value in values)
  }


def _rounded(value: float | None, digits: int = 3) -> float | None:
  # An infinite amount of evidence against is written as a number that says so.
  return None if value is None else round(max(-999.0, min(999.0, value)), digits)


def _thousandths(values: np.ndarray) -> list[int]:
  return np.rint(np.where(np.isnan(values), -0.001, values) * 1000).astype(int).tolist()


def _shorten(text: str) -> str:
  flat = " ".join(text.split())
  return (
    flat if len(flat) <= _PROMPT else flat[: _PROMPT - 1] + "\N{HORIZONTAL ELLIPSIS}"
  )


def context_of(each: Searched, position: int) -> str:
  """The last characters before a token."""
  text = ""
  for token in reversed(each.tokens[:position]):
    text = token + text
    if len(text) >= _CONTEXT:
      return text[-_CONTEXT:]
  return text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Payload:
  """The script elements of a page."""

  index: dict[str, Any]
  chunks: Sequence[str]

  def elements(self) -> list[Markup]:
    """Index and chunks as script elements."""
    return [
      data_element(INDEX_ID, to_json(self.index), "application/json"),
      *(
        data_element(CHUNK_ID.format(number), chunk, "text/plain")
        for number, chunk in enumerate(self.chunks)
      ),
    ]
