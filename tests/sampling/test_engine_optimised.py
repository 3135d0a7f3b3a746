"""What other tests show of the engine with XLA's optimiser off, at its usual level.

Bitwise equality holds there too. Log-probabilities lie farther from those of the plain
sampler than the 1e-5 of `assert_same_draws`: products are fused otherwise.
"""

import json
import os
import subprocess
import sys

import pytest

from tests import conftest

pytestmark = pytest.mark.slow


def _run(*command):
  # conftest.py leaves flags alone that are there.
  env = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
  done = subprocess.run(
    [sys.executable, "-m", *command],
    capture_output=True,
    text=True,
    env=env,
    cwd=conftest._ROOT,
    timeout=900,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  return done.stdout


def test_draws_are_those_of_the_plain_sampler():
  """Each of up to 32 tokens adds its rounding to the keys of those behind it."""
  found = json.loads(_run("tests.sampling.optimised_draws").splitlines()[-1])
  assert len(found) == 2
  for each in found:
    assert each["same"] == each["branches"] == 40
    assert each["largest"] < 1e-4  # 1.5e-5 and 2.3e-5 were seen


def test_what_is_equal_to_the_last_bit_is_so():
  files = [f"tests/sampling/test_engine_{name}.py" for name in ("buckets", "held")]
  files.append("tests/kernels/test_decode_attention_pieces.py")
  # Those whose names say so.
  output = _run("pytest", "-q", "-n0", "-k", "bit", *files)
  assert " passed" in output and " failed" not in output
