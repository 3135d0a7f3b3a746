"""GSM8K: grade-school word problems whose answer is one number.

Knows a JSON-lines file with `question` and `answer`, the answer's last line being
`#### n`; refuses to know where the file comes from.
"""

import dataclasses
import functools
import os

from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.common.io import read_jsonl, require_text
from phi4_jax.eval.answers import find_answer, find_marked_number
from phi4_jax.eval.types import Example, Verdict


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gsm8kConfig:
  """Where the questions are and how they are put.

  Attributes:
    path: the JSON-lines file.
    instruction: appended to each question after an empty line; "" for none.
      Differs: the paper does not give its prompt.
  """

  path: str
  instruction: str = "Reason step by step, then give the answer as '#### number'."

  def __post_init__(self):
    if not self.path:
      raise ConfigError("Gsm8kConfig.path is empty; name a JSON-lines file.")


class Gsm8kTask:
  """Grades by the number after `####`, or else the last number of the response.

  The label `form` says which of the two it was: "marked", "last" or "none".
  """

  name = "gsm8k"

  def __init__(self, config: Gsm8kConfig):
    self._config = config

  @functools.cached_property
  def _all_examples(self) -> tuple[Example, ...]:
    return tuple(load_gsm8k(self._config.path, self._config.instruction))

  def examples(self, num_examples: int) -> tuple[Example, ...]:
    """Returns the file's first questions, in its order.

    Raises:
      DataError: if the file has fewer, or a row is unusable.
    """
    if num_examples > len(self._all_examples):
      raise DataError(
        f"{self._config.path} holds {len(self._all_examples)} questions, fewer than "
        f"the {num_examples} asked for. Lower num_examples."
      )
    return self._all_examples[:num_examples]

  def grade(self, example: Example, response: str) -> Verdict:
    """Compares canonical spellings of the two numbers."""
    answer = find_answer(response)
    if answer is None:
      form = "none"
    else:
      form = "last" if find_marked_number(response) is None else "marked"
    return Verdict(correct=answer == example.reference, labels={"form": form})


def load_gsm8k(path: str | os.PathLike, instruction: str = "") -> list[Example]:
  """Reads the questions; ids are `gsm8k-ROW` with rows counted from 1.

  Raises:
    DataError: if a row lacks a field or its answer has no `#### n`; names file and
      row.
  """
  examples = []
  for row, record in read_jsonl(path):
    question = require_text(record, "question", path=path, row=row)
    answer = require_text(record, "answer", path=path, row=row)
    reference = find_marked_number(answer)
    if reference is None:
      raise DataError(
        f"Row {row} of {path}: field 'answer' does not give its number as '#### n' "
        f"(it ends in {answer[-40:]!r})."
      )
    content = f"{question}\n\n{instruction}" if instruction else question
    examples.append(
      Example(
        id=f"gsm8k-{row}",
        messages=({"role": "user", "content": content},),
        reference=reference,
      )
    )
  return examples
