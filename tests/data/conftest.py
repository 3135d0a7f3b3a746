"""Fixtures of the data tests: one tiny vocabulary and small datasets."""

import pytest

from phi4_jax.data.chat import encode_documents
from phi4_jax.data.documents import document_texts
from phi4_jax.data.materialize import write_dataset
from phi4_jax.data.packing import PackingConfig
from phi4_jax.data.sources import ArithmeticSource
from phi4_jax.data.tokenizer import VocabularyConfig, train_vocabulary

# The settings that suit the toy task: method words whole, no wasted bytes.
TOY = VocabularyConfig(
  size=160,
  byte_fallback=False,
  split_by_script=False,
  symbols=("system", "user", "assistant", "steps:", "jumps:"),
)


def toy_texts(num_documents: int = 300):
  for form in ("web", "synthetic", "chat"):
    source = ArithmeticSource(form=form, num_documents=num_documents, seed=0)
    for document in source.documents():
      yield from document_texts(document)


@pytest.fixture(scope="session")
def toy_vocabulary(tmp_path_factory):
  return train_vocabulary(toy_texts(), TOY, tmp_path_factory.mktemp("vocabulary"))


@pytest.fixture(scope="session")
def write_toy(toy_vocabulary):
  """Returns a function that writes a toy dataset into a folder."""

  def write(out_dir, *, form="synthetic", num_documents=120, seed=0, **kwargs):
    source = ArithmeticSource(form=form, num_documents=num_documents, seed=seed)
    kwargs = {"packing": PackingConfig(row_length=32), "rows_per_shard": 50, **kwargs}
    return write_dataset(
      encode_documents(source.documents(), toy_vocabulary),
      out_dir,
      task=f"arithmetic_{form}",
      source=source.recipe(),
      vocabulary=toy_vocabulary,
      **kwargs,
    )

  return write
