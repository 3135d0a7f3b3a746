"""Key-value recall: a JSON object in the prompt, and the value of one of its keys.

HELMET's recall task in short words as well as in its own UUIDs, of any length, made on
the spot. Documents to learn it from ask for several keys in turn; the evaluation
(eval/tasks/key_value.py) asks for one.

Source: arXiv:2412.08905 section 3.3 (Table 6: recall at 8K and 16K by HELMET, whose
  JSON key-value task has this form).
Differs: HELMET shows two solved examples first and asks a base model; here a model is
  asked in its chat format.
"""

import dataclasses
import functools
import json
import random
import uuid
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from phi4_jax.common.errors import ConfigError
from phi4_jax.data.documents import Document, Message
from phi4_jax.data.source_files import OnDrop, SourceConfig

Style = Literal["word", "uuid"]
_CONSONANTS = "bcdfghjklmnprstvwxyz"
_VOWELS = "aeiou"
NUM_WORDS = len(_CONSONANTS) ** 2 * len(_VOWELS)
INSTRUCTION = (
  "Extract the value corresponding to the specified key in the JSON object below."
)
REORDER = "Write the JSON object below in another order."
REORDER_PAIRS = "Write the pairs below in another order."

# Seeds of the streams of documents. Those of the evaluation are odd.
_FORM_SEEDS = {
  "chat": lambda seed: 4 * seed,
  "text": lambda seed: 4 * seed + 2,
  "reorder": lambda seed: f"reorder {seed}",
  "pairs": lambda seed: f"pairs {seed}",
}


class Recall(NamedTuple):
  """A JSON object, and questions about it in order."""

  pairs: dict[str, str]
  keys: tuple[str, ...]

  def messages(self, *, answered: int) -> tuple[Message, ...]:
    """Returns the exchange: all questions of which the first `answered` have answers.

    One more question follows them, if there is one.
    """
    turns: list[Message] = []
    for number, key in enumerate(self.keys[: answered + 1]):
      question = f"Key: {json.dumps(key)}\nCorresponding value:"
      if number == 0:
        question = f"{INSTRUCTION}\n\n{json.dumps(self.pairs)}\n\n{question}"
      turns.append({"role": "user", "content": question})
      if number < answered:
        turns.append({"role": "assistant", "content": self.pairs[key]})
    return tuple(turns)


def draw_recall(
  rng: random.Random,
  *,
  num_pairs: int,
  num_queries: int,
  style: Style,
  num_words: int = NUM_WORDS,
) -> Recall:
  """Draws an object of distinct keys and values, and distinct keys to ask for."""
  every = NUM_WORDS // num_words
  words = [_word(every * i) for i in rng.sample(range(num_words), 2 * num_pairs)]
  if style == "uuid":
    words = [str(uuid.UUID(int=rng.getrandbits(128), version=4)) for _ in words]
  pairs = dict(zip(words[:num_pairs], words[num_pairs:], strict=True))
  return Recall(pairs, tuple(rng.sample(list(pairs), num_queries)))


def _word(number: int) -> str:
  """The number-th of all three-letter words: consonant, vowel, consonant."""
  rest, last = divmod(number, len(_CONSONANTS))
  first, vowel = divmod(rest, len(_VOWELS))
  return _CONSONANTS[first] + _VOWELS[vowel] + _CONSONANTS[last]


def _join_pairs(pairs: dict[str, str], sign: str) -> str:
  """Writes {'bab': 'fog', 'cux': 'dim'} as babfog,cuxdim, or with a sign inside."""
  return ",".join(key + sign + value for key, value in pairs.items())


def check_pairs(where: str, *, num_pairs: int, seed: int, num_words: int) -> None:
  """Refuses what `draw_recall` cannot draw.

  Raises:
    ConfigError: names the setting.
  """
  config = where.partition(".")[0]
  if not 2 <= num_words <= NUM_WORDS:
    raise ConfigError(
      f"{config}.num_words ({num_words}) must lie in [2, {NUM_WORDS}]: there are "
      f"{NUM_WORDS} words of three letters."
    )
  if not 1 <= num_pairs <= num_words // 2:
    raise ConfigError(
      f"{where} ({num_pairs}) must lie in [1, {num_words // 2}], half of all words "
      f"({config}.num_words is {num_words})."
    )
  if seed < 0:
    raise ConfigError(f"{config}.seed ({seed}) must be 0 or more.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeyValueSource(SourceConfig):
  """Exchanges about JSON objects, as a source of documents.

  Attributes:
    num_documents: how many to make.
    seed: 0 or more; another seed gives other documents.
    min_pairs: fewest pairs of an object.
    max_pairs: most pairs.
    num_queries: questions about one object; fewer where it has fewer pairs.
    form: "chat" (questions and answers, of which only the answers count in the loss),
      "text" (the object, and once more in another order: every value of the second can
      be recalled), "reorder" (the same as question and answer: nearly all that counts
      in the loss can be recalled) or "pairs" (that without JSON's signs: babfog,cuxdim;
      what a small model learns first; its vocabulary must be too small to hold joined
      words).
    style: "word" (three letters) or "uuid", HELMET's.
    num_words: how many different words there are; with fewer, a small model learns
      sooner. At least twice max_pairs. UUIDs do not depend on it.
    sign: what stands between a key and its value in the form "pairs" (None: nothing);
      by way of ":" and '": "' a small model comes to objects. It changes no word:
      sources of one seed hold the same pairs whatever their sign.
  """

  num_documents: int
  seed: int
  min_pairs: int
  max_pairs: int
  num_queries: int = 1
  form: Literal["chat", "text", "reorder", "pairs"] = "chat"
  style: Style = "word"
  num_words: int = NUM_WORDS
  sign: str | None = None

  def __post_init__(self):
    if self.form not in _FORM_SEEDS:
      raise ConfigError(
        f"KeyValueSource.form ({self.form!r}) must be one of {', '.join(_FORM_SEEDS)}."
      )
    for name in ("num_documents", "num_queries"):
      if getattr(self, name) < 1:
        raise ConfigError(
          f"KeyValueSource.{name} ({getattr(self, name)}) must be positive."
        )
    check_pairs(
      "KeyValueSource.max_pairs",
      num_pairs=self.max_pairs,
      seed=self.seed,
      num_words=self.num_words,
    )
    if not 1 <= self.min_pairs <= self.max_pairs:
      raise ConfigError(
        f"KeyValueSource.min_pairs ({self.min_pairs}) must lie in [1, max_pairs] "
        f"(max_pairs is {self.max_pairs})."
      )
    if self.sign == "":
      raise ConfigError("KeyValueSource.sign ('') must be a sign, or None for none.")
    if self.sign is not None and self.form != "pairs":
      raise ConfigError(
        f"KeyValueSource.sign ({self.sign!r}) has no effect on form {self.form!r}. "
        "Remove it, or choose 'pairs'."
      )
    if self.style not in ("word", "uuid"):
      raise ConfigError(
        f"KeyValueSource.style ({self.style!r}) must be 'word' or 'uuid'."
      )

  def documents(self, on_drop: OnDrop | None = None) -> Iterator[Document]:
    del on_drop  # every document is good
    rng = random.Random(_FORM_SEEDS[self.form](self.seed))
    for i in range(self.num_documents):
      num_pairs = rng.randint(self.min_pairs, self.max_pairs)
      num_queries = min(self.num_queries, num_pairs)
      recall = draw_recall(
        rng,
        num_pairs=num_pairs,
        num_queries=num_queries,
        style=self.style,
        num_words=self.num_words,
      )
      name = f"key-value-{self.form}{self.sign or ''}-{self.seed}:{i}"
      if self.form == "chat":
        messages = recall.messages(answered=num_queries)
        yield Document(id=name, messages=messages, source="key-value recall")
        continue
      keys = rng.sample(list(recall.pairs), num_pairs)
      write, request = json.dumps, REORDER
      if self.form == "pairs":
        write = functools.partial(_join_pairs, sign=self.sign or "")
        request = REORDER_PAIRS
      once = write(recall.pairs)
      again = write({key: recall.pairs[key] for key in keys})
      if self.form == "text":
        yield Document(id=name, text=f"{once}\n{again}", source="key-value recall")
        continue
      exchange: tuple[Message, ...] = (
        {"role": "user", "content": f"{request}\n\n{once}"},
        {"role": "assistant", "content": again},
      )
      yield Document(id=name, messages=exchange, source="key-value recall")

  def recipe(self) -> dict[str, Any]:
    recipe = {"source": "KeyValueSource", **dataclasses.asdict(self)}
    if self.sign is None:
      del recipe["sign"]  # datasets from before it existed stay what they are
    return recipe
