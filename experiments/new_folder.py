"""A folder that appears whole or not at all.

What is written goes to a hidden sibling, which takes the folder's name at the end; an
error, Ctrl-C or SIGTERM removes it. What a killed process has left is removed by the
next one that makes the same folder.
"""

import contextlib
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from phi4_jax.common.errors import ConfigError, DataError


def check_free(out: Path) -> None:
  """Refuses a path under which no new folder can appear.

  Raises:
    ConfigError: if it is a file, or a folder that is not empty.
  """
  if out.is_dir():
    names = sorted(path.name for path in out.iterdir())
    if names:
      raise ConfigError(
        f"--to={out} is a folder that holds {', '.join(names[:5])}"
        f"{' and more' if len(names) > 5 else ''}. Choose a new or an empty folder."
      )
  elif out.exists():
    raise ConfigError(f"--to={out} is a file. Choose a new or an empty folder.")


def check_room(out: Path, num_bytes: int) -> None:
  """Refuses to begin what does not fit the disk.

  Raises:
    DataError: if fewer than `num_bytes` are free where `out` will lie.
  """
  at = out.absolute()
  while not at.exists():
    at = at.parent
  free = shutil.disk_usage(at).free
  if free < num_bytes:
    raise DataError(
      f"{out} will take {num_bytes / 1e9:.1f} GB, but {free / 1e9:.1f} GB are free "
      "there. Make room, or choose another --to."
    )


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
  """Yields a folder to write to, which becomes `out` when the block ends well.

  Raises:
    ConfigError: if `out` is not free (see `check_free`), before and after the block.
  """
  check_free(out)
  out.parent.mkdir(parents=True, exist_ok=True)
  _remove_leftovers(out)
  temporary = out.parent / f"{_prefix(out)}{os.getpid()}"
  temporary.mkdir()
  with _interrupted_by_sigterm():
    try:
      yield temporary
      check_free(out)
      if out.is_dir():
        out.rmdir()
      temporary.rename(out)
    except BaseException:
      shutil.rmtree(temporary, ignore_errors=True)
      raise


def _prefix(out: Path) -> str:
  return f".{out.name}.unfinished-"


def _remove_leftovers(out: Path) -> None:
  for path in out.parent.glob(f"{_prefix(out)}*"):
    number = path.name.removeprefix(_prefix(out))
    if number.isdigit() and not _is_alive(int(number)):
      shutil.rmtree(path, ignore_errors=True)


def _is_alive(process: int) -> bool:
  try:
    os.kill(process, 0)
  except ProcessLookupError:
    return False
  except PermissionError:
    pass  # it is somebody else's, so it is there
  return True


@contextlib.contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
  """Lets SIGTERM end the block as Ctrl-C does, so that it is tidied up."""

  def handle(signum: int, frame: FrameType | None) -> None:
    del signum, frame
    raise KeyboardInterrupt

  if threading.current_thread() is not threading.main_thread():
    yield
    return
  before = signal.signal(signal.SIGTERM, handle)
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, before)
