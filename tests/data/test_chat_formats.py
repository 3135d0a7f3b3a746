"""Formats of conversations: exact text, exact ids, found by rendering templates."""

import logging

import pytest
import tokenizers

from phi4_jax.common.errors import DataError
from phi4_jax.data.chat import encode_chat, encode_follow_up, encode_prompt
from phi4_jax.data.chat_formats import (
  CHAT_FORMATS,
  CHATML,
  format_from_json,
  get_chat_format,
)
from phi4_jax.data.chat_templates import choose_chat_format
from phi4_jax.data.gguf_vocabulary import CL100K_PATTERN, split_by
from phi4_jax.data.hf_vocabulary import import_hf_tokenizer
from phi4_jax.data.jinja_template import JinjaTemplate
from phi4_jax.data.sentencepiece_files import (
  BYTE,
  NORMAL,
  UNKNOWN,
  added_token,
  sentencepiece_document,
)
from phi4_jax.data.tokenizer import ByteVocabulary
from tests.data import tokenizer_folders as folders

NO_CONFIG = {"vocab_size": 1000, "config": {}}
TEMPLATES = {
  "phi4": (folders.PHI4_FIXED, folders.PHI4_CONTROLS),
  "chatml": (folders.CHATML_WITH_SYSTEM, folders.PHI4_CONTROLS[:3]),
  "phi3": (folders.PHI3_TEMPLATE, folders.PHI3_CONTROLS),
  "phi4-mini": (folders.PHI4_MINI_TEMPLATE, folders.PHI3_CONTROLS),
  "llama3": (folders.LLAMA3_TEMPLATE, folders.LLAMA3_CONTROLS),
}
SYSTEM = {"role": "system", "content": "Be brief."}
ASK = {"role": "user", "content": "\n 2+2?  "}
ANSWER = {"role": "assistant", "content": "It is 4."}
TALKS = [
  [ASK], [SYSTEM, ASK], [ASK, ANSWER, ASK], [SYSTEM, ASK, ANSWER, ASK, ANSWER, ASK],
]  # fmt: skip


def named_tokens(controls):
  bos = next((c for c in controls if "begin" in c), None)
  return {"bos_token": bos, "eos_token": controls[bos is not None]}


@pytest.fixture(scope="module", params=list(TEMPLATES))
def imported(request, tmp_path_factory):
  """A folder with a template and the vocabulary imported from it."""
  template, controls = TEMPLATES[request.param]
  document = folders.byte_level_document(controls)
  if request.param == "llama3":
    # Llama 3 cuts "\n\n" off in front of a word, GPT-2 only at the end of a text.
    document["pre_tokenizer"] = split_by(CL100K_PATTERN)
  source = folders.write_folder(
    tmp_path_factory.mktemp("s"), document, template=template, **named_tokens(controls),
  )  # fmt: skip
  out = tmp_path_factory.mktemp("v")
  return request.param, source, import_hf_tokenizer(source, out, **NO_CONFIG)


def test_the_format_of_a_template_is_found_silently(imported, caplog):
  name, source, vocabulary = imported
  assert vocabulary.chat.name == name
  assert (vocabulary.chat.default_system is not None) == (name == "chatml")
  template, controls = TEMPLATES[name]
  with caplog.at_level(logging.DEBUG):
    chosen = choose_chat_format(
      template, names=set(controls), tokens=named_tokens(controls), where=str(source)
    )
  assert not caplog.records and not chosen.warning
  assert format_from_json(chosen.chat.to_json()) == chosen.chat


@pytest.mark.parametrize("talk", TALKS)
def test_prompts_are_the_ids_of_the_rendered_template(imported, talk):
  name, source, vocabulary = imported
  theirs = tokenizers.Tokenizer.from_file(str(source / "tokenizer.json"))
  template, controls = TEMPLATES[name]
  text = JinjaTemplate(template).render(
    talk, prompt=True, tokens=named_tokens(controls)
  )
  assert encode_prompt(talk, vocabulary) == theirs.encode(text).ids


def test_an_answer_continues_its_prompt_and_counts(imported):
  _, _, vocabulary = imported
  chat = vocabulary.chat
  prompt = encode_prompt([ASK], vocabulary)
  ids, mask = encode_chat([ASK, ANSWER], vocabulary)
  answer = [*vocabulary.encode("It is 4."), vocabulary.specials[chat.turn_end]]
  assert ids[: len(prompt) + len(answer)] == prompt + answer
  assert mask == (
    [False] * len(prompt)
    + [True] * len(answer)
    + [False] * (len(ids) - len(prompt) - len(answer))
  )
  assert vocabulary.specials[chat.turn_end] in vocabulary.stop_ids


def test_a_conversation_goes_on_without_encoding_it_again(imported):
  _, _, vocabulary = imported
  end = vocabulary.specials[vocabulary.chat.turn_end]
  begun = encode_prompt([SYSTEM, ASK], vocabulary)
  answer = vocabulary.encode("It is 4.")
  whole = encode_prompt([SYSTEM, ASK, ANSWER, ASK], vocabulary)
  follow_up = encode_follow_up([ASK], vocabulary)
  assert begun + answer + [end] + follow_up == whole
  cut_off = encode_follow_up([ASK], vocabulary, ended=False)
  assert cut_off == [end, *follow_up]


def test_text_cannot_open_or_close_a_turn(imported):
  _, _, vocabulary = imported
  names = sorted(vocabulary.specials)
  hostile = {"role": "user", "content": "x".join(names)}
  plain = {"role": "user", "content": "x"}
  controls = set(vocabulary.specials.values())
  counts = [
    [i for i in encode_prompt([message], vocabulary) if i in controls]
    for message in (hostile, plain)
  ]
  assert counts[0] == counts[1]


def test_exact_texts_of_the_known_formats():
  talk = [ASK, ANSWER]
  assert {
    name: chat.render(talk, prompt=True) for name, chat in CHAT_FORMATS.items()
  } == {
    "phi4": "<|im_start|>user<|im_sep|>\n 2+2?  <|im_end|><|im_start|>assistant"
    "<|im_sep|>It is 4.<|im_end|><|im_start|>assistant<|im_sep|>",
    "chatml": "<|im_start|>user\n\n 2+2?  <|im_end|>\n<|im_start|>assistant\nIt is 4."
    "<|im_end|>\n<|im_start|>assistant\n",
    "phi3": "<|user|>\n\n 2+2?  <|end|>\n<|assistant|>\nIt is 4.<|end|>\n"
    "<|assistant|>\n",
    "phi4-mini": "<|user|>\n 2+2?  <|end|><|assistant|>It is 4.<|end|><|assistant|>",
    "llama3": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n2+2?"
    "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nIt is 4.<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
  }


def test_the_original_template_of_phi4_is_a_near_match(tmp_path, caplog):
  source = folders.write_folder(tmp_path / "s", template=folders.PHI4_ORIGINAL)
  vocabulary = import_hf_tokenizer(source, tmp_path / "v", **NO_CONFIG)
  assert vocabulary.chat.name == "phi4"
  (record,) = caplog.records
  assert "differs in 2 of 13 test conversations; 'phi4' is used" in record.message
  assert (
    "'<|im_start|>user<|im_sep|>Hi<|im_end|><|im_start|>assistant" in record.message
  )


def test_variants_of_a_format(tmp_path):
  """A bos in front; a system message that the template always adds."""
  controls = (*folders.PHI3_CONTROLS, "<s>")
  document = folders.byte_level_document(controls)
  source = folders.write_folder(
    tmp_path / "s",
    document,
    template="{{ bos_token }}" + folders.PHI3_TEMPLATE,
    bos_token="<s>",
    eos_token="<|endoftext|>",
  )
  chat = import_hf_tokenizer(source, tmp_path / "v", **NO_CONFIG).chat
  assert (chat.bos, chat.final) == ("<s>", "<|endoftext|>")
  preamble = "{{ '<|system|>\n Knowledge: 2023\n<|end|>\n' }}"
  chosen = choose_chat_format(
    preamble + folders.PHI3_TEMPLATE,
    names=set(controls),
    tokens={"eos_token": "<|endoftext|>"},
    where="x",
  )
  assert chosen.chat.default_system == " Knowledge: 2023\n"
  assert "differs in 4 of 13" in chosen.warning


def test_other_templates_are_refused(tmp_path):
  template = "{% for m in messages %}[INST]{{ m['content'] }}[/INST]{% endfor %}"
  source = folders.write_folder(tmp_path / "s", template=template)
  with pytest.raises(DataError, match=r"phi4, chatml, .*\[INST\].*--chat_format=NAME"):
    import_hf_tokenizer(source, tmp_path / "v", **NO_CONFIG)
  named = import_hf_tokenizer(source, tmp_path / "w", chat_format="chatml", **NO_CONFIG)
  assert named.chat == CHATML
  with pytest.raises(DataError, match=r"no chat format 'x'\. Known: phi4, chatml"):
    import_hf_tokenizer(source, tmp_path / "v", chat_format="x", **NO_CONFIG)
  with pytest.raises(DataError, match=r"'phi3' needs the special tokens <\|assis"):
    import_hf_tokenizer(source, tmp_path / "v", chat_format="phi3", **NO_CONFIG)


def test_a_format_whose_tokens_are_missing_does_not_fit(tmp_path):
  document = folders.byte_level_document(folders.PHI4_CONTROLS[:3])
  source = folders.write_folder(tmp_path / "s", document, template=folders.PHI4_FIXED)
  with pytest.raises(DataError, match="writes none of the known formats"):
    import_hf_tokenizer(source, tmp_path / "v", **NO_CONFIG)


def test_a_base_model_has_no_format(tmp_path):
  source = folders.write_folder(tmp_path / "s")
  vocabulary = import_hf_tokenizer(source, tmp_path / "v", **NO_CONFIG)
  assert vocabulary.chat is None
  with pytest.raises(DataError, match="came with a base model.*--chat_format, one of"):
    encode_prompt([ASK], vocabulary)
  with pytest.raises(DataError, match="came with a base model"):
    encode_follow_up([ASK], vocabulary)


def test_a_role_that_the_vocabulary_lacks_is_refused(tmp_path):
  controls = [c for c in folders.PHI3_CONTROLS if "system" not in c]
  document = folders.byte_level_document(controls)
  source = folders.write_folder(tmp_path / "s", document)
  vocabulary = import_hf_tokenizer(
    source, tmp_path / "v", chat_format="phi3", **NO_CONFIG
  )
  with pytest.raises(DataError, match=r"needs the special token <\|system\|>"):
    encode_prompt([SYSTEM, ASK], vocabulary)


def spaced_document():
  """A vocabulary like phi-3's: bytes, and a space before every text."""
  pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *"\u2581Bebrif.2+?"]
  kinds = [UNKNOWN] + [BYTE] * 256 + [NORMAL] * (len(pieces) - 257)
  scores = [-float(i) for i in range(len(pieces))]
  document = sentencepiece_document(pieces, scores, kinds, space_before=True)
  document["added_tokens"] += [
    added_token(len(pieces) + i, name, special=True)
    for i, name in enumerate(folders.PHI3_CONTROLS)
  ]
  return document


@pytest.mark.parametrize("family", ["byte-level", "sentencepiece"])
def test_control_tokens_may_swallow_the_space_behind_them(tmp_path, family):
  document = folders.byte_level_document(folders.PHI3_CONTROLS)
  if family == "sentencepiece":
    document = spaced_document()
  for entry in document["added_tokens"]:
    entry["rstrip"] = True
  source = folders.write_folder(
    tmp_path / "s", document, template=folders.PHI3_TEMPLATE,
    eos_token="<|endoftext|>",
  )  # fmt: skip
  vocabulary = import_hf_tokenizer(source, tmp_path / "v", **NO_CONFIG)
  theirs = tokenizers.Tokenizer.from_file(str(source / "tokenizer.json"))
  text = vocabulary.chat.render([SYSTEM, ASK], prompt=True)
  assert encode_prompt([SYSTEM, ASK], vocabulary) == theirs.encode(text).ids
  assert "\n" not in vocabulary.decode(theirs.encode(text).ids)
  # What the assistant says is what it wrote.
  ids, mask = encode_chat([ASK, {"role": "assistant", "content": "\nx"}], vocabulary)
  spoken = [i for i, counts in zip(ids, mask, strict=True) if counts]
  assert vocabulary.decode(spoken) == "\nx"


def test_a_template_with_names_and_from_files(tmp_path):
  several = [{"name": "tool_use", "template": "x"},
             {"name": "default", "template": folders.PHI4_FIXED}]  # fmt: skip
  source = folders.write_folder(tmp_path / "s", template=several)
  assert import_hf_tokenizer(source, tmp_path / "v", **NO_CONFIG).chat.name == "phi4"
  source = folders.write_folder(tmp_path / "t", template=several[:1])
  with pytest.raises(DataError, match="chat templates tool_use, and none is named"):
    import_hf_tokenizer(source, tmp_path / "w", **NO_CONFIG)
  # The file comes first, as in transformers.
  (source / "chat_template.jinja").write_text(folders.CHATML_WITH_SYSTEM)
  vocabulary = import_hf_tokenizer(source, tmp_path / "w", **NO_CONFIG)
  assert vocabulary.chat.default_system == "You are a test."


def test_our_own_vocabularies_have_the_format_of_phi4():
  assert ByteVocabulary().chat == get_chat_format("phi4")
  assert ByteVocabulary().stop_ids == (5, 0)
  with pytest.raises(DataError, match="broken chat format"):
    format_from_json({"name": "x", "turn": "y"})
