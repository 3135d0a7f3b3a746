"""A world of odd questions: a law over bytes that does what the question says."""

import math
import os
import random
from collections.abc import Sequence

from phi4_jax.common.sampler import Completion, SamplingLaw
from phi4_jax.data.tokenizer import ByteVocabulary

VOCABULARY = ByteVocabulary()
STOP = VOCABULARY.im_end_id
MAX_LENGTH = 160
_A, _B, _SEVEN, _THREE = (VOCABULARY.encode(c)[0] for c in "ab73")


class HostileSampler:
  """Answers "a7", "a3", "b7" or "b3"; a7 is likelier than b7, so the letter decides.

  Words in the question change that: ALLRIGHT, ALLWRONG, ENDLESS (never stops), ATONCE
  (stops at once), UNICODE (odd bytes), NOTHING (no token at all) and NAN (an error, as
  a broken model gives).
  """

  def __init__(self):
    self.num_rows = 0

  @property
  def law(self) -> SamplingLaw:
    return SamplingLaw(max_length=MAX_LENGTH)

  def sample(
    self,
    prefixes: Sequence[Sequence[int]],
    key_paths: Sequence[Sequence[int]],
    excluded_ids: Sequence[int] | None = None,
  ) -> list[Completion]:
    excluded = [-1] * len(prefixes) if excluded_ids is None else excluded_ids
    rows = zip(prefixes, key_paths, excluded, strict=True)
    self.num_rows += len(prefixes)
    return [self._one(tuple(prefix), path, banned) for prefix, path, banned in rows]

  def _one(self, prefix, path, banned) -> Completion:
    text = VOCABULARY.decode(prefix)
    begin = max(i for i, t in enumerate(prefix) if t == VOCABULARY.im_sep_id) + 1
    response, rng = list(prefix[begin:]), random.Random(repr(tuple(path)))
    ids, logs = [], []
    if "NAN" in text:
      message = "the model's logits are not finite"
      return Completion(token_ids=(), logprobs=(), finish="length", error=message)
    if "NOTHING" in text:
      return Completion(token_ids=(), logprobs=(), finish="length")
    finish = "length"
    while len(prefix) + len(ids) < MAX_LENGTH:
      probs = dict(_next(text, response))
      if banned >= 0 and not ids:
        probs.pop(banned, None)
        total = sum(probs.values())
        probs = {token: p / total for token, p in probs.items()}
      token = rng.choices(list(probs), list(probs.values()))[0]
      ids.append(token)
      logs.append(math.log(probs[token]))
      response.append(token)
      if token == STOP:
        finish = "stop"
        break
    return Completion(token_ids=tuple(ids), logprobs=tuple(logs), finish=finish)


def _next(text: str, response: list[int]) -> dict[int, float]:
  """The law of the next token."""
  if "ATONCE" in text:
    return {STOP: 1.0}
  if "ENDLESS" in text:
    return {_A: 0.5, _B: 0.5}
  if "UNICODE" in text and len(response) < 4:
    first = len(VOCABULARY.specials)
    return {first + byte: 0.25 for byte in (0xF0, 0x9F, 0x98, 0x00)}
  place = len(response) - (4 if "UNICODE" in text else 0)
  if place == 0:
    return {_A: 0.5, _B: 0.5}
  if place == 1:
    right = 0.85 if response[-1] == _A else 0.2
    right = {"ALLRIGHT": 1.0, "ALLWRONG": 0.0}.get(text_word(text), right)
    return {t: p for t, p in ((_SEVEN, right), (_THREE, 1 - right)) if p}
  return {STOP: 1.0}


def text_word(text: str) -> str:
  """The first word in capitals that the law knows."""
  known = ("ALLRIGHT", "ALLWRONG")
  return next((word for word in known if word in text), "")


def judge(question, response, reference):
  """The user's oracle of these tests: a 7 is right. Words make it misbehave."""
  if "RAISE" in question:
    raise ValueError("no such answer")
  if "HANG" in question:
    while True:
      pass
  if "PRINT" in question:
    print("judging " * 1000)
  if "EXIT" in question:
    raise SystemExit(3)
  if "CRASH" in question:
    os.abort()
  if "NONE" in question:
    return None
  if "NUMBER" in question:
    return 0.5
  if "RECURSE" in question:
    return judge(question, response, reference)
  if "SOMETIMES" in question and response.startswith("b3"):
    raise KeyError("b3")
  return "7" in response
