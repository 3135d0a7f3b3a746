"""What is asked of a completions endpoint, and how its answers are read.

vLLM's form of the API: the prompt is a list of token ids, `return_token_ids` gives ids
back, `stop_token_ids` and `ignore_eos` make the stop tokens exactly ours, and each
sampling parameter is sent, because a server may take what is missing from the model's
own generation_config.json. Refuses to know HTTP.

Source: vLLM's OpenAI-compatible server (/v1/completions).
"""

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from phi4_jax.common.sampler import SamplingLaw

_TOKEN_ID = re.compile(r"token_id:(\d+)")
# A log-probability that a server writes for a token it should not have drawn.
_IMPOSSIBLE = -1_000.0
# Seeds stay exact in every JSON parser.
_SEED_BITS = 53


class AnswerError(Exception):
  """An answer cannot be used; the message says what is wrong with it."""


class TextOnly(AnswerError):
  """The answer has no token ids."""


class Answer(NamedTuple):
  """A completion as read from an answer.

  Attributes:
    token_ids: new ones, the stop token included.
    logprobs: of each, as the server gives them.
    finish: "stop" or "length".
    prompt_ids: what the server read, or None if it does not say.
    num_prompt_tokens: how many it read, or None.
    top: log-probabilities of the most probable tokens at the first position, by id.
    text: the completion as the server writes it.
  """

  token_ids: tuple[int, ...]
  logprobs: tuple[float, ...]
  finish: str
  prompt_ids: tuple[int, ...] | None
  num_prompt_tokens: int | None
  top: dict[int, float]
  text: str


def make_seed(seed: int, key_path: Sequence[int], part: int) -> int:
  """Returns the seed of a request: a hash of the root seed and what is drawn.

  Args:
    seed: the root.
    key_path: names the draw.
    part: number of the request among those of one draw.
  """
  name = repr((seed, *map(int, key_path), part)).encode()
  digest = hashlib.blake2b(name, digest_size=8).digest()
  return int.from_bytes(digest, "little") % 2**_SEED_BITS


def make_body(
  model: str,
  law: SamplingLaw,
  prompt_ids: Sequence[int],
  *,
  stop_ids: Sequence[int],
  max_tokens: int,
  seed: int,
  bias: Mapping[int, float] | None = None,
  num_logprobs: int = 1,
) -> dict[str, Any]:
  """Returns the body of a request for one completion."""
  body: dict[str, Any] = {
    "model": model,
    "prompt": [int(token_id) for token_id in prompt_ids],
    "max_tokens": max_tokens,
    "n": 1,
    "stream": False,
    "temperature": law.temperature,
    "top_p": law.top_p,
    "top_k": law.top_k or -1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "seed": seed,
    "logprobs": num_logprobs,
    "stop_token_ids": [int(token_id) for token_id in stop_ids],
    "ignore_eos": True,
    "add_special_tokens": False,
    "return_token_ids": True,
    "return_tokens_as_token_ids": True,
  }
  if bias:
    body["logit_bias"] = {str(int(k)): float(v) for k, v in bias.items()}
  return body


def read_answer(
  answer: Any, *, stop_ids: frozenset[int], max_tokens: int, certain: bool = False
) -> Answer:
  """Reads an answer and checks that it is what was asked for.

  Args:
    answer: the JSON.
    stop_ids: the only tokens that may end a completion early.
    max_tokens: of the request.
    certain: the law is greedy: each token has probability 1, whatever the server says.

  Raises:
    TextOnly: if there are no token ids.
    AnswerError: if something else is missing or contradicts the request.
  """
  choices = answer.get("choices") if isinstance(answer, dict) else None
  if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
    raise AnswerError("it has no field 'choices' with a completion in it")
  if len(choices) != 1:
    raise AnswerError(
      f"it has {len(choices)} completions; one was asked for (the server may take a "
      "list of token ids for a list of prompts)"
    )
  choice = choices[0]
  logprobs = choice.get("logprobs")
  logprobs = logprobs if isinstance(logprobs, dict) else {}
  ids = _read_ids(choice, logprobs)
  values = _read_logprobs(logprobs, len(ids))
  if certain:
    values = (0.0,) * len(ids)
  finish = choice.get("finish_reason")
  if finish == "stop":
    if not ids or ids[-1] not in stop_ids:
      last = f"its last token is {ids[-1]}" if ids else "it has no token"
      raise AnswerError(
        f"the server ended it at none of the stop tokens {show_ids(sorted(stop_ids))} "
        f"({last}; stop_reason {choice.get('stop_reason')!r}). The server must stop at "
        "these only, and give the stop token back"
      )
  elif finish != "length":
    raise AnswerError(f"its finish_reason is {finish!r}, neither 'stop' nor 'length'")
  elif len(ids) != max_tokens:
    raise AnswerError(
      f"it has {len(ids)} tokens and ends by length, {max_tokens} were asked for"
    )
  read = choice.get("prompt_token_ids")
  usage = answer.get("usage")
  return Answer(
    token_ids=ids,
    logprobs=values,
    finish=finish,
    prompt_ids=tuple(read) if isinstance(read, list) else None,
    num_prompt_tokens=usage.get("prompt_tokens") if isinstance(usage, dict) else None,
    top=_read_top(logprobs),
    text=str(choice.get("text", "")),
  )


def _read_ids(choice: dict[str, Any], logprobs: dict[str, Any]) -> tuple[int, ...]:
  ids = choice.get("token_ids")
  if ids is None:
    found = [_TOKEN_ID.fullmatch(str(token)) for token in logprobs.get("tokens") or []]
    ids = [int(match[1]) for match in found if match]
    if not ids or len(ids) != len(found):
      raise TextOnly(
        "it has no token ids: neither a field 'token_ids' (return_token_ids of vLLM "
        "0.10.2 and later) nor tokens written 'token_id:7' "
        "(return_tokens_as_token_ids)"
      )
  if not isinstance(ids, list) or not all(type(one) is int and one >= 0 for one in ids):
    raise AnswerError(f"its token ids are no list of numbers: {show_ids(ids)}")
  return tuple(ids)


def _read_logprobs(logprobs: dict[str, Any], count: int) -> tuple[float, ...]:
  values = logprobs.get("token_logprobs")
  if not isinstance(values, list) or len(values) != count:
    given = len(values) if isinstance(values, list) else "no"
    raise AnswerError(f"it has {given} log-probabilities for {count} tokens")
  for value in values:
    if not isinstance(value, int | float) or not math.isfinite(value):
      raise AnswerError(f"a log-probability is {value!r}")
    if value < _IMPOSSIBLE or value > 0.01:
      raise AnswerError(f"a log-probability is {value:g}")
  return tuple(min(0.0, float(value)) for value in values)


def _read_top(logprobs: dict[str, Any]) -> dict[int, float]:
  """Returns the alternatives at the first position whose ids are known."""
  tops = logprobs.get("top_logprobs")
  first = tops[0] if isinstance(tops, list) and tops else None
  found: dict[int, float] = {}
  for token, value in first.items() if isinstance(first, dict) else ():
    match = _TOKEN_ID.fullmatch(str(token))
    if match and isinstance(value, int | float) and value > _IMPOSSIBLE:
      found[int(match[1])] = float(value)
  return found


def show_ids(value: Any) -> str:
  """Returns ids, or what came in their place, for a message: at most 60 characters."""
  text = str(list(value) if isinstance(value, tuple) else value)
  return text if len(text) <= 60 else text[:57] + "..."
