"""The Sampler protocol: token ids in, completions with log-probabilities out.

`eval`, `pts` and `synthetic` receive a sampler and know nothing of models. The
engine of phi4_jax/sampling is one; `ScriptedSampler` is another, for tests.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal, Protocol, runtime_checkable

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
  """

  token_ids: tuple[int, ...]
  logprobs: tuple[float, ...]
  finish: Literal["stop", "length"]


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
