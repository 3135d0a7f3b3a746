"""Keeps TensorFlow's own log lines off the terminal.

It tells of devices when it is imported, and shows a traceback of each Python error that
passes through it; what a person needs of these is said by us, once.
"""

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator

_LEVEL = "TF_CPP_MIN_LOG_LEVEL"
# "I0000 00:00:1795701019.385333 7262 port.cc:153] ...", and what is said before these.
_LOG_LINE = re.compile(
  rb"[IWEF]\d{4} \d\d:\d\d:\S+ +\d+ \S+:\d+\] |WARNING: All log messages before absl"
)


@contextlib.contextmanager
def hold_back() -> Iterator[None]:
  """While TensorFlow is imported: no log lines, neither now nor later.

  Whoever has set TF_CPP_MIN_LOG_LEVEL to something sees what that shows.
  """
  # JAX sets 1, which is not enough.
  if os.environ.get(_LEVEL, "1") != "1" or sys.stderr is None:
    yield
    return
  os.environ[_LEVEL] = "3"
  sys.stderr.flush()
  kept = os.dup(2)
  try:
    # The level is not looked at while libraries are loaded, so those lines are taken
    # from the file descriptor, to which C++ writes them.
    with tempfile.TemporaryFile() as file:
      os.dup2(file.fileno(), 2)
      try:
        yield
      finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        file.seek(0)
        for line in file:
          if not _LOG_LINE.match(line):
            os.write(2, line)
  finally:
    os.close(kept)
