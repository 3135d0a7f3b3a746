"""The comb search: pivotal tokens of base responses, by the rollouts that leave them.

Four stages, after the questions were filtered:

  B  a token of sampling probability above 1 - gap cannot be pivotal: no rollouts
  C  screen: rollouts that leave where they tell most (screening.py, screen.py)
  D  confirm: fresh rollouts, evidence that may be looked at any time (confirming.py)
  E  select by closed e-BH, with a bound on the false share; then a pair for each

Straight-line code over a draw: no sampler is known here, and the result depends on what
the draw gives back and on nothing else. A budget that ends, or a question without
verdicts, takes away findings and leaves the rest as it is.

Source: arXiv:2412.08905 section 4.3 and footnote 7 (what a pivotal token is; the pair's
  other token is one that was drawn in its place).
Differs: the paper subdivides responses, estimates p(success) by a number of rollouts
  that it does not give, and tests nothing.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from phi4_jax.common.sampler import Branch
from phi4_jax.pts.comb_config import CombConfig
from phi4_jax.pts.comb_pairs import draw_pairs
from phi4_jax.pts.comb_types import CombResult, Critic, Finding, Screened, State
from phi4_jax.pts.confirming import Trial
from phi4_jax.pts.counts import Value
from phi4_jax.pts.draws import Draw, Outcome, OutOfBudget
from phi4_jax.pts.estimates import Tally
from phi4_jax.pts.responses import Response, Responses
from phi4_jax.pts.screening import Board, report_screen, screen_responses

_LABELS = ("screen", "confirm", "pair")


def search_comb(
  responses: Responses,
  rollouts: Mapping[int, Sequence[Response]],
  config: CombConfig,
  draw: Draw,
  *,
  gap: float,
  seed: int,
  critic: Critic | None = None,
) -> CombResult:
  """Returns the pivotal tokens of base responses, with the evidence for each.

  Args:
    responses: the base responses.
    rollouts: of each question, all on-policy rollouts from its bare prompt, the base
      responses among them.
    config: how to search.
    draw: draws branches; may end the search at any round by raising OutOfBudget.
    gap: least change of p(success) that makes a token pivotal; above config.gamma0.
    seed: of where rollouts leave; with the draw it decides everything.
    critic: guesses where to look, optional.
  """
  assert config.gamma0 < gap
  counted = _Counted(draw)
  board = Board(responses, rollouts, gap=gap, critic=critic)
  out_of_budget = False
  try:
    screen = screen_responses(board, config, counted)
  except OutOfBudget:
    screen = report_screen(board, config, counted.rounds, "budget")
    out_of_budget = True
  screened = board.screen.counts.copy(), board.screen.successes.copy()
  trial = Trial(board, config, gap=gap, seed=seed)
  try:
    # A budget may end the screen alone (rollouts.py): what it has promoted is tested.
    trial.run(counted)
  except OutOfBudget:
    out_of_budget = True
  findings = _make_findings(board, trial, config, screened, out_of_budget)
  if config.pair_rollouts:
    paired = _add_pairs(findings, board, trial, config, counted, gap=gap)
    if paired is None:
      out_of_budget = True
      paired = [_without_pair(finding) for finding in findings]
    findings = paired
  late = counted.failed - board.dropped.keys()
  if late:
    # A question that lost a verdict with its pairs is dropped like any other, and what
    # remains is selected anew: a selection less some of its tokens has no bound.
    for question in late:
      board.drop(question, "a rollout had no verdict")
    pairs = {(f.point, f.sign): f for f in findings}
    remade = _make_findings(board, trial, config, screened, out_of_budget)
    findings = [_with_pair_of(f, pairs[f.point, f.sign]) for f in remade]
  return CombResult(
    findings=findings,
    screened=_summarize(board, findings),
    screen=screen,
    dropped=dict(sorted(board.dropped.items())),
    rounds=counted.rounds,
    out_of_budget=out_of_budget,
    rollouts=counted.rollouts,
    sampled_tokens=counted.tokens,
  )


def _add_pairs(
  findings: Sequence[Finding],
  board: Board,
  trial: Trial,
  config: CombConfig,
  draw: Draw,
  *,
  gap: float,
) -> list[Finding] | None:
  """Returns the findings with their pairs; None if the budget does not suffice."""
  confirmation = trial.confirmation
  try:
    return draw_pairs(findings, board.responses, confirmation, config, draw, gap=gap)
  except OutOfBudget:
    return None


def _with_pair_of(finding: Finding, other: Finding) -> Finding:
  if finding.state != "exported":
    return finding
  return dataclasses.replace(
    finding, pair=other.pair, pair_times=other.pair_times, no_pair=other.no_pair
  )


def _without_pair(finding: Finding) -> Finding:
  if finding.state != "exported":
    return finding
  return dataclasses.replace(finding, no_pair="not_drawn")


class _Counted:
  """A draw that counts rounds, rollouts and tokens by label, and sees failures."""

  def __init__(self, draw: Draw):
    self._draw = draw
    self.rounds = 0
    self.failed: set[int] = set()
    self.rollouts: dict[str, int] = dict.fromkeys(_LABELS, 0)
    self.tokens: dict[str, int] = dict.fromkeys(_LABELS, 0)

  def __call__(self, branches: Sequence[Branch], *, label: str) -> list[Outcome]:
    outcomes = self._draw(branches, label=label) if branches else []
    self.rounds += bool(branches)
    self.rollouts[label] += len(branches)
    for branch, outcome in zip(branches, outcomes, strict=True):
      if outcome.failed:
        self.failed.add(branch.key_path[1])
    self.tokens[label] += sum(outcome.num_tokens for outcome in outcomes)
    return outcomes


def _make_findings(
  board: Board,
  trial: Trial,
  config: CombConfig,
  screened: tuple[np.ndarray, np.ndarray],
  out_of_budget: bool,
) -> list[Finding]:
  confirmation = trial.confirmation
  selected, beliefs = trial.selected(), trial.beliefs()
  logs = confirmation.log_e()
  effects = confirmation.effects()
  share = float(selected.sum()) / max(len(trial), 1)
  findings = []
  for number, h in enumerate(trial.hypotheses):
    state, reason = _state(board, trial, number, bool(selected[number]), out_of_budget)
    row, pairs = board.row_of(h.point), int(confirmation.num_pairs[number])
    n, k = (int(part[row, h.point.position]) for part in screened)
    weight = float(np.exp(trial.log_weights[number]))
    risk = config.alpha * (share * weight if state == "exported" else 1.0)
    after = int(confirmation.after_successes[number])
    findings.append(
      Finding(
        point=h.point,
        token_id=h.token_id,
        sign=h.sign,
        state=state,
        reason=reason,
        prob=h.prob,
        stay=h.stay,
        end_value=h.end_value,
        after=Value(after, pairs) if h.needs_after else Value(0, 0),
        off=Value(int(confirmation.off_successes[number]), pairs),
        screened=Value(k, n),
        first_tokens=_tally(confirmation.first_tokens[number]),
        screened_tokens=_tally(board.first_tokens.get(h.point, {})),
        times=tuple(confirmation.times[number]),
        weight=weight,
        log_e=float(logs[number]),
        effect=float(effects[number]),
        lower_bound=confirmation.lower_bound(number, min(risk, 1 - 1e-9)),
        posterior=float(beliefs[number]),
      )
    )
  return findings


def _state(
  board: Board, trial: Trial, number: int, selected: bool, out_of_budget: bool
) -> tuple[State, str]:
  if selected:
    return "exported", ""
  question = trial.hypotheses[number].point.question
  if question in board.dropped:
    return "undecided", board.dropped[question]
  if trial.states[number] == "rejected":
    return "rejected", trial.reasons[number]
  if trial.states[number]:
    return "undecided", trial.reasons[number]
  return "undecided", "the budget ended" if out_of_budget else "the draws ended"


def _tally(counts: Mapping[int, Sequence[int]]) -> Tally:
  return {token_id: Value(k, n) for token_id, (k, n) in sorted(counts.items())}


def _summarize(
  board: Board, findings: Sequence[Finding]
) -> dict[tuple[int, int], Screened]:
  entered = {finding.point for finding in findings}
  found = {}
  for row, response in enumerate(board.rows):
    num, screen = len(response), board.screen
    values, errors = screen.curve(row, num)
    pivots = np.zeros((2, num))
    places = screen.positions[row, : screen.lengths[row]]
    pivots[:, places] = screen.beliefs.pivot[row, : len(places)].T
    found[response.question, response.index] = Screened(
      successes=screen.successes[row, :num].copy(),
      rollouts=screen.counts[row, :num].copy(),
      values=values,
      errors=errors,
      pivot_probs=pivots,
      entered=np.isin(
        np.arange(num), [p for p in places if board.name(row, int(p)) in entered]
      ),
    )
  return found
