"""The formula, frozen: a change of it would make every published figure another one."""

import dataclasses

import pytest

from phi4_jax.common.errors import ConfigError
from phi4_jax.planning.hlo import Collective, Reading
from phi4_jax.planning.prediction import assume, predict
from phi4_jax.planning.topology import CHIPS


def _collective(wire_bytes, crosses_slices=False):
  return Collective(
    kind="all-gather",
    group_size=128,
    count=7,
    logical_bytes=0.0,
    wire_bytes=wire_bytes,
    is_async=False,
    crosses_slices=crosses_slices,
  )


READING = Reading(
  cycles={"matmul": 1.75e9, "elementwise": 0.35e9, "copies": 0.175e9},
  collectives=(_collective(54e9), _collective(25e9, crosses_slices=True)),
  kernel_calls={"attention_forward": 40, "attention_backward": 40},
  operations=(),
  unknown_loops=(),
)
FLOPS = {"attention_forward": 459e9, "attention_backward": 2 * 459e9}


def test_every_term_of_the_formula():
  found = predict(
    READING, assume(CHIPS["v5p"]), model_flops=459e12, flops_per_call=FLOPS
  )
  assert found.cycle_seconds == pytest.approx(
    {"matmul": 1.0, "elementwise": 0.2, "copies": 0.1}
  )
  # 40 * 3 * 459e9 operations at half of 459e12 a second.
  assert found.kernel_seconds == pytest.approx(0.24)
  assert found.ici_seconds == pytest.approx(0.1)  # 54 GB at 540 GB/s
  assert found.dcn_seconds == pytest.approx(4.0)  # 25 GB at 6.25 GB/s
  assert found.step_seconds == pytest.approx(5.64)
  assert found.mfu == pytest.approx(1 / 5.64)


def test_the_figures_of_the_chips_that_enter_it():
  assert (CHIPS["v5p"].peak_flops, CHIPS["v5p"].ici_bytes_per_second) == (459e12, 540e9)
  assert (CHIPS["v6e"].peak_flops, CHIPS["v6e"].ici_bytes_per_second) == (918e12, 360e9)
  assert assume(CHIPS["v5p"]).kernel_efficiency == 0.5


def test_assumptions_can_be_changed_by_name():
  half = assume(CHIPS["v5p"])
  whole = assume(CHIPS["v5p"], kernel_efficiency=1.0)
  seconds = [
    predict(READING, a, model_flops=1.0, flops_per_call=FLOPS).kernel_seconds
    for a in (half, whole)
  ]
  assert seconds[0] == pytest.approx(2 * seconds[1])
  with pytest.raises(ConfigError, match=r"'peak'.*Known: peak_flops"):
    assume(CHIPS["v5p"], peak=1.0)
  with pytest.raises(ConfigError, match=r"kernel_efficiency \(0.0\) must be positive"):
    assume(CHIPS["v5p"], kernel_efficiency=0.0)


def test_a_kernel_whose_work_is_not_counted_is_refused():
  reading = dataclasses.replace(READING, kernel_calls={"mystery": 3})
  with pytest.raises(ConfigError, match="not counted: mystery"):
    predict(reading, assume(CHIPS["v5p"]), model_flops=1.0, flops_per_call=FLOPS)
