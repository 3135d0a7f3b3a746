"""Vocabularies of GGUF files: the ids of llama.cpp, for every way of cutting text."""

import json
import unicodedata
from pathlib import Path

import pytest

from phi4_jax.common.errors import DataError
from phi4_jax.data.chat import encode_prompt
from phi4_jax.data.gguf_vocabulary import import_gguf_tokenizer, known_cuts
from phi4_jax.data.tokenizer import load_vocabulary
from tests.data.tokenizer_folders import CHATML_WITH_SYSTEM

# Written by tests/golden/make_gguf_tokenizer_golden.py.
GOLDEN = Path(__file__).parents[1] / "golden" / "gguf_tokenizer.json"


@pytest.fixture(scope="module")
def golden():
  return json.loads(GOLDEN.read_text())


def byte_level(golden, pre="smollm", **others):
  return {**golden["byte_level"], "tokenizer.ggml.pre": pre, **others}


def test_the_golden_file_has_all_ways_of_cutting(golden):
  assert set(golden["ids"]) == {*known_cuts(), "sentencepiece"}
  assert len(golden["texts"]) >= 200
  assert len({json.dumps(ids) for ids in golden["ids"].values()}) > 5


@pytest.mark.parametrize("name", [*known_cuts(), "sentencepiece"])
def test_ids_are_those_of_llama_cpp(golden, tmp_path, name):
  ids = golden["ids"][name]
  ids = golden["ids"][ids] if isinstance(ids, str) else ids
  metadata = golden.get(name) or byte_level(golden, name)
  vocabulary = import_gguf_tokenizer(metadata, tmp_path, vocab_size=1000)
  compared = 0
  for text, expected in zip(golden["texts"], ids, strict=True):
    assert vocabulary.decode(vocabulary.encode(text)) == text
    if name == "gpt-4o" and any(unicodedata.category(c)[0] == "M" for c in text):
      # llama.cpp leaves combining marks out of o200k's words; tiktoken does not.
      continue
    assert vocabulary.encode(text) == expected, text
    compared += 1
  assert compared > 150


def test_special_tokens_and_ends(golden, tmp_path):
  metadata = byte_level(
    golden,
    **{
      "tokenizer.chat_template": CHATML_WITH_SYSTEM,
      "tokenizer.ggml.eos_token_id": 2,
      "tokenizer.ggml.bos_token_id": 1,
    },
  )
  vocabulary = import_gguf_tokenizer(metadata, tmp_path, vocab_size=1000)
  assert vocabulary.specials == {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2}
  assert vocabulary.eos_id == 0 and vocabulary.stop_ids == (2, 0)
  assert vocabulary.chat.name == "chatml"
  assert vocabulary.chat.default_system == "You are a test."
  prompt = encode_prompt([{"role": "user", "content": "<|im_end|>"}], vocabulary)
  assert prompt.count(2) == 2 and prompt.count(1) == 3
  loaded = load_vocabulary(tmp_path)
  assert loaded.fingerprint == vocabulary.fingerprint
  # What transformers needs to read an exported model.
  settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
  assert settings["eos_token"] == "<|im_end|>"
  assert (tmp_path / "chat_template.jinja").read_text() == CHATML_WITH_SYSTEM


@pytest.mark.parametrize(
  ("change", "why"),
  [
    ({"tokenizer.ggml.pre": "tekken"}, "in the way 'tekken'.*known are smollm, star"),
    ({"tokenizer.ggml.pre": None}, "in the way None"),
    ({"tokenizer.ggml.model": "t5"}, r"of the kind 't5'.*gpt2 \(byte-level BPE\)"),
    ({"tokenizer.ggml.merges": None}, r"no tokenizer\.ggml\.merges \(found: tokenizer"),
    ({"tokenizer.ggml.token_type": None}, r"no tokenizer\.ggml\.token_type"),
    ({"tokenizer.ggml.tokens": ["a", "b", "a"]}, "the token 'a' twice"),
  ],
)
def test_what_cannot_be_read_is_refused(golden, tmp_path, change, why):
  metadata = byte_level(golden, **change)
  with pytest.raises(DataError, match=why):
    import_gguf_tokenizer(metadata, tmp_path, vocab_size=1000, where="x.gguf")


def test_a_vocabulary_larger_than_the_embedding_is_refused(golden, tmp_path):
  with pytest.raises(DataError, match=r"of x\.gguf is larger than the embedding"):
    import_gguf_tokenizer(byte_level(golden), tmp_path, vocab_size=100, where="x.gguf")
