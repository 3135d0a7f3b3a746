"""JSON over HTTP to a server that samples: retries, timeouts, errors with a way out.

Knows HTTP and the shape of error messages; refuses to know tokens. The standard library
is enough, and a proxy of the environment is not used: such servers are near.
"""

import contextlib
import http.client
import json
import random
import socket
import ssl
import threading
import urllib.parse
from collections.abc import Mapping
from typing import Any

from phi4_jax.common.errors import ConfigError

# Worth another try: the server is busy, starts, or lost its worker.
_PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
_LONGEST_PAUSE = 60.0
_CONNECT_SECONDS = 20.0


class EndpointError(ConfigError):
  """The endpoint cannot be used, or no longer; the message says what to change."""


class RequestRefused(EndpointError):
  """The endpoint refuses this one request; others may be fine.

  Attributes:
    status: of HTTP.
  """

  def __init__(self, message: str, status: int):
    super().__init__(message)
    self.status = status


class Cancelled(Exception):
  """The answer is no longer wanted."""


class _NoConnection(Exception):
  """The server is not there, or not what its certificate says."""


class Endpoint:
  """Sends requests; each thread keeps a connection of its own."""

  def __init__(
    self,
    url: str,
    *,
    api_key: str = "",
    key_name: str = "the key",
    timeout_seconds: float,
    max_retries: int,
    first_pause: float = 0.5,
  ):
    """
    Args:
      url: up to and with the version, as "http://localhost:8000/v1".
      api_key: sent as a bearer token; "" for none. Never shown.
      key_name: where the key comes from, for messages.
      timeout_seconds: for an answer, from the last byte sent.
      max_retries: further tries of a request that failed for a passing reason.
      first_pause: seconds before the first of them; doubled each time.

    Raises:
      ConfigError: if the address is none.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
      raise ConfigError(
        f"RemoteSamplerConfig.url ({url!r}) must be an http or https address up to and "
        "with the version, as 'http://localhost:8000/v1'."
      )
    if parts.username or parts.query:
      raise ConfigError(
        "RemoteSamplerConfig.url must hold neither a user nor a query; name the "
        "variable that holds the key in RemoteSamplerConfig.api_key_variable."
      )
    if not (api_key.isascii() and api_key.isprintable()) or " " in api_key:
      raise ConfigError(
        f"The key in {key_name} holds a space or no ASCII; copy it anew."
      )
    self.url = url.rstrip("/")
    self._parts = parts
    self._path = parts.path.rstrip("/")
    self._api_key = api_key
    self._key_name = key_name
    self._timeout = timeout_seconds
    self._max_retries = max_retries
    self._first_pause = first_pause
    self._own = threading.local()
    self._lock = threading.Lock()
    self._connections: set[http.client.HTTPConnection] = set()
    self.num_requests = 0
    self.num_retries = 0

  def request(
    self,
    path: str,
    body: Mapping[str, Any] | None = None,
    *,
    stop: threading.Event | None = None,
    patient: bool = True,
  ) -> Any:
    """Returns the JSON that a path answers with; posts `body` if there is one.

    Args:
      path: behind the url, as "/completions".
      body: what is posted as JSON.
      stop: set when the answer is no longer wanted.
      patient: try again where there is no connection; else that is an error at once.

    Raises:
      EndpointError: if there is no usable answer after all tries.
      RequestRefused: if the fault is the request's.
      Cancelled: if `stop` is set.
    """
    stop = stop or threading.Event()
    data = None if body is None else json.dumps(body, allow_nan=False).encode()
    pause = self._first_pause
    for attempt in range(self._max_retries + 1):
      if stop.is_set():
        raise Cancelled
      wait: float | None = None
      try:
        status, headers, text = self._send(path, data, stop)
      except _NoConnection as error:
        reason = str(error)
        if not patient:
          raise EndpointError(
            f"{self.url} cannot be reached: {reason}. Start the server, or change "
            "RemoteSamplerConfig.url."
          ) from error
      except TimeoutError:
        reason = f"no answer within {self._timeout:g} seconds"
      except (OSError, http.client.HTTPException) as error:
        reason = self._hide(f"{type(error).__name__}: {error}")
      else:
        if status == 200:
          return self._decode(path, text)
        if status not in _PASSING:
          raise self._refusal(path, status, text)
        reason = f"HTTP status {status}: {self._message(text)}"
        with contextlib.suppress(TypeError, ValueError):
          wait = float(headers["Retry-After"])
      if attempt == self._max_retries:
        break
      with self._lock:
        self.num_retries += 1
      # Half of the pause is chance: many threads fail at the same moment.
      own = min(pause, _LONGEST_PAUSE) * (0.5 + random.random() / 2)
      stop.wait(own if wait is None else min(max(wait, own), _LONGEST_PAUSE))
      pause *= 2
    if stop.is_set():
      raise Cancelled
    raise EndpointError(
      f"{self.url}{path} failed {self._max_retries + 1} times; at last: {reason}. "
      "Look at the server's own log. A search goes on from where it is when it is "
      "started again; RemoteSamplerConfig.max_retries and timeout_seconds make it wait "
      "longer."
    )

  def abort(self) -> None:
    """Breaks off what is under way; for after `stop` was set."""
    with self._lock:
      for connection in self._connections:
        if connection.sock is not None:
          with contextlib.suppress(OSError):
            connection.sock.shutdown(socket.SHUT_RDWR)

  def _send(
    self, path: str, data: bytes | None, stop: threading.Event
  ) -> tuple[int, http.client.HTTPMessage, bytes]:
    headers = {"Accept": "application/json"}
    if data is not None:
      headers["Content-Type"] = "application/json"
    if self._api_key:
      headers["Authorization"] = f"Bearer {self._api_key}"
    connection = getattr(self._own, "connection", None)
    reused = connection is not None
    if connection is None:
      connection = self._connect(stop)
    with self._lock:
      self.num_requests += 1
    verb = "GET" if data is None else "POST"
    try:
      connection.request(verb, self._path + path, data, headers)
      response = connection.getresponse()
      return response.status, response.headers, response.read()
    except BaseException as error:
      self._forget(connection)
      # The server closed a connection that lay idle: that is no failure.
      if reused and isinstance(error, ConnectionResetError | BrokenPipeError):
        return self._send(path, data, stop)
      raise

  def _connect(self, stop: threading.Event) -> http.client.HTTPConnection:
    """Opens this thread's connection, unless `stop` is set."""
    host, port = self._parts.hostname or "", self._parts.port
    wait = min(self._timeout, _CONNECT_SECONDS)
    if self._parts.scheme == "https":
      context = ssl.create_default_context()
      connection = http.client.HTTPSConnection(
        host, port, timeout=wait, context=context
      )
    else:
      connection = http.client.HTTPConnection(host, port, timeout=wait)
    try:
      connection.connect()
    except ConnectionRefusedError as error:
      raise _NoConnection("nothing listens there (connection refused)") from error
    except TimeoutError as error:
      raise _NoConnection(f"no connection within {wait:g} seconds") from error
    except OSError as error:
      raise _NoConnection(f"{type(error).__name__}: {error}") from error
    connection.sock.settimeout(self._timeout)
    with self._lock:
      # Whoever sets `stop` breaks off afterwards: one of the two sees the other.
      if stop.is_set():
        connection.close()
        raise Cancelled
      self._connections.add(connection)
    self._own.connection = connection
    return connection

  def _forget(self, connection: http.client.HTTPConnection) -> None:
    with self._lock:
      self._connections.discard(connection)
    connection.close()
    self._own.connection = None

  def _decode(self, path: str, text: bytes) -> Any:
    try:
      return json.loads(text)
    except ValueError as error:
      raise EndpointError(
        f"{self.url}{path} answers with something that is no JSON: "
        f"{self._message(text)}. RemoteSamplerConfig.url must lead to an "
        "OpenAI-compatible API, as 'http://localhost:8000/v1'."
      ) from error

  def _refusal(self, path: str, status: int, text: bytes) -> EndpointError:
    said = self._message(text)
    if status in (401, 403):
      key = f"the key in {self._key_name}" if self._api_key else "a request without key"
      return EndpointError(
        f"{self.url} refuses {key} (HTTP status {status}: {said}). Put the right key "
        "into an environment variable and its name into "
        "RemoteSamplerConfig.api_key_variable."
      )
    if 300 <= status < 400:
      return EndpointError(
        f"{self.url}{path} leads elsewhere (HTTP status {status}). Write the address "
        "that it leads to into RemoteSamplerConfig.url."
      )
    if status in (400, 413, 422):
      return RequestRefused(f"{self.url} refuses the request: {said}", status)
    if status == 404 and "model" in said.lower():
      return EndpointError(
        f"{self.url} does not know the model: {said} Change RemoteSamplerConfig.model."
      )
    if status == 404:
      return EndpointError(
        f"{self.url}{path} does not exist (HTTP status 404: {said}). "
        "RemoteSamplerConfig.url must end before '/completions', as "
        "'http://localhost:8000/v1'."
      )
    return EndpointError(f"{self.url}{path} answers with HTTP status {status}: {said}")

  def _message(self, text: bytes) -> str:
    """Returns what an answer says is wrong, on one line."""
    shown = text.decode("utf-8", "replace")
    with contextlib.suppress(ValueError):
      found = json.loads(text)
      for _ in range(3):
        if isinstance(found, dict):
          keys = [k for k in ("error", "message", "detail") if found.get(k)]
          found = found[keys[0]] if keys else json.dumps(found)
      shown = found if isinstance(found, str) else json.dumps(found)
    shown = self._hide(" ".join(shown.split()))
    return shown if len(shown) <= 300 else shown[:297] + "..."

  def _hide(self, text: str) -> str:
    return text.replace(self._api_key, "***") if self._api_key else text
