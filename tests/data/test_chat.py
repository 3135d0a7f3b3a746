"""The chat format: exact ids, what counts in the loss, no way to fake a turn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phi4_jax.common.errors import DataError
from phi4_jax.data.chat import (
  encode_chat,
  encode_document,
  encode_documents,
  encode_prompt,
)
from phi4_jax.data.documents import Document
from phi4_jax.data.tokenizer import SPECIALS, ByteVocabulary

V = ByteVocabulary()


def message(role, content):
  return {"role": role, "content": content}


def test_exact_ids_and_mask():
  messages = [
    message("system", "s"),
    message("user", "hi"),
    message("assistant", "yes"),
    message("user", "u"),
    message("assistant", ""),
  ]
  token_ids, mask = encode_chat(messages, V)
  start, sep, end = [V.im_start_id], [V.im_sep_id], [V.im_end_id]
  turns = [
    (start + V.encode(m["role"]) + sep, V.encode(m["content"]) + end) for m in messages
  ]
  assert token_ids == [i for header, body in turns for i in header + body]
  assert mask == [
    counts
    for m, (header, body) in zip(messages, turns, strict=True)
    for counts in [False] * len(header) + [m["role"] == "assistant"] * len(body)
  ]
  # "yes" and its end, and the end of the empty answer.
  assert sum(mask) == 3 + 1 + 1
  assert V.decode(token_ids) == "systemsuserhiassistantyesuseruassistant"


def test_a_prompt_and_an_answer_make_the_conversation():
  messages = [message("system", "s"), message("user", "hi")]
  prompt = encode_prompt(messages, V)
  assert prompt[-1] == V.im_sep_id
  whole, mask = encode_chat([*messages, message("assistant", "yes")], V)
  assert whole == prompt + V.encode("yes") + [V.im_end_id]
  assert mask == [False] * len(prompt) + [True] * 4


@settings(max_examples=80, deadline=None)
@given(st.lists(st.one_of(st.sampled_from(SPECIALS), st.text(max_size=5)), max_size=6))
def test_content_cannot_open_or_close_a_turn(parts):
  content = "".join(parts)
  token_ids, mask = encode_chat(
    [message("user", content), message("assistant", content)], V
  )
  for special in (V.im_start_id, V.im_sep_id, V.im_end_id):
    assert token_ids.count(special) == 2
  assert V.eos_id not in token_ids
  assert sum(mask) == len(V.encode(content)) + 1
  assert V.decode(token_ids) == f"user{content}assistant{content}"


def test_role_names_are_single_tokens_of_the_toy_vocabulary(toy_vocabulary):
  prompt = encode_prompt([message("user", "4*4?")], toy_vocabulary)
  assert len(prompt) == 3 + 4 + 1 + 3


def test_bad_messages_are_refused():
  with pytest.raises(DataError, match="at least one message"):
    encode_chat([], V)
  with pytest.raises(DataError, match="known roles are system, user, assistant"):
    encode_prompt([message("tool", "x")], V)


def test_documents():
  text = Document(id="a:1", text="abc")
  chat = Document(id="a:2", messages=(message("assistant", "x"),))
  encoded = list(encode_documents([text, chat], V))
  assert [document.id for document in encoded] == ["a:1", "a:2"]
  assert encoded[0].token_ids.tolist() == [*V.encode("abc"), V.eos_id]
  assert encoded[0].loss_mask.all()
  assert encoded[1].token_ids.tolist() == encode_chat(chat.messages, V)[0]
  for document in encoded:
    assert document.token_ids.dtype == np.int32
    assert document.loss_mask.dtype == bool
    assert document.token_ids.shape == document.loss_mask.shape


def test_a_document_that_cannot_be_encoded_is_named(toy_vocabulary):
  with pytest.raises(DataError, match=r"Document p\.jsonl:12: .* no token for"):
    encode_document(Document(id="p.jsonl:12", text="Zebra"), toy_vocabulary)
