"""A completions endpoint for tests: a server in a thread, a model that is a table.

It draws by inverting the cumulative distribution at a uniform that is a hash of the
request's seed and the position, so that whoever knows the seeds can say what it draws.
Its faults are settings.
"""

import contextlib
import dataclasses
import hashlib
import http.server
import json
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

MODEL = "table"


def uniform(seed: int, position: int) -> float:
  digest = hashlib.blake2b(repr((seed, position)).encode(), digest_size=8).digest()
  return int.from_bytes(digest, "little") / 2**64


def invert(probs: np.ndarray, u: float) -> int:
  """Returns the token at u of the cumulative distribution."""
  cumulative = np.cumsum(probs)
  return int(np.argmax((cumulative > u * cumulative[-1]) & (probs > 0)))


def log_softmax(logits: np.ndarray) -> np.ndarray:
  with np.errstate(divide="ignore"):
    logits = logits - logits.max()
    return logits - np.log(np.exp(logits).sum())


@dataclasses.dataclass
class Settings:
  """What the server can do, and what is wrong with it.

  `before` is called with (number of the request, body) and may return a status and an
  answer of its own, or sleep.
  """

  root: str = "tables/one"
  logprobs_mode: str = "raw_logprobs"
  gives_ids: str = "token_ids"
  max_model_len: int = 1_000
  has_models: bool = True
  api_key: str = ""
  honours_bias: bool = True
  honours_seed: bool = True
  honours_temperature: bool = True
  bias_sign: float = 1.0
  adds_bos: bool = False
  says_what_it_read: bool = True
  leaves_stop_out: bool = False
  stops_at: tuple[int, ...] = ()
  text: Callable[[Sequence[int]], str] = lambda ids: " ".join(map(str, ids))
  before: Callable[[int, dict[str, Any]], Any] | None = None
  closes: bool = False


class FakeEndpoint:
  """Serves `logits`, a function of a prefix to one number for each token."""

  def __init__(self, logits: Callable[[tuple[int, ...]], np.ndarray]):
    self.logits = logits
    self.settings = Settings()
    self.requests: list[dict[str, Any]] = []
    self.most_at_once = 0
    self._at_once = 0
    self._lock = threading.Lock()
    endpoint = self

    class Handler(http.server.BaseHTTPRequestHandler):
      protocol_version = "HTTP/1.1"
      disable_nagle_algorithm = True

      def do_GET(self):  # noqa: N802
        self.answer(*endpoint.get(self.path, self.headers))

      def do_POST(self):  # noqa: N802
        text = self.rfile.read(int(self.headers["Content-Length"]))
        with endpoint.counted():
          found = endpoint.post(self.path, self.headers, json.loads(text))
        self.answer(*found)

      def answer(self, status, body):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
          self.send_response(status)
          if status == 429:
            self.send_header("Retry-After", "0.01")
          self.send_header("Content-Length", str(len(data)))
          self.end_headers()
          self.wfile.write(data)
        self.close_connection = endpoint.settings.closes

      def log_message(self, *unused):
        pass

    self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    self._server.daemon_threads = True
    self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
    self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

  def __enter__(self) -> "FakeEndpoint":
    self._thread.start()
    return self

  def __exit__(self, *unused) -> None:
    self._server.shutdown()
    self._server.server_close()
    self._thread.join()

  @contextlib.contextmanager
  def counted(self):
    with self._lock:
      self._at_once += 1
      self.most_at_once = max(self.most_at_once, self._at_once)
    try:
      yield
    finally:
      with self._lock:
        self._at_once -= 1

  def get(self, path, headers):
    if error := self._refusal(path, headers):
      return error
    if path != "/v1/models" or not self.settings.has_models:
      return 404, {"detail": "Not Found"}
    row = {"id": MODEL, "root": self.settings.root}
    return 200, {"data": [row | {"max_model_len": self.settings.max_model_len}]}

  def _refusal(self, path, headers):
    key = self.settings.api_key
    if key and headers["Authorization"] != f"Bearer {key}":
      said = f"Incorrect API key provided: {headers['Authorization']}"
      return 401, {"error": {"message": said}}
    return None

  def post(self, path, headers, body):
    with self._lock:
      number = len(self.requests)
      self.requests.append(body)
    if error := self._refusal(path, headers):
      return error
    if path != "/v1/completions":
      return 404, {"detail": "Not Found"}
    if body["model"] != MODEL:
      return 404, {"error": {"message": f"The model {body['model']} does not exist."}}
    if self.settings.before and (found := self.settings.before(number, body)):
      return found
    longest = self.settings.max_model_len
    if len(body["prompt"]) + body["max_tokens"] > longest:
      return 400, {"message": f"This model's maximum context length is {longest}."}
    return 200, self._complete(body)

  def _complete(self, body: dict[str, Any]) -> dict[str, Any]:
    has = self.settings
    prompt = ([0] if has.adds_bos else []) + body["prompt"]
    seed = body["seed"] if has.honours_seed else 0
    ids: list[int] = []
    given, tops, finish = [], [], "length"
    while len(ids) < body["max_tokens"]:
      logits = np.asarray(self.logits(tuple(prompt + ids)), float)
      drawn, logprobs = self._law(logits, body)
      token = invert(np.exp(drawn), uniform(seed, len(ids)))
      ids.append(token)
      given.append(max(float(logprobs[token]), -9999.0))
      order = np.argsort(-logprobs, kind="stable")[: body["logprobs"]]
      tops.append({int(k): max(float(logprobs[k]), -9999.0) for k in (*order, token)})
      if token in (*body["stop_token_ids"], *has.stops_at):
        finish = "stop"
        break
    if finish == "stop" and has.leaves_stop_out:
      ids, given, tops = ids[:-1], given[:-1], tops[:-1]
    named = has.gives_ids != "none" and body["return_tokens_as_token_ids"]
    name = (lambda k: f"token_id:{k}") if named else str
    choice = {
      "index": 0,
      "text": has.text(ids),
      "finish_reason": finish,
      "stop_reason": None,
      "logprobs": {
        "tokens": [name(token) for token in ids],
        "token_logprobs": given,
        "top_logprobs": [{name(k): v for k, v in top.items()} for top in tops],
      },
    }
    if has.gives_ids == "token_ids":
      choice["token_ids"] = ids
      if has.says_what_it_read:
        choice["prompt_token_ids"] = prompt
    return {"choices": [choice], "usage": {"prompt_tokens": len(prompt)}}

  def _law(self, logits, body):
    """Returns log-probabilities of what is drawn, and those that are shown."""
    raw = log_softmax(logits)
    for token, bias in body.get("logit_bias", {}).items():
      if self.settings.honours_bias:
        logits = logits.copy()
        logits[int(token)] += self.settings.bias_sign * np.clip(bias, -100, 100)
    temperature = body["temperature"]
    if temperature == 0:
      logits = np.where(np.arange(len(logits)) == np.argmax(logits), 0.0, -np.inf)
    elif self.settings.honours_temperature:
      logits = logits / temperature
    order = np.argsort(-logits, kind="stable")
    keep = np.ones(len(logits), bool)
    if body["top_k"] > 0:
      keep[order[body["top_k"] :]] = False
    if body["top_p"] < 1:
      before = np.cumsum(np.exp(log_softmax(np.where(keep, logits, -np.inf)))[order])
      keep[order[1:]] &= before[:-1] < body["top_p"]
    drawn = log_softmax(np.where(keep, logits, -np.inf))
    return drawn, drawn if self.settings.logprobs_mode == "processed_logprobs" else raw


def slow(seconds: float) -> Callable[[int, dict[str, Any]], Any]:
  """Returns a `before` that waits in every request."""

  def before(number, body):
    time.sleep(seconds)

  return before
