"""A vocabulary's run and a model's run, complete, for stages that sample from them."""

from pathlib import Path

import jax

from phi4_jax.common import io
from phi4_jax.data.tokenizer import ByteVocabulary
from phi4_jax.model.config import ModelConfig
from phi4_jax.model.transformer import init_params
from tests.experiments.parent_runs import write_parent

VOCABULARY = ByteVocabulary()
# Far from uniform, so that some tokens are likely and others not.
MODEL = ModelConfig(
  vocab_size=VOCABULARY.size,
  hidden_size=16,
  intermediate_size=16,
  num_hidden_layers=1,
  num_attention_heads=2,
  num_key_value_heads=1,
  max_position_embeddings=48,
  initializer_range=0.5,
)


def make_tokenizer_run(folder: Path) -> Path:
  VOCABULARY.save(folder / "vocabulary")
  result = {"verb": "train_tokenizer", "fingerprint": VOCABULARY.fingerprint}
  io.write_json(folder / "result.json", result)
  return folder


def make_model_run(folder: Path, seed: int = 0) -> Path:
  params = init_params(MODEL, jax.random.key(seed))
  return write_parent(folder, MODEL, params, vocabulary=VOCABULARY.fingerprint)
