"""What has to come back from behind TensorFlow: the own exception, and counts.

TensorFlow turns an exception of a Python function into one of its own.
"""

import functools
from collections import Counter
from collections.abc import Callable, Iterator

from phi4_jax.data.documents import Document
from phi4_jax.data.source_files import DroppedRow, Source, SourceConfig


class Relay:
  """Keeps the last exception, and what a source has dropped in its last reading.

  Attributes:
    error: the exception, or None.
    dropped: rows that the source left out, by reason.
  """

  def __init__(self):
    self.error: Exception | None = None
    self.dropped: Counter[str] = Counter()

  def __call__(self, function: Callable) -> Callable:
    @functools.wraps(function)
    def guarded(*args):
      try:
        return function(*args)
      except Exception as error:
        self.error = error
        raise

    return guarded

  def read(self, source: Source) -> Iterator[Document]:
    """Yields the documents of a source, and counts what it drops."""
    self.dropped.clear()

    def count(row: DroppedRow) -> None:
      self.dropped[row.reason] += 1

    try:
      if isinstance(source, SourceConfig):
        yield from source.documents(count)
      else:
        yield from source.documents()
    except Exception as error:
      self.error = error
      raise
