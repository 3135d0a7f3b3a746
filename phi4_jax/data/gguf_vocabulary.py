"""Taking a vocabulary from the metadata of a GGUF file.

GGUF has the tokens, the merges or scores, and the *name* of the pre-tokenizer: how
text is cut before merging. The cuts are those of the original tokenizer.json files,
which llama.cpp's own regular expressions were made from.

Differs: transformers drops the cutting into digits when it reads a GGUF file (it
gives other ids for two blanks before a digit); here they stay.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from phi4_jax.common.errors import DataError
from phi4_jax.common.io import write_atomic, write_json
from phi4_jax.data.hf_vocabulary import write_vocabulary_folder
from phi4_jax.data.sentencepiece_files import (
  BYTE,
  CONTROL,
  UNKNOWN,
  USER_DEFINED,
  added_token,
  sentencepiece_document,
)
from phi4_jax.data.tokenizers_vocabulary import TokenizersVocabulary

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# tiktoken's cl100k: phi-4 and Llama 3.
CL100K_PATTERN = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}"
# Qwen 2: one digit at a time.
_QWEN2_PATTERN = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_REST}"
# tiktoken's o200k: Phi-4-mini.
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
O200K_PATTERN = (
  rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?"
  rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
  r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _byte_level(*, use_regex: bool) -> dict[str, Any]:
  return {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": use_regex,
  }


def _in_sequence(*parts: dict[str, Any]) -> dict[str, Any]:
  return {"type": "Sequence", "pretokenizers": list(parts)}


def split_by(pattern: str) -> dict[str, Any]:
  """Returns the pre-tokenizer that cuts text by a pattern, then into bytes."""
  split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}
  return _in_sequence({**split, "invert": False}, _byte_level(use_regex=False))


_GPT2 = _byte_level(use_regex=True)
_DIGITS = _in_sequence({"type": "Digits", "individual_digits": True}, _GPT2)
# Name in tokenizer.ggml.pre -> (pre-tokenizer, whole words are looked up first).
_PRE_TOKENIZERS: dict[str, tuple[dict[str, Any], bool]] = {
  "smollm": (_DIGITS, False),
  "starcoder": (_DIGITS, False),
  "refact": (_DIGITS, False),
  "gpt-2": (_GPT2, False),
  "llama-bpe": (split_by(CL100K_PATTERN), True),
  "llama3": (split_by(CL100K_PATTERN), True),
  "dbrx": (split_by(CL100K_PATTERN), False),
  "gpt-4o": (split_by(O200K_PATTERN), False),
  "qwen2": (split_by(_QWEN2_PATTERN), False),
}


def known_cuts() -> tuple[str, ...]:
  """Returns the values of tokenizer.ggml.pre that are known."""
  return tuple(_PRE_TOKENIZERS)


def import_gguf_tokenizer(
  metadata: Mapping[str, Any],
  out_folder: str | Path,
  *,
  vocab_size: int,
  chat_format: str | None = None,
  where: str = "the GGUF file",
) -> TokenizersVocabulary:
  """Writes the vocabulary folder of a GGUF file.

  The folder gets a tokenizer.json, tokenizer_config.json and, if there is one, the
  chat template, so that a model exported with it is complete.

  Args:
    metadata: the file's keys (`tokenizer.ggml.tokens` and so on) and values.
    out_folder: the vocabulary folder to write.
    vocab_size: rows of the model's embedding.
    chat_format: name of a known chat format, instead of that of the template.
    where: the file, for messages.

  Raises:
    DataError: if the metadata holds no usable tokenizer, or one larger than the
      embedding, or if its chat template writes none of the known formats.
  """
  out = Path(out_folder)
  document = gguf_document(metadata, where=where)
  pieces = metadata["tokenizer.ggml.tokens"]
  names = {
    "bos_token": "bos", "eos_token": "eos", "pad_token": "padding",
    "unk_token": "unknown",
  }  # fmt: skip
  tokens: dict[str, str | None] = {}
  for name, key in names.items():
    token_id = metadata.get(f"tokenizer.ggml.{key}_token_id")
    known = token_id is not None and 0 <= token_id < len(pieces)
    tokens[name] = pieces[token_id] if known else None
  keys = ("eos_token_id", "eot_token_id", "eom_token_id")
  stops = [metadata.get(f"tokenizer.ggml.{key}") for key in keys]
  template = metadata.get("tokenizer.chat_template")
  settings = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "clean_up_tokenization_spaces": False,
    **{name: token for name, token in tokens.items() if token is not None},
  }
  if template is not None:
    settings["chat_template"] = template
    write_atomic(out / "chat_template.jinja", template)
  write_json(out / "tokenizer_config.json", settings)
  return write_vocabulary_folder(
    out,
    document,
    template=template,
    tokens=tokens,
    stop_ids=[int(token_id) for token_id in stops if token_id is not None],
    vocab_size=vocab_size,
    chat_format=chat_format,
    where=where,
  )


def gguf_document(metadata: Mapping[str, Any], *, where: str) -> dict[str, Any]:
  """Returns the tokenizer.json that a GGUF file's metadata describes.

  Raises:
    DataError: if something is missing, contradictory, or of an unknown kind.
  """
  model = metadata.get("tokenizer.ggml.model")
  if model not in ("gpt2", "llama"):
    raise DataError(
      f"{where} has a tokenizer of the kind {model!r} (tokenizer.ggml.model); known "
      "are gpt2 (byte-level BPE) and llama (SentencePiece BPE)."
    )
  tokens = list(_require(metadata, "tokens", where))
  if len(set(tokens)) < len(tokens):
    twice = next(token for i, token in enumerate(tokens) if token in tokens[:i])
    raise DataError(f"{where} has the token {twice!r} twice in tokenizer.ggml.tokens.")
  kinds = [int(kind) for kind in _require(metadata, "token_type", where)]
  if model == "llama":
    scores = [float(score) for score in _require(metadata, "scores", where)]
    # The first kind is NORMAL in both numberings, and so are the others.
    return sentencepiece_document(
      tokens,
      scores,
      kinds,
      space_before=bool(metadata.get("tokenizer.ggml.add_space_prefix", True)),
    )
  if BYTE in kinds:
    raise DataError(f"{where} has byte tokens in a byte-level vocabulary.")
  name = metadata.get("tokenizer.ggml.pre")
  if name not in _PRE_TOKENIZERS:
    raise DataError(
      f"{where} cuts text in the way {name!r} (tokenizer.ggml.pre), which is not "
      f"known here; known are {', '.join(_PRE_TOKENIZERS)}. Convert the model from its "
      "Hugging Face folder, which says how."
    )
  pre_tokenizer, ignore_merges = _PRE_TOKENIZERS[name]
  return {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [
      added_token(i, token, special=kinds[i] != USER_DEFINED)
      for i, token in enumerate(tokens)
      if kinds[i] in (UNKNOWN, CONTROL, USER_DEFINED)
    ],
    "normalizer": None,
    "pre_tokenizer": pre_tokenizer,
    "post_processor": None,
    "decoder": _byte_level(use_regex=True),
    "model": {
      "type": "BPE",
      "dropout": None,
      "unk_token": None,
      "continuing_subword_prefix": "",
      "end_of_word_suffix": "",
      "fuse_unk": False,
      "byte_fallback": False,
      "ignore_merges": ignore_merges,
      "vocab": {token: i for i, token in enumerate(tokens)},
      "merges": [merge.split(" ", 1) for merge in _require(metadata, "merges", where)],
    },
  }


def _require(metadata: Mapping[str, Any], name: str, where: str) -> Any:
  value = metadata.get(f"tokenizer.ggml.{name}")
  if value is None:
    found = [key for key in metadata if key.startswith("tokenizer.")]
    raise DataError(
      f"{where} has no tokenizer.ggml.{name} (found: {', '.join(found) or 'nothing'})."
    )
  return value
