"""What has to come back from behind TensorFlow: the own exception, and counts.

TensorFlow turns an exception of a Python function into one of its own, and writes its
traceback to the terminal.
"""

import contextlib
import functools
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from phi4_jax.data.documents import Document
from phi4_jax.data.source_files import DroppedRow, Source, SourceConfig


class Relay:
  """Keeps the exception of the first document that has one, and counts of a source.

  Attributes:
    error: the exception, or None.
    dropped: rows that the source left out, by reason.
  """

  def __init__(self):
    self.error: Exception | None = None
    self.dropped: Counter[str] = Counter()
    self._is_holding = False
    self._has_failed = False  # in a function, which lags behind the source

  @contextlib.contextmanager
  def holding(self) -> Iterator[None]:
    """Raises at the end of the block what went wrong behind TensorFlow in it.

    There the data just end: TensorFlow sees no error. Outside such a block an error is
    raised where it happens, so that nobody takes a part of the data for all of it.
    """
    self.error = None
    self._is_holding, self._has_failed = True, False
    try:
      yield
    except Exception:
      if self.error is None:
        raise
    finally:
      self._is_holding = False
    if self.error is not None:
      raise self.error from None

  def guard(self, function: Callable, instead: Any = None) -> Callable:
    """Returns a function that keeps its exceptions.

    Args:
      function: runs behind TensorFlow.
      instead: returned for an exception that is held, and from then on. None: an
        exception is always raised.

    What it fails on comes before what the source has failed on, if both have.
    """

    @functools.wraps(function)
    def guarded(*args):
      if self._is_holding and self._has_failed and instead is not None:
        return instead
      try:
        return function(*args)
      except Exception as error:
        self.error, self._has_failed = error, True
        if self._is_holding and instead is not None:
          return instead
        raise

    return guarded

  def read(self, source: Source) -> Iterator[Document]:
    """Yields the documents of a source, and counts what it drops."""
    self.dropped.clear()

    def count(row: DroppedRow) -> None:
      self.dropped[row.reason] += 1

    try:
      documents = (
        source.documents(count)
        if isinstance(source, SourceConfig)
        else source.documents()
      )
      for document in documents:
        if self._is_holding and self._has_failed:
          return
        yield document
    except Exception as error:
      if not self._has_failed:
        self.error = error
      if not self._is_holding:
        raise
