"""The Sampler protocol: token ids in, completions with log-probabilities out.

`eval`, `pts` and `synthetic` receive a sampler and know nothing of models. The
engine of phi4_jax/sampling is one; `ScriptedSampler` is another, for tests.
"""

import dataclasses
import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

from phi4_jax.common.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingLaw:
  """The distribution that completions are really drawn from.

  Attributes:
    temperature: divides the logits; 0 means greedy.
    top_k: keep the k most probable tokens; 0 keeps all.
    top_p: keep the smallest set of tokens whose mass reaches top_p; 1 keeps all.
    max_length: cap on prompt plus completion, in tokens (a total, not a cap on
      new tokens, so that a prefix of a response has the same horizon).
  """

  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  max_length: int

  def __post_init__(self):
    if self.temperature < 0:
      raise ConfigError(
        f"SamplingLaw.temperature ({self.temperature}) must be 0 or more."
      )
    if self.top_k < 0:
      raise ConfigError(f"SamplingLaw.top_k ({self.top_k}) must be 0 or more.")
    if not 0 < self.top_p <= 1:
      raise ConfigError(f"SamplingLaw.top_p ({self.top_p}) must lie in (0, 1].")
    if self.max_length < 2:
      raise ConfigError(
        f"SamplingLaw.max_length ({self.max_length}) must be 2 or more."
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Completion:
  """What was sampled after a prefix.

  Attributes:
    token_ids: new tokens; the stop token is included when there was one.
    logprobs: natural-log probability of each new token under the sampling law.
    finish: "stop" when a stop token was drawn, "length" when the cap came first.
    error: why nothing more could be drawn (the model's logits were not finite, the
      endpoint refused), None as a rule. What was drawn before is there.
  """

  token_ids: tuple[int, ...]
  logprobs: tuple[float, ...]
  finish: Literal["stop", "length"]
  error: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Branch:
  """A continuation to draw from a place in a known text.

  Many branches leave one text: a sampler that keeps what it has read of `text` reads
  it once for all of them. Give them the same tuple, not equal ones: it is found again
  by identity first.

  `Branch(text=(5, 6, 7, 8), position=2, first_id=9, key_path=(0,))` continues the
  prefix 5, 6, 9; the completion begins behind the 9.

  Attributes:
    text: token ids of a prompt and, as a rule, of a response to it.
    position: how many of them stand before the branch; 1 or more.
    first_id: a token that stands there instead of text[position]; part of the
      prefix, not of the completion. -1 for none.
    excluded_id: a token that the first drawn token must not be: the first token is
      drawn from the law given that it is another one. -1 for none. A branch has not
      both first_id and excluded_id.
    key_path: names the draw; nothing else decides what is drawn.
  """

  text: tuple[int, ...]
  position: int
  key_path: tuple[int, ...]
  first_id: int = -1
  excluded_id: int = -1

  @property
  def prefix_ids(self) -> tuple[int, ...]:
    """Everything that stands before the completion."""
    prefix = self.text[: self.position]
    return prefix if self.first_id < 0 else (*prefix, self.first_id)

  @property
  def prefix_length(self) -> int:
    return self.position + (self.first_id >= 0)


@runtime_checkable
class Sampler(Protocol):
  """Draws completions of token prefixes."""

  @property
  def law(self) -> SamplingLaw:
    """The distribution that `sample` draws from."""
    ...

  def sample(
    self, prefixes: Sequence[Sequence[int]], key_paths: Sequence[Sequence[int]]
  ) -> list[Completion]:
    """Returns one completion for each prefix, in order.

    A completion depends on its own prefix and key path (and the sampler's seed)
    only, never on the other rows of the call. All key paths of a call have the
    same length.
    """
    ...


@runtime_checkable
class BranchSampler(Protocol):
  """Draws branches as they come, and hands each out when it has ended."""

  @property
  def law(self) -> SamplingLaw:
    """The distribution that completions are drawn from."""
    ...

  @property
  def can_exclude(self) -> bool:
    """Whether `Branch.excluded_id` is understood, and log-probabilities are the law's.

    If not, only searches that need neither can use this sampler.
    """
    ...

  def run(self, branches: Iterable[Branch]) -> Iterator[tuple[Branch, Completion]]:
    """Yields each branch with its completion, in any order.

    `branches` is read as places become free; what has not been read when the iterator
    is closed is never drawn. All key paths have the same length.
    """
    ...


class BatchedBranches:
  """A plain Sampler as a BranchSampler: so many rows a call, in the order given.

  The sampler reads the whole prefix of every row.
  """

  def __init__(self, sampler: Any, *, rows_per_call: int, can_exclude: bool):
    """Args:
    sampler: a Sampler. If `can_exclude`, its `sample` takes `excluded_ids`, too.
    rows_per_call: branches that are given to one call.
    can_exclude: as `BranchSampler.can_exclude`.
    """
    if rows_per_call < 1:
      raise ConfigError(f"rows_per_call ({rows_per_call}) must be 1 or more.")
    self._sampler = sampler
    self._rows_per_call = rows_per_call
    self._can_exclude = can_exclude

  @property
  def law(self) -> SamplingLaw:
    return self._sampler.law

  @property
  def can_exclude(self) -> bool:
    return self._can_exclude

  def run(self, branches: Iterable[Branch]) -> Iterator[tuple[Branch, Completion]]:
    """As `BranchSampler.run`.

    Raises:
      ValueError: if a branch excludes a token and the sampler cannot.
    """
    left = iter(branches)
    while rows := list(itertools.islice(left, self._rows_per_call)):
      prefixes = [branch.prefix_ids for branch in rows]
      paths = [branch.key_path for branch in rows]
      excluded = [branch.excluded_id for branch in rows]
      if max(excluded) < 0:
        completions = self._sampler.sample(prefixes, paths)
      elif self._can_exclude:
        completions = self._sampler.sample(prefixes, paths, excluded)
      else:
        raise ValueError(f"{type(self._sampler).__name__} cannot exclude a token.")
      yield from zip(rows, completions, strict=True)


def as_branches(
  sampler: Sampler | BranchSampler, *, rows_per_call: int
) -> BranchSampler:
  """Returns a sampler of branches; a plain one gets so many rows a call.

  A plain sampler whose `sample` takes `excluded_ids` counts as one that can exclude.

  Raises:
    ConfigError: if `rows_per_call` is not positive.
  """
  if rows_per_call < 1:
    raise ConfigError(f"rows_per_call ({rows_per_call}) must be 1 or more.")
  if isinstance(sampler, BranchSampler):
    return sampler
  can_exclude = "excluded_ids" in inspect.signature(sampler.sample).parameters
  return BatchedBranches(sampler, rows_per_call=rows_per_call, can_exclude=can_exclude)


class ScriptedSampler:
  """A sampler whose answers come from a function: for tests and dry runs."""

  def __init__(
    self,
    answer: Callable[[tuple[int, ...], tuple[int, ...]], Sequence[int]],
    law: SamplingLaw,
    *,
    stop_ids: Sequence[int] = (),
  ):
    """`answer(prefix, key_path)` returns the completion's token ids."""
    self._answer = answer
    self._law = law
    self._stop_ids = frozenset(stop_ids)

  @property
  def law(self) -> SamplingLaw:
    return self._law

  def sample(
    self, prefixes: Sequence[Sequence[int]], key_paths: Sequence[Sequence[int]]
  ) -> list[Completion]:
    completions = []
    for prefix, path in zip(prefixes, key_paths, strict=True):
      room = self._law.max_length - len(prefix)
      ids = tuple(self._answer(tuple(prefix), tuple(path)))[:room]
      stopped = bool(ids) and ids[-1] in self._stop_ids
      completions.append(
        Completion(
          token_ids=ids,
          logprobs=(0.0,) * len(ids),
          finish="stop" if stopped else "length",
        )
      )
    return completions
