import os
import signal
import subprocess
import sys
import time

import pytest

from experiments import process


def test_first_signal_sets_a_flag():
  with process.StopRequest() as stop:
    assert not stop
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop and stop.signum == signal.SIGTERM
    with pytest.raises(process.Interrupted, match="saved") as caught:
      stop.raise_if_set("saved")
  assert caught.value.exit_code == 143
  assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_second_interrupt_stops_at_once():
  with process.StopRequest() as stop:
    os.kill(os.getpid(), signal.SIGINT)
    assert stop
    with pytest.raises(KeyboardInterrupt):
      os.kill(os.getpid(), signal.SIGINT)


_SWALLOWED = """
import os, signal
from experiments import process
process.catch_early_interrupt()
try:
  os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
  print("swallowed")
with process.StopRequest() as stop:
  print(stop.signum == signal.SIGINT)
with process.StopRequest() as stop:
  print(bool(stop))
"""


def test_an_interrupt_that_a_library_swallowed_is_not_lost():
  done = subprocess.run([sys.executable, "-c", _SWALLOWED], capture_output=True)
  assert done.stdout.decode().split() == ["swallowed", "True", "False"], done.stderr


@pytest.mark.parametrize(
  "code, expected",
  [("raise SystemExit(3)", 3), ("import os; os.kill(os.getpid(), 9)", 137)],
)
def test_exit_code_of_a_child(code, expected):
  assert process.run_child([sys.executable, "-c", code]) == expected


_CHILD = """
import signal, sys, time
from experiments import process
process.watch_parent()
signal.signal(signal.SIGTERM, lambda *_: (print("stopped", flush=True), sys.exit(0)))
print("ready", flush=True)
time.sleep(60)
"""
_PARENT = """
import sys
from experiments import process
process.run_child([sys.executable, "-c", sys.argv[1]])
"""


def test_child_stops_when_its_parent_is_killed():
  parent = subprocess.Popen(
    [sys.executable, "-c", _PARENT, _CHILD], stdout=subprocess.PIPE, text=True
  )
  assert parent.stdout is not None
  assert parent.stdout.readline() == "ready\n"
  parent.kill()
  started = time.monotonic()
  # The child still holds the pipe: its last word, then the end of the file.
  assert parent.stdout.read() == "stopped\n"
  assert time.monotonic() - started < 30
  parent.wait()


def test_ctrl_c_while_loading_is_one_line_and_ends_the_process():
  code = (
    "import os, signal\n"
    "from experiments import process\n"
    "with process.leave_at_interrupt():\n"
    "  os.kill(os.getpid(), signal.SIGINT)\n"
    "  print('went on')\n"
  )
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
  assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_ctrl_c_after_loading_is_an_exception_again():
  with process.leave_at_interrupt():
    pass
  with pytest.raises(KeyboardInterrupt):
    signal.raise_signal(signal.SIGINT)
