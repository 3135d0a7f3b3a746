"""A Hugging Face tokenizer.json as a dictionary: what it holds, and what it may do.

Two families of byte-pair encodings are known: byte-level (GPT-2's alphabet of 256
letters for 256 bytes; phi-4, Llama 3, SmolLM2) and SentencePiece-like (spaces are
U+2581, other characters fall back to tokens `<0xE2>`; phi-3, Llama 2).
"""

import copy
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import tokenizers

from phi4_jax.common.errors import DataError
from phi4_jax.common.io import read_json
from phi4_jax.data.vocabularies import SPACE_MARK

# The bytes that can occur in UTF-8.
_UTF8_BYTES = [b for b in range(256) if b not in (0xC0, 0xC1, *range(0xF5, 0x100))]
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_letters() -> dict[str, int]:
  """Returns GPT-2's letter of each byte: itself if printable, or one above 255."""
  printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
  letters = {chr(byte): byte for byte in printable}
  others = [byte for byte in range(256) if byte not in printable]
  letters |= {chr(256 + i): byte for i, byte in enumerate(others)}
  return letters


BYTE_LETTERS = _byte_letters()


def read_tokenizer_json(path: str | Path) -> dict[str, Any]:
  """Reads a tokenizer.json.

  Raises:
    DataError: if it is none, or its model is not a byte-pair encoding.
  """
  document = read_json(path)
  if not isinstance(document, dict) or not isinstance(document.get("model"), dict):
    raise DataError(f"{path} is not a tokenizer.json: it has no 'model'.")
  model = document["model"]
  # Old files leave the type out; only byte-pair encodings have merges.
  kind = model.get("type") or ("BPE" if "merges" in model else None)
  if kind != "BPE":
    raise DataError(
      f"{path} holds a tokenizer of type {kind}; required is BPE. Others lose "
      "characters, or make special tokens of text."
    )
  return document


def family(document: Mapping[str, Any]) -> Literal["byte-level", "sentencepiece"]:
  """Returns which family a tokenizer is of.

  Raises:
    DataError: if it is of neither: then the bytes of its tokens are not known.
  """
  parts = json.dumps([document.get("pre_tokenizer"), document.get("decoder")])
  if '"ByteLevel"' in parts:
    return "byte-level"
  if document["model"].get("byte_fallback"):
    return "sentencepiece"
  raise DataError(
    "The tokenizer is neither byte-level (a ByteLevel pre-tokenizer or decoder) nor "
    "SentencePiece-like (model.byte_fallback): the bytes of its tokens are unknown."
  )


def added_tokens(document: Mapping[str, Any]) -> list[dict[str, Any]]:
  """Returns what was added to the model's own tokens."""
  return list(document.get("added_tokens") or ())


def is_reserved(added: Mapping[str, Any]) -> bool:
  """Says whether no text may give this token: it is special, or looks like markup.

  Files mark some control tokens (`<tool_call>`) as not special, and transformers
  then makes them of a user's text; white space and words that were added as tokens
  are text like any other.
  """
  content = added["content"]
  return bool(
    added.get("special")
    or (content.startswith("<") and content.endswith(">"))
    or (content.startswith("[") and content.endswith("]"))
  )


def highest_id(document: Mapping[str, Any]) -> int:
  """Returns the highest id of a tokenizer."""
  ids = [*document["model"]["vocab"].values()]
  return max(ids + [added["id"] for added in added_tokens(document)], default=-1)


def token_bytes_table(document: Mapping[str, Any], specials: set[int]) -> list[bytes]:
  """Returns the bytes of each id: none for specials, U+FFFD for ids of no token."""
  table = ["\ufffd".encode()] * (highest_id(document) + 1)
  byte_level = family(document) == "byte-level"
  for piece, token_id in document["model"]["vocab"].items():
    if byte_level:
      try:
        table[token_id] = bytes([BYTE_LETTERS[letter] for letter in piece])
      except KeyError:  # a token that was added, or one that no text gives
        table[token_id] = piece.encode("utf-8")
    elif byte := _BYTE_PIECE.fullmatch(piece):
      table[token_id] = bytes([int(byte[1], 16)])
    else:
      table[token_id] = piece.replace(SPACE_MARK, " ").encode("utf-8")
  for added in added_tokens(document):
    table[added["id"]] = added["content"].encode("utf-8")
  for token_id in specials:
    table[token_id] = b""
  return table


def missing_bytes(document: Mapping[str, Any]) -> bytes:
  """Returns the bytes of UTF-8 that have no token: texts with them cannot be held."""
  vocab = document["model"]["vocab"]
  if family(document) == "byte-level":
    letters = {byte: letter for letter, byte in BYTE_LETTERS.items()}
    return bytes(byte for byte in _UTF8_BYTES if letters[byte] not in vocab)
  return bytes(byte for byte in _UTF8_BYTES if f"<0x{byte:02X}>" not in vocab)


def make_text_tokenizer(document: Mapping[str, Any]) -> tokenizers.Tokenizer:
  """Builds the tokenizer of plain text: reserved tokens are out of its reach.

  It cuts, pads and adds nothing. Merges that would spell a reserved token are left
  out (some files that were converted from SentencePiece have them).

  Raises:
    DataError: if `tokenizers` cannot read the file.
  """
  document = copy.copy(dict(document))
  added = [dict(entry, special=is_reserved(entry)) for entry in added_tokens(document)]
  document["added_tokens"] = added
  document["truncation"] = document["padding"] = document["post_processor"] = None
  reserved = {entry["content"] for entry in added if entry["special"]}
  merges = document["model"]["merges"]
  kept = [merge for merge in merges if _spell(merge) not in reserved]
  document["model"] = {"type": "BPE", **document["model"], "merges": kept}
  try:
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(document))
  except Exception as error:  # the package raises bare Exceptions
    raise DataError(f"The tokenizer.json cannot be used: {error}.") from error
  # Special tokens are text from now on; those that are not special still match.
  tokenizer.encode_special_tokens = True
  return tokenizer


def _spell(merge: Any) -> str:
  # "a b" in older files, ["a", "b"] in newer ones.
  return merge.replace(" ", "", 1) if isinstance(merge, str) else "".join(merge)


def fingerprint_tokenizer(document: Mapping[str, Any], *others: Any) -> str:
  """Returns a SHA-256 of everything that decides ids, and of `others` (JSON)."""
  parts = [document.get(name) for name in ("normalizer", "pre_tokenizer", "model")]
  content = json.dumps([*parts, added_tokens(document), *others], sort_keys=True)
  return hashlib.sha256(content.encode("ascii")).hexdigest()
