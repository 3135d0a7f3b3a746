"""SentencePiece's byte-pair models as a tokenizer.json.

A model is a list of pieces with scores; the pair whose joint has the highest score is
joined first. A tokenizer.json holds the same as a list of merges. The conversion is
checked against SentencePiece itself where a model file is at hand.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import sentencepiece

from phi4_jax.common.errors import DataError
from phi4_jax.data.tokenizer_json import make_text_tokenizer
from phi4_jax.data.vocabularies import SPACE_MARK

# The kinds of a piece, numbered as in SentencePiece's and GGUF's files.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)

_PROBES = (
  "Hello, world! It costs 1,234.56 dollars.",
  "  two  spaces   three \n\nlines\ttab\r\n",
  "caf\u00e9 na\u00efve \u4f60\u597d \U0001f600 \u0645\u0631\u062d\u0628\u0627 \ufb01",
  "def f(x):\n    return x ** 2  # comment\n",
  "aaaaaaaaaaaaaaaa bbbbbbbb 0000000 ........ ",
  "THE the The tHe unbelievably internationalization",
)


def added_token(token_id: int, content: str, *, special: bool) -> dict[str, Any]:
  """Returns an entry of a tokenizer.json's added_tokens."""
  flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
  return {"id": token_id, "content": content, **flags, "special": special}


def sentencepiece_document(
  pieces: Sequence[str],
  scores: Sequence[float],
  kinds: Sequence[int],
  *,
  space_before: bool,
) -> dict[str, Any]:
  """Returns the tokenizer.json of a SentencePiece byte-pair model.

  Args:
    pieces: by id, spaces as U+2581, bytes as `<0xE2>`.
    scores: of the pieces; higher is joined earlier.
    kinds: of the pieces, such as NORMAL.
    space_before: a space is put before every text.
  """
  vocab = {piece: i for i, piece in enumerate(pieces)}
  unknown = [
    piece for piece, kind in zip(pieces, kinds, strict=True) if kind == UNKNOWN
  ]
  spaces: list[dict[str, Any]] = [
    {"type": "Replace", "pattern": {"String": " "}, "content": SPACE_MARK}
  ]
  if space_before:
    spaces.insert(0, {"type": "Prepend", "prepend": SPACE_MARK})
  return {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [
      added_token(i, piece, special=kind != USER_DEFINED)
      for i, (piece, kind) in enumerate(zip(pieces, kinds, strict=True))
      if kind in (UNKNOWN, CONTROL, USER_DEFINED)
    ],
    "normalizer": {"type": "Sequence", "normalizers": spaces},
    "pre_tokenizer": None,
    "post_processor": None,
    "decoder": {
      "type": "Sequence",
      "decoders": [
        {"type": "Replace", "pattern": {"String": SPACE_MARK}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        *([{"type": "Strip", "content": " ", "start": 1, "stop": 0}] * space_before),
      ],
    },
    "model": {
      "type": "BPE",
      "dropout": None,
      "unk_token": unknown[0] if unknown else None,
      "continuing_subword_prefix": None,
      "end_of_word_suffix": None,
      "fuse_unk": True,
      "byte_fallback": True,
      "ignore_merges": False,
      "vocab": vocab,
      "merges": _merges(vocab, scores, kinds),
    },
  }


def _merges(
  vocab: Mapping[str, int], scores: Sequence[float], kinds: Sequence[int]
) -> list[list[str]]:
  """Returns the pairs that may be joined, the best joint first."""
  usable = {piece for piece, i in vocab.items() if kinds[i] == NORMAL}
  found = []
  for piece in usable:
    for cut in range(1, len(piece)):
      left, right = piece[:cut], piece[cut:]
      if left in usable and right in usable:
        found.append((-scores[vocab[piece]], vocab[piece], vocab[left], left, right))
  return [[left, right] for *_, left, right in sorted(found)]


def read_sentencepiece_model(path: str | Path) -> dict[str, Any]:
  """Reads a tokenizer.model as a tokenizer.json.

  Raises:
    DataError: if it is none, or gives other ids than SentencePiece does (unigram
      models and those that normalise text do).
  """
  processor = sentencepiece.SentencePieceProcessor()
  try:
    processor.Load(str(path))
  except (OSError, RuntimeError) as error:
    raise DataError(f"{path} is not a SentencePiece model: {error}.") from error

  def kind(i: int) -> int:
    if processor.is_control(i):
      return CONTROL
    if processor.is_unknown(i):
      return UNKNOWN
    if processor.is_unused(i):
      return UNUSED
    return BYTE if processor.is_byte(i) else NORMAL

  ids = range(processor.get_piece_size())
  document = sentencepiece_document(
    [processor.id_to_piece(i) for i in ids],
    [processor.get_score(i) for i in ids],
    [kind(i) for i in ids],
    space_before=processor.encode("a", out_type=str)[0].startswith(SPACE_MARK),
  )
  tokenizer = make_text_tokenizer(document)
  for text in _PROBES:
    ours = tokenizer.encode(text, add_special_tokens=False).ids
    if ours != processor.encode(text):
      raise DataError(
        f"{path} cannot be turned into a tokenizer.json: {text!r} would become "
        f"{ours[:12]} instead of {processor.encode(text)[:12]}. Byte-pair models "
        "without normalisation are supported. Save the tokenizer with transformers, "
        "which writes tokenizer.json."
      )
  return document
