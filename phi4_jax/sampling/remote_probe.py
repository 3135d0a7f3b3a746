"""Tries what a completions endpoint can do, with a dozen requests of a few tokens.

Without token ids in and out, or with answers that do not depend on the seed, it cannot
be used at all. Whether a first token can be excluded, and whether log-probabilities are
those of the law really sampled from, is found out by numbers:

- the temperature: halving it must double the differences of two log-probabilities;
- top_k and top_p: with only one token left its log-probability must be 0;
- logit_bias: a token with +100 must be drawn, one with -100 must not, and what is
  said of the others must be the law given another token (or, where log-probabilities
  are of the model before processing, unchanged).
"""

import dataclasses
import difflib
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from phi4_jax.common.errors import ConfigError
from phi4_jax.common.sampler import SamplingLaw
from phi4_jax.sampling.endpoint import Endpoint, EndpointError, RequestRefused
from phi4_jax.sampling.remote_requests import (
  Answer,
  AnswerError,
  make_body,
  make_seed,
  read_answer,
  show_ids,
)

# The phase of these requests in the place of a key path; no search has it.
_PHASE = 2**30
_NUM_TOP = 5
_NUM_TOKENS = 8
_NUM_SEEDS = 6
_LEAST_LETTERS = 4
# Below this nothing can be told: servers compute in bfloat16.
_LEAST_DIFFERENCE = 0.1
_TOLERANCE = 0.05
_log = logging.getLogger(__name__)

_USE_MODE = "Start vLLM with --logprobs-mode processed_logprobs"


class Abilities(NamedTuple):
  """What was found.

  Attributes:
    why_not_exclude: why no first token can be excluded, or log-probabilities are not
      the law's; "" if all is well.
    repeats: the same request gave the same tokens twice.
    root: what the server says the model is.
  """

  why_not_exclude: str
  repeats: bool
  root: str


def probe(
  endpoint: Endpoint,
  model: str,
  law: SamplingLaw,
  *,
  stop_ids: frozenset[int],
  seed: int,
  probe_ids: tuple[int, ...],
  exclusion: str,
  decode: Callable[[Sequence[int]], str] | None,
) -> Abilities:
  """Returns what the server can do; the arguments are those of RemoteSampler.

  Raises:
    ConfigError: if the server cannot be used.
  """
  if not 0 < len(probe_ids) < law.max_length:
    raise ConfigError(
      f"probe_ids has {len(probe_ids)} tokens; a prompt of at least one and fewer than "
      f"SamplingLaw.max_length ({law.max_length}) is needed."
    )
  root = _check_model(endpoint, model, law)
  tried = _Probe(endpoint, model, law, stop_ids, seed, probe_ids)
  try:
    repeats = tried.check_tokens(decode)
    why = tried.why_not_exclude(exclusion)
  except AnswerError as error:
    raise ConfigError(
      f"{endpoint.url} does not continue token ids as a search needs it: {error}."
    ) from error
  except RequestRefused as error:
    raise ConfigError(
      f"{error}. A request of a search holds token ids as its prompt, "
      "seed, logprobs, stop_token_ids, ignore_eos, top_k, min_p and return_token_ids, "
      "as vLLM 0.10.2 and later take them."
    ) from error
  if not repeats:
    _log.warning(
      "%s gave other tokens for the same request and seed: a search that is repeated "
      "may come out differently (one that goes on from its log does not).",
      endpoint.url,
    )
  return Abilities(why, repeats, root)


def _check_model(endpoint: Endpoint, model: str, law: SamplingLaw) -> str:
  """Looks the model up in the server's list; not every server has one."""
  try:
    listed = endpoint.request("/models", patient=False)
  except EndpointError as error:
    if "HTTP status 404" in str(error):
      return ""
    raise
  rows = listed.get("data") if isinstance(listed, dict) else None
  models: dict[str, dict[str, Any]] = {
    str(row.get("id")): row for row in rows or () if isinstance(row, dict)
  }
  if not models:
    return ""
  if model not in models:
    raise ConfigError(
      f"{endpoint.url} has no model {model!r}; it has {', '.join(sorted(models))}. "
      "Change RemoteSamplerConfig.model."
    )
  longest = models[model].get("max_model_len")
  if isinstance(longest, int) and longest < law.max_length:
    raise ConfigError(
      f"{endpoint.url} holds at most {longest} tokens of prompt and response "
      f"(max_model_len), fewer than SamplingLaw.max_length ({law.max_length}). Lower "
      "the one, or start the server with a greater --max-model-len."
    )
  return str(models[model].get("root") or "")


class _Probe:
  """Requests on one prompt, and what follows from their answers."""

  def __init__(
    self,
    endpoint: Endpoint,
    model: str,
    law: SamplingLaw,
    stop_ids: frozenset[int],
    seed: int,
    prompt: tuple[int, ...],
  ):
    self._endpoint = endpoint
    self._model = model
    self._law = law
    self._stop_ids = stop_ids
    self._seed = seed
    self._prompt = prompt

  def ask(
    self,
    number: int,
    *,
    law: SamplingLaw | None = None,
    max_tokens: int = 1,
    bias: dict[int, float] | None = None,
    num_logprobs: int = _NUM_TOP,
  ) -> Answer:
    """Asks for a completion of the prompt; `number` decides the seed."""
    body = make_body(
      self._model,
      law or self._law,
      self._prompt,
      stop_ids=sorted(self._stop_ids),
      max_tokens=max_tokens,
      seed=make_seed(self._seed, (_PHASE, number), 0),
      bias=bias,
      num_logprobs=num_logprobs,
    )
    return read_answer(
      self._endpoint.request("/completions", body),
      stop_ids=self._stop_ids,
      max_tokens=max_tokens,
      certain=(law or self._law).temperature == 0,
    )

  def check_tokens(self, decode: Callable[[Sequence[int]], str] | None) -> bool:
    """Checks that token ids go in and out; returns whether a request repeats.

    Raises:
      AnswerError: if they do not.
      ConfigError: if answers do not depend on the seed, or texts are other ones.
    """
    count = min(_NUM_TOKENS, self._law.max_length - len(self._prompt))
    first = self.ask(0, max_tokens=count, num_logprobs=1)
    read, length = first.prompt_ids, first.num_prompt_tokens
    if read is not None and read != self._prompt:
      raise AnswerError(
        f"it read the prompt {show_ids(self._prompt)} as {show_ids(read)}: other tokens"
      )
    if read is None and length != len(self._prompt):
      raise AnswerError(
        f"it read {length} tokens where the prompt has {len(self._prompt)}; it may add "
        "some, or take the ids for a text"
      )
    if decode is not None:
      self._check_text(first, decode)
    again = self.ask(0, max_tokens=count, num_logprobs=1)
    if self._law.temperature > 0 and self._law.top_k != 1:
      self._check_seeds(first, count)
    return again.token_ids == first.token_ids

  def _check_text(self, answer: Answer, decode: Callable[[Sequence[int]], str]) -> None:
    """Compares letters and digits: spaces and special tokens are shown or not."""
    ids = [token for token in answer.token_ids if token not in self._stop_ids]
    try:
      ours = decode(ids)
    except ValueError as error:
      ours, alike = f"nothing ({error})", 0.0
    else:
      parts = _letters(ours), _letters(answer.text)
      if min(map(len, parts)) < _LEAST_LETTERS:
        return
      alike = difflib.SequenceMatcher(None, *parts).ratio()
    if alike < 0.5:
      raise ConfigError(
        f"{self._endpoint.url} writes the tokens {show_ids(ids)} as {answer.text!r}, "
        f"the vocabulary as {ours!r}: the model there has another vocabulary. Give the "
        "vocabulary of the model that RemoteSamplerConfig.model names."
      )

  def _check_seeds(self, first: Answer, count: int) -> None:
    drawn = [
      self.ask(number, max_tokens=count, num_logprobs=1)
      for number in range(1, _NUM_SEEDS + 1)
    ]
    same = all(answer.token_ids == first.token_ids for answer in drawn)
    # That as many draws are equal by chance is less probable than this.
    if same and _NUM_SEEDS * sum(first.logprobs) < math.log(1e-3):
      raise ConfigError(
        f"{self._endpoint.url} gave the same tokens for {_NUM_SEEDS + 1} seeds, which "
        "by its own log-probabilities hardly happens: it ignores the seed or the "
        "temperature. Rollouts must be independent."
      )

  def why_not_exclude(self, exclusion: str) -> str:
    """Returns why a first token cannot be excluded, or probabilities are not the law's.

    Raises:
      RequestRefused: if even a plain request is refused.
    """
    law = self._law
    if law.temperature == 0:
      return "SamplingLaw.temperature 0 leaves no other token than the most probable"
    if law.top_k == 1:
      return "SamplingLaw.top_k 1 leaves no other token than the most probable"
    if exclusion == "logit_bias" and law.top_p < 1:
      return (
        f"with SamplingLaw.top_p {law.top_p:g} a bias changes which tokens are left: "
        "the first would not be drawn from the law given another token. Set top_p to "
        "1, or RemoteSamplerConfig.exclusion to 'redraw'"
      )
    plain = self.ask(10)
    reason = self._why_not_probabilities(plain)
    if reason or exclusion == "redraw":
      return reason
    return self._why_not_bias(plain)

  def _why_not_probabilities(self, plain: Answer) -> str:
    top = plain.top
    if sum(map(math.exp, top.values())) > 1 + _TOLERANCE:
      return f"its log-probabilities add up to more than 1. {_USE_MODE}"
    law = self._law
    if law.temperature != 1:
      wide = dataclasses.replace(law, top_k=0, top_p=1.0)
      base = self.ask(10, law=wide).top
      # Servers refuse temperatures above 2, so the other one is lower.
      half = dataclasses.replace(wide, temperature=law.temperature / 2)
      cold = self.ask(10, law=half).top
      shared = sorted(base.keys() & cold.keys(), key=lambda token: -base[token])
      if len(shared) < 2:
        return (
          "it does not give the log-probabilities of several tokens by id "
          "(top_logprobs, return_tokens_as_token_ids)"
        )
      apart = base[shared[0]] - base[shared[-1]]
      doubled = cold[shared[0]] - cold[shared[-1]]
      if apart < _LEAST_DIFFERENCE:
        return "on the prompt tried all tokens are alike, so that nothing can be told"
      if abs(2 * apart - doubled) > _TOLERANCE * doubled + 0.02:
        return (
          f"its log-probabilities are not of SamplingLaw.temperature "
          f"{law.temperature:g}. {_USE_MODE}, or set the temperature to 1"
        )
    for name, only in (("top_k", 1), ("top_p", 1e-6)):
      if getattr(law, name) in (0, 1.0):
        continue
      wide = dataclasses.replace(law, top_k=0, top_p=1.0)
      single = self.ask(11, law=dataclasses.replace(wide, **{name: only}))
      if single.logprobs[0] < -_TOLERANCE:
        return (
          f"its log-probabilities are not of SamplingLaw.{name} {getattr(law, name)}: "
          f"with one token left it has {single.logprobs[0]:.3f}, not 0. {_USE_MODE}, "
          "or leave the setting out"
        )
    return ""

  def _why_not_bias(self, plain: Answer) -> str:
    if len(plain.top) < 2:
      return (
        "it does not give the log-probabilities of several tokens by id (top_logprobs, "
        "return_tokens_as_token_ids), so that logit_bias cannot be tried"
      )
    ordered = sorted(plain.top, key=lambda token: -plain.top[token])
    likely, unlikely = ordered[0], ordered[-1]
    law = self._law
    if law.top_k:
      law = dataclasses.replace(law, top_k=law.top_k - 1)
    try:
      wanted = [self.ask(20 + k, bias={unlikely: 100.0}) for k in range(3)]
      others = [self.ask(30 + k, law=law, bias={likely: -100.0}) for k in range(4)]
    except RequestRefused as error:
      return f"it refuses logit_bias ({error})"
    if any(answer.token_ids[0] != unlikely for answer in wanted):
      return f"a logit_bias of +100 for token {unlikely} does not make it that token"
    if any(answer.token_ids[0] == likely for answer in others):
      return f"a logit_bias of -100 for token {likely} does not exclude it"
    # Given another token, probabilities grow by the same factor.
    growth = -math.log1p(-min(math.exp(plain.top[likely]), 1 - 1e-9))
    shared = [t for t in plain.top.keys() & others[0].top.keys() if t != likely]
    changes = [others[0].top[token] - plain.top[token] for token in shared]
    unprocessed = law.temperature == 1 and not law.top_k
    for change in changes:
      is_law = abs(change - growth) <= _TOLERANCE + _TOLERANCE * growth
      if not is_law and not (unprocessed and abs(change) <= _TOLERANCE):
        return (
          "what it draws with a logit_bias is not the law given another token: a "
          f"log-probability changed by {change:.3f}, not by {growth:.3f}"
        )
    return ""


def _letters(text: str) -> str:
  return "".join(character for character in text if character.isalnum())
