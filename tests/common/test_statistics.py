"""How an interval is shown; its numbers are tested in tests/eval/test_statistics.py."""

import pytest

from phi4_jax.common import statistics
from phi4_jax.curation import quality_metrics
from phi4_jax.eval import statistics as of_evaluation


def test_an_interval_is_shown_with_as_many_digits_as_are_asked_for():
  interval = statistics.Interval(0.5, 0.29929, 0.70071)
  assert str(interval) == f"{interval}" == "0.500 [0.299, 0.701]"
  assert f"{interval:.4f}" == "0.5000 [0.2993, 0.7007]"


def test_there_is_one_interval_for_all():
  assert of_evaluation.Interval is statistics.Interval is quality_metrics.Interval
  assert of_evaluation.wilson_interval is statistics.wilson_interval


def test_a_level_is_a_share():
  for level in (0.0, 1.0, 95.0):
    with pytest.raises(ValueError, match=r"level \(.*\) must lie strictly"):
      statistics.check_level(level)
