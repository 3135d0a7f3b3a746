"""Names of compiled programs, and what the compiler writes in its reports."""

import jax
import jax.numpy as jnp
import pytest

from phi4_jax.planning.compile import (
  _largest_figure,
  _read_largest,
  _read_refusal,
  program_hash,
)
from phi4_jax.planning.topology import parse_topology

REPORT = """\
Memory Space: default (color=0)
Total bytes: 7202686848 (6.71GiB)
  cumulative_size;       size;       offset; used_by_n_values; shapes_list
  ------------------------------------------------------------
  640.00MiB(  9%);  640.00MiB;    553304064;                9; f32[1,4096], pred[8,512]
  640.00MiB(  9%);    512B;    553304064;                9; (f32[1,4096], f32[2])
  990.00MiB( 14%);    1.50GiB;   3169501184;                4; bf16[1,4096,5120]
"""


def _lower(size):
  return jax.jit(lambda x: x + 1).lower(jax.ShapeDtypeStruct((size,), jnp.float32))


def test_a_name_depends_on_program_chips_and_options():
  slices = [parse_topology(name) for name in ("v5e-4", "v6e-4", "v5p:2x2x4", "v5p-32")]
  names = {program_hash(_lower(3), {}, topology) for topology in slices}
  names.add(program_hash(_lower(4), {}, slices[0]))
  names.add(program_hash(_lower(3), {"a": "1"}, slices[0]))
  names.add(program_hash(_lower(3), {}, parse_topology("2xv5e-4")))
  assert len(names) == len(slices) + 2  # v5p:2x2x4 is what v5p-32 means
  assert program_hash(_lower(3), {}, slices[0]) in names


def test_the_largest_buffers_without_tables_of_addresses(tmp_path):
  (tmp_path / "module.memory-usage-report.txt").write_text(REPORT)
  found = _read_largest(tmp_path)
  assert [buffer.num_bytes for buffer in found] == [640 * 2**20, 3 * 2**29]
  assert found[0].shapes == "f32[1,4096], pred[8,512]"


def test_a_program_that_does_not_fit_says_how_much_it_needs(tmp_path):
  message = (
    "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: total memory required for HLO "
    "temporaries (46.85G) exceeds available HBM (31.24G)"
  )
  compiled = _read_refusal(message, tmp_path)
  assert compiled.error == message and compiled.hlo == ""
  assert compiled.hbm_bytes == pytest.approx(46.85 * 2**30)


@pytest.mark.parametrize(
  ("message", "expected"),
  [
    ("INVALID_ARGUMENT: No such compile option: 'xla_tpu_x'", "--xla_option"),
    ("RESOURCE_EXHAUSTED: E1001: CompileTimeScopedVmemOom: vmem", "vmem"),
  ],
)
def test_other_refusals_are_errors(message, expected, tmp_path):
  with pytest.raises(ValueError, match=expected):
    _read_refusal(message, tmp_path)


def test_amounts():
  assert _largest_figure("1.5K of 2.00M") == 2 * 2**20
  assert _largest_figure("nothing") == 0
