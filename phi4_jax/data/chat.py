"""Documents to token ids: Phi-4's chat format, and what counts in the loss.

A conversation becomes `<|im_start|>role<|im_sep|>text<|im_end|>` for each message,
with no newline anywhere and no token at either end. A text becomes its tokens and
a closing `<|endoftext|>`.

Source: arXiv:2412.08905 §4 (the format); §4.1 (supervised fine-tuning).
Differs: the paper does not say whether prompts count in the loss; here only what
the assistant writes counts, its `<|im_end|>` included.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from phi4_jax.common.errors import DataError
from phi4_jax.data.documents import Document, Message, check_messages
from phi4_jax.data.vocabularies import Vocabulary


class EncodedDocument(NamedTuple):
  """A document as tokens.

  Attributes:
    id: its name in error messages, for example "part-003.jsonl:1841".
    token_ids: int32, one id a token.
    loss_mask: bool, True where the token counts in the loss *when it is predicted*.
  """

  id: str
  token_ids: np.ndarray
  loss_mask: np.ndarray


def encode_chat(
  messages: Sequence[Message], vocabulary: Vocabulary
) -> tuple[list[int], list[bool]]:
  """Returns (token ids, loss mask) of a whole conversation.

  With one token a word, user "hi" and assistant "yes sir" give

    im_start user im_sep hi im_end im_start assistant im_sep yes sir im_end
       0      0     0    0    0       0         0        0    1   1    1

  Raises:
    DataError: if a message is malformed or its text cannot be encoded.
  """
  check_messages(messages, where="encode_chat")
  token_ids: list[int] = []
  loss_mask: list[bool] = []
  for message in messages:
    header = _header(message["role"], vocabulary)
    content = [*vocabulary.encode(message["content"]), vocabulary.im_end_id]
    token_ids += header + content
    loss_mask += [False] * len(header)
    loss_mask += [message["role"] == "assistant"] * len(content)
  return token_ids, loss_mask


def encode_prompt(messages: Sequence[Message], vocabulary: Vocabulary) -> list[int]:
  """Returns the ids after which the assistant's answer is sampled.

  They end in `<|im_start|>assistant<|im_sep|>`, and are a prefix of `encode_chat`
  of the same messages and an answer.

  Raises:
    DataError: if a message is malformed or its text cannot be encoded.
  """
  token_ids, _ = encode_chat(messages, vocabulary)
  return token_ids + _header("assistant", vocabulary)


def _header(role: str, vocabulary: Vocabulary) -> list[int]:
  return [vocabulary.im_start_id, *vocabulary.encode(role), vocabulary.im_sep_id]


def encode_document(document: Document, vocabulary: Vocabulary) -> EncodedDocument:
  """Encodes a text (every token counts, and it ends in eos) or a conversation.

  Raises:
    DataError: naming the document, if it cannot be encoded.
  """
  try:
    if document.messages is not None:
      token_ids, loss_mask = encode_chat(document.messages, vocabulary)
      mask = np.asarray(loss_mask, bool)
    else:
      token_ids = [*vocabulary.encode(document.text or ""), vocabulary.eos_id]
      mask = np.ones(len(token_ids), bool)
  except DataError as error:
    raise DataError(f"Document {document.id}: {error}") from error
  return EncodedDocument(document.id, np.asarray(token_ids, np.int32), mask)


def encode_documents(
  documents: Iterable[Document], vocabulary: Vocabulary
) -> Iterator[EncodedDocument]:
  """Encodes documents one by one; see `encode_document`."""
  for document in documents:
    yield encode_document(document, vocabulary)
