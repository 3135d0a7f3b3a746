"""Errors and log lines that TensorFlow must not tell in its own way."""

import os
import subprocess
import sys

import pytest

from phi4_jax.common.errors import DataError
from phi4_jax.data.documents import Document
from phi4_jax.data.relay import Relay
from phi4_jax.data.tensorflow_logs import hold_back

_NOISE = """
import os
from phi4_jax.data.tensorflow_logs import hold_back
with hold_back():
  os.write(2, b"WARNING: All log messages before absl::InitializeLog() is called\\n")
  os.write(2, b"I0000 00:00:1795701019.385333    7262 port.cc:153] oneDNN is on.\\n")
  os.write(2, b"module.py:1: DeprecationWarning: old\\n")
  if "fails" in os.environ:
    raise ImportError("broken")
os.write(2, os.environ["TF_CPP_MIN_LOG_LEVEL"].encode())
"""


class Broken:
  """Three documents, and then a row that is none."""

  def documents(self):
    for i in range(3):
      yield Document(id=str(i), text="x")
    raise DataError("row 4")

  def recipe(self):
    return {}


def test_held_data_end_and_the_error_comes_after_them():
  relay, seen = Relay(), []
  with pytest.raises(DataError, match="row 4"), relay.holding():
    seen += relay.read(Broken())
    seen.append("behind")
  assert [getattr(item, "id", item) for item in seen] == ["0", "1", "2", "behind"]


def test_outside_of_the_block_nobody_takes_a_part_for_all():
  relay = Relay()
  with pytest.raises(DataError, match="row 4"):
    list(relay.read(Broken()))
  with pytest.raises(ZeroDivisionError):
    relay.guard(lambda: 1 / 0, instead=())()


def test_the_error_of_the_first_document_counts():
  """A function gets documents later than the source has yielded them."""
  relay = Relay()
  divide = relay.guard(lambda x: 1 / x, instead=0.0)
  with pytest.raises(ZeroDivisionError), relay.holding():
    drawn = [int(document.id) for document in relay.read(Broken())]
    assert [divide(number) for number in reversed(drawn)] == [0.5, 1.0, 0.0]
    assert divide(1) == 0.0


def test_an_error_ends_the_source():
  relay, seen = Relay(), []
  divide = relay.guard(lambda x: 1 / x, instead=0.0)
  with pytest.raises(ZeroDivisionError), relay.holding():
    for document in relay.read(Broken()):
      seen.append(divide(int(document.id)))
  assert seen == [0.0]
  # What TensorFlow makes of an error gives way to it; another error does not.
  with pytest.raises(DataError, match="row 4") as caught, relay.holding():
    list(relay.read(Broken()))
    raise RuntimeError("TensorFlow's")
  assert caught.value.__suppress_context__
  with pytest.raises(RuntimeError, match="other"), relay.holding():
    raise RuntimeError("other")
  with relay.holding():
    assert divide(2) == 0.5


def run_noise(**environment):
  kept = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
  done = subprocess.run(
    [sys.executable, "-c", _NOISE],
    env=kept | environment,
    capture_output=True,
    text=True,
  )
  return done.stderr


def test_log_lines_are_held_back_and_nothing_else():
  warning = "module.py:1: DeprecationWarning: old\n"
  assert run_noise() == f"{warning}3"
  assert run_noise(TF_CPP_MIN_LOG_LEVEL="1") == f"{warning}3"  # as JAX sets it
  failed = run_noise(fails="yes")
  assert failed.startswith(warning) and "oneDNN" not in failed
  assert failed.endswith("ImportError: broken\n")
  # Who asks TensorFlow for its lines gets them.
  asked = run_noise(TF_CPP_MIN_LOG_LEVEL="0")
  assert "oneDNN is on" in asked and asked.endswith("0")


def test_without_stderr(monkeypatch):
  monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL", raising=False)
  monkeypatch.setattr(sys, "stderr", None)
  with hold_back():
    done = True
  assert done and "TF_CPP_MIN_LOG_LEVEL" not in os.environ
