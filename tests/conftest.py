"""Test set-up: eight virtual CPU devices, a compilation cache, shapes checked."""

import logging
import os
import signal
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parent.parent

# A shell's background job ignores Ctrl-C, and hands that on to what is tested here.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
  signal.signal(signal.SIGINT, signal.default_int_handler)

# Before jax is imported anywhere: the platform cannot change later.
os.environ["JAX_PLATFORMS"] = os.environ.get("PHI4_TEST_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_ROOT / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Tests run each program once or twice: half the time to compile is worth more than
# faster code. Tolerances are for that; tests/sampling/test_engine_optimised.py looks at
# the usual level.
if os.environ["JAX_PLATFORMS"] == "cpu":
  os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

from jaxtyping import install_import_hook  # noqa: E402

_hook = install_import_hook(["phi4_jax", "kernels"], "beartype.beartype")

import jax  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture(autouse=True)
def forget_interrupts():
  """A Ctrl-C that one test sent and caught must not stop a run of the next.

  Nor may the next find SIGINT taken: `phi4` leaves it so until its process ends.
  """
  _forget_interrupts()  # of a fixture for several tests too
  yield
  _forget_interrupts()


def _forget_interrupts():
  signal.signal(signal.SIGINT, signal.default_int_handler)
  process = sys.modules.get("experiments.process")
  if process is not None:
    process._early_signum = None


@pytest.fixture(autouse=True)
def forget_log_handlers():
  """A verb shows its messages on the streams of its own test: the next has others."""
  _forget_log_handlers()
  yield
  _forget_log_handlers()


def _forget_log_handlers():
  logger = logging.getLogger("phi4_jax")
  logger.handlers.clear()
  logger.propagate = True
  logger.setLevel(logging.NOTSET)
