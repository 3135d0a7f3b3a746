"""What tests that need a CUDA device share. They are run like this:

PHI4_TEST_PLATFORMS=cuda,cpu python -m pytest -m gpu -n 0
"""

import jax
import pytest


@pytest.fixture(autouse=True)
def exact_products():
  """Products of float32 in float32, where the default would round factors to tf32."""
  assert jax.default_backend() == "gpu", "run as the head of tests/on_a_gpu.py says"
  with jax.default_matmul_precision("highest"):
    yield
