"""SeqIO tasks: the registry of data, and the way from a task to rows on disk.

The only file that imports seqio, and with it TensorFlow; nothing imports it at the
top of a module. `make_task` registers one of our sources as a SeqIO task;
`materialize_task` turns a task, ours or any registered one, into a dataset.

SeqIO's feature converters are not used: they take id 0 for padding, and shift and
mask on their own; here `packing.py` and `batch.py` do that.
"""

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.data import example_readers as readers
from phi4_jax.data.chat import EncodedDocument
from phi4_jax.data.documents import document_from_json, document_to_json
from phi4_jax.data.fill_in_middle import FillInMiddleConfig
from phi4_jax.data.known_files import KnownTaskSource, Places, find_files
from phi4_jax.data.known_tasks import split_name, task_names
from phi4_jax.data.materialize import (
  ROWS_PER_SHARD,
  Manifest,
  Progress,
  write_dataset,
)
from phi4_jax.data.packing import PackingConfig
from phi4_jax.data.relay import Relay
from phi4_jax.data.source_files import Source
from phi4_jax.data.tensorflow_logs import hold_back
from phi4_jax.data.vocabularies import Vocabulary

with hold_back():
  import seqio
  import tensorflow as tf

# Documents that cross between TensorFlow and Python together; one by one, the
# crossing costs many times the tokenizing.
_GROUP = 256


class SeqioVocabulary(seqio.Vocabulary):
  """One of our vocabularies as SeqIO sees it; equal when the fingerprints are."""

  def __init__(self, vocabulary: Vocabulary):
    super().__init__()
    self.wrapped = vocabulary
    self.relay = Relay()

  @property
  def eos_id(self) -> int:
    return self.wrapped.eos_id

  @property
  def pad_id(self) -> int:
    # SeqIO overwrites what follows the first eos with this id before it decodes. Its
    # own choice, 0, is "!" in phi-4's vocabulary; the eos decodes to nothing.
    return self.wrapped.eos_id

  @property
  def bos_id(self) -> None:
    return None

  @property
  def unk_id(self) -> None:
    return None

  @property
  def _base_vocab_size(self) -> int:
    return self.wrapped.size

  def _encode(self, s: str) -> list[int]:
    return self.wrapped.encode(s)

  def _decode(self, ids) -> str:
    return self.wrapped.decode(ids)

  def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
    def encode(text: Any) -> np.ndarray:
      # Bytes in a graph, a 0-d array of bytes outside of one.
      content = text if isinstance(text, bytes) else text.item()
      return np.asarray(self.wrapped.encode(content.decode("utf-8")), np.int32)

    # Stateful functions would break tf.data checkpoints.
    guarded = self.relay.guard(encode)
    token_ids = tf.numpy_function(guarded, [s], tf.int32, stateful=False)
    token_ids.set_shape([None])
    return token_ids

  def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
    def decode(token_ids: np.ndarray) -> Any:
      if token_ids.ndim == 1:
        return self.wrapped.decode(token_ids.tolist()).encode("utf-8")
      texts = [self.wrapped.decode(row.tolist()).encode("utf-8") for row in token_ids]
      return np.asarray(texts, object)

    text = tf.numpy_function(decode, [ids], tf.string, stateful=False)
    text.set_shape(ids.shape[:-1])
    return text

  def __eq__(self, other: object) -> bool:
    return (
      isinstance(other, SeqioVocabulary)
      and other.wrapped.fingerprint == self.wrapped.fingerprint
    )

  def __hash__(self) -> int:
    return hash(self.wrapped.fingerprint)


# What our own tasks were made of: task name -> (recipe of the source, relay).
_MADE: dict[str, tuple[dict[str, Any], Relay]] = {}


def _with_middle(
  recipe: dict[str, Any], fill_in_middle: FillInMiddleConfig | None
) -> dict[str, Any]:
  if fill_in_middle is None:
    return recipe
  return {**recipe, "fill_in_middle": dataclasses.asdict(fill_in_middle)}


def make_task(
  name: str,
  source: Source,
  vocabulary: Vocabulary,
  *,
  fill_in_middle: FillInMiddleConfig | None = None,
) -> seqio.Task:
  """Registers a source as a SeqIO task with features `token_ids` and `loss_mask`.

  An example is one document; its features `token_ids` (int32 [tokens]) and
  `loss_mask` (int32 [tokens], 1 = counts) are what `chat.encode_document` gives,
  and `id` names it. Registering the same again returns the first task.

  Raises:
    ConfigError: if the name is taken by another task, or the vocabulary has no tokens
      for `fill_in_middle`.
  """
  recipe = _with_middle(source.recipe(), fill_in_middle)
  encoder = readers.make_encoder(vocabulary, fill_in_middle)
  if name in seqio.TaskRegistry.names():
    task = seqio.TaskRegistry.get(name)
    made = _MADE.get(name)
    wrapper = SeqioVocabulary(vocabulary)
    if made and made[0] == recipe and _feature_vocabulary(task, "token_ids") == wrapper:
      return task
    raise ConfigError(
      f"A SeqIO task {name!r} exists already and was made otherwise. Choose another "
      "name."
    )
  relay = Relay()
  _MADE[name] = (recipe, relay)

  def dataset_fn(split: str, shuffle_files: bool, seed: int | None = None):
    del split, shuffle_files, seed  # one split; rows are shuffled when they are read

    def groups() -> Iterator[dict[str, list[str]]]:
      documents = relay.read(source)
      while group := list(itertools.islice(documents, _GROUP)):
        yield {"document": [document_to_json(document) for document in group]}

    signature = {"document": tf.TensorSpec([None], tf.string)}
    return tf.data.Dataset.from_generator(groups, output_signature=signature).unbatch()

  return seqio.TaskRegistry.add(
    name,
    source=seqio.FunctionDataSource(dataset_fn, splits=["train"]),  # pyright: ignore
    preprocessors=[_make_tokenizer(encoder, relay)],
    output_features={
      "token_ids": seqio.Feature(SeqioVocabulary(vocabulary), add_eos=False),
      "loss_mask": seqio.Feature(seqio.PassThroughVocabulary(2), add_eos=False),
    },
    metric_fns=[],
  )


def register_known_tasks(vocabulary: Vocabulary, places: Places) -> list[str]:
  """Registers every published question set that is found; returns the tasks' names.

  For who works with SeqIO itself; `phi4 materialize` registers what it is asked for.
  """
  found = []
  for name in task_names():
    parts = split_name(name)
    assert parts is not None, "task_names() lists names that split_name knows"
    known, form = parts
    path = find_files(known, known.first_split, places)
    if path is not None:
      source = KnownTaskSource(path=path, task=known.name, form=form)  # pyright: ignore
      make_task(name, source, vocabulary)
      found.append(name)
  return found


def _make_tokenizer(
  encoder: readers.Encoder, relay: Relay
) -> Callable[[tf.data.Dataset], tf.data.Dataset]:
  """Returns the preprocessor that encodes documents, many at a crossing."""

  def encode(lines: np.ndarray) -> tuple[np.ndarray, ...]:
    encoded = [encoder(document_from_json(line)) for line in lines]
    return (
      np.asarray([document.id.encode() for document in encoded], object),
      np.concatenate([document.token_ids for document in encoded]),
      np.concatenate([document.loss_mask for document in encoded]).astype(np.int32),
      np.asarray([len(document.token_ids) for document in encoded], np.int64),
    )

  nothing = tuple(np.asarray([], kind) for kind in (object, "i4", "i4", "i8"))
  guarded = relay.guard(encode, instead=nothing)

  def encode_group(group: dict[str, tf.Tensor]) -> dict[str, Any]:
    ids, tokens, mask, lengths = tf.numpy_function(
      guarded,
      [group["document"]],
      [tf.string, tf.int32, tf.int32, tf.int64],
      stateful=False,
    )
    for tensor in (ids, tokens, mask, lengths):
      tensor.set_shape([None])
    split = tf.RaggedTensor.from_row_lengths  # pyright: ignore
    return {
      "id": ids,
      "token_ids": split(tokens, lengths, validate=False),
      "loss_mask": split(mask, lengths, validate=False),
    }

  def tokenize_documents(dataset: tf.data.Dataset) -> tf.data.Dataset:
    return dataset.batch(_GROUP).map(encode_group).unbatch()

  return tokenize_documents


def materialize_task(
  task: str | seqio.Task,
  out_dir: str | Path,
  *,
  vocabulary: Vocabulary,
  packing: PackingConfig,
  split: str = "train",
  rows_per_shard: int = ROWS_PER_SHARD,
  fill_in_middle: FillInMiddleConfig | None = None,
  on_progress: Callable[[Progress], None] | None = None,
) -> Manifest:
  """Runs a task once, in order, and writes its documents as packed rows.

  What counts in the loss follows from the task's features:
    token_ids, loss_mask   as they say (tasks of `make_task`)
    tokens                 every token
    inputs, targets        the targets; one after the other, no token added
    text                   (strings) every token and a closing eos
  `inputs` and `targets` that are strings become a user and an assistant turn.
  `fill_in_middle` is for tasks of `text`; those of `make_task` bring their own.

  A dataset that is complete is not made again. A task that this file did not make
  is known by its name only: after changing it, choose another folder.

  Raises:
    ConfigError: if the task is unknown or a mixture, has none of these features, or
      uses another vocabulary; or if the folder holds another dataset.
    DataError: if a document is unusable.
  """
  found = _get_task(task) if isinstance(task, str) else task
  recipe, relay = _MADE.get(found.name, ({"seqio_task": found.name}, Relay()))
  if found.name not in _MADE:
    recipe = _with_middle({**recipe, "split": split}, fill_in_middle)
  read = _choose_reader(found, vocabulary, fill_in_middle)

  def documents() -> Iterator[EncodedDocument]:
    with relay.holding(), _own_errors(found):
      dataset = found.get_dataset(
        sequence_length=None,
        split=split,
        shuffle=False,
        num_epochs=1,
        try_in_mem_cache=False,
        trim_output_features=False,
      )
      numbered = (f"{found.name}:{number}" for number in itertools.count())
      for group in dataset.ragged_batch(_GROUP):
        yield from read(group, numbered)

  return write_dataset(
    documents(),
    out_dir,
    task=found.name,
    source=recipe,
    vocabulary=vocabulary,
    packing=packing,
    rows_per_shard=rows_per_shard,
    source_drops=relay.dropped,
    on_progress=on_progress,
  )


@contextlib.contextmanager
def _own_errors(task: seqio.Task) -> Iterator[None]:
  """Turns TensorFlow's errors into what a person can mend."""
  relays = [
    feature.vocabulary.relay
    for feature in task.output_features.values()
    if isinstance(feature.vocabulary, SeqioVocabulary)
  ]
  for relay in relays:
    relay.error = None
  try:
    yield
  except tf.errors.OpError as error:
    for relay in relays:
      if relay.error is not None:
        why = f"SeqIO task {task.name}: {relay.error}"
        raise DataError(why) from None
    raise DataError(f"SeqIO task {task.name} failed: {error.message}") from error


def registered() -> dict[str, list[str]]:
  """Returns all SeqIO tasks, with [], and mixtures, with the names of their tasks."""
  found: dict[str, list[str]] = {name: [] for name in seqio.TaskRegistry.names()}
  for name in seqio.MixtureRegistry.names():
    found[name] = sorted(task.name for task in seqio.MixtureRegistry.get(name).tasks)
  return found


def _get_task(name: str) -> seqio.Task:
  if name in seqio.MixtureRegistry.names():
    raise ConfigError(
      f"{name!r} is a SeqIO mixture. Materialize its tasks one by one and give their "
      "weights in DataConfig.datasets, where they are fractions of tokens."
    )
  if name not in seqio.TaskRegistry.names():
    known = ", ".join(sorted(seqio.TaskRegistry.names())) or "none"
    hint = "Import the module that registers it."
    if split_name(name):
      hint = "It is a published set: DatasetConfig.source = @KnownTaskSource() has it."
    raise ConfigError(f"There is no SeqIO task {name!r}. {hint} Registered: {known}.")
  return seqio.TaskRegistry.get(name)


def _feature_vocabulary(task: seqio.Task, feature: str) -> Any:
  declared = task.output_features.get(feature)
  return declared.vocabulary if declared is not None else None


def _choose_reader(
  task: seqio.Task, vocabulary: Vocabulary, fill_in_middle: FillInMiddleConfig | None
) -> readers.Reader:
  """Returns how this task's examples are read, by their declared features."""
  features = task.output_features
  for names in (("token_ids", "loss_mask"), ("tokens",), ("inputs", "targets")):
    if not set(names) <= set(features):
      continue
    if fill_in_middle is not None and task.name not in _MADE:
      raise ConfigError(
        f"SeqIO task {task.name} has the features {', '.join(features)} and not 'text' "
        "alone, so DatasetConfig.fill_in_middle has nothing to cut. Leave it out."
      )
    if features[names[-1]].dtype == tf.string:
      return functools.partial(readers.read_exchanges, vocabulary=vocabulary)
    for name in names:
      if name != "loss_mask":
        _check_vocabulary(task, name, vocabulary)
    return functools.partial(readers.read_tokens, names=names)
  if "text" in features and features["text"].dtype == tf.string:
    encoder = readers.make_encoder(vocabulary, fill_in_middle)
    return functools.partial(readers.read_texts, encoder=encoder)
  raise ConfigError(
    f"SeqIO task {task.name} has the features {', '.join(features)}; required are "
    "token_ids and loss_mask, or tokens, or inputs and targets, or text (string)."
  )


def _check_vocabulary(task: seqio.Task, feature: str, vocabulary: Vocabulary) -> None:
  if _feature_vocabulary(task, feature) != SeqioVocabulary(vocabulary):
    raise ConfigError(
      f"SeqIO task {task.name} makes {feature!r} with another vocabulary than the one "
      "given. Register the task with SeqioVocabulary(vocabulary)."
    )
