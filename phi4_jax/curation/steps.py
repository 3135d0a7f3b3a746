"""What a step of curation is: it keeps a document, perhaps changed, or says why not.

A step is a frozen config, so that a gin file spells it, with a method that makes what
does the work, once in each process. A `DocumentStep` looks at one document at a time. A
`CorpusStep` needs all of them (duplicates): it makes a small key of each document,
wherever that lies, and then judges the keys of the whole corpus in one order.

Knows documents; refuses to know files, processes and order of work (pipeline.py).
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, runtime_checkable

from phi4_jax.data.documents import Document


@dataclasses.dataclass(frozen=True)
class Keep:
  """The document goes on, as it was or changed."""

  document: Document


@dataclasses.dataclass(frozen=True)
class Drop:
  """The document is put aside.

  Attributes:
    reason: a few words in snake_case that are counted, the same ones for all documents
      of this kind: "too_short".
    detail: this document's numbers, for a person: "12 words, 50 required".
  """

  reason: str
  detail: str = ""


Verdict = Keep | Drop
# The reason to drop a document that a step cannot look at yet.
NOT_EXTRACTED = "not_extracted"
Judge = Callable[[Document], Verdict]


@runtime_checkable
class DocumentStep(Protocol):
  """A step that judges every document by itself."""

  def make_judge(self) -> Judge:
    """Returns what judges one document; loads what it needs.

    It is called once in each process. What it returns depends on nothing but the
    document, and raises for bugs only: a document that cannot be judged is dropped.

    Raises:
      ConfigError: if what the step needs (a model file) is missing.
    """
    ...

  def recipe(self) -> dict[str, Any]:
    """Returns small JSON that differs whenever verdicts may differ."""
    ...


@runtime_checkable
class CorpusStep(Protocol):
  """A step that judges a document by all others."""

  def make_key(self) -> Callable[[Document], bytes]:
    """Returns what makes a document's key: all that the step compares of it."""
    ...

  def judge_keys(self, keys: Iterable[bytes]) -> Iterator[Drop | None]:
    """Yields, for each key in the order of the corpus, why its document is dropped.

    None keeps it. `keys` may be read only once and be larger than memory.
    `Drop.detail` names other documents by their place in the order, as "#17".
    """
    ...

  def recipe(self) -> dict[str, Any]:
    """As `DocumentStep.recipe`."""
    ...


Step = DocumentStep | CorpusStep


def drop_bytes(document: Document) -> Drop | None:
  """Returns why a document whose text has not been extracted is dropped, or None.

  What every step that needs text says first.
  """
  if document.data is None:
    return None
  return Drop(NOT_EXTRACTED, f"{document.media_type} is no text yet")


def add_labels(document: Document, **labels: Any) -> Document:
  """Returns the document with further labels."""
  return dataclasses.replace(document, labels={**document.labels, **labels})


def make_recipe(step: Any, *path_fields: str, **files: Any) -> dict[str, Any]:
  """Returns the recipe of a step that its fields and the digests of files decide.

  `make_recipe(self, "model", model_digest=digest)` in a step's `recipe`: what is in the
  file decides, not where it lies.
  """
  fields = dataclasses.asdict(step)
  for name in path_fields:
    del fields[name]
  return {"step": type(step).__name__, **fields, **files}
