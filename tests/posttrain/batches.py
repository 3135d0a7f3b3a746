"""A tiny model and made-up preference batches, for the tests of this folder."""

import functools
import tempfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from phi4_jax.data.preference_rows import make_rows
from tests.data.search_folders import random_search, write_search
from tests.model.tiny import numpy_hidden, random_params, tiny_config

MODEL = tiny_config()


@functools.cache
def params(seed=0):
  return random_params(MODEL, seed)


@functools.cache
def rows_of(kind, num_pairs=8):
  """Rows of a made-up search, as host arrays."""
  with tempfile.TemporaryDirectory() as folder:
    write_search(Path(folder), random_search(num_ids=MODEL.vocab_size - 1))
    return make_rows(Path(folder), kind, num_pairs=num_pairs, seed=0).arrays


def to_device(batch):
  return {name: jnp.asarray(array) for name, array in batch.items()}


def logprobs64(weights, token_ids):
  """log p of every next token of one sequence [T], in float64 numpy: [T, V]."""
  ids = np.asarray(token_ids)[None]
  hidden = numpy_hidden(
    weights,
    MODEL,
    ids,
    positions=np.arange(ids.shape[1])[None],
    segment_ids=np.ones_like(ids),
  )
  logits = hidden[0] @ np.float64(weights["lm_head"]["weight"])
  return logits - np.log(np.exp(logits).sum(-1, keepdims=True))
