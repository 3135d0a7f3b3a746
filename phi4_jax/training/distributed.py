"""Several processes that run one training: how they meet, agree and part.

A pod is one process a host, and all of them run the same program. Process 0 decides
what only one may decide (`on_first`), all compare what must be the same (`agree`),
and a background thread keeps watch over the others (watcher.py). What is exchanged
are short texts, through the key-value store of jax's coordinator: no device takes
part, so that a refusal needs no working mesh.

Refuses to know flags and environment variables: a `Rendezvous` says where to meet.
One process alone is a `Processes`, for which all of this does nothing.
"""

import dataclasses
import functools
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from phi4_jax.common.errors import CheckpointError, ConfigError, DataError
from phi4_jax.training.watcher import AGAIN, LOST_CODE, Watcher

# Errors that come through to the other processes as what they are.
_ERRORS = {e.__name__: e for e in (ConfigError, DataError, CheckpointError)}
# How long one call waits inside C++, where no signal is seen.
_SLICE_MS = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rendezvous:
  """Where the processes of a run meet.

  Attributes:
    coordinator: HOST:PORT at which process 0 listens; None lets jax find it, and what
      else is None, from the cluster's own settings (Cloud TPU, Open MPI).
    num_processes: of the run.
    process_id: of this one, from 0.
    local_device_ids: the accelerators of this host that the process takes; None takes
      all.
    start_seconds: how long to wait until all have arrived.
    lost_seconds: a process that is silent for so long is taken for dead, and the
      others end.
    source: where the settings come from, for messages.
  """

  coordinator: str | None = None
  num_processes: int | None = None
  process_id: int | None = None
  local_device_ids: tuple[int, ...] | None = None
  start_seconds: int = 300
  lost_seconds: int = 60
  source: str = "the flags"

  def __post_init__(self):
    for name in ("start_seconds", "lost_seconds"):
      if getattr(self, name) < 1:
        raise ConfigError(f"--{name} ({getattr(self, name)}) must be 1 or more.")
    if self.coordinator is None:
      return
    host, colon, port = self.coordinator.rpartition(":")
    if not (host and colon and port.isdigit() and 0 < int(port) < 65536):
      raise ConfigError(
        f"The coordinator ({self.coordinator!r}, from {self.source}) must be "
        "HOST:PORT, the address of process 0."
      )
    count, index = self.num_processes, self.process_id
    if count is None or index is None:
      raise ConfigError(
        f"The coordinator {self.coordinator} (from {self.source}) comes without the "
        "number of processes or without this process's own."
      )
    if not 0 <= index < count:
      raise ConfigError(
        f"The process id ({index}, from {self.source}) must lie in [0, {count}), the "
        "number of processes."
      )


class Processes:
  """The processes of a run; this class is one process alone.

  Attributes:
    index: of this process; process 0 writes what only one may write.
    count: how many there are.
  """

  index = 0
  count = 1

  @property
  def is_first(self) -> bool:
    return self.index == 0

  def on_first(self, name: str, fn: Callable[[], Any]) -> Any:
    """Calls `fn` in process 0 and returns its result, plain JSON, in all of them.

    All must call this in the same order. Whoever returns knows that `fn` is done.

    Raises:
      ConfigError, DataError, CheckpointError: those of `fn`, in every process.
    """
    del name
    return fn()

  def agree(self, what: str, facts: Mapping[str, str]) -> None:
    """Makes sure that all processes give the same facts.

    Raises:
      ConfigError: in every process; names the facts that differ.
    """
    del what, facts

  def barrier(self, name: str) -> None:
    """Returns when every process has called it."""
    del name

  def follow_stop(self, source: Callable[[], int | None]) -> None:
    """Says how this process learns of a signal: `source` returns its number."""
    self._stop_source = source

  def stop_signal(self, step: int) -> int | None:
    """Returns the signal that ends the run after `step`, or None to go on.

    Every process gets the same answer for the same step, whichever of them has
    received the signal. To be called once after each step.
    """
    del step
    return self._stop_source()

  def fail(self, message: str, code: int) -> None:
    """Tells the others that this process cannot go on, and ends it; see `ProcessGroup`.

    Does nothing where it is alone: the caller's exception ends it.
    """
    del message, code

  def close(self) -> None:
    """Parts from the others, at the end of the run."""


class ProcessGroup(Processes):
  """This process among several. Made by `start_processes`."""

  def __init__(
    self,
    client: Any,
    index: int,
    count: int,
    *,
    address: str,
    lost_seconds: int,
    part: Callable[[], None],
  ):
    """`client` is jax's, connected; `part` ends the connection in all processes."""
    self.index, self.count = index, count
    self._part = part
    self._client = client
    self._calls = 0
    self.watcher = Watcher(
      client, index, count, address=address, lost_seconds=lost_seconds
    )
    self.watcher.start()

  def on_first(self, name: str, fn: Callable[[], Any]) -> Any:
    key = self._next(name)
    if self.is_first:
      try:
        answer = {"value": fn()}
      except Exception as error:
        answer = {"error": type(error).__name__, "message": str(error)}
        self._client.key_value_set(key, json.dumps(answer))
        raise
      text = json.dumps(answer)
      self._client.key_value_set(key, text)
    else:
      text = self._wait_for(key)
    answer = json.loads(text)
    if "error" in answer:
      raise _ERRORS.get(answer["error"], RuntimeError)(answer["message"])
    return answer["value"]

  def agree(self, what: str, facts: Mapping[str, str]) -> None:
    key = self._next(what)
    own = {"host": socket.gethostname(), "facts": dict(facts)}
    self._client.key_value_set(f"{key}/{self.index}", json.dumps(own))

    def compare() -> str:
      told = (self._wait_for(f"{key}/{i}") for i in range(self.count))
      return _describe_differences(what, [json.loads(text) for text in told])

    message = self.on_first(f"{what}, compared", compare)
    if message:
      raise ConfigError(message)

  def barrier(self, name: str) -> None:
    key = self._next(name)
    self._client.key_value_set(f"{key}/{self.index}", "here")

    def wait() -> None:
      for index in range(self.count):
        self._wait_for(f"{key}/{index}")

    self.on_first(f"{name}, all here", wait)

  def follow_stop(self, source: Callable[[], int | None]) -> None:
    self.watcher.follow_stop(source)

  def stop_signal(self, step: int) -> int | None:
    return self.watcher.stop_signal(step)

  def fail(self, message: str, code: int) -> None:
    """Tells the others why this process ends, so that they end too; does not return."""
    self.watcher.fail(message, code)

  def close(self) -> None:
    self.barrier("end")
    self.watcher.stop()
    self._part()

  def _next(self, name: str) -> str:
    self._calls += 1
    return f"phi4/{self._calls} {name}"

  def _wait_for(self, key: str) -> str:
    while True:
      try:
        return self._client.blocking_key_value_get(key, _SLICE_MS)
      except Exception as error:  # jaxlib has no class for a deadline that passed
        if "DEADLINE_EXCEEDED" not in str(error):
          raise


_current = Processes()


def current() -> Processes:
  """Returns the processes of this run: one alone, until `start_processes`."""
  return _current


def start_processes(rendezvous: Rendezvous) -> Processes:
  """Meets the other processes; before jax's first use.

  Raises:
    ConfigError: if they do not all arrive in time; names address and process.
  """
  global _current
  import jax
  from jax._src import distributed as jax_distributed
  from jaxlib import _jax  # pyright: ignore[reportAttributeAccessIssue]

  # The signals are ours (experiments/process.py): jax's own service would take SIGTERM.
  jax.config.update("jax_enable_preemption_service", False)
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  _check_coordinator(rendezvous)
  make_client = _jax.get_distributed_runtime_client
  # Without a callback of ours jaxlib ends the process from C++ when the others do not
  # come. With one, `connect` raises.
  _jax.get_distributed_runtime_client = functools.partial(
    make_client, missed_heartbeat_callback=_jax_has_lost
  )
  by_hand = rendezvous.coordinator is not None
  try:
    jax.distributed.initialize(
      rendezvous.coordinator,
      rendezvous.num_processes,
      rendezvous.process_id,
      rendezvous.local_device_ids,
      # With an address jax would still look for a cluster, and under SLURM then take
      # one accelerator only.
      cluster_detection_method="deactivate" if by_hand else None,
      initialization_timeout=rendezvous.start_seconds,
      # A backstop: the watcher is to be first, because it can say more.
      heartbeat_timeout_seconds=max(100, 3 * rendezvous.lost_seconds),
    )
  except Exception as error:  # of jax, of its look-ups in the network
    # Or jax says its goodbyes at exit, to nobody, with a traceback.
    state = jax_distributed.global_state
    state.client = None
    if state.service is not None:
      state.service.shutdown()
      state.service = None
    raise ConfigError(_explain_start(rendezvous, error)) from error
  finally:
    _jax.get_distributed_runtime_client = make_client
  state = jax_distributed.global_state
  if state.num_processes > 1:
    _current = group = ProcessGroup(
      state.client,
      state.process_id,
      state.num_processes,
      address=state.coordinator_address or "",
      lost_seconds=rendezvous.lost_seconds,
      part=jax.distributed.shutdown,
    )
    group.watcher.catch_abort()
  return _current


def _jax_has_lost(*status: Any) -> None:
  message = f"error: jax has lost the other processes: {status}. {AGAIN}"
  print(message, file=sys.stderr, flush=True)
  os._exit(LOST_CODE)


def _check_coordinator(rendezvous: Rendezvous) -> None:
  """Waits until process 0 listens, or, in process 0, checks that it can listen."""
  if rendezvous.coordinator is None:
    return
  host, _, port = rendezvous.coordinator.rpartition(":")
  if rendezvous.process_id == 0:
    try:
      with socket.create_server(("", int(port))):
        return
    except OSError as error:
      raise ConfigError(
        f"Process 0 of {rendezvous.num_processes} cannot listen at port {port} of this "
        f"host ({error.strerror}). Choose another port in {rendezvous.source}."
      ) from None
  reason: OSError | None = None
  end = time.monotonic() + rendezvous.start_seconds
  while time.monotonic() < end:
    try:
      socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
      return
    except OSError as error:
      reason = error
      time.sleep(0.2)
  raise ConfigError(
    f"Process {rendezvous.process_id} of {rendezvous.num_processes} did not reach "
    f"process 0 at {rendezvous.coordinator} within {rendezvous.start_seconds} s "
    f"({reason}). The address (from {rendezvous.source}) must be that of process 0's "
    "host, as seen from here, and process 0 must run; --start_seconds waits longer."
  )


def _explain_start(rendezvous: Rendezvous, error: Exception) -> str:
  who = (
    f"Process {rendezvous.process_id} of {rendezvous.num_processes}"
    if rendezvous.coordinator
    else "This process"
  )
  where = rendezvous.coordinator or "an address that jax looked up"
  reason = str(error)
  if reason == "std::bad_cast":
    # jaxlib cannot hand its own status to Python, see `_jax_has_lost`.
    reason = (
      f"not all of them arrived at {where} within {rendezvous.start_seconds} s; each "
      "must have a process id of its own; --start_seconds waits longer"
    )
  hint = ""
  if rendezvous.coordinator is None:
    hint = (
      " Say where they are with --coordinator, --num_processes and --process_id, or "
      "take this host alone with --num_processes=1."
    )
  if any(name.lower() in ("http_proxy", "https_proxy") for name in os.environ):
    hint += " A proxy is set in the environment: without it they may find each other."
  return f"{who} did not meet the others ({rendezvous.source}): {reason}.{hint}"


def _describe_differences(what: str, told: list[dict[str, Any]]) -> str:
  """Says in one line which processes differ from process 0, and in what."""
  first = told[0]["facts"]
  parts = []
  for index, other in enumerate(told):
    facts = other["facts"]
    names = [n for n in sorted(first | facts) if first.get(n) != facts.get(n)]
    shown = [f"{n} is {facts.get(n)} there and {first.get(n)} here" for n in names[:3]]
    if len(names) > 3:
      shown.append(f"and {len(names) - 3} more differ")
    if names:
      parts.append(f"process {index} ({other['host']}): {', '.join(shown)}")
  if not parts:
    return ""
  more = f"; and {len(parts) - 3} more processes" if len(parts) > 3 else ""
  return (
    f"The processes differ in {what} from process 0 ({told[0]['host']}): "
    f"{'; '.join(parts[:3])}{more}. All must be started with the same code and "
    "settings, on hosts of one kind."
  )
