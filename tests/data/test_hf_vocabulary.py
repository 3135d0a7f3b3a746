"""Vocabularies of Hugging Face folders: the same ids, no control token from text."""

import io
import json
import logging

import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.fuzz_texts import fuzz_texts
from phi4_jax.common.errors import DataError
from phi4_jax.data.hf_vocabulary import TokenizersVocabulary, import_hf_tokenizer
from phi4_jax.data.sentencepiece_files import added_token
from phi4_jax.data.tokenizer import Vocabulary, load_vocabulary
from tests.data.tokenizer_folders import (
  PHI4_CONTROLS,
  PHI4_FIXED,
  byte_level_document,
  write_folder,
)

NO_CONFIG = {"vocab_size": 1000, "config": {}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  document = byte_level_document(plain=("<tool_call>", "  \t  ", "EDH-CARE"))
  return write_folder(
    tmp_path_factory.mktemp("source"),
    document,
    template=PHI4_FIXED,
    eos_token="<|im_end|>",
    bos_token={"content": "<|endoftext|>", "special": True},
  )


@pytest.fixture(scope="module")
def vocabulary(folder, tmp_path_factory):
  return import_hf_tokenizer(folder, tmp_path_factory.mktemp("out"), **NO_CONFIG)


def test_ids_are_those_of_tokenizers(folder, vocabulary):
  theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
  texts = fuzz_texts(400, seed=0, controls=["[nothing]"])
  texts += ["a  \t  b", "we EDH-CARE for", "\ufffd\ufffe\uffff"]
  for text in texts:
    ids = vocabulary.encode(text)
    assert ids == theirs.encode(text, add_special_tokens=False).ids
    assert vocabulary.decode(ids) == text


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(
  st.sampled_from([*PHI4_CONTROLS, "<tool_call>", "<|", "|>", " ", "im_end"]),
  st.text(max_size=4),
), max_size=8))  # fmt: skip
def test_no_text_gives_a_control_token(vocabulary, parts):
  text = "".join(parts)
  ids = vocabulary.encode(text)
  # Those that were added stand behind the others: controls, then `<tool_call>`.
  tool_call = max(vocabulary.specials.values()) + 1
  assert vocabulary.token_text(tool_call) == "<tool_call>"
  assert not {*vocabulary.specials.values(), tool_call} & set(ids)
  assert vocabulary.decode(ids) == text


def test_the_tokenizers_package_would_give_control_tokens(folder, vocabulary):
  # Why the class is more than a thin wrapper.
  theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
  text = "<|im_end|><tool_call>"
  assert len(theirs.encode(text).ids) == 2
  theirs.encode_special_tokens = True
  assert theirs.encode(text).ids[-1] == theirs.token_to_id("<tool_call>")
  assert vocabulary.decode(vocabulary.encode(text)) == text
  assert len(vocabulary.encode(text)) > 10


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_decoding_any_ids_is_that_of_tokenizers(folder, vocabulary, data):
  theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
  ids = data.draw(st.lists(st.integers(0, vocabulary.size - 1), max_size=12))
  assert vocabulary.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
  assert vocabulary.decode(ids) == b"".join(
    vocabulary.token_bytes(i) for i in ids
  ).decode("utf-8", errors="replace")


def test_what_a_vocabulary_offers(vocabulary):
  assert isinstance(vocabulary, Vocabulary)
  assert list(vocabulary.specials) == list(PHI4_CONTROLS)
  assert vocabulary.token_text(vocabulary.specials["<|im_sep|>"]) == "<|im_sep|>"
  assert vocabulary.token_bytes(vocabulary.specials["<|im_sep|>"]) == b""
  assert vocabulary.token_text(vocabulary.encode("\xff")[0]) == "<0xC3>"
  assert vocabulary.chat.name == "phi4"
  for bad in (-1, vocabulary.size):
    with pytest.raises(ValueError, match=f"Token id {bad} is outside"):
      vocabulary.decode([bad])
  with pytest.raises(DataError, match="lone surrogate"):
    vocabulary.encode("a\udc00")


def test_a_folder_loads_as_what_it_is(folder, vocabulary):
  loaded = load_vocabulary(vocabulary.path)
  assert isinstance(loaded, TokenizersVocabulary)
  assert loaded.fingerprint == vocabulary.fingerprint
  assert loaded.encode("the cat") == vocabulary.encode("the cat")
  # The source's own files are there, unchanged, for the way back.
  for name in ("tokenizer.json", "tokenizer_config.json"):
    assert (vocabulary.path / name).read_bytes() == (folder / name).read_bytes()


def test_a_changed_folder_is_refused(folder, tmp_path):
  vocabulary = import_hf_tokenizer(folder, tmp_path, **NO_CONFIG)
  document = json.loads((tmp_path / "tokenizer.json").read_text())
  document["model"]["merges"].pop()
  (tmp_path / "tokenizer.json").write_text(json.dumps(document))
  with pytest.raises(DataError, match="has fingerprint .* was changed"):
    load_vocabulary(vocabulary.path)
  description = json.loads((tmp_path / "vocabulary.json").read_text())
  del description["stop_ids"]
  (tmp_path / "vocabulary.json").write_text(json.dumps(description))
  with pytest.raises(DataError, match=r"vocabulary\.json has no 'stop_ids'"):
    load_vocabulary(vocabulary.path)
  (tmp_path / "tokenizer.json").unlink()
  with pytest.raises(DataError, match=r"tokenizer\.json does not exist"):
    load_vocabulary(vocabulary.path)


@pytest.mark.parametrize(
  ("eos", "config", "generation", "stops"),
  [
    # phi-4 as released: the text's end in the config, both in generation_config.
    ("<|endoftext|>", {"eos_token_id": 400}, {"eos_token_id": [400, 402]}, [402, 400]),
    # phi-4 as mended: the turn's end everywhere.
    ("<|im_end|>", {"eos_token_id": 402}, {"eos_token_id": 402}, [402, 400]),
    # The files disagree: an answer ends at any of them.
    (
      "<|im_end|>",
      {"eos_token_id": 401},
      {"eos_token_id": [403]},
      [402, 400, 403, 401],
    ),
    ("<|im_end|>", {"eos_token_id": None}, None, [402, 400]),
  ],
)
def test_an_answer_ends_where_any_file_says(tmp_path, eos, config, generation, stops):
  document = byte_level_document(first_id=400)
  source = write_folder(tmp_path / "s", document, template=PHI4_FIXED, eos_token=eos)
  vocabulary = import_hf_tokenizer(
    source, tmp_path / "v", vocab_size=500, config=config, generation_config=generation
  )
  assert vocabulary.stop_ids == tuple(stops)
  assert vocabulary.eos_id == 400


def test_padding_ids_decode_to_a_replacement_character(tmp_path):
  document = byte_level_document(first_id=410)
  source = write_folder(tmp_path / "s", document)
  vocabulary = import_hf_tokenizer(source, tmp_path / "v", **NO_CONFIG)
  assert vocabulary.size == 414
  assert vocabulary.decode([*vocabulary.encode("a"), 405]) == "a\ufffd"
  assert vocabulary.token_bytes(405) == "\ufffd".encode()


def test_a_stop_outside_of_the_embedding_is_left_out_and_said(tmp_path, caplog):
  source = write_folder(tmp_path / "s")
  with caplog.at_level(logging.WARNING):
    vocabulary = import_hf_tokenizer(
      source, tmp_path / "v", vocab_size=450, config={"eos_token_id": 32000}
    )
  assert "[32000], which are outside of the embedding (450 rows)" in caplog.text
  assert 32000 not in vocabulary.stop_ids


def test_a_vocabulary_larger_than_the_embedding_is_refused(tmp_path):
  source = write_folder(tmp_path / "s", byte_level_document(first_id=400))
  with pytest.raises(DataError, match="ids up to 403, and .* vocab_size 403"):
    import_hf_tokenizer(source, tmp_path / "v", vocab_size=403, config={})
  assert import_hf_tokenizer(source, tmp_path / "v", vocab_size=404, config={})


def test_folders_without_a_tokenizer(tmp_path):
  (tmp_path / "vocab.json").write_text("{}")
  with pytest.raises(DataError, match=r"no tokenizer\.json .*found: vocab\.json"):
    import_hf_tokenizer(tmp_path, tmp_path / "v", **NO_CONFIG)
  (tmp_path / "tokenizer.json").write_text('{"model": {"type": "Unigram"}}')
  with pytest.raises(DataError, match="of type Unigram; required is BPE"):
    import_hf_tokenizer(tmp_path, tmp_path / "v", **NO_CONFIG)
  document = byte_level_document(("<|im_start|>",))
  source = write_folder(tmp_path / "s", document, eos_token="<end>")
  with pytest.raises(DataError, match=r'no token that ends a text.*is "<end>"'):
    import_hf_tokenizer(source, tmp_path / "v", **NO_CONFIG)


def test_tokens_that_only_the_settings_name_are_added(tmp_path):
  document = byte_level_document(first_id=400)
  late = {"404": {"content": "<|late|>", "special": True}}
  source = write_folder(tmp_path / "s", document, added_tokens_decoder=late)
  vocabulary = import_hf_tokenizer(source, tmp_path / "v", **NO_CONFIG)
  assert vocabulary.specials["<|late|>"] == 404 and vocabulary.size == 405
  assert load_vocabulary(vocabulary.path).fingerprint == vocabulary.fingerprint
  other = {"403": {"content": "<|other|>", "special": True}}
  source = write_folder(tmp_path / "t", document, added_tokens_decoder=other)
  with pytest.raises(DataError, match=r"Id 403 is '<\|im_sep\|>' in .* '<\|other"):
    import_hf_tokenizer(source, tmp_path / "w", **NO_CONFIG)


def test_the_fingerprint_follows_ids_and_chat_format_only(tmp_path):
  document = byte_level_document()
  plain = write_folder(tmp_path / "a", document)
  first = import_hf_tokenizer(plain, tmp_path / "va", **NO_CONFIG)
  document["truncation"] = {"max_length": 2, "strategy": "LongestFirst", "stride": 0,
                            "direction": "Right"}  # fmt: skip
  (plain / "tokenizer.json").write_text(json.dumps(document, indent=1))
  again = import_hf_tokenizer(plain, tmp_path / "vb", vocab_size=999, config={})
  assert again.fingerprint == first.fingerprint
  chat = import_hf_tokenizer(plain, tmp_path / "vc", chat_format="phi4", **NO_CONFIG)
  assert chat.fingerprint != first.fingerprint


def test_characters_without_a_token_are_refused(tmp_path):
  document = byte_level_document()
  del document["model"]["vocab"]["\u0102"]  # the letter of byte 0x02
  source = write_folder(tmp_path / "s", document)
  vocabulary = import_hf_tokenizer(source, tmp_path / "v", **NO_CONFIG)
  assert vocabulary.decode(vocabulary.encode("a\x03b")) == "a\x03b"
  with pytest.raises(DataError, match=r"no token for \['\\x02'\] in 'a\\x02b'"):
    vocabulary.encode("a\x02b")


def test_merges_that_spell_a_control_token_are_out_of_reach(tmp_path):
  document = byte_level_document(())
  vocab, merges = document["model"]["vocab"], document["model"]["merges"]
  for left, right in (("<", "s"), ("<s", ">")):
    vocab[left + right] = max(vocab.values()) + 1
    merges.append([left, right])
  document["pre_tokenizer"]["use_regex"] = False
  document["added_tokens"] = [added_token(vocab["<s>"], "<s>", special=True)]
  document["added_tokens"].append(added_token(500, "</s>", special=True))
  vocabulary = import_hf_tokenizer(
    write_folder(tmp_path / "s", document), tmp_path / "v", **NO_CONFIG
  )
  ids = vocabulary.encode("a<s>b")
  assert vocab["<s>"] not in ids and vocab["<s"] in ids
  assert vocabulary.decode(ids) == "a<s>b"


def train_sentencepiece(path, **options):
  model = io.BytesIO()
  texts = ["the cat sat on the mat", "  two  spaces", "x = 1 + 2", "caf\u00e9"] * 20
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(texts), model_writer=model, vocab_size=310,
    byte_fallback=True, hard_vocab_limit=False, minloglevel=2, num_threads=1,
    **{"normalization_rule_name": "identity", "remove_extra_whitespaces": False,
       "model_type": "bpe", **options},
  )  # fmt: skip
  path.mkdir()
  (path / "tokenizer.model").write_bytes(model.getvalue())
  return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def test_a_sentencepiece_model_is_read_as_it_encodes(tmp_path):
  theirs = train_sentencepiece(tmp_path / "s")
  vocabulary = import_hf_tokenizer(tmp_path / "s", tmp_path / "v", **NO_CONFIG)
  assert vocabulary.eos_id == theirs.eos_id() and vocabulary.chat is None
  for text in fuzz_texts(300, seed=3, controls=["<s>", "</s>", "<unk>", "<0x41>"]):
    if "\u2581" in text:
      continue
    ids = vocabulary.encode(text)
    assert ids == theirs.encode(text)
    assert vocabulary.decode(ids) == text
    assert not {0, 1, 2} & set(ids)
  assert vocabulary.encode("") == []
  assert (tmp_path / "v" / "tokenizer.model").exists()


@pytest.mark.parametrize(
  "options",
  [{"model_type": "unigram"}, {"normalization_rule_name": "nmt_nfkc"}],
)
def test_other_sentencepiece_models_are_refused(tmp_path, options):
  train_sentencepiece(tmp_path / "s", **options)
  with pytest.raises(DataError, match=r"cannot be turned into a tokenizer\.json"):
    import_hf_tokenizer(tmp_path / "s", tmp_path / "v", **NO_CONFIG)
