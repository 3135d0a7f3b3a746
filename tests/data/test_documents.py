"""Documents: either kind, never both, and no text that cannot be written."""

import json

import pytest

from phi4_jax.common.errors import DataError
from phi4_jax.data.chat import encode_document
from phi4_jax.data.documents import (
  Document,
  check_messages,
  document_from_json,
  document_text,
  document_texts,
  document_to_json,
)
from phi4_jax.data.tokenizer import ByteVocabulary

HI = {"role": "user", "content": "hi"}


@pytest.mark.parametrize(
  "document",
  [
    Document(id="a:1", text="x\ny \u2028 \u00e9"),
    Document(id="a:2", text=""),
    Document(id="a:3", messages=(HI, {"role": "assistant", "content": ""})),
  ],
)
def test_round_trip(document):
  line = document_to_json(document)
  assert "\n" not in line
  assert document_from_json(line) == document
  assert document_from_json(line.encode()) == document


def test_exactly_one_kind():
  with pytest.raises(DataError, match="a:1 must have either"):
    Document(id="a:1")
  with pytest.raises(DataError, match="a:1 must have either"):
    Document(id="a:1", text="x", messages=(HI,))


@pytest.mark.parametrize(
  ("messages", "why"),
  [
    ([], "at least one message"),
    ([{"role": "user"}], r"message 0 must have exactly .* \(found: \['role'\]\)"),
    ([HI, {**HI, "name": "x"}], "message 1 must have exactly"),
    ([HI, {"role": "robot", "content": "x"}], "role 'robot'; known roles are system"),
    ([{"role": "user", "content": "\ud800"}], "message 0: character 0 is half of"),
  ],
)
def test_bad_messages(messages, why):
  with pytest.raises(DataError, match=f"^somewhere: .*{why}"):
    check_messages(messages, where="somewhere")


def test_lone_surrogate_is_refused():
  with pytest.raises(DataError, match=r"Document f\.jsonl:7: character 1 is half"):
    Document(id="f.jsonl:7", text="a\udc00")


def test_texts_of_either_kind():
  assert document_texts(Document(id="a", text="x")) == ("x",)
  answer = {"role": "assistant", "content": "yo"}
  assert document_texts(Document(id="a", messages=(HI, answer))) == ("hi", "yo")
  assert document_text(Document(id="a", text="x")) == "x"
  assert document_text(Document(id="a", messages=(HI, answer))) == "hi\nyo"


def test_what_is_known_of_a_document_survives_json():
  document = Document(
    id="book.epub:3",
    data=b"\x00\xff",
    media_type="application/epub+zip",
    source="books",
    license="CC0-1.0",
    lineage=("archive:7", "step:Unpack"),
    labels={"language": "de", "score": 0.5},
  )
  assert document_from_json(document_to_json(document)) == document
  plain = json.loads(document_to_json(Document(id="a:1", text="x")))
  assert plain == {"id": "a:1", "text": "x"}


def test_bytes_are_no_text_yet():
  document = Document(id="a.pdf:0", data=b"%PDF", media_type="application/pdf")
  with pytest.raises(DataError, match="a.pdf:0 is application/pdf whose text has not"):
    document_texts(document)
  with pytest.raises(DataError, match="a.pdf:0 is application/pdf whose text has not"):
    encode_document(document, ByteVocabulary())
