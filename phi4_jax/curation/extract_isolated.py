"""Extraction in a child process: a crash or an endless loop costs one document.

The child serves one document after another over a pipe and is started anew when it
died. Its processor time and memory are limited by the kernel (setrlimit), so that it is
stopped also inside a C library.

  python -m phi4_jax.curation.extract_isolated     # is the child
"""

import dataclasses
import json
import os
import resource
import selectors
import signal
import subprocess
import sys
import weakref
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from phi4_jax.curation.extract_limits import ExtractLimits
from phi4_jax.curation.steps import Drop, Keep, Verdict
from phi4_jax.data.documents import Document, document_from_json, document_to_json

if TYPE_CHECKING:
  from phi4_jax.curation.extract import ExtractText

_ROOT = Path(__file__).resolve().parents[2]
# A child that neither works nor answers: it waits for something that never comes.
_WALL_FACTOR = 20


class IsolatedJudge:
  """Judges documents as `step.judge` does, in a child process."""

  def __init__(self, step: "ExtractText"):
    self._step = step
    self._child: subprocess.Popen | None = None
    self._owner = 0

  def __call__(self, document: Document) -> Verdict:
    child = self._started()
    try:
      _write(child.stdin, document_to_json(document).encode("utf-8"))
      answer = self._read(child)
    except (BrokenPipeError, EOFError):
      return self._how_it_died(child, document)
    except TimeoutError:
      self.close()
      return Drop("too_slow", "the child process no longer answers")
    verdict = json.loads(answer)
    if "reason" in verdict:
      if verdict["reason"] == "too_much_memory":
        self.close()  # what it holds is in pieces
      return Drop(verdict["reason"], verdict["detail"])
    kept = verdict["kept"]
    return Keep(dataclasses.replace(document, data=None, **_tupled(kept)))

  def close(self) -> None:
    """Ends the child; the next document starts another."""
    child, self._child = self._child, None
    if child is not None and self._owner == os.getpid():
      _end(child)

  def _started(self) -> subprocess.Popen:
    if self._child is not None and self._owner == os.getpid():
      if self._child.poll() is None:
        return self._child
      self.close()  # it died while it had nothing to do
    # After a fork the child belongs to the other process: it answers only to that.
    # Nothing is imported from the working directory, which may hold anything: -P leaves
    # it out, and an empty part of PYTHONPATH would be it, too.
    folders = [str(_ROOT), *filter(None, sys.path)]
    command = "from phi4_jax.curation.extract_isolated import serve; serve()"
    self._child = subprocess.Popen(
      [sys.executable, "-P", "-c", command],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.DEVNULL,
      env={**os.environ, "PYTHONPATH": os.pathsep.join(folders)},
      # Ctrl-C is for the parent, which ends the child or finishes its document.
      process_group=0,
    )
    self._owner = os.getpid()
    weakref.finalize(self, _end, self._child)
    _write(self._child.stdin, json.dumps(dataclasses.asdict(self._step)).encode())
    return self._child

  def _read(self, child: subprocess.Popen) -> bytes:
    limit = self._step.limits.max_cpu_seconds * _WALL_FACTOR
    assert child.stdout is not None
    with selectors.DefaultSelector() as selector:
      selector.register(child.stdout, selectors.EVENT_READ)
      if not selector.select(timeout=limit):
        raise TimeoutError
    return _read(child.stdout)

  def _how_it_died(self, child: subprocess.Popen, document: Document) -> Drop:
    code = child.wait()
    self.close()
    kind = document.media_type
    if code == -signal.SIGXCPU:
      seconds = self._step.limits.max_cpu_seconds
      return Drop("too_slow", f"{kind}: more than {seconds} s of processor time")
    if code == _NO_MEMORY:
      return Drop("too_much_memory", f"{kind}: more than {_megabytes(self._step)}")
    return Drop("crashed", f"{kind}: the child process ended with {code}")


_NO_MEMORY = 87


def serve() -> None:
  """Is the child: reads a config, then documents, until its input ends."""
  from phi4_jax.curation.extract import ExtractText

  requests = os.fdopen(os.dup(0), "rb")
  answers = os.fdopen(os.dup(1), "wb")
  os.dup2(2, 1)  # what a library prints is no answer
  try:
    fields = json.loads(_read(requests))
  except EOFError:
    return
  fields["limits"] = ExtractLimits(**fields["limits"])
  fields["kinds"] = tuple(fields["kinds"])
  step = ExtractText(**fields)
  _load_libraries()
  while True:
    try:
      document = document_from_json(_read(requests))
    except EOFError:
      return
    _limit(step.limits)
    try:
      verdict = step.judge(document)
    except MemoryError:
      os._exit(_NO_MEMORY)
    _unlimit_memory()
    _write(answers, json.dumps(_as_json(verdict)).encode())


def _load_libraries() -> None:
  # Before memory is limited: a library that is half imported stays broken.
  import mammoth  # noqa: F401
  import pylatexenc.latex2text  # noqa: F401
  import pypdfium2  # noqa: F401
  import trafilatura

  trafilatura.extract("<html><body><p>All that is loaded lazily.</p></body></html>")


def _limit(limits: ExtractLimits) -> None:
  used = resource.getrusage(resource.RUSAGE_SELF)
  seconds = int(used.ru_utime + used.ru_stime) + 1 + limits.max_cpu_seconds
  _, most = resource.getrlimit(resource.RLIMIT_CPU)
  resource.setrlimit(resource.RLIMIT_CPU, (seconds, most))
  held = _address_space()
  if held:
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (held + limits.max_memory_mb * 2**20, most))


def _unlimit_memory() -> None:
  _, most = resource.getrlimit(resource.RLIMIT_AS)
  resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _address_space() -> int:
  """Returns the bytes of address space in use; 0 where the system does not say."""
  try:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
  except OSError:
    return 0  # not Linux; its kernel does not enforce RLIMIT_AS either
  return pages * resource.getpagesize()


def _as_json(verdict: Verdict) -> dict[str, Any]:
  if isinstance(verdict, Drop):
    return {"reason": verdict.reason, "detail": verdict.detail}
  document = verdict.document
  names = ("text", "media_type", "lineage", "labels")
  return {"kept": {name: getattr(document, name) for name in names}}


def _tupled(fields: dict[str, Any]) -> dict[str, Any]:
  return {**fields, "lineage": tuple(fields["lineage"])}


def _megabytes(step: "ExtractText") -> str:
  return f"{step.limits.max_memory_mb} MB"


def _write(stream: IO[bytes] | None, message: bytes) -> None:
  assert stream is not None
  stream.write(len(message).to_bytes(8, "big") + message)
  stream.flush()


def _read(stream: IO[bytes]) -> bytes:
  size = stream.read(8)
  if len(size) < 8:
    raise EOFError
  message = stream.read(int.from_bytes(size, "big"))
  if len(message) < int.from_bytes(size, "big"):
    raise EOFError
  return message


def _end(child: subprocess.Popen) -> None:
  """Ends a child and closes its pipes."""
  child.kill()
  child.wait()
  for stream in (child.stdin, child.stdout):
    if stream is not None:
      try:
        stream.close()
      except BrokenPipeError:
        continue  # what was not sent to the dead
