"""One pass over all searched responses: what is packed, counted and shown of them."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from experiments.reporting import search_payload
from experiments.reporting.search_data import EXPORTED, Search
from experiments.reporting.search_responses import Searched, read_responses
from experiments.reporting.trace import RARE, Trace

# Bins of sampling probability.
BIN_WIDTH = 0.1
_EDGES = np.linspace(0, 1, 11)
_TRACES = 4


@dataclasses.dataclass
class Overlap:
  """Tokens of the searched responses by probability, pivotal or not.

  A token that several responses share after one prefix counts once. Tokens that were
  not found are in `tokens` only, whatever they would turn out to be.

  Attributes:
    tokens: by bin of sampling probability.
    pivots: of these, those that were exported.
    rare_tokens: of probability `trace.RARE` or less.
    rare_pivots: of these, those that were exported.
  """

  tokens: np.ndarray
  pivots: np.ndarray
  rare_tokens: int = 0
  rare_pivots: int = 0

  @property
  def num_tokens(self) -> int:
    return int(self.tokens.sum())

  @property
  def num_pivots(self) -> int:
    return int(self.pivots.sum())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Survey:
  """What the pass found.

  Attributes:
    contexts: of each hypothesis the text before its token.
    lengths: of each hypothesis' response, in tokens.
    overlap: see there.
    traces: responses with most pivots, of different questions.
    payload: the data of the page, None if nothing was packed.
  """

  contexts: Sequence[str]
  lengths: Sequence[int]
  overlap: Overlap
  traces: Sequence[Trace]
  num_responses: int
  payload: search_payload.Payload | None


def survey(search: Search, *, pack: bool) -> Survey:
  """Reads every response once.

  Args:
    search: whose.
    pack: whether to make the data of a page with scripts.

  Raises:
    DataError: if a file is missing or damaged.
  """
  contexts, lengths = [""] * len(search.hypotheses), [0] * len(search.hypotheses)
  overlap = Overlap(
    tokens=np.zeros(len(_EDGES) - 1, int), pivots=np.zeros(len(_EDGES) - 1, int)
  )
  packer = search_payload.Packer()
  best: list[tuple[int, int, Searched]] = []
  count = 0
  for members in read_responses(search):
    count += len(members)
    question = members[0].question
    for each in members:
      for position, numbers in each.hypotheses.items():
        for number in numbers:
          contexts[number] = search_payload.context_of(each, position)
          lengths[number] = len(each.tokens)
    _count(overlap, members, search)
    shown = max(
      (m for m in members if m.is_complete),
      key=lambda m: len(_exported(m, search)),
      default=None,
    )
    if shown is not None:
      best.append((-len(_exported(shown, search)), question, shown))
      best = sorted(best, key=lambda entry: entry[:2])[:_TRACES]
    if pack:
      packer.add(search.questions[question], members, search)
  payload = None
  if pack:
    for each in search.questions.values():
      if each.number not in packer.chunk_of:
        packer.add(each, [], search)
    chunks = packer.finish()
    index = search_payload.make_index(search, packer.chunk_of, contexts)
    payload = search_payload.Payload(index=index, chunks=chunks)
  return Survey(
    contexts=contexts,
    lengths=lengths,
    overlap=overlap,
    traces=[
      Trace(
        response=each,
        prompt=search.questions[question].prompt,
        confirmed=_exported(each, search),
        gap=search.gap,
        word=search.found_word,
      )
      for _, question, each in best
    ],
    num_responses=count,
    payload=payload,
  )


def _exported(each: Searched, search: Search) -> frozenset[int]:
  return frozenset(
    position
    for position, numbers in each.hypotheses.items()
    if any(search.hypotheses[number].state == EXPORTED for number in numbers)
  )


def _count(overlap: Overlap, members: Sequence[Searched], search: Search) -> None:
  for number, each in enumerate(members):
    shared = [_common(each.token_ids, m.token_ids) for m in members[:number]]
    first = max(shared, default=0)  # the tokens before it were counted
    probs = np.array(each.probs[first:])
    pivots = [position for position in _exported(each, search) if position >= first]
    pivot_probs = np.array([each.probs[position] for position in pivots])
    overlap.tokens += np.histogram(probs, _EDGES)[0]
    overlap.pivots += np.histogram(pivot_probs, _EDGES)[0]
    overlap.rare_tokens += int((probs <= RARE).sum())
    overlap.rare_pivots += int((pivot_probs <= RARE).sum())


def _common(first: Sequence[int], second: Sequence[int]) -> int:
  length = 0
  for a, b in zip(first, second, strict=False):
    if a != b:
      break
    length += 1
  return length
