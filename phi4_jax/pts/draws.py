"""What a search asks for and gets: branches in, outcomes out.

The statistics of a search (comb_search.py and what it uses) know this much of the
world: a function that takes branches and returns what became of them, in order. Who
samples, judges, logs and resumes stands behind it (rollouts.py).
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from phi4_jax.common.sampler import Branch


class Outcome(NamedTuple):
  """What became of a branch.

  Attributes:
    first_id: the first token drawn; -1 if the prefix left no room for one.
    num_tokens: how many were drawn.
    correct: the oracle's verdict on the whole response.
    failed: no verdict could be had (the oracle raised, the model gave no numbers).
      The question is given up: nothing that is said of it would be true.
  """

  first_id: int
  num_tokens: int
  correct: bool
  failed: bool = False


class OutOfBudget(Exception):
  """Raised by a draw, before it begins, when the run's budget is spent.

  Nothing of that round is drawn. What was decided before stays; the rest is undecided.
  """


@runtime_checkable
class Draw(Protocol):
  """Takes branches and returns their outcomes in the same order.

  A call is a round: what is asked for depends on the outcomes of earlier rounds only,
  so that within one they may come in any order.
  """

  def __call__(self, branches: Sequence[Branch], *, label: str) -> list[Outcome]:
    """`label` says what is being done, for progress.

    Raises:
      OutOfBudget: before anything is drawn.
    """
    ...
