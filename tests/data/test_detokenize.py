"""Streams of text: together the whole, and never half a character."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from phi4_jax.data.detokenize import StreamDecoder
from phi4_jax.data.hf_vocabulary import import_hf_tokenizer
from phi4_jax.data.sentencepiece_files import NORMAL, UNKNOWN, sentencepiece_document
from phi4_jax.data.tokenizer import ByteVocabulary, VocabularyConfig, train_vocabulary
from phi4_jax.data.vocabularies import SPACE_MARK
from tests.data.tokenizer_folders import write_folder

BYTES = ByteVocabulary()
TEXTS = ["the cat sat on the mat \u4f60\u597d", "caf\u00e9 \U0001f600"] * 10


@pytest.fixture(scope="module", params=["byte", "sentencepiece", "hf", "hf spaces"])
def vocabulary(request, tmp_path_factory):
  if request.param == "byte":
    return BYTES
  folder = tmp_path_factory.mktemp("v")
  if request.param == "sentencepiece":
    return train_vocabulary(TEXTS, VocabularyConfig(size=300), folder)
  document = None
  if request.param == "hf spaces":  # puts a space before every text
    pieces = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += [SPACE_MARK, *"abc", SPACE_MARK + "a", "\u4f60"]
    kinds = [UNKNOWN, 3] + [6] * 256 + [NORMAL] * 6
    document = sentencepiece_document(
      pieces, [-float(i) for i in range(len(pieces))], kinds, space_before=True
    )
  source = write_folder(tmp_path_factory.mktemp("s"), document)
  return import_hf_tokenizer(source, folder, vocab_size=1000, config={})


def stream(vocabulary, ids):
  decoder = StreamDecoder(vocabulary)
  return [*(decoder.push(token_id) for token_id in ids), decoder.finish()]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_pieces_of_any_ids_make_the_whole(vocabulary, data):
  ids = data.draw(st.lists(st.integers(0, vocabulary.size - 1), max_size=14))
  assert "".join(stream(vocabulary, ids)) == vocabulary.decode(ids)


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=12))
@example("\U0001f469\U0001f3fd\u200d\U0001f4bb e\u0301 \u4f60\u597d")
def test_no_piece_has_half_a_character(vocabulary, text):
  text = text.replace(SPACE_MARK, "")
  ids = vocabulary.encode(text)
  pieces = stream(vocabulary, ids)
  assert "".join(pieces) == text and pieces[-1] == ""
  assert ("\ufffd" in "".join(pieces)) == ("\ufffd" in text)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(
  [0xE2, 0x82, 0xAC, 0xF0, 0x9F, 0x98, 0x80, 0xC3, 0xA9, 0xED, 0xA0, 0xFF, 0x41, None]
), max_size=16))  # fmt: skip
def test_broken_bytes_become_what_decode_makes_of_them(values):
  ids = [BYTES.im_end_id if v is None else BYTES.encode("\0")[0] + v for v in values]
  assert "".join(stream(BYTES, ids)) == BYTES.decode(ids)


def test_a_character_is_shown_when_it_is_whole():
  ids = BYTES.encode("a\u20acb")
  assert stream(BYTES, ids) == ["a", "", "", "\u20ac", "b", ""]
  assert stream(BYTES, ids[:3]) == ["a", "", "", "\ufffd"]
  # It is certain after `b` that the character does not come.
  assert stream(BYTES, [*ids[:3], ids[4]]) == ["a", "", "", "\ufffdb", ""]
  # A special token adds nothing, and does not come between.
  assert stream(BYTES, [*ids[:2], BYTES.im_end_id, *ids[2:4]])[-2] == "\u20ac"


def test_ids_beyond_the_vocabulary_become_a_replacement_character():
  ids = [*BYTES.encode("a\u20ac")[:2], BYTES.size + 7, *BYTES.encode("b")]
  assert stream(BYTES, ids) == ["a", "", "\ufffd\ufffd", "b", ""]
  with pytest.raises(ValueError, match="Token id -1 is outside"):
    StreamDecoder(BYTES).push(-1)


def test_a_decoder_can_be_used_again():
  decoder = StreamDecoder(BYTES)
  euro = BYTES.encode("\u20ac")
  assert decoder.push(euro[0]) + decoder.finish() == "\ufffd"
  assert [decoder.push(i) for i in euro] == ["", "", "\u20ac"]
