"""How many preference pairs each kind of question may give.

Source: arXiv:2412.08905 Table 7 (pairs of the first round by kind: multiple choice
132,859; mathematics 76,552; Python 16,080; other programming languages 21,806; unknown
answers and safety 3,000).
Differs: the paper does not say how it came to these numbers. Here they are upper
bounds; of more, questions give in turn, in an order drawn from the seed.
"""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from phi4_jax.common.errors import ConfigError
from phi4_jax.pts.oracle import Question

# Keeps the order of questions apart from every other draw of a run.
_ORDER = 71


def check_quotas(quotas: Mapping[str, int], questions: Sequence[Question]) -> None:
  """Refuses quotas that no question can fill.

  Raises:
    ConfigError: lists the categories that there are.
  """
  known = {question.category for question in questions}
  for name, count in quotas.items():
    if count < 0:
      raise ConfigError(f"pairs_per_category[{name!r}] ({count}) must be 0 or more.")
    if name not in known:
      shown = ", ".join(map(repr, sorted(known)))
      raise ConfigError(
        f"pairs_per_category names {name!r}, which no question has for a category. "
        f"Categories of these questions: {shown}."
      )


def within_quotas(
  numbers: Sequence[int],
  questions: Sequence[Question],
  quotas: Mapping[str, int],
  seed: int,
) -> list[bool]:
  """Returns which pairs are kept.

  With numbers (0, 0, 0, 1), one category and a quota of 2, the pair of question 1 is
  kept and the first of question 0.

  Args:
    numbers: of each pair, its question.
    questions: by their numbers.
    quotas: most pairs of each category; a category that is not named gives none.
    seed: of the order in which questions give.
  """
  kept = [False] * len(numbers)
  for category, quota in quotas.items():
    turns: dict[int, list[int]] = {}
    for place, number in enumerate(numbers):
      if questions[number].category == category:
        turns.setdefault(number, []).append(place)
    rng = np.random.default_rng(np.random.SeedSequence([seed, _ORDER]))
    asked = sorted(turns)
    order = [turns[asked[i]] for i in rng.permutation(len(asked))]
    rounds = itertools.zip_longest(*order)
    places = [place for turn in rounds for place in turn if place is not None]
    for place in places[:quota]:
      kept[place] = True
  return kept
