"""A run's folder: what was run, on what, with what result.

  config.gin  config.json   every setting, as gin and as JSON
  git.txt  versions.txt     the code and the libraries
  lineage.json              the inputs (other runs), with their fingerprints
  metrics.jsonl  tensorboard/  checkpoints/    written by the stage
  clock.json                seconds that earlier processes of this run took
  result.json               written last: the run is complete

A run directory belongs to one configuration (but for resources, on which its results
do not depend) and to one process at a time, or to one group of processes: then process
0 writes all of this, and the others read.
"""

import contextlib
import fcntl
import importlib.metadata
import os
import platform
import resource
import secrets
import subprocess
import sys
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from experiments import config as config_lib
from phi4_jax.common import io
from phi4_jax.common.differences import list_differences
from phi4_jax.common.errors import CheckpointError, ConfigError, DataError
from phi4_jax.training import distributed

_LIBRARIES = (
  "jax",
  "jaxlib",
  "flax",
  "optax",
  "orbax-checkpoint",
  "grain",
  "numpy",
  "sentencepiece",
  "seqio",
  "tensorflow",
)
_REPOSITORY = Path(__file__).resolve().parent.parent
_PROVENANCE = ("git.txt", "versions.txt")
# What changes with the settings of a run; its result last, as when it is made.
_REPLACED = (*_PROVENANCE, "lineage.json", "config.json", "config.gin", "result.json")
# An input written `stage:NAME` is the run directory NAME beside this one, so that
# a chain of runs can be moved or copied as a whole.
STAGE_PREFIX = "stage:"


def resolve_input(path: str, workdir: Path) -> Path:
  """Returns the folder that an input path of a config means."""
  if path.startswith(STAGE_PREFIX):
    return workdir.parent / path.removeprefix(STAGE_PREFIX)
  return Path(path)


def load_result(path: Path) -> dict[str, Any] | None:
  """Returns the result of a complete run, or None while it is not complete."""
  file = path / "result.json"
  return io.read_json(file) if file.exists() else None


def check_inputs(workdir: Path, inputs: dict[str, str]) -> dict[str, Any]:
  """Returns the lineage of a run: path and fingerprint of each input.

  Raises:
    DataError: if an input is missing or unfinished, or has changed since the run in
      `workdir` began.
  """
  file = workdir / "lineage.json"
  before = io.read_json(file) if file.exists() else {}
  lineage = {}
  for name, given in inputs.items():
    path = resolve_input(given, workdir)
    result = load_result(path)
    if result is None:
      state = "is not complete" if path.exists() else "does not exist"
      raise DataError(
        f"Input {name!r} of {workdir} is {given!r}, but {path} {state}. Run the "
        "command that makes it first (the head of the gin file names it)."
      )
    lineage[name] = {"path": given, "fingerprint": result["fingerprint"]}
    if name in before and before[name]["fingerprint"] != result["fingerprint"]:
      raise DataError(
        f"Input {name!r} ({given}) has changed since {workdir} was begun. Remove "
        f"{workdir} to run this stage again on the new input."
      )
  return lineage


def is_current(path: Path, verb: str, config: Any) -> bool:
  """Whether a folder's run was made from this very configuration."""
  file = path / "config.json"
  new = {"verb": verb, "config": config_lib.to_json(config)}
  return file.exists() and not list_differences(io.read_json(file), new)


class RunDirectory:
  """Opens (makes, or continues) the folder of one run. A context manager.

  Raises:
    ConfigError: if the folder belongs to another configuration (the differing
      settings are listed), or another process is using it.
  """

  def __init__(
    self,
    path: str | os.PathLike,
    config: Any,
    *,
    verb: str,
    allow_config_change: bool = False,
    resources: Collection[str] = (),
    results: Collection[str] | None = None,
    seconds_before: float = 0.0,
  ):
    """Args:
    path: the folder.
    config: all settings.
    verb: what runs.
    allow_config_change: whether a run with results may go on with any other settings.
    resources: fields of the config that a begun run may go on with other values of.
    results: patterns of files or folders in the folder that are results once there is
      a byte in them; None, or another verb's: all but what this class writes.
    seconds_before: how long this process has worked for the run already.
    """
    self.path = Path(path)
    self._config = config
    self._verb = verb
    self.allow_config_change = allow_config_change
    self._resources = frozenset(resources)
    self._result_patterns = results
    self._started = time.monotonic() - seconds_before
    self._seconds_of_others = 0.0
    self._processes = distributed.current()
    self.result: dict[str, Any] | None = None
    # Whether what the folder holds of other settings may be replaced.
    self.may_replace = allow_config_change
    # What new settings have replaced, and the other files as they were then.
    self._replaced: dict[str, bytes] = {}
    self._others: dict[str, tuple[int, int]] = {}

  def __enter__(self) -> "RunDirectory":
    token = self._processes.on_first("run directory", self._open)
    if not self._processes.is_first:
      self._check_shared(token)
    # In process 0, so that no other process acts on what it sees a moment later.
    self.result = self._processes.on_first("result", lambda: load_result(self.path))
    return self

  def _open(self) -> str:
    """Takes the folder for this process and what belongs to it; returns a token."""
    self.path.mkdir(parents=True, exist_ok=True)
    self._lock = open(self.path / ".lock", "a+")
    try:
      fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      self._lock.close()
      raise ConfigError(
        f"Another process is using {self.path}. Wait for it, stop it, or choose "
        "another --workdir."
      ) from None
    try:
      self.may_replace = self.may_replace or not self._has_results()
      self._write_config()
    except BaseException:
      self._lock.close()
      raise
    clock = self.path / "clock.json"
    self._seconds_of_others = io.read_json(clock)["seconds"] if clock.exists() else 0.0
    token = secrets.token_hex(8)
    self._lock.truncate(0)
    self._lock.write(token)
    self._lock.flush()
    return token

  def _check_shared(self, token: str) -> None:
    """Makes sure that this process sees the folder that process 0 has opened."""
    found = None
    for _ in range(30):  # a network file system may take a few seconds
      with contextlib.suppress(OSError):
        found = (self.path / ".lock").read_text("utf-8")
      if found == token:
        return
      time.sleep(0.5)
    raise ConfigError(
      f"Process {self._processes.index} does not see the files of process 0 in "
      f"{self.path.absolute()}. --workdir must lie on a file system that all hosts "
      "share, under the same path."
    )

  def __exit__(self, kind, error, trace) -> None:
    if not self._processes.is_first:
      return
    refused = isinstance(error, (ConfigError, DataError, CheckpointError))
    is_restored = refused and bool(self._replaced) and self._restore()
    if self.result is None and not is_restored:
      io.write_json(self.path / "clock.json", {"seconds": self._seconds})
    self._lock.close()

  @property
  def _seconds(self) -> float:
    """Wall time of this run so far; of killed processes nothing is known."""
    return self._seconds_of_others + time.monotonic() - self._started

  def _write_config(self) -> None:
    new = {"verb": self._verb, "config": config_lib.to_json(self._config)}
    file = self.path / "config.json"
    if file.exists():
      old = io.read_json(file)
      changes = [line.removeprefix("config.") for line in list_differences(old, new)]
      only_resources = self._without_resources(old) == self._without_resources(new)
      has_results = self._has_results()
      if changes and not has_results:
        print(
          f"{self.path} holds no result yet: the run begins with the new settings ("
          f"{'; '.join(changes)}).",
          flush=True,
        )
      elif changes and only_resources and load_result(self.path) is not None:
        return  # it keeps the settings that it was made with
      elif changes and only_resources:
        print(
          f"{self.path} goes on with other resources ({'; '.join(changes)}): what was "
          "done is kept, and what comes depends on them through rounding only.",
          flush=True,
        )
      elif changes and not self.allow_config_change:
        raise ConfigError(
          f"{self.path} belongs to a run with another configuration:\n  "
          + "\n  ".join(changes)
          + "\nChoose another --workdir, or say --allow_config_change to continue "
          "that run with the new settings."
        )
      if not changes:
        self._write_provenance()
        return
      self._keep_replaced()
      if not has_results:
        (self.path / "lineage.json").unlink(missing_ok=True)
      (self.path / "result.json").unlink(missing_ok=True)
    else:
      self._refuse_foreign_files()
    self._write_provenance()
    io.write_atomic(self.path / "config.gin", config_lib.to_gin(self._config))
    io.write_json(file, new)

  def _without_resources(self, settings: dict[str, Any]) -> dict[str, Any]:
    fields = settings["config"].items()
    kept = {name: value for name, value in fields if name not in self._resources}
    return settings | {"config": kept}

  def _keep_replaced(self) -> None:
    files = [self.path / name for name in _REPLACED if (self.path / name).exists()]
    self._replaced = {file.name: file.read_bytes() for file in files}
    self._others = self._stat_others()

  def _restore(self) -> bool:
    """Puts back what new settings replaced that were refused before anything was done.

    A run that has gone on under them keeps them. Returns whether it was put back.
    """
    if self._stat_others() != self._others:
      return False
    for name in _REPLACED:
      if name in self._replaced:
        io.write_atomic(self.path / name, self._replaced[name])
      else:
        (self.path / name).unlink(missing_ok=True)
    return True

  def _stat_others(self) -> dict[str, tuple[int, int]]:
    """Returns size and time of change of the files that are the run's own."""
    ours = {*_REPLACED, "clock.json"}
    found = {}
    for file in sorted(self.path.rglob("*")):
      name = str(file.relative_to(self.path))
      if file.is_file() and name not in ours and not name.startswith("."):
        status = file.stat()
        found[name] = (status.st_size, status.st_mtime_ns)
    return found

  def _other_files(self, *ours: str) -> list[str]:
    """Names in the folder that are neither hidden nor provenance nor in `ours`."""
    known = {*_PROVENANCE, "config.gin", *ours}
    names = sorted(path.name for path in self.path.iterdir())
    return [n for n in names if not n.startswith(".") and n not in known]

  def _has_results(self) -> bool:
    """Whether there is anything to protect: a refused run may leave nothing."""
    if (self.path / "result.json").exists():
      return True
    patterns, before = self._result_patterns, self.path / "config.json"
    is_others = before.exists() and io.read_json(before)["verb"] != self._verb
    if patterns is None or is_others:
      names = self._other_files("config.json", "clock.json", "lineage.json")
      found = [self.path / name for name in names]
    else:
      found = [path for pattern in patterns for path in self.path.glob(pattern)]
    return any(
      file.is_file() and file.stat().st_size > 0
      for path in found
      for file in (path.rglob("*") if path.is_dir() else [path])
    )

  def _refuse_foreign_files(self) -> None:
    # Provenance may be left by a process that was killed while it opened the folder.
    foreign = self._other_files()
    if foreign:
      raise ConfigError(
        f"{self.path} is not a run directory: it has no config.json but holds "
        f"{', '.join(foreign[:5])}. Choose an empty or new folder as --workdir."
      )

  def _write_provenance(self) -> None:
    """Records code and libraries, again when a run goes on with others."""
    texts = describe_code(), describe_versions()
    for name, text in zip(_PROVENANCE, texts, strict=True):
      file = self.path / name
      before = file.read_text("utf-8") if file.exists() else ""
      if not before.endswith(text):
        when = time.strftime("%Y-%m-%d %H:%M:%S")
        joint = f"\n--- continued {when} ---\n" if before else ""
        io.write_atomic(file, before + joint + text)

  def link_inputs(self, inputs: dict[str, str]) -> dict[str, Path]:
    """Resolves the inputs, checks them (`check_inputs`), and records them."""

    def check_and_record() -> None:
      lineage = check_inputs(self.path, inputs)
      file = self.path / "lineage.json"
      if not file.exists() or io.read_json(file) != lineage:
        io.write_json(file, lineage)

    self._processes.on_first("inputs", check_and_record)
    return {name: resolve_input(given, self.path) for name, given in inputs.items()}

  def finish(self, result: dict[str, Any]) -> dict[str, Any]:
    """Writes result.json, which marks the run as complete, and returns it.

    `result` must hold `fingerprint`, a digest of what the run produced. It may hold
    `seconds`, wall time that the stage itself has kept through kills; the larger of
    this and the folder's own clock is reported as `minutes`.
    """
    seconds = max(self._seconds, result.pop("seconds", 0.0))
    self.result = {
      "verb": self._verb,
      **result,
      "minutes": round(seconds / 60, 3),
      "peak_memory_gb": round(peak_memory_gb(), 3),
    }
    if self._processes.is_first:
      io.write_json(self.path / "result.json", self.result)
    return self.result


def peak_memory_gb() -> float:
  """Largest resident set of this process or of any child so far, in 1e9 bytes."""
  unit = 1 if sys.platform == "darwin" else 1024
  sizes = [
    resource.getrusage(who).ru_maxrss
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
  ]
  return max(sizes) * unit / 1e9


def describe_code() -> str:
  """Commit, branch state and uncommitted changes of the code, as text."""

  def git(*arguments: str) -> str:
    done = subprocess.run(
      ["git", "-C", str(_REPOSITORY), *arguments], capture_output=True, text=True
    )
    return done.stdout if done.returncode == 0 else ""

  commit = git("rev-parse", "HEAD").strip()
  if not commit:
    return "not a git checkout\n"
  changes = git("status", "--porcelain")
  return f"commit {commit}\n" + (
    f"uncommitted changes:\n{changes}{git('diff', 'HEAD')}" if changes else "clean\n"
  )


def describe_versions() -> str:
  """Python, platform and library versions, one a line."""
  lines = [f"python {platform.python_version()}", f"platform {platform.platform()}"]
  for name in _LIBRARIES:
    try:
      lines.append(f"{name} {importlib.metadata.version(name)}")
    except importlib.metadata.PackageNotFoundError:
      lines.append(f"{name} not installed")
  return "\n".join(lines) + "\n"
