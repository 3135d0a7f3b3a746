import pytest

from phi4_jax.eval.statistics import wilson_interval
from phi4_jax.pts.counts import Value, difference_interval, reaches


def test_shares_and_sums():
  assert Value(3, 12).share == 0.25
  assert Value(0, 4).shrunk_share == pytest.approx(1 / 6)
  assert Value(1, 4) + Value(2, 8) == Value(3, 12)
  exact = Value(1, 1, exact=True)
  assert exact + Value(2, 8) == exact and Value(2, 8) + exact == exact
  assert (exact.share, exact.shrunk_share) == (1.0, 1.0)
  assert exact.to_json() == {"successes": 1, "rollouts": 1, "exact": True}


def test_rounding_does_not_decide():
  assert 0.6 - 0.4 < 0.2
  assert reaches(0.6 - 0.4, 0.2) and reaches(0.4 - 0.6, 0.2)
  assert not reaches(0.1999, 0.2)


@pytest.mark.parametrize(
  "first, second, low, high",
  [
    # Newcombe's examples (a), (d) and (f), method 10, as printed: four decimals.
    (Value(56, 70), Value(48, 80), 0.0524, 0.3339),
    (Value(5, 56), Value(0, 29), -0.0381, 0.1926),
    (Value(9, 10), Value(3, 10), 0.1705, 0.8090),
  ],
)
def test_the_interval_equals_the_published_examples(first, second, low, high):
  found = difference_interval(first, second)
  assert found.low == pytest.approx(low, abs=5e-5)
  assert found.high == pytest.approx(high, abs=5e-5)
  turned = difference_interval(second, first)
  assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low))


def test_an_exact_side_adds_no_width():
  share = wilson_interval(12, 48)
  found = difference_interval(Value(1, 1, exact=True), Value(12, 48))
  assert found == pytest.approx((0.75, 1 - share.high, 1 - share.low))
