"""A process that is killed while it saves, with a signal that cannot be caught."""

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

from phi4_jax.training.checkpoint import Checkpoints
from tests.training.problems import assert_trees_equal, mesh_of
from tests.training.test_checkpoint import EVERY, make_state, shapes

_PROGRAM = """
import os, pathlib, signal, sys, time
from phi4_jax.training import checkpoint
from tests.training.test_checkpoint import EVERY, make_state, mesh_of

directory = pathlib.Path(sys.argv[1])
checkpoints = checkpoint.Checkpoints(directory, EVERY)
state = make_state(mesh_of(1, 1))
checkpoints.save(10, state, {"position": 70}, {})
checkpoints.wait()
# Should the machine be so busy that Orbax ends first, the save still never counts.
checkpoint.write_integrity = lambda folder: time.sleep(600)
checkpoints.save(20, state, {"position": 140}, {})
while not list(directory.glob("step_00000020*")):
  pass
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_save_leaves_the_checkpoint_before(tmp_path, caplog):
  done = subprocess.run(
    [sys.executable, "-c", _PROGRAM, str(tmp_path)],
    cwd=Path(__file__).parents[2],
    env=os.environ | {"JAX_NUM_CPU_DEVICES": "1"},
    capture_output=True,
    timeout=300,
  )
  assert done.returncode == -signal.SIGKILL, done.stderr.decode()
  (torn,) = tmp_path.glob("step_00000020*")
  with caplog.at_level(logging.WARNING):
    restored = Checkpoints(tmp_path, EVERY).restore(shapes(mesh_of(1, 1)))
  assert restored.step == 10 and restored.data_state == {"position": 70}
  assert_trees_equal(restored.state, make_state(mesh_of(1, 1)))
  assert f"{torn} is ignored" in caplog.text
  assert [path.name for path in tmp_path.iterdir()] == ["step_00000010"]
