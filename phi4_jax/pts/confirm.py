"""Confirmation of pivotal tokens and pairs with fresh rollouts, stopped at any time.

What may be claimed of the set that closed e-BH selects: the expected share of its
tokens (or pairs) whose true effect is at most gamma is at most alpha. The effect is
that on p(success) under this frozen model, this sampling law with its cap on the
length, and this oracle; the claim stands though rollouts were placed adaptively, each
hypothesis was stopped when it looked good, and tokens of one response or question share
rollouts.

What may not be claimed. Not "this token is pivotal": the bound is on a share of the
set, and an expectation. Not "its effect is at least the gap": tokens are searched for
with effects of `gap` and tested against the smaller gamma, because telling .20 from
.19 would cost more than all the rest. Not "these are all": what was not screened, not
promoted, or ran out of budget is undecided, and undecided is no verdict. Nothing about
the model after it was trained on the pairs. Nothing beyond the oracle: one that is
wrong with rate e moves each p by up to e. And the mean of a hypothesis that was stopped
because it looked good is a little too large, though nothing of it was used to find it.

A hypothesis is about a token y_i and a sign s. Two arms are drawn in pairs. B: the next
token is not y_i (or is a given r), then on-policy. A: after y_i, given that the base
response is left: at j > i with probability w_(i+1,j) / (1 - w), the token there is not
y_j, then on-policy; w is the known probability to stay to the end. Then

  Z = s (1 - pi) (w V_T + (1 - w) A - B)     has the mean s (V_(i+1) - V_i),

and without the factor 1 - pi, s (V(y_i) - V(r)). A may be drawn after y_i without the
condition instead: then w counts as 0.

Time. All hypotheses of a run share one clock. At time t a draw is named by where it
leaves which response: it is B of the hypothesis there and A of every earlier one that
leaves there. Whatever was decided up to t knows nothing of the draws at t + 1, so each
hypothesis has its own e-process though all share rollouts. One that pauses misses the
draws of that time and never catches up on them.

Differs: the paper confirms nothing (section 4.3).
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from phi4_jax.common.axes import Float, Int
from phi4_jax.common.sampler import Branch
from phi4_jax.pts import comb, draw_names, evidence
from phi4_jax.pts.draws import Outcome
from phi4_jax.pts.leaves import Leaves
from phi4_jax.pts.responses import Point, Responses, canonical_token


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hypothesis:
  """s (V(y) - V(not y, or r)) > gamma, for one token after one prefix.

  Attributes:
    point: before the token, on the first response that has this token there.
    token_id: y.
    sign: 1 or -1.
    prob: pi of the token.
    stay: w, 0 if arm A is drawn without the condition.
    end_value: V_T.
    other_id: r, the other token of a pair; -1 for "not y".
    conditioned: whether A is drawn given that the base response is left.
  """

  point: Point
  token_id: int
  sign: int
  prob: float
  stay: float
  end_value: float
  other_id: int = -1
  conditioned: bool = True

  @property
  def scale(self) -> float:
    """1 - pi; 1 for a pair."""
    return 1 - self.prob if self.other_id < 0 else 1.0

  @property
  def needs_after(self) -> bool:
    """Whether arm A is random."""
    return self.stay < 1

  def payoff(self, after: float, off: float) -> float:
    """Returns Z; with shares for the verdicts, their estimate of the effect."""
    left = (1 - self.stay) * after
    return self.sign * self.scale * (self.stay * self.end_value + left - off)


def make_hypothesis(
  responses: Responses,
  point: Point,
  sign: int,
  *,
  other_id: int = -1,
  conditioned: bool = True,
) -> Hypothesis:
  """Returns the hypothesis about the token behind a point of a base response.

  Args:
    responses: the base responses.
    point: before the token.
    sign: 1 if the token is thought to raise p(success), else -1.
    other_id: another token, for a pair.
    conditioned: see the module.

  Raises:
    ValueError: if the token is certain, so that there is no other.
  """
  name = canonical_token(responses, point)
  response = responses.of(name)
  probs = comb.round_certain(np.array(response.probs[name.position :]))
  if probs[0] == 1:
    raise ValueError(f"The token behind {name} is certain and has no alternative.")
  return Hypothesis(
    point=name,
    token_id=response.token_ids[name.position],
    sign=sign,
    prob=float(probs[0]),
    stay=1 - float(comb.leaving_probs(probs)[1]) if conditioned else 0.0,
    end_value=float(response.correct),
    other_id=other_id,
    conditioned=conditioned,
  )


def make_null(
  hypotheses: Sequence[Hypothesis], gamma: float | Float[np.ndarray, "H"]
) -> evidence.TwoArmNull:
  """Returns "the effect is at most gamma" for the arm that speaks for the effect.

  That is A for a sign of 1 and B for -1.
  """
  left = np.array([1 - h.stay for h in hypotheses])
  known = np.array([h.sign * h.stay * h.end_value for h in hypotheses])
  raises = np.array([h.sign > 0 for h in hypotheses])
  scale = np.array([h.scale for h in hypotheses])
  return evidence.TwoArmNull(
    np.where(raises, left, 1.0), np.where(raises, 1.0, left), gamma / scale - known
  )


class Plan(NamedTuple):
  """What a round draws, and whose it is.

  Attributes:
    rows: the hypotheses that take part.
    branches: to be drawn, each once.
    after: of each hypothesis and time, the branch of arm A; -1 where A is known.
    off: likewise of arm B.
  """

  rows: Int[np.ndarray, "H"]
  branches: list[Branch]
  after: Int[np.ndarray, "H N"]
  off: Int[np.ndarray, "H N"]


class Confirmation:
  """Hypotheses of a run, the draws they have had, and the evidence so far.

  Attributes:
    hypotheses: in the order in which they were added.
    counts: by hypothesis, verdict of A and verdict of B.
    first_tokens: by hypothesis, successes and draws of B by the token drawn first.
    failed: whether a draw had no verdict; such a hypothesis has no evidence.
    times: by hypothesis, of which times it has draws: [begin, end), one after another.
    time: that has passed; `plan` and `take` move it.
  """

  def __init__(
    self, responses: Responses, seed: int, *, gamma: float, gap: float | None = None
  ):
    """Args:
    responses: the base responses.
    seed: the root of the leave positions.
    gamma: effects of at most this are null.
    gap: the least effect that one wants to find, for which the bets are placed;
      twice gamma if None.
    """
    self.hypotheses: list[Hypothesis] = []
    self.counts = np.zeros((0, 2, 2), int)
    self.first_tokens: list[dict[int, list[int]]] = []
    self.failed = np.zeros(0, bool)
    self.times: list[list[tuple[int, int]]] = []
    self.time = 0
    self._responses = responses
    self._gamma = gamma
    self._reach = (2 * gamma if gap is None else gap) - gamma
    self._after_counts: list[tuple[float, float]] = []
    self._off_counts: list[tuple[float, float]] = []
    self._bets: evidence.ArmBets | None = None
    self._texts: dict[tuple[int, int], tuple[int, ...]] = {}
    self._leaves = Leaves(responses, seed)

  def add(
    self,
    hypothesis: Hypothesis,
    *,
    after_counts: tuple[float, float] = (0.0, 0.0),
    off_counts: tuple[float, float] = (0.0, 0.0),
  ) -> int:
    """Adds a hypothesis; returns its number.

    Args:
      hypothesis: new; what has been drawn for others is not used for it.
      after_counts: failures and successes that screening suggests for arm A. They
        place the bets; whatever they are, the evidence is valid.
      off_counts: likewise for arm B.
    """
    self.hypotheses.append(hypothesis)
    self.counts = np.concatenate([self.counts, np.zeros((1, 2, 2), int)])
    self.failed = np.append(self.failed, False)
    self.first_tokens.append({})
    self.times.append([])
    self._after_counts.append(after_counts)
    self._off_counts.append(off_counts)
    return len(self.hypotheses) - 1

  @property
  def num_pairs(self) -> Int[np.ndarray, "H"]:
    return self.counts.sum(axis=(1, 2))

  @property
  def after_successes(self) -> Int[np.ndarray, "H"]:
    """Successes of arm A."""
    return self.counts[:, 1].sum(axis=1)

  @property
  def off_successes(self) -> Int[np.ndarray, "H"]:
    """Successes of arm B."""
    return self.counts[:, :, 1].sum(axis=1)

  def log_e(self) -> Float[np.ndarray, "H"]:
    """Returns log E of each hypothesis against an effect of at most gamma."""
    rows = np.arange(len(self.hypotheses))
    new = rows[0 if self._bets is None else len(self._bets.weights) :]
    if self._bets is None or new.size:
      bets = self._make_bets(new, np.full(len(new), self._gamma))
      self._bets = bets if self._bets is None else self._bets.append(bets)
    logs = self._log_e(self._bets, rows)
    return np.where(self.failed, -np.inf, logs)

  def effects(self) -> Float[np.ndarray, "H"]:
    """Returns s Delta from fresh draws alone; not a number before the first.

    Nor is it one where a draw had no verdict.
    """
    pairs = np.maximum(self.num_pairs, 1)
    shares = zip(self.after_successes / pairs, self.off_successes / pairs, strict=True)
    found = [h.payoff(*both) for h, both in zip(self.hypotheses, shares, strict=True)]
    return np.where((self.num_pairs > 0) & ~self.failed, found, np.nan)

  def lower_bound(self, number: int, alpha: float, *, step: float = 0.01) -> float:
    """Returns a bound that s Delta exceeds with confidence 1 - alpha at any time.

    Args:
      number: of the hypothesis.
      alpha: see `evidence.lower_bound` for that of selected ones.
      step: between bounds that may be returned, from 0 on.

    Where a draw had no verdict nothing is known: the least effect that there can be.
    """
    hypothesis = self.hypotheses[number]
    extremes = [hypothesis.payoff(a, b) for a in (0.0, 1.0) for b in (0.0, 1.0)]
    least, most = min(extremes), max(extremes)
    if self.failed[number]:
      return least
    # Ten times coarser where no bound of interest lies.
    steps = np.arange(
      np.ceil((least - self._gamma) / step), np.floor((most - self._gamma) / step) + 1
    )
    fine = self._gamma + step * steps >= 0
    gammas = self._gamma + step * steps[fine | (steps % 10 == 0)]
    # All that matters stands before the first that is not rejected.
    logs = np.zeros(0)
    while len(logs) < len(gammas) and (logs >= -np.log(alpha)).all():
      part = gammas[len(logs) : len(logs) + 16]
      rows = np.full(len(part), number)
      logs = np.append(logs, self._log_e(self._make_bets(rows, part), rows))
    bound = evidence.lower_bound(gammas[: len(logs)], logs, alpha)
    return max(least, bound)

  def plan(self, running: Sequence[int] | np.ndarray, num_pairs: int) -> Plan:
    """Returns the next draws of some hypotheses: so many pairs of each.

    Give the outcomes to `take` before the next plan.

    Raises:
      ValueError: if the clock has run out.
    """
    most = draw_names.MOST_TIMES
    if self.time + num_pairs >= most:
      raise ValueError(f"A confirmation has at most {most} pairs for a hypothesis.")
    rows = np.array(
      [row for row in running if not self.failed[row]], dtype=int
    ).reshape(-1)
    numbers: dict[tuple[int, ...], int] = {}
    branches: list[Branch] = []

    def number_of(
      name: Point, path: tuple[int, ...], *, first_id: int = -1, excluded_id: int = -1
    ) -> int:
      found = numbers.setdefault(path, len(branches))
      if found == len(branches):
        text, prompt = self._text(name)
        branches.append(
          Branch(
            text=text,
            position=prompt + name.position,
            first_id=first_id,
            excluded_id=excluded_id,
            key_path=path,
          )
        )
      return found

    def leave(name: Point, time: int) -> int:
      token_id = self._responses.of(name).token_ids[name.position]
      return number_of(name, draw_names.leaving(name).at(time), excluded_id=token_id)

    after = np.full((len(rows), num_pairs), -1)
    off = np.full((len(rows), num_pairs), -1)
    for row, hypothesis in enumerate(self.hypotheses[r] for r in rows):
      point, other = hypothesis.point, hypothesis.other_id
      behind = self._responses.canonical(point._replace(position=point.position + 1))
      for k in range(num_pairs):
        time = self.time + k
        if other < 0:
          off[row, k] = leave(point, time)
        else:
          path = draw_names.trying(point, other).at(time)
          off[row, k] = number_of(point, path, first_id=other)
        if not hypothesis.conditioned:
          after[row, k] = number_of(behind, draw_names.behind(behind).at(time))
        elif hypothesis.needs_after:
          position = self._leaves.at(point, time)[behind.position]
          name = canonical_token(
            self._responses, point._replace(position=int(position))
          )
          after[row, k] = leave(name, time)
    return Plan(rows, branches, after, off)

  def take(self, plan: Plan, outcomes: Sequence[Outcome]) -> None:
    """Counts the outcomes of a plan's branches, in order, and moves the clock."""
    correct = np.array([o.correct for o in outcomes] + [False])
    failed = np.array([o.failed for o in outcomes] + [False])
    after, off = correct[plan.after].astype(int), correct[plan.off].astype(int)
    self.failed[plan.rows] |= (failed[plan.after] | failed[plan.off]).any(axis=1)
    for a in (0, 1):
      for b in (0, 1):
        self.counts[plan.rows, a, b] += ((after == a) & (off == b)).sum(axis=1)
    for row, draws in zip(plan.rows, plan.off, strict=True):
      tally = self.first_tokens[row]
      for draw in draws:
        count = tally.setdefault(outcomes[draw].first_id, [0, 0])
        count[0] += outcomes[draw].correct
        count[1] += 1
    begin, self.time = self.time, self.time + plan.off.shape[1]
    for row in plan.rows:
      times = self.times[row]
      goes_on = times and times[-1][1] == begin
      times.append((times.pop()[0] if goes_on else begin, self.time))
    self._leaves.forget_before(self.time)

  def _make_bets(self, rows: np.ndarray, gammas: np.ndarray) -> evidence.ArmBets:
    hypotheses = [self.hypotheses[row] for row in rows]
    null = make_null(hypotheses, gammas)
    raises = np.array([[h.sign > 0] for h in hypotheses]).reshape(-1, 1)
    after = np.array([self._after_counts[row] for row in rows]).reshape(-1, 2)
    off = np.array([self._off_counts[row] for row in rows]).reshape(-1, 2)
    up, down = evidence.grid_of_guesses()
    rise, fall, level = (part[:, None] for part in null)
    scale = np.array([[h.scale] for h in hypotheses]).reshape(-1, 1)
    prior = evidence.prior_of_guesses(
      up,
      down,
      np.where(raises, after, off),
      np.where(raises, off, after),
      excess=scale * (rise * up - fall * down - level),
      reach=self._reach,
    )
    return evidence.make_arm_bets(null, up, down, prior)

  def _log_e(self, bets: evidence.ArmBets, rows: np.ndarray) -> np.ndarray:
    raises = np.array([self.hypotheses[row].sign > 0 for row in rows], bool)
    after, off = self.after_successes[rows], self.off_successes[rows]
    return bets.log_e(
      np.where(raises, after, off), np.where(raises, off, after), self.num_pairs[rows]
    )

  def _text(self, name: Point) -> tuple[tuple[int, ...], int]:
    response = self._responses.of(name)
    key = (name.question, name.response)
    if key not in self._texts:
      self._texts[key] = response.prefix_ids(len(response))
    return self._texts[key], len(response.prompt_ids)
