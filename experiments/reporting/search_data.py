"""A search for pivotal tokens as the pages need it, whatever its mode.

Reads the small files of a run (questions, hypotheses, pairs, counts of tokens) into
plain records; the responses, which can be many, are read one question at a time by
search_responses.py. Refuses to know how anything is shown.
"""

import collections
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.reporting.reading import Run, read_records
from phi4_jax.common import io
from phi4_jax.pts import costs, records
from phi4_jax.pts.comb_types import combine_arms
from phi4_jax.pts.counts import Value

PIVOTS, HYPOTHESES, PAIRS = "pivotal_tokens.jsonl", "hypotheses.jsonl", "pairs.jsonl"
QUESTIONS, TRACES, ESTIMATES = "questions.jsonl", "traces.jsonl", "estimates.jsonl"
ROLLOUTS = "rollouts.jsonl"

# What became of a question; the first two were not worth a search.
TOO_HARD, TOO_EASY, SEARCHED, GIVEN_UP = "too hard", "too easy", "searched", "given up"
NO_ROOM, NOT_REACHED = "no room", "not reached"
# What became of a hypothesis.
EXPORTED, UNDECIDED, REJECTED = "exported", "undecided", "rejected"


class Alternative(NamedTuple):
  """Another token that was drawn after the same prefix."""

  token: str
  value: Value


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
  """A question, its share of right rollouts, and what became of it.

  Attributes:
    value: successes and rollouts of the filter; None if none could be judged.
    state: one of the constants above.
    reason: why it was given up or had no room; "" otherwise.
    cut: rollouts that met the cap on the length before they ended.
  """

  number: int
  id: str
  prompt: str
  reference: str
  category: str
  value: Value | None
  state: str
  reason: str
  cut: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hypothesis:
  """A token that was tested, or found by a search that tests nothing.

  Attributes:
    prefix: ids of the response before it, where the file has them.
    sign: 1 if it raises p(success), else -1.
    delta: change of p(success), from fresh rollouts (in mode "naive" from those that
      led to the choice).
    values: p(success) before and after the token, whose difference `delta` is; None
      where nothing was drawn.
    stay: probability to stay on the response to its end behind the token, and the
      verdict there; None where `arms` are the values themselves.
    interval: of the change, None where the file has none.
    lower: what the change in the direction of `sign` exceeds, at any stopping time.
    log_e: natural logarithm of the evidence against "at most gamma0".
    posterior: probability of a change by the gap or more, after screening.
    arms: what was counted, each with a name.
  """

  question: int
  response: int
  position: int
  prefix: tuple[int, ...] | None
  token: str
  prob: float
  sign: int
  state: str
  reason: str
  delta: float | None
  values: tuple[float, float] | None
  stay: tuple[float, float] | None
  interval: tuple[float, float] | None
  lower: float | None
  log_e: float | None
  posterior: float | None
  arms: tuple[tuple[str, Value], ...]
  alternatives: tuple[Alternative, ...]


class Stage(NamedTuple):
  """What a part of the search cost."""

  name: str
  rollouts: int
  sampled_tokens: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search:
  """Everything about a finished search but its responses.

  Attributes:
    hypotheses: about single tokens, the exported ones first.
    pairs: lines of pairs.jsonl, without their responses.
    stages: in the order in which they run.
    category_tokens: tokens sampled by category; empty if no file says it.
  """

  run: Run
  mode: str
  questions: Mapping[int, Question]
  hypotheses: Sequence[Hypothesis]
  pairs: Sequence[Mapping[str, Any]]
  stages: Sequence[Stage]
  category_tokens: Mapping[str, int]

  def setting(self, name: str, default: Any = None) -> Any:
    """A setting of the search, however deep in its config it stands."""
    found = find_key(self.run.config.get("search", {}), name)
    return self.run.metrics.get(name, default) if found is None else found

  @property
  def found_word(self) -> str:
    """How the tokens that were found are called: not all modes confirm them."""
    words = {"comb": "exported", "paper": "confirmed", "naive": "claimed"}
    return words[self.mode]

  @functools.cached_property
  def gap(self) -> float:
    return float(self.setting("gap"))

  @functools.cached_property
  def pivots(self) -> list[Hypothesis]:
    """The hypotheses that were exported."""
    return [h for h in self.hypotheses if h.state == EXPORTED]

  @functools.cached_property
  def by_question(self) -> Mapping[int, list[int]]:
    """Numbers of the hypotheses of each question."""
    found = collections.defaultdict(list)
    for number, hypothesis in enumerate(self.hypotheses):
      found[hypothesis.question].append(number)
    return found

  @functools.cached_property
  def asked(self) -> Mapping[str, Any]:
    """What the run was asked: the law, the oracle, the weights."""
    file = self.run.folder / records.SETTINGS
    return io.read_json(file) if file.exists() else {}

  @property
  def law(self) -> Mapping[str, Any]:
    return self.asked.get("law") or self.run.config.get("law") or {}


def find_key(value: Any, name: str) -> Any:
  """Returns the value of a key in nested objects, None if there is none."""
  if not isinstance(value, Mapping):
    return None
  if name in value:
    return value[name]
  for inner in value.values():
    found = find_key(inner, name)
    if found is not None:
      return found
  return None


def read_search(run: Run) -> Search:
  """Reads a finished search of any mode.

  Raises:
    DataError: if a file is missing or damaged.
  """
  questions = {q.number: q for q in map(_question, read_records(run, QUESTIONS))}
  if (run.folder / HYPOTHESES).exists():
    found = [_tested(record) for record in read_records(run, HYPOTHESES)]
  else:
    found = [_confirmed(record) for record in read_records(run, PIVOTS)]
  order = (EXPORTED, UNDECIDED, REJECTED)
  found.sort(key=lambda h: (order.index(h.state), -abs(h.delta or 0)))
  mode = find_key(run.config.get("search", {}), "mode") or run.metrics.get("mode")
  stages, category_tokens = _costs(run, questions)
  kept = ("question", "response", "position", "sign", "accepted", "rejected")
  kept += ("accepted_counts", "rejected_counts")
  return Search(
    run=run,
    mode=mode or "paper",
    questions=questions,
    hypotheses=found,
    pairs=[{name: pair[name] for name in kept} for pair in read_records(run, PAIRS)],
    stages=stages,
    category_tokens=category_tokens,
  )


def read_value(counts: Any) -> Value:
  """Reads counts as any of the files spells them."""
  if isinstance(counts, Mapping):
    exact = bool(counts.get("exact", False))
    return Value(counts["successes"], counts["rollouts"], exact)
  successes, rollouts = counts
  return Value(successes, rollouts)


def _question(record: Mapping[str, Any]) -> Question:
  value = Value(record["successes"], record["rollouts"]) if record["rollouts"] else None
  state = record.get("state")
  if state is None:
    low = value is not None and value.share < 0.5
    state = SEARCHED if record["kept"] else TOO_HARD if low else TOO_EASY
  return Question(
    number=record["question"],
    id=str(record["id"]),
    prompt=record["prompt"],
    reference=str(record["reference"]),
    category=record.get("category") or "",
    value=value,
    state=state.replace("_", " "),
    reason=record.get("reason") or "",
    cut=record.get("cut", 0),
  )


def _confirmed(record: Mapping[str, Any]) -> Hypothesis:
  """A line of pivotal_tokens.jsonl of a search without tests."""
  arms = []
  for name in ("before", "after"):
    if record.get(name) is not None:
      arms.append((name, read_value(record[name])))
  prompt = len(record["prefix_ids"]) - record["position"]
  return Hypothesis(
    **_place(record),
    prefix=tuple(record["prefix_ids"][prompt:]),
    state=EXPORTED,
    reason="",
    delta=record["delta"],
    values=(arms[0][1].share, arms[1][1].share) if len(arms) == 2 else None,
    stay=None,
    interval=tuple(record["interval"]) if record.get("interval") else None,
    lower=None,
    log_e=None,
    posterior=None,
    arms=tuple(arms),
  )


def _tested(record: Mapping[str, Any]) -> Hypothesis:
  """A line of hypotheses.jsonl."""
  after, off = (read_value(record[name] or (0, 0)) for name in ("after", "off"))
  stay, end_value = record["stay"], record["end_value"]
  if stay == 1:  # the response cannot be left any more: its verdict is known
    after = Value(int(end_value), 1, exact=True)
  values = None
  if after.rollouts and off.rollouts:
    values = combine_arms(record["prob"], stay, end_value, after, off)
  return Hypothesis(
    **_place(record),
    prefix=None,
    state=record["state"],
    reason=record.get("reason") or "",
    delta=record["delta"],
    values=values,
    stay=(stay, end_value),
    interval=None,
    lower=record.get("lower"),
    log_e=record["log_e"],
    posterior=record.get("posterior"),
    arms=(("leave later", after), ("leave here", off)),
  )


def _place(record: Mapping[str, Any]) -> dict[str, Any]:
  return {
    "question": record["question"],
    "response": record["response"],
    "position": record["position"],
    "token": record["token"],
    "prob": record["prob"],
    "sign": 1 if record["sign"] == "positive" else -1,
    "alternatives": tuple(
      Alternative(each["token"], read_value(each))
      for each in record.get("alternatives") or ()
    ),
  }


def _read_stages(told: Mapping[str, costs.Cost]) -> dict[str, costs.Cost]:
  """Returns the cost of every stage, also of runs of earlier versions.

  Of mode "comb" these told phases, of which "leave" is the stage confirm and "confirm"
  is pair, and later stages, of which "screen" was search.
  """
  if "leave" in told:
    return costs.name_stages(told, "comb")
  renamed = {
    "search" if name == "screen" else name: cost for name, cost in told.items()
  }
  return costs.name_stages(renamed, "paper")


def _costs(
  run: Run, questions: Mapping[int, Question]
) -> tuple[list[Stage], dict[str, int]]:
  """Cost by stage and by category: as the run counted it, or from its logs."""
  told = run.metrics.get("stages")
  if told:
    stages = [Stage(name, **cost) for name, cost in _read_stages(told).items()]
    by_category = run.metrics.get("categories") or {}
    return stages, {n: c["sampled_tokens"] for n, c in by_category.items()}
  counts: dict[str, list[int]] = {}
  categories: dict[str, int] = {}
  for phase, number, rollouts, tokens in _logged(run):
    count = counts.setdefault(phase, [0, 0])
    count[0] += rollouts
    count[1] += tokens
    name = questions[number].category
    categories[name] = categories.get(name, 0) + tokens
  stages = [Stage(name, *counts.get(name, (0, 0))) for name in costs.STAGES]
  return stages, categories


def _logged(run: Run) -> Iterator[tuple[str, int, int, int]]:
  for record in _stream(run.folder / ROLLOUTS):
    yield "filter", record["question"], 1, len(record["token_ids"])
  for record in _stream(run.folder / ESTIMATES):
    yield record["phase"], record["question"], record["rollouts"], record["tokens"]


def _stream(path: Path) -> Iterator[dict[str, Any]]:
  if path.is_file() and path.stat().st_size:
    yield from (record for _, record in io.read_jsonl(path))
