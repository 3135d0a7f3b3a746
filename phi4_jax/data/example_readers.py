"""Examples of SeqIO tasks to encoded documents, a group of them at a time.

A group maps names of features to TensorFlow tensors, of which only the methods are
used: nothing here imports TensorFlow. A document without a name of its own gets its
number before it is encoded, because what is done to a text may depend on its name.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from phi4_jax.data.chat import EncodedDocument, encode_document
from phi4_jax.data.documents import Document
from phi4_jax.data.fill_in_middle import (
  FillInMiddleConfig,
  encode_with_middle_moved,
  require_tokens,
)
from phi4_jax.data.vocabularies import Vocabulary

# Reads a group of examples, given names for those that have none: one for each.
Reader = Callable[[dict[str, Any], Iterator[str]], Iterator[EncodedDocument]]
Encoder = Callable[[Document], EncodedDocument]


def make_encoder(
  vocabulary: Vocabulary, fill_in_middle: FillInMiddleConfig | None
) -> Encoder:
  """Returns what encodes a document.

  Raises:
    ConfigError: if the vocabulary has no tokens for `fill_in_middle`.
  """
  if fill_in_middle is None:
    return lambda document: encode_document(document, vocabulary)
  require_tokens(vocabulary)
  return lambda document: encode_with_middle_moved(document, vocabulary, fill_in_middle)


def _names(group: dict[str, Any], count: int, numbered: Iterator[str]) -> list[str]:
  numbers = list(itertools.islice(numbered, count))
  if "id" not in group or group["id"].dtype.name != "string":
    return numbers
  given = [name.decode("utf-8") for name in group["id"].numpy()]
  return [name or number for name, number in zip(given, numbers, strict=True)]


def _ragged(feature: Any) -> list[np.ndarray]:
  """Splits a group's feature [documents, (tokens)] into one array a document."""
  if hasattr(feature, "row_splits"):
    ends = feature.row_splits.numpy()[1:-1]
    return np.split(feature.flat_values.numpy(), ends)
  return list(feature.numpy())


def read_tokens(
  group: dict[str, Any], numbered: Iterator[str], *, names: tuple[str, ...]
) -> Iterator[EncodedDocument]:
  """Reads ids: of inputs and targets, of tokens and a mask, or of tokens alone."""
  parts = [_ragged(group[name]) for name in names]
  ids = _names(group, len(parts[0]), numbered)
  for name, *arrays in zip(ids, *parts, strict=True):
    first = arrays[0].astype(np.int32)
    if names[-1] == "targets":
      mask = np.repeat([False, True], [len(array) for array in arrays])
      first = np.concatenate(arrays).astype(np.int32)
    elif names[-1] == "loss_mask":
      mask = arrays[1].astype(bool)
    else:
      mask = np.ones(len(first), bool)
    yield EncodedDocument(name, first, mask)


def read_texts(
  group: dict[str, Any], numbered: Iterator[str], *, encoder: Encoder
) -> Iterator[EncodedDocument]:
  """Reads texts."""
  texts = group["text"].numpy()
  names = _names(group, len(texts), numbered)
  for name, text in zip(names, texts, strict=True):
    yield encoder(Document(id=name, text=text.decode("utf-8")))


def read_exchanges(
  group: dict[str, Any], numbered: Iterator[str], *, vocabulary: Vocabulary
) -> Iterator[EncodedDocument]:
  """Reads questions and answers as exchanges of a user and an assistant."""
  inputs, targets = group["inputs"].numpy(), group["targets"].numpy()
  names = _names(group, len(inputs), numbered)
  for name, question, answer in zip(names, inputs, targets, strict=True):
    document = Document(
      id=name,
      messages=(
        {"role": "user", "content": question.decode("utf-8")},
        {"role": "assistant", "content": answer.decode("utf-8")},
      ),
    )
    yield encode_document(document, vocabulary)
