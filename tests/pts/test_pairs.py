import pytest

from phi4_jax.pts.counts import Value, difference_interval
from phi4_jax.pts.pairs import Candidate, Pair, make_pair, make_pairs
from phi4_jax.pts.responses import Point

POINT = Point(3, 1, 5)
OWN = 50


def candidate(before, after, first_tokens, searched=None, **kwargs):
  return Candidate(
    point=kwargs.get("point", POINT),
    token_id=kwargs.get("token_id", OWN),
    prob=0.3,
    searched=searched or (Value(5, 10), Value(5, 10)),
    confirmed=(before, after),
    first_tokens=first_tokens,
  )


RAISING = candidate(
  Value(24, 48),
  Value(40, 48),
  {OWN: Value(10, 12), 1: Value(1, 6), 2: Value(8, 30), 3: Value(0, 2), 4: Value(9, 9)},
  searched=(Value(6, 12), Value(11, 12)),
)
LOWERING = candidate(
  Value(24, 48),
  Value(6, 48),
  {OWN: Value(1, 12), 1: Value(9, 10), 2: Value(20, 30), 3: Value(2, 2)},
  searched=(Value(6, 12), Value(0, 12)),
)


def pair_of(pivot, gap=0.2, min_rollouts=4):
  return make_pair(pivot, gap=gap, min_rollouts=min_rollouts)


def test_the_change_is_judged_by_fresh_rollouts_only():
  assert RAISING.delta == pytest.approx(40 / 48 - 24 / 48)
  assert RAISING.interval == difference_interval(Value(40, 48), Value(24, 48))
  assert (RAISING.sign, LOWERING.sign) == ("positive", "negative")
  assert RAISING.is_pivotal(0.33) and not RAISING.is_pivotal(0.34)
  # Seen by the search and not again: no pivot.
  lucky = candidate(
    Value(24, 48), Value(25, 48), {}, searched=(Value(0, 12), Value(12, 12))
  )
  assert not lucky.is_pivotal(0.2)


def test_a_token_that_raises_is_accepted_against_the_worst_frequent_one():
  # Of 1 (2/8) and 2 (9/32), 1 is worse; 3 was drawn too rarely.
  assert pair_of(RAISING) == Pair(
    point=POINT,
    accepted_id=OWN,
    rejected_id=1,
    accepted=Value(40, 48),  # fresh rollouts only
    rejected=Value(1, 6),
    sign="positive",
  )
  assert pair_of(RAISING, min_rollouts=2).rejected_id == 3 - 2  # (0+1)/(2+2) = 2/8
  assert pair_of(RAISING, min_rollouts=7).rejected_id == 2


def test_a_token_that_lowers_is_rejected_against_the_best_frequent_one():
  pair = pair_of(LOWERING)
  assert (pair.accepted_id, pair.rejected_id, pair.sign) == (1, OWN, "negative")
  assert (pair.accepted, pair.rejected) == (Value(9, 10), Value(6, 48))


def test_why_there_is_no_pair():
  assert pair_of(RAISING, min_rollouts=31) == "no_frequent_alternative"
  only_itself = candidate(Value(10, 48), Value(40, 48), {OWN: Value(5, 5)})
  assert pair_of(only_itself, min_rollouts=1) == "no_frequent_alternative"
  small = candidate(Value(20, 48), Value(40, 48), {1: Value(30, 40)})
  assert pair_of(small) == "gap_too_small"
  # An alternative that is better than a token that raises is no rejected token.
  better = candidate(Value(20, 48), Value(40, 48), {1: Value(40, 40)})
  assert pair_of(better) == "gap_too_small"


def test_behind_the_last_token_the_value_is_exact():
  exact = Value(1, 1, exact=True)
  last = candidate(
    Value(12, 48), exact, {OWN: Value(9, 9), 1: Value(1, 9)}, (Value(3, 12), exact)
  )
  pair = pair_of(last, gap=0.8)
  assert pair.accepted == exact and pair.rejected == Value(1, 9)


def test_the_same_two_tokens_after_one_prefix_are_one_pair():
  first = candidate(
    Value(24, 48), Value(44, 48), {OWN: Value(9, 9), 1: Value(1, 40)}, token_id=OWN
  )
  # Another response to the question takes token 1 there.
  other = candidate(
    Value(24, 48),
    Value(2, 48),
    {OWN: Value(9, 9), 1: Value(1, 40)},
    token_id=1,
    point=POINT._replace(response=2),
  )
  elsewhere = POINT._replace(question=4)
  pairs, without = make_pairs(
    [(first, POINT), (other, POINT), (other, elsewhere), (RAISING, POINT)],
    gap=0.2,
    min_rollouts=4,
  )
  assert [(p.accepted_id, p.rejected_id, p.sign) for p in pairs] == [
    (OWN, 1, "positive"),
    (OWN, 1, "negative"),
  ]
  assert without == {
    "no_frequent_alternative": 0,
    "gap_too_small": 0,
    "same_pair_again": 2,
  }
