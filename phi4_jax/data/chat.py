"""Documents to token ids: the vocabulary's chat format, and what counts in the loss.

In Phi-4's format a conversation becomes `<|im_start|>role<|im_sep|>text<|im_end|>` for
each message, with no newline anywhere and no token at either end; an imported model
brings its own format (`chat_formats.py`). A text becomes its tokens and a closing
`<|endoftext|>`.

Texts that stand side by side are encoded as one, as the models' own templates do: in
"user\\n" + content a content that opens with a newline may share a token with the
header. Only what the assistant writes is encoded on its own, because it is sampled on
its own.

Source: arXiv:2412.08905 §4 (the format); §4.1 (supervised fine-tuning).
Differs: the paper does not say whether prompts count in the loss; here only what
the assistant writes counts, its `<|im_end|>` included.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from phi4_jax.common.errors import DataError
from phi4_jax.data.chat_formats import CHAT_FORMATS, ChatFormat, Piece
from phi4_jax.data.documents import Document, Message, check_messages, no_text
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

  With one token a word, user "hi" and assistant "yes sir" give, in Phi-4's format,

    im_start user im_sep hi im_end im_start assistant im_sep yes sir im_end
       0      0     0    0    0       0         0        0    1   1    1

  Raises:
    DataError: if a message is malformed, its text cannot be encoded, or the
      vocabulary has no chat format.
  """
  check_messages(messages, where="encode_chat")
  chat = _chat_format(vocabulary)
  return _encode(chat.write(messages, prompt=False), chat, vocabulary)


def encode_prompt(messages: Sequence[Message], vocabulary: Vocabulary) -> list[int]:
  """Returns the ids after which the assistant's answer is sampled.

  They end in the header of an assistant's turn, and are a prefix of `encode_chat` of
  the same messages and an answer.

  Raises:
    DataError: as `encode_chat`.
  """
  check_messages(messages, where="encode_prompt")
  chat = _chat_format(vocabulary)
  return _encode(chat.write(messages, prompt=True), chat, vocabulary)[0]


def encode_follow_up(
  messages: Sequence[Message], vocabulary: Vocabulary, *, ended: bool = True
) -> list[int]:
  """Returns the ids between a sampled answer and the next answer.

  The ids of `encode_prompt`, an answer with the end of its turn, and these are
  `encode_prompt` of the whole conversation.

  Args:
    messages: what is said after the answer.
    vocabulary: the vocabulary.
    ended: the answer's last id is the end of its turn; otherwise (it was cut off)
      these ids begin with that end.

  Raises:
    DataError: as `encode_chat`.
  """
  check_messages(messages, where="encode_follow_up")
  chat = _chat_format(vocabulary)
  pieces = [] if ended else [Piece(chat.turn_end, True, False)]
  if chat.after_end:
    pieces.append(Piece(chat.after_end, False, False))
  pieces += chat.write(messages, prompt=True, opening=False)
  return _encode(pieces, chat, vocabulary)[0]


def _chat_format(vocabulary: Vocabulary) -> ChatFormat:
  if vocabulary.chat is None:
    raise DataError(
      "This vocabulary has no chat format: it came with a base model, which has no "
      "chat template. Name a format when the model is imported (--chat_format, one of "
      f"{', '.join(CHAT_FORMATS)}), or use texts without roles."
    )
  return vocabulary.chat


def _encode(
  pieces: Iterable[Piece], chat: ChatFormat, vocabulary: Vocabulary
) -> tuple[list[int], list[bool]]:
  """Encodes pieces; texts that are side by side and count alike are one text."""
  token_ids: list[int] = []
  loss_mask: list[bool] = []
  before = ""
  for (control, counts), group in itertools.groupby(pieces, lambda piece: piece[1:]):
    texts = [piece.text for piece in group]
    if control:
      ids = [_control_id(name, vocabulary) for name in texts]
      before = texts[-1]
    else:
      text = "".join(texts)
      # What was sampled is never stripped: it is what the model wrote.
      if before in chat.rstrip and not counts:
        text = text.lstrip()
      ids = vocabulary.encode(text)
      before = ""
    token_ids += ids
    loss_mask += [counts] * len(ids)
  return token_ids, loss_mask


def _control_id(name: str, vocabulary: Vocabulary) -> int:
  token_id = vocabulary.specials.get(name)
  if token_id is None:
    raise DataError(
      f"The chat format needs the special token {name}, which this vocabulary does not "
      "have: the model knows no such turn."
    )
  return token_id


def encode_document(document: Document, vocabulary: Vocabulary) -> EncodedDocument:
  """Encodes a text (every token counts, and it ends in eos) or a conversation.

  Raises:
    DataError: naming the document, if it cannot be encoded.
  """
  if document.data is not None:
    raise no_text(document)
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
