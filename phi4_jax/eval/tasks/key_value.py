"""Key-value recall as an evaluation: is the value of the key in the answer?

Source: arXiv:2412.08905 section 3.3, Table 6 (recall, by HELMET: the share of answers
  that contain the value).
"""

import dataclasses
import random

from phi4_jax.common.errors import ConfigError
from phi4_jax.data import key_values
from phi4_jax.data.key_values import Style
from phi4_jax.eval.types import Example, Verdict


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeyValueTaskConfig:
  """Which objects are asked about.

  Attributes:
    num_pairs: pairs of each object; they set the length of the prompt.
    seed: of the objects; training documents of the same seed hold others.
    style: "word" or "uuid", HELMET's; as in the training data.
    num_words: how many different words there are; as in the training data.
  """

  num_pairs: int
  seed: int = 0
  style: Style = "word"
  num_words: int = key_values.NUM_WORDS

  def __post_init__(self):
    key_values.check_pairs(
      "KeyValueTaskConfig.num_pairs",
      num_pairs=self.num_pairs,
      seed=self.seed,
      num_words=self.num_words,
    )
    if self.style not in ("word", "uuid"):
      raise ConfigError(
        f"KeyValueTaskConfig.style ({self.style!r}) must be 'word' or 'uuid'."
      )


class KeyValueTask:
  """Grades by whether the value stands in the answer, as HELMET does.

  Labels: `place` is the third of the object in which the key stands ("first",
  "middle", "last"); `form` is "exact" where the answer is the value alone, "another"
  where it is the value of another key, and "none" otherwise.
  """

  name = "key_value"

  def __init__(self, config: KeyValueTaskConfig):
    self._config = config
    self._recalls: dict[str, key_values.Recall] = {}

  def examples(self, num_examples: int) -> tuple[Example, ...]:
    """Returns objects and one key each; fewer are a prefix of more."""
    rng = random.Random(2 * self._config.seed + 1)  # odd: of no training document
    found = []
    for i in range(num_examples):
      recall = key_values.draw_recall(
        rng,
        num_pairs=self._config.num_pairs,
        num_queries=1,
        style=self._config.style,
        num_words=self._config.num_words,
      )
      name = f"key-value-{self._config.num_pairs}-{self._config.seed}:{i}"
      self._recalls[name] = recall
      found.append(
        Example(
          id=name,
          messages=recall.messages(answered=0),
          reference=recall.pairs[recall.keys[0]],
        )
      )
    return tuple(found)

  def grade(self, example: Example, response: str) -> Verdict:
    """Looks for the value in a response."""
    recall = self._recalls[example.id]
    place = list(recall.pairs).index(recall.keys[0]) * 3 // len(recall.pairs)
    text = response.strip()
    form = "none"
    if text == example.reference:
      form = "exact"
    elif text in recall.pairs.values():
      form = "another"
    return Verdict(
      correct=example.reference in response,
      labels={"place": ("first", "middle", "last")[place], "form": form},
    )
