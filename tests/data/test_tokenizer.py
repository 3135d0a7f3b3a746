"""Vocabularies: exact round trips, special tokens out of reach, repeatable training."""

import json
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.data.tokenizer import (
  SPECIALS,
  ByteVocabulary,
  SentencePieceVocabulary,
  Vocabulary,
  VocabularyConfig,
  load_vocabulary,
  train_vocabulary,
)
from tests.data.conftest import TOY, toy_texts

CODE = "def f(x):\n    if x:\n\n        return x\n\treturn 3.14 + y  # caf\u00e9\r\n"
TEXTS = [CODE, "  two  spaces  ", "the cat sat on the mat", "\n\n# Title\n"] * 20


@pytest.fixture(scope="module", params=["bpe", "unigram", "byte"])
def vocabulary(request, tmp_path_factory):
  if request.param == "byte":
    return ByteVocabulary()
  config = VocabularyConfig(size=340, model_type=request.param)
  return train_vocabulary(TEXTS, config, tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize(
  "text",
  [
    "",
    " ",
    "   a",
    "a   ",
    "\n",
    "\n\n \n",
    "\r\n\t\x00\x01",
    CODE,
    "\u2581",
    "a\u2581b \u2581\u2581 ",
    "\u2585 \u2047 ",
    "\ufb01 \u00bd \u212b e\u0301 \u00e9",  # what normalisation would change
    "\ufeff\u200b\u00a0\u3000",
    "\U0001f600 \u0645\u0631\u062d\u0628\u0627 \u4f60\u597d",
    "<unk> <s> </s> <0x41> <|im_start|>",
  ],
)
def test_round_trip_of_hard_texts(vocabulary, text):
  token_ids = vocabulary.encode(text)
  assert vocabulary.decode(token_ids) == text
  assert all(0 <= token_id < vocabulary.size for token_id in token_ids)


@settings(max_examples=150, deadline=None)
@given(st.text())
@example("\u2581 \u2581")
def test_round_trip_of_any_text(vocabulary, text):
  assert vocabulary.decode(vocabulary.encode(text)) == text


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([*SPECIALS, "<unk>", "user", "\n", " ", "x"])))
def test_no_text_gives_a_special_token(vocabulary, parts):
  token_ids = vocabulary.encode("".join(parts))
  assert not set(token_ids) & set(vocabulary.specials.values())
  assert vocabulary.decode(token_ids) == "".join(parts)


def test_decoding_leaves_specials_out(vocabulary):
  a, b = vocabulary.encode("a"), vocabulary.encode(" b")
  token_ids = [vocabulary.im_start_id, *a, vocabulary.im_sep_id, *b]
  assert vocabulary.decode([*token_ids, vocabulary.im_end_id]) == "a b"
  assert vocabulary.decode([*b, vocabulary.eos_id, *b]) == " b b"


def test_specials_are_distinct_and_named(vocabulary):
  names = ["<|endoftext|>", "<|im_start|>", "<|im_sep|>", "<|im_end|>"]
  ids = [
    vocabulary.eos_id,
    vocabulary.im_start_id,
    vocabulary.im_sep_id,
    vocabulary.im_end_id,
  ]
  assert len(set(ids)) == 4
  assert [vocabulary.token_text(token_id) for token_id in ids] == names
  assert isinstance(vocabulary, Vocabulary)


def test_the_bytes_of_tokens_make_the_text(vocabulary):
  for text in (CODE, "  a", "\U0001f600 e\u0301 \u4f60", "\x00\xff"):
    token_ids = vocabulary.encode(text)
    whole = b"".join(vocabulary.token_bytes(token_id) for token_id in token_ids)
    assert whole == text.encode("utf-8")
  assert all(vocabulary.token_bytes(i) == b"" for i in vocabulary.specials.values())


def test_answers_end_at_the_end_of_a_turn_or_text(vocabulary):
  assert vocabulary.stop_ids == (vocabulary.im_end_id, vocabulary.eos_id)
  assert vocabulary.chat.name == "phi4"
  assert vocabulary.chat.control_names() <= set(vocabulary.specials)


def test_ids_outside_the_vocabulary_are_refused(vocabulary):
  for bad in (-1, vocabulary.size):
    with pytest.raises(ValueError, match=f"Token id {bad} is outside"):
      vocabulary.decode([bad])
    with pytest.raises(ValueError, match=f"Token id {bad} is outside"):
      vocabulary.token_text(bad)


def test_broken_utf8_is_shown_not_raised():
  vocabulary = ByteVocabulary()
  euro = vocabulary.encode("\u20ac")
  assert vocabulary.decode(euro[:2]) == "\ufffd"
  assert vocabulary.token_text(euro[0]) == "<0xE2>"


def test_lone_surrogates_are_refused(vocabulary):
  with pytest.raises(DataError, match="lone surrogate"):
    vocabulary.encode("a\ud800")


def test_toy_vocabulary_has_the_tokens_that_the_task_wants(toy_vocabulary):
  def split(text):
    return [toy_vocabulary.token_text(i) for i in toy_vocabulary.encode(text)]

  assert toy_vocabulary.size <= TOY.size
  assert split("steps:4*4=6,6-3=3,so 3") == (
    ["steps:", "4", "*", "4", "=", "6", ",", "6", "-", "3", "=", "3", ",so", " ", "3"]
  )
  assert split("q:1+2? a:jumps:") == ["q:", "1", "+", "2", "?", " a:", "jumps:"]
  assert split("user") == ["user"] and split("assistant") == ["assistant"]
  # The longest exchange (6 operations, 7 digits) fits rows of 64.
  question = len(split("1+2+3+4+5+1+2?"))
  answer = len(split("steps:" + ",".join(["1+2=3"] * 6) + ",so 3"))
  assert question + answer + 8 <= 64


def test_without_bytes_foreign_characters_are_refused(toy_vocabulary):
  with pytest.raises(DataError, match=r"no token for \['Z'\].*byte_fallback"):
    toy_vocabulary.encode("so Z")
  with pytest.raises(DataError, match="no token for"):
    toy_vocabulary.encode("so \u2581")


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_training_twice_gives_the_same_bytes(tmp_path, model_type):
  config = VocabularyConfig(size=330, model_type=model_type)
  for name in ("a", "b"):
    train_vocabulary(toy_texts(50), config, tmp_path / name)
  for file in ("vocabulary.model", "vocabulary.json"):
    assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_a_size_that_the_text_cannot_fill_gives_fewer(tmp_path, model_type):
  config = VocabularyConfig(size=5000, model_type=model_type)
  vocabulary = train_vocabulary(["aab ab"] * 5, config, tmp_path)
  assert 256 < vocabulary.size < 300
  assert json.loads((tmp_path / "vocabulary.json").read_text())["size"] == (
    vocabulary.size
  )
  assert vocabulary.decode(vocabulary.encode("aab ab z")) == "aab ab z"


def test_a_size_below_the_characters_is_refused_with_the_number(tmp_path):
  letters = "".join(chr(0x4E00 + i) for i in range(200))
  config = VocabularyConfig(size=300)
  with pytest.raises(ConfigError, match=r"size \(300\) must be at least (\d+)") as info:
    train_vocabulary([letters], config, tmp_path)
  need = int(re.search(r"at least (\d+)", str(info.value))[1])
  # With one more than needed it works: the number can be trusted.
  train_vocabulary([letters], VocabularyConfig(size=need + 1), tmp_path)


@pytest.mark.parametrize("texts", [[], ["", ""], ["\u2581\u2585"]])
def test_no_text_is_refused(tmp_path, texts):
  with pytest.raises(DataError, match="no text"):
    train_vocabulary(texts, VocabularyConfig(size=300), tmp_path)


def test_newlines_and_long_texts_are_learned(tmp_path):
  config = VocabularyConfig(
    size=60, byte_fallback=False, symbols=(), split_by_script=False
  )
  texts = ["abc " * 20_000, "x\n", "y\r\n"]
  vocabulary = train_vocabulary(texts, config, tmp_path)
  for text in texts:
    assert vocabulary.decode(vocabulary.encode(text)) == text
  assert len(vocabulary.encode("abc abc abc")) == 3


@pytest.mark.parametrize(
  ("fields", "why"),
  [
    ({"size": 200}, r"size \(200\) must be above 268"),
    ({"size": 9, "byte_fallback": False}, "must be above 12"),
    ({"character_coverage": 0.5}, "character_coverage"),
    ({"byte_fallback": False, "character_coverage": 0.99}, "must be 1 when"),
    ({"symbols": ("a", "a")}, "twice"),
    ({"symbols": ("so ",)}, "without spaces"),
    ({"symbols": ("",)}, "without spaces"),
    ({"symbols": ("<|im_end|>",)}, "not a special token"),
  ],
)
def test_config(fields, why):
  with pytest.raises(ConfigError, match=why):
    VocabularyConfig(**{"size": 400, **fields})


def test_folders_load_as_what_they_are(tmp_path):
  trained = train_vocabulary(TEXTS, VocabularyConfig(size=320), tmp_path / "sp")
  loaded = load_vocabulary(tmp_path / "sp")
  assert isinstance(loaded, SentencePieceVocabulary)
  assert loaded.fingerprint == trained.fingerprint
  assert loaded.encode(CODE) == trained.encode(CODE)
  ByteVocabulary().save(tmp_path / "bytes")
  assert isinstance(load_vocabulary(tmp_path / "bytes"), ByteVocabulary)


def test_damaged_folders_are_named(tmp_path):
  with pytest.raises(DataError, match=r"none is not a vocabulary folder"):
    load_vocabulary(tmp_path / "none")
  for name, texts in (("a", TEXTS), ("b", TEXTS[:1])):
    train_vocabulary(texts, VocabularyConfig(size=320), tmp_path / name)
  (tmp_path / "a" / "vocabulary.model").write_bytes(
    (tmp_path / "b" / "vocabulary.model").read_bytes()
  )
  with pytest.raises(DataError, match=r"a/vocabulary\.model has .* was changed"):
    load_vocabulary(tmp_path / "a")
  (tmp_path / "b" / "vocabulary.model").unlink()
  with pytest.raises(DataError, match=r"b/vocabulary\.model does not exist"):
    load_vocabulary(tmp_path / "b")
  (tmp_path / "b" / "vocabulary.json").write_text('{"kind": "morse"}')
  with pytest.raises(DataError, match="kind 'morse'; known kinds are"):
    load_vocabulary(tmp_path / "b")


def test_what_the_texts_raise_is_raised_as_it_is(tmp_path):
  def texts():
    yield "a text to begin with"
    raise DataError("Row 2 of texts.jsonl is not JSON.")

  with pytest.raises(DataError, match="^Row 2 of texts.jsonl is not JSON.$"):
    train_vocabulary(texts(), VocabularyConfig(size=400), tmp_path / "vocabulary")
  assert not (tmp_path / "vocabulary").exists()
