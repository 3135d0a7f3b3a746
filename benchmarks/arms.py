"""Starts contenders, asks them over a pipe, and says what went wrong when it did.

Knows processes; refuses to know what is measured.
"""

import json
import os
import select
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


class ContenderError(RuntimeError):
  """A contender died, answered with an error, or did not answer in time."""


class Arm:
  """A running contender. Use as a context manager: it ends with the block."""

  def __init__(self, name: str, command: Sequence[str], env: Mapping[str, str]):
    self.name = name
    self._stderr = tempfile.TemporaryFile()
    self._unread = b""
    try:
      self._process = subprocess.Popen(
        list(command),
        cwd=ROOT,
        env={**os.environ, **env},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=self._stderr,
      )
    except OSError as error:
      raise ContenderError(f"Contender {name!r} cannot start: {error}.") from error

  @property
  def pid(self) -> int:
    return self._process.pid

  def ask(self, timeout_seconds: float, do: str, **fields: Any) -> dict[str, Any]:
    """Sends one request and returns the answer.

    Raises:
      ContenderError: when there is none, or it is an error; shows the end of what
        the contender wrote.
    """
    assert self._process.stdin is not None
    try:
      self._process.stdin.write(json.dumps({"do": do, **fields}).encode() + b"\n")
      self._process.stdin.flush()
    except BrokenPipeError:
      raise self._error(f"had died before it was asked to {do}") from None
    line = self._read_line(time.monotonic() + timeout_seconds)
    if line is None:
      self._process.kill()
      raise self._error(f"did not {do} within {timeout_seconds:g} s")
    if not line:
      raise self._error(f"died when asked to {do} (exit code {self._process.wait()})")
    answer = json.loads(line)
    if "error" in answer:
      raise self._error(f"failed to {do}: {answer['error']}")
    return answer

  def _read_line(self, deadline: float) -> bytes | None:
    """Returns a line, b"" at the end of the pipe, or None when time is up."""
    assert self._process.stdout is not None
    fd = self._process.stdout.fileno()
    while b"\n" not in self._unread:
      ready, _, _ = select.select([fd], [], [], max(0, deadline - time.monotonic()))
      if not ready:
        return None
      piece = os.read(fd, 1 << 16)
      if not piece:
        return b""
      self._unread += piece
    line, _, self._unread = self._unread.partition(b"\n")
    return line

  def _error(self, what: str) -> ContenderError:
    self._stderr.seek(0)
    lines = self._stderr.read().decode("utf-8", "replace").splitlines()[-15:]
    wrote = "\n  ".join(["Its last words:", *lines]) if lines else "It wrote nothing."
    return ContenderError(f"Contender {self.name!r} {what}. {wrote}")

  def __enter__(self) -> "Arm":
    return self

  def __exit__(self, *unused) -> None:
    assert self._process.stdin is not None and self._process.stdout is not None
    try:
      self._process.stdin.close()  # the contender's loop ends here
      self._process.wait(timeout=5)
    except (BrokenPipeError, subprocess.TimeoutExpired):
      self._process.kill()
      self._process.wait()
    self._process.stdout.close()
    self._stderr.close()
