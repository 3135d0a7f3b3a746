"""A preference pair for each exported token: which token would have been the other one.

Some token that may stand in its place differs from it by at least effect / (1 - pi):
that of the least success where the token raises p(success), and of the greatest where
it lowers it. The rollouts of arm B, by the token drawn first, name it; it was picked
because its few rollouts looked so, and they count no more. Both sides are then drawn
anew, and these fresh counts are what the pair reports.

Source: arXiv:2412.08905 section 4.3 and footnote 7.
Differs: the paper does not say which tokens are taken, nor that both are estimated
  anew.
"""

import dataclasses
from collections.abc import Sequence

from phi4_jax.pts.comb_config import CombConfig
from phi4_jax.pts.comb_types import Finding
from phi4_jax.pts.confirm import Confirmation, make_hypothesis
from phi4_jax.pts.counts import Value, reaches
from phi4_jax.pts.draws import Draw
from phi4_jax.pts.estimates import Tally, merge_tallies, sort_tally
from phi4_jax.pts.pairs import Pair
from phi4_jax.pts.responses import Point, Responses


def draw_pairs(
  findings: Sequence[Finding],
  responses: Responses,
  confirmation: Confirmation,
  config: CombConfig,
  draw: Draw,
  *,
  gap: float,
) -> list[Finding]:
  """Returns the findings with a pair, or the reason for none, where they are exported.

  Args:
    findings: all of a search.
    responses: the base responses.
    confirmation: whose clock goes on, so that what is drawn is fresh.
    config: how many rollouts.
    draw: draws them, in one round.
    gap: by which the fresh shares of both sides must differ.

  Raises:
    OutOfBudget: as the draw, before anything is drawn.
  """
  found = list(findings)
  tested: list[tuple[int, int, int]] = []  # finding, row of the confirmation, other
  for number, finding in enumerate(findings):
    if finding.state != "exported":
      continue
    other_id = choose_other(finding, config.min_alternative_rollouts)
    if other_id is None:
      found[number] = dataclasses.replace(finding, no_pair="no_alternative")
      continue
    is_last = finding.point.position + 1 == len(responses.of(finding.point))
    hypothesis = make_hypothesis(
      responses,
      finding.point,
      finding.sign,
      other_id=other_id,
      # Behind the last token everything is known.
      conditioned=is_last,
    )
    tested.append((number, confirmation.add(hypothesis), other_id))
  rows = [row for _, row, _ in tested]
  plan = confirmation.plan(rows, config.pair_rollouts)
  confirmation.take(plan, draw(plan.branches, label="pair"))
  seen: set[tuple[Point, int, int]] = set()
  for number, row, other_id in tested:
    finding = found[number]
    if confirmation.failed[row]:
      found[number] = dataclasses.replace(finding, no_pair="not_drawn")
      continue
    pair = _make_pair(finding, confirmation, row, other_id)
    name = (
      responses.canonical(finding.point),
      pair.accepted_id,
      pair.rejected_id,
    )
    if not reaches(max(0.0, pair.accepted.share - pair.rejected.share), gap):
      found[number] = dataclasses.replace(finding, no_pair="gap_too_small")
    elif name in seen:
      found[number] = dataclasses.replace(finding, no_pair="same_pair_again")
    else:
      seen.add(name)
      times = tuple(confirmation.times[row])
      found[number] = dataclasses.replace(finding, pair=pair, pair_times=times)
  return found


def choose_other(finding: Finding, least: int) -> int | None:
  """Returns the token that seems to differ most from the finding's, None if none may.

  Shares are shrunk, (k + 1) / (n + 2), so that one lucky rollout does not win; of
  equal ones the most frequent is taken.

  Args:
    finding: with its counts by first token.
    least: rollouts with which a token must have been drawn.
  """
  tally: Tally = merge_tallies([finding.first_tokens, finding.screened_tokens])
  frequent = [
    (token_id, value)
    for token_id, value in sort_tally(tally)
    if value.rollouts >= least and token_id not in (finding.token_id, -1)
  ]
  if not frequent:
    return None
  return min(frequent, key=lambda item: finding.sign * item[1].shrunk_share)[0]


def _make_pair(
  finding: Finding, confirmation: Confirmation, row: int, other_id: int
) -> Pair:
  pairs = int(confirmation.num_pairs[row])
  own = Value(int(confirmation.after_successes[row]), pairs)
  if not confirmation.hypotheses[row].needs_after:
    own = Value(int(finding.end_value), 1, exact=True)
  other = Value(int(confirmation.off_successes[row]), pairs)
  raises = finding.sign > 0
  ids = (finding.token_id, other_id)
  return Pair(
    point=finding.point,
    accepted_id=ids[0 if raises else 1],
    rejected_id=ids[1 if raises else 0],
    accepted=own if raises else other,
    rejected=other if raises else own,
    sign="positive" if raises else "negative",
  )
