"""Parameters and arithmetic of a model, from its configuration alone."""

from phi4_jax.model.config import ModelConfig


def count_params(config: ModelConfig) -> int:
  """Returns the number of parameters (14,659,507,200 for Phi-4)."""
  d, f, h = config.hidden_size, config.intermediate_size, config.head_width
  n, k = config.num_attention_heads, config.num_key_value_heads
  attention = d * h * (2 * n + 2 * k)
  layer = attention + 3 * d * f + 2 * d
  tables = 1 if config.tie_word_embeddings else 2
  return config.num_hidden_layers * layer + tables * config.vocab_size * d + d


def model_flops_per_token(config: ModelConfig, context_length: int) -> float:
  """Returns the floating-point operations that training on one token takes.

  Six for each parameter that is multiplied (a product and a sum; forward once,
  backward twice), plus the attention scores and sums over the keys that a query
  sees on average in a full row. The input embedding is a look-up and costs none.
  Recomputation (remat) is not counted: this is the work that the model asks for.

  Args:
    config: the model.
    context_length: row length T; rows are taken to hold one document.
  """
  lookups = 0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size
  multiplied = count_params(config) - lookups
  window = min(config.sliding_window or context_length, context_length)
  # Query t (from 1) sees min(t, window) keys.
  pairs = window * (window + 1) / 2 + (context_length - window) * window
  width = config.num_attention_heads * config.head_width
  # Two products of 2 * width operations for each pair, three times for training.
  attention = config.num_hidden_layers * 12 * width * pairs / context_length
  return 6 * multiplied + attention
