"""A vocabulary over a Hugging Face tokenizer.json: an imported model's own tokens.

Text never gives a control token, whatever it looks like: a user who types
`<|im_start|>` gets ordinary characters. A byte-level vocabulary gives back every text
exactly. A SentencePiece-like one takes U+2581 for a space, and where its file puts a
space before those texts only that have none, such a space at the beginning is lost.

`hf_vocabulary.py` and `gguf_vocabulary.py` write the folders that are read here.

Differs: `tokenizers` itself makes control tokens of text that looks like them.
"""

from collections.abc import Sequence
from pathlib import Path

from phi4_jax.common.errors import DataError
from phi4_jax.data import tokenizer_json
from phi4_jax.data.chat_formats import format_from_json
from phi4_jax.data.vocabularies import check_range, check_unicode, read_description


class TokenizersVocabulary:
  """The tokens of an imported model.

  Attributes:
    path: the folder.
    size: one more than the highest id of a token. The model's embedding may have more
      rows, which no token uses.
    fingerprint: of everything that decides ids, and of the chat format.
    eos_id: closes a document.
    stop_ids: where an answer ends.
    chat: the chat format, or None for a base model.
  """

  def __init__(self, path: str | Path):
    """Loads a vocabulary folder.

    Raises:
      DataError: if the folder is incomplete or was changed.
    """
    self.path = Path(path)
    description = read_description(self.path)
    file = self.path / "tokenizer.json"
    if not file.is_file():
      raise DataError(f"{file} does not exist; import the model again.")
    document = tokenizer_json.read_tokenizer_json(file)
    for field in ("chat", "eos_id", "stop_ids", "specials"):
      if field not in description:
        raise DataError(f"{self.path / 'vocabulary.json'} has no {field!r}.")
    chat = description["chat"]
    self.chat = None if chat is None else format_from_json(chat)
    self.eos_id: int = description["eos_id"]
    self.stop_ids: tuple[int, ...] = tuple(description["stop_ids"])
    self.size = tokenizer_json.highest_id(document) + 1
    self.fingerprint = tokenizer_json.fingerprint_tokenizer(document, self.eos_id, chat)
    for field in ("size", "fingerprint"):
      if description.get(field) != getattr(self, field):
        raise DataError(
          f"{file} has {field} {getattr(self, field)}, but "
          f"{self.path / 'vocabulary.json'} says {description.get(field)}: one of the "
          "two files was changed."
        )
    self._specials: dict[str, int] = dict(description["specials"])
    self._names = {token_id: name for name, token_id in self._specials.items()}
    self._reserved = frozenset(
      entry["id"]
      for entry in tokenizer_json.added_tokens(document)
      if tokenizer_json.is_reserved(entry)
    ) | frozenset(self._names)
    self._bytes = tokenizer_json.token_bytes_table(document, set(self._names))
    self._missing_bytes = tokenizer_json.missing_bytes(document)
    unknown = document["model"].get("unk_token")
    self._unknown_id = document["model"]["vocab"].get(unknown, -1)
    self._tokenizer = tokenizer_json.make_text_tokenizer(document)
    # Some put a space before every text: it is none of the text.
    probe = self._tokenizer.encode("a", add_special_tokens=False).ids
    self._adds_space = b"".join(self._bytes[i] for i in probe) == b" a"

  @property
  def specials(self) -> dict[str, int]:
    """The special tokens by name."""
    return dict(self._specials)

  def encode(self, text: str) -> list[int]:
    """Encodes text; no text gives a control token; nothing is added.

    Raises:
      DataError: if the vocabulary cannot hold the text, or it is not valid Unicode.
    """
    check_unicode(text)
    token_ids = self._tokenizer.encode(text, add_special_tokens=False).ids
    if (
      not self._reserved.isdisjoint(token_ids)
      or self._unknown_id in token_ids
      or (self._may_lose(text) and self.decode(token_ids) != text)
    ):
      lost = [c for c in dict.fromkeys(text) if not self._holds(c)]
      raise DataError(
        f"The vocabulary in {self.path} has no token for {lost[:3]} in {text[:60]!r}."
      )
    return token_ids

  def _may_lose(self, text: str) -> bool:
    """Says whether `tokenizers` may drop a character, which it does without a word."""
    if not self._missing_bytes:
      return False
    data = text.encode("utf-8")
    return len(data.translate(None, self._missing_bytes)) < len(data)

  def _holds(self, character: str) -> bool:
    token_ids = self._tokenizer.encode(character, add_special_tokens=False).ids
    known = self._reserved.isdisjoint(token_ids) and self._unknown_id not in token_ids
    return known and self.decode(token_ids) == character

  def decode(self, token_ids: Sequence[int]) -> str:
    """Decodes ids, leaving out specials; broken UTF-8 becomes U+FFFD.

    So does an id below `size` that is no token's.

    Raises:
      ValueError: if an id is outside [0, size).
    """
    ids = [int(token_id) for token_id in token_ids]
    check_range(ids, self.size)
    text = b"".join([self._bytes[i] for i in ids]).decode("utf-8", errors="replace")
    return text.removeprefix(" ") if self._adds_space else text

  def token_text(self, token_id: int) -> str:
    """Shows one token to a person: specials by name, broken bytes as `<0xE2>`."""
    check_range([token_id], self.size)
    token_id = int(token_id)
    if token_id in self._names:
      return self._names[token_id]
    try:
      return self._bytes[token_id].decode("utf-8")
    except UnicodeDecodeError:
      return "".join(
        chr(byte) if 32 <= byte < 127 else f"<0x{byte:02X}>"
        for byte in self._bytes[token_id]
      )

  def token_bytes(self, token_id: int) -> bytes:
    """The bytes that a token adds to a text; none for specials."""
    check_range([token_id], self.size)
    return self._bytes[int(token_id)]
