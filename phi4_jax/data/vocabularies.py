"""Vocabularies in use: text to token ids and back, exactly.

The special tokens of Phi-4 are *control* symbols: no text, however hostile, is ever
encoded to one of them, and decoding leaves them out. `<|im_start|>` typed by a user
becomes ordinary characters.

Three kinds: SentencePiece (trained by `tokenizer.py`), plain bytes (no training), and
an imported model's own (`tokenizers_vocabulary.py`). A vocabulary folder holds
`vocabulary.json` (kind, size, fingerprint, specials) and, for SentencePiece,
`vocabulary.model`. Nothing here imports TensorFlow.

Source: arXiv:2412.08905 §3 (tiktoken vocabulary, padded to 100,352).
Differs: the special tokens have Phi-4's names but not its ids, and text is cut by
SentencePiece, so that a vocabulary of any size can be trained on any text.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import sentencepiece

from phi4_jax.common.errors import DataError
from phi4_jax.common.io import read_json, write_json
from phi4_jax.data.chat_formats import PHI4, ChatFormat

SPECIALS = (
  "<|endoftext|>",
  "<|fim_prefix|>",
  "<|fim_middle|>",
  "<|fim_suffix|>",
  "<|im_start|>",
  "<|im_end|>",
  "<|im_sep|>",
  "<|endofprompt|>",
)
# SentencePiece writes a space as this character, so a literal one needs care.
SPACE_MARK = "\u2581"


@runtime_checkable
class Vocabulary(Protocol):
  """What every vocabulary offers. Ids lie in [0, size)."""

  @property
  def size(self) -> int: ...

  @property
  def fingerprint(self) -> str:
    """SHA-256 of everything that decides the ids; equal means interchangeable."""
    ...

  @property
  def eos_id(self) -> int:
    """`<|endoftext|>`, which closes a document."""
    ...

  @property
  def stop_ids(self) -> tuple[int, ...]:
    """Where sampling an answer stops: ends of turns, of texts, and the model's own."""
    ...

  @property
  def specials(self) -> dict[str, int]:
    """The special tokens by name."""
    ...

  @property
  def chat(self) -> ChatFormat | None:
    """How conversations are written; None for a base model."""
    ...

  def encode(self, text: str) -> list[int]:
    """Encodes text; never gives a special token; adds nothing."""
    ...

  def decode(self, token_ids: Sequence[int]) -> str:
    """Decodes ids, leaving special tokens out. `decode(encode(x)) == x`."""
    ...

  def token_text(self, token_id: int) -> str:
    """Shows one token to a person: specials by name, broken bytes as `<0xE2>`."""
    ...

  def token_bytes(self, token_id: int) -> bytes:
    """The UTF-8 bytes that a token adds to a text, perhaps part of a character."""
    ...


class SentencePieceVocabulary:
  """A SentencePiece model with Phi-4's special tokens as control symbols."""

  chat = PHI4

  def __init__(self, path: str | Path):
    """Loads a vocabulary folder.

    Raises:
      DataError: if the folder is incomplete, was changed, or lacks a special token.
    """
    self.path = Path(path)
    description = read_description(self.path)
    model_path = self.path / "vocabulary.model"
    if not model_path.is_file():
      raise DataError(f"{model_path} does not exist; train the vocabulary again.")
    model = model_path.read_bytes()
    self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    self._size = self._processor.vocab_size()
    self._fingerprint = _fingerprint(model)
    for field, found in [("size", self._size), ("fingerprint", self._fingerprint)]:
      if description.get(field) != found:
        raise DataError(
          f"{model_path} has {field} {found}, but {self.path / 'vocabulary.json'} "
          f"says {description.get(field)}: one of the two files was changed."
        )
    self._specials = {}
    for name in SPECIALS:
      token_id = self._processor.piece_to_id(name)
      if not self._processor.is_control(token_id):
        raise DataError(f"{model_path} has no control symbol {name}.")
      self._specials[name] = token_id
    self._unknown_id = self._processor.unk_id()
    marks = [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in range(256)]
    self._bytes = None if self._unknown_id in marks else marks

  @property
  def size(self) -> int:
    return self._size

  @property
  def fingerprint(self) -> str:
    return self._fingerprint

  @property
  def eos_id(self) -> int:
    return self._specials["<|endoftext|>"]

  @property
  def im_start_id(self) -> int:
    return self._specials["<|im_start|>"]

  @property
  def im_sep_id(self) -> int:
    return self._specials["<|im_sep|>"]

  @property
  def im_end_id(self) -> int:
    return self._specials["<|im_end|>"]

  @property
  def stop_ids(self) -> tuple[int, ...]:
    return (self.im_end_id, self.eos_id)

  @property
  def specials(self) -> dict[str, int]:
    """The special tokens by name."""
    return dict(self._specials)

  def encode(self, text: str) -> list[int]:
    """Encodes text; no text gives a special token.

    Raises:
      DataError: if a character has no token and the vocabulary has no bytes, or if
        the text is not valid Unicode.
    """
    check_unicode(text)
    if SPACE_MARK not in text:
      token_ids = self._processor.encode(text)
    else:
      token_ids = self._encode_marked(text)
    if self._unknown_id in token_ids:
      unknown = self._processor.piece_to_id
      missing = [
        c
        for c in text
        if c == SPACE_MARK or (c != " " and unknown(c) == self._unknown_id)
      ]
      raise DataError(
        f"The vocabulary in {self.path} has no token for {missing[:3]} in "
        f"{text[:60]!r}. Train it with VocabularyConfig.byte_fallback, or on text "
        "with these characters."
      )
    return token_ids

  def _encode_marked(self, text: str) -> list[int]:
    """Encodes text with a literal U+2581, which SentencePiece takes for a space."""
    if self._bytes is None:
      return [self._unknown_id]
    mark = [self._bytes[byte] for byte in SPACE_MARK.encode()]
    first, *rest = text.split(SPACE_MARK)
    token_ids = self._processor.encode(first)
    for part in rest:
      token_ids += mark + self._processor.encode(part)
    return token_ids

  def decode(self, token_ids: Sequence[int]) -> str:
    """Decodes ids, leaving out specials; broken UTF-8 becomes U+FFFD.

    Raises:
      ValueError: if an id is outside [0, size).
    """
    ids = [int(token_id) for token_id in token_ids]
    check_range(ids, self._size)
    return self._processor.decode(ids)

  def token_text(self, token_id: int) -> str:
    check_range([token_id], self._size)
    return self._processor.id_to_piece(int(token_id)).replace(SPACE_MARK, " ")

  def token_bytes(self, token_id: int) -> bytes:
    """The bytes that a token adds to a text; none for specials."""
    check_range([token_id], self._size)
    token_id = int(token_id)
    if self._processor.is_byte(token_id):
      return bytes([int(self._processor.id_to_piece(token_id)[3:5], 16)])
    return self._processor.decode([token_id]).encode("utf-8")


class ByteVocabulary:
  """One id a byte after the special tokens: nothing to train, any text, 264 ids."""

  size = len(SPECIALS) + 256
  fingerprint = hashlib.sha256(" ".join(("bytes", *SPECIALS)).encode()).hexdigest()
  eos_id = SPECIALS.index("<|endoftext|>")
  im_start_id = SPECIALS.index("<|im_start|>")
  im_sep_id = SPECIALS.index("<|im_sep|>")
  im_end_id = SPECIALS.index("<|im_end|>")
  stop_ids = (im_end_id, eos_id)
  chat = PHI4

  @property
  def specials(self) -> dict[str, int]:
    """The special tokens by name."""
    return {name: i for i, name in enumerate(SPECIALS)}

  def encode(self, text: str) -> list[int]:
    """Encodes text as its UTF-8 bytes.

    Raises:
      DataError: if the text is not valid Unicode.
    """
    check_unicode(text)
    return [len(SPECIALS) + byte for byte in text.encode("utf-8")]

  def decode(self, token_ids: Sequence[int]) -> str:
    """Decodes ids, leaving out specials; broken UTF-8 becomes U+FFFD."""
    ids = [int(token_id) for token_id in token_ids]
    check_range(ids, self.size)
    data = bytes(i - len(SPECIALS) for i in ids if i >= len(SPECIALS))
    return data.decode("utf-8", errors="replace")

  def token_text(self, token_id: int) -> str:
    check_range([token_id], self.size)
    if token_id < len(SPECIALS):
      return SPECIALS[token_id]
    byte = token_id - len(SPECIALS)
    return chr(byte) if 32 <= byte < 127 else f"<0x{byte:02X}>"

  def token_bytes(self, token_id: int) -> bytes:
    """The byte that a token adds to a text; none for specials."""
    check_range([token_id], self.size)
    return bytes([token_id - len(SPECIALS)]) if token_id >= len(SPECIALS) else b""

  def save(self, out_dir: str | Path) -> None:
    """Writes the folder that `load_vocabulary` reads."""
    write_json(
      Path(out_dir) / "vocabulary.json",
      {
        "kind": "byte",
        "size": self.size,
        "fingerprint": self.fingerprint,
        "specials": self.specials,
      },
    )


def check_unicode(text: str) -> None:
  """Refuses text that UTF-8 cannot hold.

  Raises:
    DataError: if there is half of a surrogate pair.
  """
  try:
    text.encode("utf-8")
  except UnicodeEncodeError as error:
    raise DataError(
      f"Text with a lone surrogate cannot be encoded: {error}."
    ) from error


def check_range(token_ids: Sequence[int], size: int) -> None:
  """Refuses ids that no token can have.

  Raises:
    ValueError: if an id is outside [0, size).
  """
  for token_id in token_ids:
    if not 0 <= token_id < size:
      raise ValueError(f"Token id {token_id} is outside the vocabulary [0, {size}).")


def _fingerprint(model: bytes) -> str:
  return hashlib.sha256(model).hexdigest()


def read_description(path: str | Path) -> dict:
  """Reads a folder's vocabulary.json (kind, size, fingerprint, specials).

  Raises:
    DataError: if there is none, or it is not JSON.
  """
  file = Path(path) / "vocabulary.json"
  if not file.is_file():
    raise DataError(f"{path} is not a vocabulary folder: it has no vocabulary.json.")
  return read_json(file)


def load_vocabulary(path: str | Path) -> Vocabulary:
  """Loads whatever vocabulary a folder holds.

  Raises:
    DataError: if the folder is none, is damaged, or is of an unknown kind.
  """
  description = read_description(path)
  kind = description.get("kind")
  if kind == "sentencepiece":
    return SentencePieceVocabulary(path)
  if kind == "byte":
    vocabulary = ByteVocabulary()
    if description.get("fingerprint") != vocabulary.fingerprint:
      raise DataError(
        f"{path} holds a byte vocabulary with other special tokens than {SPECIALS}."
      )
    return vocabulary
  if kind == "tokenizers":
    # Imported here because it imports this file.
    from phi4_jax.data.tokenizers_vocabulary import TokenizersVocabulary

    return TokenizersVocabulary(path)
  raise DataError(
    f"{path} holds a vocabulary of kind {kind!r}; known kinds are sentencepiece, byte, "
    "tokenizers."
  )
