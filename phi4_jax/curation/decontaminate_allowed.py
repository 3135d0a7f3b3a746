"""The allow-list: 13-grams of benchmarks that are only boiler-plate.

"A B C D choose the one that best completes the sentence" stands in many benchmarks and
in texts that never saw one.
"""

import os
from collections.abc import Iterable
from pathlib import Path

from phi4_jax.common.errors import DataError
from phi4_jax.common.io import write_atomic
from phi4_jax.curation.decontaminate_index import BenchmarkIndex
from phi4_jax.curation.decontaminate_words import normalize

_BATCH_CHARACTERS = 1 << 18


def find_long_runs(index: BenchmarkIndex, texts: Iterable[str]) -> set[int]:
  """Returns the numbers of the benchmarks' 13-grams that occur in some text."""
  found: set[int] = set()
  batch: list[bytes] = []
  size = 0
  for text in texts:
    batch.append(normalize(text))
    size += len(text)
    if size > _BATCH_CHARACTERS:
      found |= _long_runs(index, batch)
      batch, size = [], 0
  return found | _long_runs(index, batch)


def _long_runs(index: BenchmarkIndex, batch: list[bytes]) -> set[int]:
  return {run.number for shared in index.compare(batch) for run in shared.long}


def find_allowed(
  index: BenchmarkIndex, reference: Iterable[str], train: Iterable[str]
) -> list[str]:
  """Returns the benchmarks' 13-grams that both a reference and the training set have.

  A sentence that a benchmark took from the reference corpus is allowed, too, where the
  training set has it: choose a reference that is no source of benchmark items.

  Args:
    index: of the benchmarks. Other 13-grams would never be asked for.
    reference: texts of a corpus of general knowledge.
    train: texts of the training set; not read if the reference has none of the runs.

  Returns:
    Normalised runs of 13 words, sorted.

  Source: arXiv:2412.08905 Appendix B: 13-grams common to Wikipedia and the train set.
  """
  in_reference = find_long_runs(index, reference)
  if not in_reference:
    return []
  in_both = in_reference & find_long_runs(index, train)
  return sorted(index.text_of(run) for run in in_both)


def save_allowed(path: str | os.PathLike, allowed: Iterable[str]) -> None:
  """Writes an allow-list as text, one run a line."""
  write_atomic(path, "".join(f"{run}\n" for run in allowed))


def load_allowed(path: str | os.PathLike) -> tuple[str, ...]:
  """Reads an allow-list; blank lines are passed over.

  Raises:
    DataError: if the file is missing or no UTF-8. Runs of another length are refused by
      the index.
  """
  path = Path(path)
  if not path.is_file():
    raise DataError(f"There is no allow-list {path}.")
  try:
    lines = path.read_text("utf-8").splitlines()
  except UnicodeDecodeError as error:
    raise DataError(f"{path} is not valid UTF-8 (byte {error.start}).") from error
  return tuple(line for line in lines if line.strip())
