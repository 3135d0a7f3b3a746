"""Base responses, and the points on them where p(success) is asked for.

A prefix is always a list of token ids, never text: to encode a text again may give
other ids, and so the probability of something else.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from phi4_jax.common.errors import DataError
from phi4_jax.pts.oracle import Finish


class Point(NamedTuple):
  """A prefix: `position` tokens of one response to one question.

  `response` is the number of the rollout that the response is.
  """

  question: int
  response: int
  position: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Response:
  """A rollout from the bare question, and what the oracle says of it.

  Attributes:
    question: number of the question.
    index: number of the rollout.
    prompt_ids: the question's.
    token_ids: of the response, the stop token included.
    logprobs: of each token given what stands before it, under the sampling law.
    finish: "stop", or "length" if the cap on prompt and response came first.
    correct: the oracle's verdict.
  """

  question: int
  index: int
  prompt_ids: tuple[int, ...]
  token_ids: tuple[int, ...]
  logprobs: tuple[float, ...]
  finish: Finish
  correct: bool

  def __len__(self) -> int:
    return len(self.token_ids)

  @functools.cached_property
  def probs(self) -> tuple[float, ...]:
    """Sampling probability of each token."""
    return tuple(min(1.0, math.exp(logprob)) for logprob in self.logprobs)

  def point(self, position: int) -> Point:
    return Point(self.question, self.index, position)

  def prefix_ids(self, position: int) -> tuple[int, ...]:
    """Prompt and the first `position` tokens of the response."""
    return self.prompt_ids + self.token_ids[:position]


class Responses:
  """The base responses of a search, and which of their points are one.

  Responses to one question begin alike; a prefix that several share is the point of
  the one that comes first. So it is estimated once, with the same random keys,
  whatever is searched first.
  """

  def __init__(self, responses: Iterable[Response]):
    self._by_question: dict[int, list[Response]] = {}
    for response in responses:
      self._by_question.setdefault(response.question, []).append(response)
    # Of each response: (length of the common prefix, earlier response) pairs.
    self._shared: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for question, members in self._by_question.items():
      for number, response in enumerate(members):
        earlier = [
          (_common_length(response.token_ids, other.token_ids), other.index)
          for other in members[:number]
        ]
        if any(length == len(response) for length, _ in earlier):
          raise DataError(
            f"Rollout {response.index} of question {question} is the same as an "
            "earlier base response."
          )
        self._shared[question, response.index] = earlier

  def __iter__(self) -> Iterator[Response]:
    for members in self._by_question.values():
      yield from members

  def __len__(self) -> int:
    return sum(map(len, self._by_question.values()))

  def of(self, point: Point) -> Response:
    """Returns the response that a point lies on."""
    for response in self._by_question[point.question]:
      if response.index == point.response:
        return response
    raise KeyError(point)

  def canonical(self, point: Point) -> Point:
    """Returns the name of a point: that of the first response with its prefix."""
    for length, index in self._shared[point.question, point.response]:
      if length >= point.position:
        return point._replace(response=index)
    return point

  def prefix_ids(self, point: Point) -> tuple[int, ...]:
    return self.of(point).prefix_ids(point.position)

  def is_end(self, point: Point) -> bool:
    """Whether the point is behind the last token, where the verdict is known."""
    return point.position == len(self.of(point))


def canonical_token(responses: Responses, point: Point) -> Point:
  """Returns the point before a token on the first response that has it there."""
  after = point._replace(position=point.position + 1)
  return responses.canonical(after)._replace(position=point.position)


def _common_length(first: tuple[int, ...], second: tuple[int, ...]) -> int:
  length = 0
  for a, b in zip(first, second, strict=False):
    if a != b:
      break
    length += 1
  return length
