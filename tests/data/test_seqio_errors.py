"""Which error of a task is told, where, and in whose words."""

import json

import pytest
import seqio
import tensorflow as tf

from phi4_jax.common.errors import DataError
from phi4_jax.data.packing import PackingConfig
from phi4_jax.data.seqio_tasks import SeqioVocabulary, make_task, materialize_task
from phi4_jax.data.sources import JsonlSource
from phi4_jax.data.tokenizer import ByteVocabulary

V = ByteVocabulary()
SINGLE = PackingConfig(row_length=64, strategy="single")


@pytest.fixture(autouse=True)
def clean_registry():
  """Leaves no task behind for other tests."""
  before = set(seqio.TaskRegistry.names())
  yield
  for name in set(seqio.TaskRegistry.names()) - before:
    seqio.TaskRegistry.remove(name)


def broken_file(path):
  """Ten documents, of which the third is long and the seventh is none."""
  lines = [json.dumps({"text": "x" * 80 if i == 2 else f"t{i}"}) for i in range(10)]
  lines[6] = "no JSON"
  path.write_text("\n".join(lines))
  return JsonlSource(path=str(path))


def test_the_first_document_that_is_wrong_is_the_one_that_is_named(tmp_path):
  make_task("order", broken_file(tmp_path / "a.jsonl"), V)
  with pytest.raises(DataError, match=r"a\.jsonl:3 has 81 tokens"):
    materialize_task("order", tmp_path / "out", vocabulary=V, packing=SINGLE)


def test_who_reads_a_task_through_seqio_gets_the_error_there(tmp_path):
  task = make_task("direct", broken_file(tmp_path / "a.jsonl"), V)
  dataset = task.get_dataset(sequence_length=None, split="train", shuffle=False)
  with pytest.raises(tf.errors.OpError, match="is not JSON"):
    list(dataset.as_numpy_iterator())


def test_errors_of_our_vocabulary_in_a_foreign_task(tmp_path, toy_vocabulary):
  def texts(split, shuffle_files, seed=None):
    return tf.data.Dataset.from_tensor_slices({"tokens": ["so 3", "Zebra"]})

  vocabulary = SeqioVocabulary(toy_vocabulary)
  seqio.TaskRegistry.add(
    "foreign_text",
    source=seqio.FunctionDataSource(texts, splits=["train"]),
    preprocessors=[seqio.preprocessors.tokenize],
    output_features={"tokens": seqio.Feature(vocabulary, add_eos=False)},
  )
  with pytest.raises(DataError) as caught:
    materialize_task(
      "foreign_text", tmp_path, vocabulary=toy_vocabulary, packing=SINGLE
    )
  assert str(caught.value).startswith("SeqIO task foreign_text: ")
  assert "no token for ['Z']" in str(caught.value)
  assert "Traceback" not in str(caught.value)
