"""A BranchSampler that asks an OpenAI-compatible completions endpoint, as vLLM's.

Each branch is a request that continues a list of token ids; many are under way at once,
so that the server fills its batches, and its prefix cache reads a common text once. A
branch whose first token must not be a given one takes two: one token with that one
excluded, then the rest.

What the server must do is tried when a sampler is made (remote_probe.py); what is
merely useful decides `can_exclude`.

What cannot be promised. A request's seed is a hash of the root seed and the key path:
a draw is named as everywhere else, and one that is in a search's log is never asked for
again. But the same request need not give the same tokens twice: servers compute in
batches whose shape depends on what else they do, and rounding decides near ties;
another version, device or number of devices changes more. So an interrupted search goes
on exactly from its log, and one that is repeated from nothing may come out otherwise.
A server that changes its weights under one name is not noticed.

Differs: the paper does not say how its rollouts were drawn.
"""

import contextlib
import dataclasses
import os
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

from phi4_jax.common.errors import ConfigError
from phi4_jax.common.sampler import Branch, Completion, SamplingLaw
from phi4_jax.sampling.endpoint import Cancelled, Endpoint, RequestRefused
from phi4_jax.sampling.remote_probe import Abilities, probe
from phi4_jax.sampling.remote_requests import (
  Answer,
  AnswerError,
  make_body,
  make_seed,
  read_answer,
)

Exclusion = Literal["logit_bias", "redraw"]
# vLLM takes no less; e^-100 is no probability.
LEAST_BIAS = -100.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class RemoteSamplerConfig:
  """Where a model is served.

  For mode "comb", start vLLM with `--logprobs-mode processed_logprobs` (needless at
  temperature 1 without top_k and top_p), and with `--enable-prefix-caching` if its
  version does not do so anyway.

  Attributes:
    url: up to and with the version, as "http://localhost:8000/v1".
    model: its name there.
    api_key_variable: environment variable that holds the key; "" for no key. The key
      itself is written nowhere.
    concurrency: requests under way at once. vLLM batches up to `--max-num-seqs`.
    timeout_seconds: for one answer.
    max_retries: of a request that failed for a passing reason; the pauses between
      double, from half a second to a minute.
    exclusion: how a first token is excluded. "logit_bias" is exact where top_p is 1.
      "redraw" draws until another token comes, under any law: 1 / (1 - p) requests for
      a token of probability p.
    max_redraws: after which "redraw" gives a branch up.
  """

  url: str
  model: str
  api_key_variable: str = ""
  concurrency: int = 64
  timeout_seconds: float = 600.0
  max_retries: int = 6
  exclusion: Exclusion = "logit_bias"
  max_redraws: int = 1_000

  def __post_init__(self):
    if not self.model:
      raise ConfigError(
        "RemoteSamplerConfig.model is empty; name the model as the server does "
        "(GET url/models)."
      )
    for name, least in (("concurrency", 1), ("max_retries", 0), ("max_redraws", 1)):
      if getattr(self, name) < least:
        raise ConfigError(
          f"RemoteSamplerConfig.{name} ({getattr(self, name)}) must be {least} or more."
        )
    if self.timeout_seconds <= 0:
      raise ConfigError(
        f"RemoteSamplerConfig.timeout_seconds ({self.timeout_seconds}) must be above 0."
      )


@dataclasses.dataclass(kw_only=True)
class RemoteThroughput:
  """What a remote sampler has done so far; names as in generate.Throughput.

  Attributes:
    prompt_tokens: tokens of prefixes sent; a server with a prefix cache reads fewer.
    sampled_tokens: new tokens received.
    seconds: wall time of runs.
    compile_seconds: 0; servers compile before they serve.
  """

  prompt_tokens: int = 0
  sampled_tokens: int = 0
  seconds: float = 0.0
  compile_seconds: float = 0.0

  @property
  def tokens_per_second(self) -> float:
    """Sampled tokens a second of wall time; 0 before the first run."""
    return self.sampled_tokens / self.seconds if self.seconds else 0.0


class RemoteSampler:
  """Implements BranchSampler, and Sampler, on an endpoint.

  Attributes:
    repeats: whether the server gave the same tokens twice for one request when it was
      tried. Not a promise.
    throughput: what has been done.
  """

  def __init__(
    self,
    config: RemoteSamplerConfig,
    law: SamplingLaw,
    *,
    stop_ids: Sequence[int],
    seed: int,
    probe_ids: Sequence[int],
    decode: Callable[[Sequence[int]], str] | None = None,
    first_pause: float = 0.5,
  ):
    """Tries what the server can do; takes about a dozen short requests.

    Args:
      config: where the model is.
      law: the distribution to draw from.
      stop_ids: tokens that end a completion; the server stops at no other.
      seed: root of all seeds.
      probe_ids: a prompt to try the server with, as a question's.
      decode: the vocabulary's; if given, the server must write ids as it does.
      first_pause: seconds before the first retry.

    Raises:
      ConfigError: if the server cannot be reached, refuses the key, does not know the
        model, has a shorter context than the law, or does not continue token ids.
    """
    key = ""
    if config.api_key_variable:
      key = os.environ.get(config.api_key_variable, "")
      if not key:
        raise ConfigError(
          f"RemoteSamplerConfig.api_key_variable names {config.api_key_variable}, "
          "which is not set in the environment. Set it, or leave the field out if the "
          "server wants no key."
        )
    self._config = config
    self._law = law
    self._stop_ids = frozenset(int(i) for i in stop_ids)
    self._seed = seed
    self._endpoint = Endpoint(
      config.url,
      api_key=key,
      key_name=config.api_key_variable,
      timeout_seconds=config.timeout_seconds,
      max_retries=config.max_retries,
      first_pause=first_pause,
    )
    self._pool = ThreadPoolExecutor(config.concurrency, thread_name_prefix="remote")
    self._lock = threading.Lock()
    self.throughput = RemoteThroughput()
    self._abilities: Abilities = probe(
      self._endpoint,
      config.model,
      law,
      stop_ids=self._stop_ids,
      seed=seed,
      probe_ids=tuple(int(i) for i in probe_ids),
      exclusion=config.exclusion,
      decode=decode,
    )
    self.repeats = self._abilities.repeats

  @property
  def law(self) -> SamplingLaw:
    return self._law

  @property
  def can_exclude(self) -> bool:
    return not self._abilities.why_not_exclude

  @property
  def why_not_exclude(self) -> str:
    """What is missing for `can_exclude`, and what may be changed; "" if nothing is."""
    return self._abilities.why_not_exclude

  @property
  def model_id(self) -> str:
    """Names the model as well as an endpoint lets one: where it is, and what it is."""
    root = self._abilities.root
    return f"remote {self._config.model} {root} at {self._endpoint.url}"

  @property
  def sampler_id(self) -> str:
    """The same with the root seed: a run is refused that was begun with another one."""
    return f"{self.model_id} seed {self._seed}"

  def run(
    self, branches: Iterable[Branch]
  ) -> Generator[tuple[Branch, Completion], None, None]:
    """As `BranchSampler.run`; branches come in the order in which they end.

    When the iterator is closed, requests under way are broken off.

    Raises:
      ValueError: if a branch excludes a token and the server cannot.
      EndpointError: if the server has gone; what had arrived is yielded before.
    """
    stop = threading.Event()
    ended: queue.SimpleQueue[tuple[Branch, Completion | BaseException]]
    ended = queue.SimpleQueue()

    def work(branch: Branch) -> None:
      try:
        ended.put((branch, self._draw(branch, stop)))
      except BaseException as error:
        ended.put((branch, error))

    left = iter(branches)
    futures, under_way, failure = [], 0, None
    # A few wait in line, so that no thread waits for whoever takes completions.
    most = self._config.concurrency + max(1, self._config.concurrency // 4)
    begin = time.monotonic()
    try:
      while True:
        while under_way < most and failure is None:
          branch = next(left, None)
          if branch is None:
            break
          if branch.excluded_id >= 0 and not self.can_exclude:
            raise ValueError(f"No token can be excluded here: {self.why_not_exclude}.")
          futures.append(self._pool.submit(work, branch))
          under_way += 1
        if not under_way:
          break
        if failure is not None and ended.empty():
          break
        branch, found = ended.get()
        under_way -= 1
        if len(futures) > 4 * most:
          futures = [future for future in futures if not future.done()]
        if isinstance(found, BaseException):
          failure = failure or found
          stop.set()
          continue
        now = time.monotonic()
        self.throughput.seconds += now - begin
        yield branch, found
        begin = time.monotonic()
    finally:
      stop.set()
      for future in futures:
        future.cancel()
      if under_way:
        self._endpoint.abort()
    if failure is not None:
      raise failure

  def sample(
    self,
    prefixes: Sequence[Sequence[int]],
    key_paths: Sequence[Sequence[int]],
    excluded_ids: Sequence[int] | None = None,
  ) -> list[Completion]:
    """As `Sampler.sample`; `excluded_ids` as in sampling/generate.py.

    Raises:
      ValueError: if a row could not be drawn; or as `run`.
      EndpointError: as `run`.
    """
    branches = [
      Branch(
        text=tuple(prefix),
        position=len(prefix),
        key_path=tuple(path),
        excluded_id=-1 if excluded_ids is None else excluded_ids[row],
      )
      for row, (prefix, path) in enumerate(zip(prefixes, key_paths, strict=True))
    ]
    rows = {id(branch): row for row, branch in enumerate(branches)}
    completions: dict[int, Completion] = {}
    with contextlib.closing(self.run(branches)) as found:
      for branch, completion in found:
        if completion.error is not None:
          raise ValueError(f"Row {rows[id(branch)]}: {completion.error}")
        completions[rows[id(branch)]] = completion
    return [completions[row] for row in range(len(branches))]

  def close(self) -> None:
    """Ends the threads and breaks off what is under way."""
    self._pool.shutdown(wait=False, cancel_futures=True)
    self._endpoint.abort()

  def _draw(self, branch: Branch, stop: threading.Event) -> Completion:
    """Returns a completion; its `error` says why, if the server cannot draw it."""
    prefix = branch.prefix_ids
    ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    part, finish = 0, "length"
    try:
      if branch.excluded_id >= 0 and len(prefix) < self._law.max_length:
        answer, part = self._first_other(prefix, branch, stop)
        ids, logprobs, finish = answer.token_ids, answer.logprobs, answer.finish
      if finish == "length" and len(prefix) + len(ids) < self._law.max_length:
        answer = self._ask((*prefix, *ids), branch, part, stop)
        ids, logprobs = ids + answer.token_ids, logprobs + answer.logprobs
        finish = answer.finish
    except (AnswerError, RequestRefused) as error:
      return Completion(
        token_ids=ids, logprobs=logprobs, finish="length", error=str(error)
      )
    return Completion(
      token_ids=ids,
      logprobs=logprobs,
      finish="stop" if finish == "stop" else "length",
    )

  def _first_other(
    self, prefix: tuple[int, ...], branch: Branch, stop: threading.Event
  ) -> tuple[Answer, int]:
    """Draws one token that is not the excluded one; and the next request's number."""
    if self._config.exclusion == "logit_bias":
      # One place less, because one of the k is excluded: as a token of the text it is
      # among them.
      law = self._law
      if law.top_k:
        law = dataclasses.replace(law, top_k=law.top_k - 1)
      bias = {branch.excluded_id: LEAST_BIAS}
      answer = self._ask(prefix, branch, 0, stop, law=law, bias=bias, max_tokens=1)
      if answer.token_ids[0] != branch.excluded_id:
        return answer, 1
      raise AnswerError(
        f"the server drew token {branch.excluded_id}, which logit_bias excludes: "
        "hardly anything else is possible there"
      )
    for part in range(self._config.max_redraws):
      answer = self._ask(prefix, branch, part, stop, max_tokens=1)
      if answer.token_ids[0] != branch.excluded_id:
        return answer, part + 1
    raise AnswerError(
      f"{self._config.max_redraws} draws all gave token {branch.excluded_id}, which is "
      "excluded (RemoteSamplerConfig.max_redraws)"
    )

  def _ask(
    self,
    prefix: tuple[int, ...],
    branch: Branch,
    part: int,
    stop: threading.Event,
    *,
    law: SamplingLaw | None = None,
    bias: dict[int, float] | None = None,
    max_tokens: int = 0,
  ) -> Answer:
    max_tokens = max_tokens or self._law.max_length - len(prefix)
    body = make_body(
      self._config.model,
      law or self._law,
      prefix,
      stop_ids=sorted(self._stop_ids),
      max_tokens=max_tokens,
      seed=make_seed(self._seed, branch.key_path, part),
      bias=bias,
    )
    said = self._endpoint.request("/completions", body, stop=stop)
    try:
      answer = read_answer(
        said,
        stop_ids=self._stop_ids,
        max_tokens=max_tokens,
        certain=self._law.temperature == 0,
      )
    except AnswerError as error:
      raise AnswerError(
        f"an answer of {self._endpoint.url} cannot be used: {error}"
      ) from None
    if stop.is_set():
      raise Cancelled
    with self._lock:
      self.throughput.prompt_tokens += len(prefix)
      self.throughput.sampled_tokens += len(answer.token_ids)
    return answer
