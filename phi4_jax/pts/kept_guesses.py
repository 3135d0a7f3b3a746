"""A critic whose guesses lie in a file before the screen draws anything.

States of a model may differ in their last digits from one machine to the next, and a
user's critic from one day to the next: what a search asked its critic once is what it
goes on with after a stop.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from phi4_jax.common import io
from phi4_jax.common.axes import Float
from phi4_jax.common.errors import DataError
from phi4_jax.pts.comb_types import Critic
from phi4_jax.pts.records import write_jsonl
from phi4_jax.pts.responses import Response

GUESSES = "critic_guesses.jsonl"


def name_critic(critic: Critic | None) -> str | None:
  """Returns what settings.json calls a critic: its `fingerprint`, or its class."""
  if critic is None:
    return None
  return str(getattr(critic, "fingerprint", type(critic).__name__))


class KeptGuesses:
  """Implements Critic."""

  def __init__(self, critic: Critic, folder: Path):
    self._critic = critic
    self._path = folder / GUESSES

  def pivot_probs(self, responses: Sequence[Response]) -> list[Float[np.ndarray, "T"]]:
    """As the critic said when it was first asked.

    Raises:
      ValueError: if the critic does not give a probability for each token.
      DataError: if the file is of other responses, or damaged.
    """
    names = [(response.question, response.index) for response in responses]
    if not self._path.exists():
      found = self._critic.pivot_probs(responses)
      _check(found, responses, type(self._critic).__name__)
      write_jsonl(
        self._path,
        (
          {"question": question, "response": index, "probs": np.round(p, 6).tolist()}
          for (question, index), p in zip(names, found, strict=True)
        ),
      )
    kept = list(io.read_jsonl(self._path))
    probs = [np.array(record.get("probs", ()), float) for _, record in kept]
    theirs = [(record.get("question"), record.get("response")) for _, record in kept]
    try:
      _check(probs, responses, self._path.name)
    except ValueError as error:
      raise DataError(f"{self._path} is damaged: {error}") from error
    if theirs != names:
      raise DataError(
        f"{self._path} has guesses about other responses than this search has. Begin "
        "another run."
      )
    return probs


def _check(
  found: Sequence[np.ndarray], responses: Sequence[Response], name: str
) -> None:
  if len(found) != len(responses):
    raise ValueError(
      f"{name} guesses about {len(found)} of {len(responses)} responses."
    )
  for probs, response in zip(found, responses, strict=True):
    probs = np.asarray(probs)
    if probs.shape != (len(response),) or not ((probs >= 0) & (probs <= 1)).all():
      raise ValueError(
        f"{name} must give a probability, 0 to 1, for each of the {len(response)} "
        f"tokens of rollout {response.index} of question {response.question}; it gives "
        f"an array of shape {probs.shape} from {np.min(probs, initial=np.inf):g} to "
        f"{np.max(probs, initial=-np.inf):g}."
      )
