"""The decode attention kernel compiles for TPUs, and copies no cache."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROWS, KV_HEADS, WIDTH = 64, 10, 128


def _compile(programs):
  """Compiles (chip, options) pairs in a process that may die of it."""
  process = subprocess.run(
    [
      sys.executable,
      "-m",
      "tests.kernels.compile_decode_attention",
      json.dumps(programs),
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=600,
  )
  assert process.returncode == 0, process.stderr[-3000:]
  found = [json.loads(line) for line in process.stdout.splitlines() if line[:1] == "{"]
  assert [each["chip"] for each in found] == [chip for chip, _ in programs]
  return found


def _check(found, *, prefix_slots=2048, prefixes=1, cache_dtype="bfloat16", **_):
  assert found["calls"] == [
    "phi4_decode_attention_prefix",
    "phi4_decode_attention_suffix",
  ]
  # Queries and results have 64 x 40 x 128 numbers; any cache has more of them.
  for shape in found["copied"]:
    sizes = [int(n) for n in shape[shape.index("[") + 1 : shape.index("]")].split(",")]
    assert math.prod(sizes) < prefix_slots * KV_HEADS * WIDTH, shape
  # The results of the first call, queries and scales in another order, no more.
  slots = prefixes * prefix_slots + ROWS * 512
  scales = 8 * slots * KV_HEADS if cache_dtype == "int8" else 0
  assert found["temporary_bytes"] < 14 * ROWS * 40 * WIDTH + scales


@pytest.mark.parametrize(
  "chip, options",
  [
    ("v5p", {}),
    ("v6e", dict(cache_dtype="int8", new_tokens=2)),
    ("v6e", dict(prefixes=8, rollouts=8, cuts=True, ring=True)),
    ("v5p", dict(prefixes=8, rollouts=8, cache_dtype="int8", cuts=True)),
  ],
)
def test_compiles_without_a_copy_of_the_caches(chip, options):
  (found,) = _compile([(chip, options)])
  _check(found, **options)


@pytest.mark.slow
@pytest.mark.parametrize("prefix_slots", [2048, 16384])
@pytest.mark.parametrize("cache_dtype", ["bfloat16", "int8", "float8_e4m3fn"])
@pytest.mark.parametrize("branches", [{}, dict(cuts=True, ring=True)])
def test_compiles_for_every_chip(branches, cache_dtype, prefix_slots):
  options = dict(prefix_slots=prefix_slots, cache_dtype=cache_dtype, **branches)
  chips = ["v5e", "v5p", "v6e", "tpu7x"]
  for found in _compile([(chip, options) for chip in chips]):
    _check(found, **options)
