"""SeqIO: the adapter, our tasks, other people's tasks, and errors that survive it."""

import json

import numpy as np
import pytest
import seqio
import tensorflow as tf

from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.data.chat import encode_chat, encode_documents
from phi4_jax.data.documents import Document
from phi4_jax.data.fill_in_middle import (
  FillInMiddleConfig,
  encode_with_middle_moved,
)
from phi4_jax.data.hf_vocabulary import import_hf_tokenizer
from phi4_jax.data.known_files import Places
from phi4_jax.data.loader import DataConfig, make_loader
from phi4_jax.data.materialize import read_manifest, write_dataset
from phi4_jax.data.packing import PackingConfig
from phi4_jax.data.seqio_tasks import (
  SeqioVocabulary,
  make_task,
  materialize_task,
  register_known_tasks,
  registered,
)
from phi4_jax.data.sources import ArithmeticSource, JsonlSource
from phi4_jax.data.tokenizer import ByteVocabulary, load_vocabulary
from tests.data.tokenizer_folders import PHI4_FIXED, write_folder

V = ByteVocabulary()
SINGLE = PackingConfig(row_length=64, strategy="single")


@pytest.fixture(autouse=True)
def clean_registry():
  """Leaves no task behind for other tests."""
  before = set(seqio.TaskRegistry.names())
  yield
  for name in set(seqio.TaskRegistry.names()) - before:
    seqio.TaskRegistry.remove(name)


def files(path):
  return {file.name: file.read_bytes() for file in path.iterdir()}


@pytest.mark.parametrize("form", ["web", "chat"])
def test_a_task_gives_the_bytes_of_the_plain_path(tmp_path, form, toy_vocabulary):
  # More documents than one crossing of TensorFlow carries.
  source = ArithmeticSource(form=form, num_documents=300, seed=0)
  packing = PackingConfig(row_length=64)
  make_task(f"arithmetic_{form}", source, toy_vocabulary)
  manifest = materialize_task(
    f"arithmetic_{form}",
    tmp_path / "seqio",
    vocabulary=toy_vocabulary,
    packing=packing,
    rows_per_shard=64,
  )
  write_dataset(
    encode_documents(source.documents(), toy_vocabulary),
    tmp_path / "plain",
    task=f"arithmetic_{form}",
    source=source.recipe(),
    vocabulary=toy_vocabulary,
    packing=packing,
    rows_per_shard=64,
  )
  assert files(tmp_path / "seqio") == files(tmp_path / "plain")
  assert manifest.documents == 300 and len(manifest.shards) > 1
  loader = make_loader(
    tmp_path, DataConfig(datasets={"seqio": 1.0}, batch_size=4, epochs=1)
  )
  assert next(loader)["token_ids"].shape == (4, 64)


def test_examples_of_a_task(toy_vocabulary):
  source = ArithmeticSource(form="synthetic", num_documents=3, seed=0)
  task = make_task("examples", source, toy_vocabulary)
  dataset = task.get_dataset(sequence_length=None, split="train", shuffle=False)
  examples = list(dataset.as_numpy_iterator())
  expected = list(encode_documents(source.documents(), toy_vocabulary))
  assert len(examples) == 3
  for example, document in zip(examples, expected, strict=True):
    assert example["id"].decode() == document.id
    np.testing.assert_array_equal(example["token_ids"], document.token_ids)
    np.testing.assert_array_equal(example["loss_mask"], document.loss_mask)


def test_a_finished_dataset_runs_no_task(tmp_path):
  source = ArithmeticSource(form="web", num_documents=5, seed=0)
  task = make_task("once", source, V)
  options = {"vocabulary": V, "packing": PackingConfig(row_length=32)}
  first = materialize_task("once", tmp_path, **options)
  task.get_dataset = None  # would raise if it were called
  assert materialize_task(task, tmp_path, **options) == first == read_manifest(tmp_path)


def test_making_a_task_twice():
  source = ArithmeticSource(form="web", num_documents=5, seed=0)
  other = ArithmeticSource(form="web", num_documents=5, seed=1)
  assert make_task("twice", source, V) is make_task("twice", source, V)
  with pytest.raises(ConfigError, match="'twice' exists already"):
    make_task("twice", other, V)


def test_errors_come_through_tensorflow(tmp_path):
  path = tmp_path / "part.jsonl"
  lines = [json.dumps({"text": f"t{i}"}) for i in range(300)]
  lines[280] = '{"body": "x"}'
  path.write_text("\n".join(lines))
  make_task("broken", JsonlSource(path=str(path)), V)
  with pytest.raises(DataError, match=r"Row 281 of .*part\.jsonl has no 'text' field"):
    materialize_task("broken", tmp_path / "out", vocabulary=V, packing=SINGLE)
  assert not (tmp_path / "out" / "manifest.json").exists()
  # The same task works once the file is mended.
  path.write_text("\n".join(line for line in lines if "text" in line))
  seqio.TaskRegistry.remove("broken")
  make_task("broken", JsonlSource(path=str(path)), V)
  manifest = materialize_task("broken", tmp_path / "out", vocabulary=V, packing=SINGLE)
  assert manifest.documents == 299


def test_tokenizer_errors_come_through_too(tmp_path, toy_vocabulary):
  path = tmp_path / "part.jsonl"
  path.write_text('{"text": "so 3"}\n{"text": "Zebra"}\n')
  make_task("foreign", JsonlSource(path=str(path)), toy_vocabulary)
  with pytest.raises(DataError, match=r"part\.jsonl:2: .* no token for \['Z'\]"):
    materialize_task(
      "foreign", tmp_path / "out", vocabulary=toy_vocabulary, packing=SINGLE
    )


def test_overlong_documents_are_named_by_file_and_row(tmp_path):
  path = tmp_path / "part.jsonl"
  path.write_text('{"text": "short"}\n' + json.dumps({"text": "x" * 80}) + "\n")
  make_task("long", JsonlSource(path=str(path)), V)
  with pytest.raises(DataError, match=r"part\.jsonl:2 has 81 tokens"):
    materialize_task("long", tmp_path / "out", vocabulary=V, packing=SINGLE)


def add_task(name, tensors, features, preprocessors=()):
  seqio.TaskRegistry.add(
    name,
    source=seqio.FunctionDataSource(
      lambda split, shuffle_files, seed=None: tf.data.Dataset.from_tensor_slices(
        tensors
      ),
      splits=["train", "validation"],
    ),
    preprocessors=list(preprocessors),
    output_features=features,
  )


def read(out_dir):
  loader = make_loader(
    out_dir.parent,
    DataConfig(datasets={out_dir.name: 1.0}, batch_size=1, shuffle=False, epochs=1),
  )
  for _ in range(loader.num_batches):
    batch = next(loader)
    length = int((batch["segment_ids"] > 0).sum())
    ids = [*batch["token_ids"][0, :length].tolist()]
    learned = batch["targets"][batch["loss_weights"] == 1].tolist()
    yield ids, learned


def test_registered_tasks_with_inputs_and_targets(tmp_path):
  feature = seqio.Feature(SeqioVocabulary(V), add_eos=True)
  add_task(
    "qa",
    {"inputs": ["2+2?", "hi"], "targets": ["4", "yo"]},
    {"inputs": feature, "targets": feature},
    [seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
  )
  out = tmp_path / "qa"
  manifest = materialize_task("qa", out, vocabulary=V, packing=SINGLE)
  assert manifest.recipe["source"] == {"seqio_task": "qa", "split": "train"}
  ids, learned = next(read(out))
  eos = V.eos_id
  assert ids == [*V.encode("2+2?"), eos, *V.encode("4"), eos]
  assert learned == [*V.encode("4"), eos]


def test_registered_tasks_with_tokens(tmp_path):
  # Id 0 is a token like any other, not padding.
  feature = seqio.Feature(SeqioVocabulary(V), add_eos=False, dtype=tf.int32)
  add_task("tokens", {"tokens": np.array([[5, 0, 0, 7], [1, 2, 3, 0]], np.int32)}, {
    "tokens": feature
  })  # fmt: skip
  out = tmp_path / "tokens"
  manifest = materialize_task("tokens", out, vocabulary=V, packing=SINGLE)
  assert manifest.tokens == 8
  assert list(read(out)) == [([5, 0, 0, 7], [0, 0, 7]), ([1, 2, 3, 0], [2, 3, 0])]


def string_feature():
  vocabulary = seqio.PassThroughVocabulary(1)
  return seqio.Feature(vocabulary, add_eos=False, dtype=tf.string, rank=0)


def test_registered_tasks_with_text(tmp_path):
  add_task("text", {"text": ["abc", "d\u00e9"]}, {"text": string_feature()})
  out = tmp_path / "text"
  materialize_task("text", out, vocabulary=V, packing=SINGLE, split="validation")
  assert [ids for ids, _ in read(out)] == [
    [*V.encode(text), V.eos_id] for text in ("abc", "d\u00e9")
  ]


def test_registered_tasks_with_questions_and_answers_as_text(tmp_path):
  add_task(
    "chat",
    {"inputs": ["hi"], "targets": ["yo"]},
    {"inputs": string_feature(), "targets": string_feature()},
  )
  out = tmp_path / "chat"
  materialize_task("chat", out, vocabulary=V, packing=SINGLE)
  messages = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "yo"},
  ]
  ids, mask = encode_chat(messages, V)
  learned = [token for token, counts in zip(ids, mask, strict=True) if counts]
  assert list(read(out)) == [(ids, learned)]


def test_tasks_that_cannot_be_used(tmp_path, toy_vocabulary):
  out = {"out_dir": tmp_path, "vocabulary": V, "packing": SINGLE}
  with pytest.raises(ConfigError, match="no SeqIO task 'wbe'.*Registered:"):
    materialize_task("wbe", **out)
  feature = seqio.Feature(SeqioVocabulary(toy_vocabulary), add_eos=False)
  add_task("other_vocabulary", {"tokens": [[1, 2]]}, {"tokens": feature})
  with pytest.raises(ConfigError, match="'tokens' with another vocabulary"):
    materialize_task("other_vocabulary", **out)
  add_task("no_features", {"x": [[1, 2]]}, {"x": feature})
  with pytest.raises(ConfigError, match="has the features x; required are"):
    materialize_task("no_features", **out)
  seqio.MixtureRegistry.add("blend", [("no_features", 1.0)])
  with pytest.raises(ConfigError, match="is a SeqIO mixture. Materialize its tasks"):
    materialize_task("blend", **out)
  seqio.MixtureRegistry.remove("blend")


def test_failures_inside_other_peoples_tasks_are_data_errors(tmp_path):
  def fail(dataset):
    def bad(x):
      raise ValueError("boom")

    def through(example):
      tokens = tf.numpy_function(bad, [example["tokens"]], tf.int32, stateful=False)
      tokens.set_shape([None])
      return {"tokens": tokens}

    return dataset.map(through)

  feature = seqio.Feature(SeqioVocabulary(V), add_eos=False)
  add_task("fails", {"tokens": [[1, 2]]}, {"tokens": feature}, [fail])
  with pytest.raises(DataError, match="SeqIO task fails failed: .*boom"):
    materialize_task("fails", tmp_path, vocabulary=V, packing=SINGLE)


def test_the_adapter_is_a_seqio_vocabulary(toy_vocabulary):
  adapter = SeqioVocabulary(toy_vocabulary)
  text = "q:1+2? a:steps:1+2=3,so 3"
  ids = adapter.encode(text)
  assert ids == toy_vocabulary.encode(text)
  assert adapter.decode(ids) == text
  assert adapter.encode_tf(tf.constant(text)).numpy().tolist() == ids
  assert adapter.decode_tf(tf.constant(ids)).numpy().decode() == text
  both = adapter.decode_tf(tf.constant([ids, ids])).numpy().tolist()
  assert both == [text.encode()] * 2
  assert adapter.eos_id == toy_vocabulary.eos_id
  assert adapter.vocab_size == toy_vocabulary.size
  assert adapter == SeqioVocabulary(toy_vocabulary) != SeqioVocabulary(V)
  assert len({adapter, SeqioVocabulary(toy_vocabulary)}) == 1


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
  """A vocabulary whose id 0 is "!", as in phi-4's."""
  source = write_folder(tmp_path_factory.mktemp("s"), template=PHI4_FIXED)
  out = tmp_path_factory.mktemp("v")
  return import_hf_tokenizer(source, out, vocab_size=400, config={})


def test_an_imported_vocabulary_is_a_seqio_vocabulary(imported):
  adapter = SeqioVocabulary(imported)
  text = "!! <|im_end|> caf\u00e9 \U0001f600!"
  ids = adapter.encode(text)
  assert ids == imported.encode(text) and 0 in ids
  assert adapter.decode(ids) == text
  assert adapter.encode_tf(tf.constant(text)).numpy().tolist() == ids
  assert adapter.vocab_size == imported.size
  assert adapter == SeqioVocabulary(load_vocabulary(imported.path))
  # Nothing comes behind the first eos; 0 would come out as "!".
  ended = [*ids, imported.eos_id, *ids]
  assert adapter.decode_tf(tf.constant(ended)).numpy().decode() == text
  assert adapter.decode(ended) == text


def test_tasks_with_an_imported_vocabulary(tmp_path, imported):
  talk = [{"role": "user", "content": "!!"}, {"role": "assistant", "content": "a!"}]
  text = "!!! so <|endoftext|>"
  expected = {}
  ids, mask = encode_chat(talk, imported)
  learned = [token for token, counts in zip(ids, mask, strict=True) if counts]
  expected["messages"] = (ids, learned)
  ids = [*imported.encode(text), imported.eos_id]
  expected["text"] = (ids, ids[1:])
  for form, record in (("messages", {"messages": talk}), ("text", {"text": text})):
    path = tmp_path / f"{form}.jsonl"
    path.write_text(json.dumps(record))
    make_task(f"imported_{form}", JsonlSource(path=str(path), form=form), imported)
    out = tmp_path / form
    materialize_task(f"imported_{form}", out, vocabulary=imported, packing=SINGLE)
    assert list(read(out)) == [expected[form]]
  assert 0 in expected["text"][0]


def test_published_sets_are_registered_where_they_are_found(tmp_path):
  row = {"question": "1+1?", "answer": "2\n#### 2"}
  (tmp_path / "gsm8k_train.jsonl").write_text(json.dumps(row))
  names = register_known_tasks(V, Places(data=(str(tmp_path),)))
  assert names == ["gsm8k_sft", "gsm8k_text"]
  assert set(names) <= set(registered())
  out = tmp_path / "gsm8k_sft"
  materialize_task("gsm8k_sft", out, vocabulary=V, packing=SINGLE)
  ((_, learned),) = read(out)
  assert V.decode(learned) == row["answer"]
  with pytest.raises(ConfigError, match="'math_sft'. It is a published set: Dataset"):
    materialize_task("math_sft", tmp_path / "x", vocabulary=V, packing=SINGLE)


def test_texts_of_registered_tasks_with_their_middle_moved(tmp_path):
  texts = [f"text number {i}" for i in range(20)]
  add_task("middle", {"text": texts}, {"text": string_feature()})
  options = {"vocabulary": V, "packing": SINGLE}
  config = FillInMiddleConfig(rate=1.0)
  options["fill_in_middle"] = config
  manifest = materialize_task("middle", tmp_path / "m", **options)
  assert manifest.recipe["source"]["fill_in_middle"] == {
    "rate": 1.0, "spm_share": 0.5, "seed": 0
  }  # fmt: skip
  middle = V.specials["<|fim_middle|>"]
  assert all(ids.count(middle) == 1 for ids, _ in read(tmp_path / "m"))
  feature = seqio.Feature(SeqioVocabulary(V), add_eos=False)
  add_task("ids", {"tokens": [[1, 2]]}, {"tokens": feature})
  with pytest.raises(ConfigError, match="ids has the features tokens and not 'text'"):
    materialize_task("ids", tmp_path / "i", **options)


def test_texts_without_ids_are_cut_one_by_one(tmp_path):
  """More than one crossing of TensorFlow carries, all of the same text."""
  add_task("unnamed", {"text": ["the same text"] * 400}, {"text": string_feature()})
  options = {"vocabulary": V, "packing": SINGLE}
  options["fill_in_middle"] = FillInMiddleConfig(rate=0.5)
  materialize_task("unnamed", tmp_path / "u", **options)
  middle = V.specials["<|fim_middle|>"]
  rows = [tuple(ids) for ids, _ in read(tmp_path / "u")]
  # Four standard deviations of 400 draws are 40.
  assert 160 <= sum(middle in row for row in rows) <= 240
  assert len(set(rows)) > 50
  # The same documents from a source of ours, under these names.
  documents = [
    encode_with_middle_moved(
      Document(id=f"unnamed:{i}", text="the same text"), V, options["fill_in_middle"]
    )
    for i in range(400)
  ]
  assert rows == [tuple(document.token_ids) for document in documents]


def test_an_unnamed_document_is_named_by_its_number(tmp_path, toy_vocabulary):
  add_task("foreign", {"text": ["so 3", "Zebra"]}, {"text": string_feature()})
  with pytest.raises(DataError, match=r"Document foreign:1: .* no token for \['Z'\]"):
    materialize_task("foreign", tmp_path, vocabulary=toy_vocabulary, packing=SINGLE)


def test_documents_with_hard_characters_cross_unchanged(tmp_path):
  path = tmp_path / "a.jsonl"
  texts = ["nul \0 tab\t", "\u2028 line", "\U0001f600 e\u0301", " \n "]
  texts[-1] += "x"
  path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
  make_task("hard", JsonlSource(path=str(path)), V)
  materialize_task("hard", tmp_path / "hard", vocabulary=V, packing=SINGLE)
  assert [V.decode(ids) for ids, _ in read(tmp_path / "hard")] == texts
  assert Document(id="x", text=texts[0]).text == texts[0]
