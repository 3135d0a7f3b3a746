"""What counts in the loss, from a conversation to a batch, and nothing unnoticed."""

import json

import numpy as np
import pytest

from phi4_jax.common.errors import DataError
from phi4_jax.data.batch import make_batch
from phi4_jax.data.chat import encode_document, encode_documents
from phi4_jax.data.documents import Document
from phi4_jax.data.materialize import has_loss, write_dataset
from phi4_jax.data.packing import PackingConfig
from phi4_jax.data.row_view import read_row, view_row
from phi4_jax.data.sources import JsonlSource
from phi4_jax.data.tokenizer import ByteVocabulary

V = ByteVocabulary()


def talk(*contents, system=None):
  turns = [{"role": "system", "content": system}] if system else []
  roles = ("user", "assistant") * len(contents)
  for role, content in zip(roles, contents, strict=False):
    turns.append({"role": role, "content": content})
  return Document(id=f"talk:{len(contents)}", messages=tuple(turns))


def write(tmp_path, documents, **packing):
  return write_dataset(
    encode_documents(documents, V),
    tmp_path,
    task="t",
    source={"made": "here"},
    vocabulary=V,
    packing=PackingConfig(**packing),
  )


def learned(tmp_path, manifest, index):
  """Returns what the model is taught by a row: the text of the tokens that count."""
  view = view_row(read_row(tmp_path, manifest, index), V)
  return "".join(token.text for token in view.tokens if token.weight)


def test_every_assistant_turn_counts_and_nothing_else(tmp_path):
  document = talk("ask one", "say one", "ask two", "say two", system="be brief")
  manifest = write(tmp_path, [document], row_length=200, strategy="best_fit")
  assert learned(tmp_path, manifest, 0) == "say one<|im_end|>say two<|im_end|>"
  assert manifest.loss_tokens == len("say one") + len("say two") + 2
  row = read_row(tmp_path, manifest, 0)
  assert make_batch(row[None])["loss_weights"].sum() == manifest.loss_tokens


def test_texts_count_but_for_what_opens_them(tmp_path):
  documents = [Document(id="a", text="abc"), Document(id="b", text="de")]
  manifest = write(tmp_path, documents, row_length=6, strategy="best_fit")
  assert learned(tmp_path, manifest, 0) == "bc<|endoftext|>e<|endoftext|>"


@pytest.mark.parametrize("strategy", ["best_fit", "single"])
def test_truncation_that_leaves_nothing_to_learn_is_counted(tmp_path, strategy):
  long_question = talk("q" * 100, "answer")
  long_answer = talk("q", "a" * 100)
  two_turns = talk("q", "first", "w" * 100, "second")
  documents = [long_question, long_answer, two_turns]
  manifest = write(
    tmp_path, documents, row_length=40, strategy=strategy, overlong="truncate"
  )
  assert manifest.dropped == {"no_loss": 1}
  assert manifest.documents == 3 and manifest.rows == 2
  taught = {learned(tmp_path, manifest, i) for i in range(2)}
  # "user" and "assistant" and four marks before the answer: 41 slots less these.
  start = len(encode_document(long_answer, V).token_ids) - 101
  assert taught == {"a" * (41 - start), "first<|im_end|>"}


def test_rows_inside_a_long_question_are_left_out_and_counted(tmp_path):
  documents = [talk("q" * 200, "answer"), talk("q", "a")]
  manifest = write(tmp_path, documents, row_length=20, strategy="concat_split")
  assert manifest.dropped["row_without_loss"] >= 8
  rows = [read_row(tmp_path, manifest, i) for i in range(manifest.rows)]
  assert all(has_loss(row) for row in rows)
  # What is taught is all there: each target once, on this side of a cut or the other.
  taught = "".join(learned(tmp_path, manifest, i) for i in range(manifest.rows))
  assert taught == "answer<|im_end|>a<|im_end|>"
  filled = sum(np.count_nonzero(row[1]) for row in rows)
  assert manifest.fill == round(filled / (manifest.rows * 21), 6)
  total = sum(make_batch(row[None])["loss_weights"].sum() for row in rows)
  assert total == manifest.loss_tokens
  # Tokens of rows that are left out are no tokens of the dataset: row k of the stream
  # begins at 20 k, and a token on a border belongs to both sides.
  encoded = [encode_document(document, V) for document in documents]
  stream = np.concatenate([document.token_ids for document in encoded])
  counted = np.concatenate([document.loss_mask for document in encoded])
  counted[np.cumsum([0, len(encoded[0].token_ids)])] = False  # these open a document
  is_held = np.zeros(len(stream), bool)
  for start in range(0, len(stream) - 1, 20):
    if counted[start + 1 : start + 21].any():
      is_held[start : start + 21] = True
  assert manifest.tokens == is_held.sum() < len(stream) / 2
  assert manifest.tokens <= filled


def test_a_conversation_without_an_answer_is_counted(tmp_path):
  documents = [talk("only a question"), talk("q", "a")]
  manifest = write(tmp_path, documents, row_length=60, strategy="best_fit")
  assert (manifest.rows, manifest.dropped) == (1, {"no_loss": 1})
  with pytest.raises(
    DataError, match="gave no row: it has 1 document; dropped: no_loss 1"
  ):
    write(tmp_path / "b", documents[:1], row_length=60, strategy="best_fit")


def test_what_the_source_drops_is_in_the_manifest(tmp_path):
  import seqio

  from phi4_jax.data.seqio_tasks import make_task, materialize_task

  path = tmp_path / "a.jsonl"
  lines = [json.dumps({"text": f"text {i}"}) for i in range(5)]
  path.write_text("\n".join([*lines, "null", '{"text": ""}', '{"text": " "}']))
  source = JsonlSource(path=str(path), on_bad_row="drop")
  make_task("drops", source, V)
  options = {"vocabulary": V, "packing": PackingConfig(row_length=20)}
  try:
    manifest = materialize_task("drops", tmp_path / "o", **options)
    again = materialize_task("drops", tmp_path / "p", **options)
  finally:
    seqio.TaskRegistry.remove("drops")
  assert manifest.dropped == {"blank": 2, "not_an_object": 1}
  assert manifest.documents == 8
  assert again == manifest
