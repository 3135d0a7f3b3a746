"""Our logits and greedy continuations of a converted model, in float32."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from experiments.devices import start_jax
from experiments.model_folder import ModelFolder
from phi4_jax.common.axes import Params
from phi4_jax.common.mesh import MeshConfig
from phi4_jax.common.sampler import SamplingLaw
from phi4_jax.model.config import ModelConfig
from phi4_jax.model.transformer import compute_logits, forward
from phi4_jax.sampling.generate import JaxSampler

# Rows that are read at once; the logits of all positions are large.
_ROWS = 4


def load(folder: ModelFolder) -> tuple[ModelConfig, Params]:
  """Returns the model's settings, computing in float32, and its weights."""
  mesh = MeshConfig(data=1)
  start_jax(mesh, rows=1)
  model = dataclasses.replace(folder.model, compute_dtype="float32")
  return model, folder.load_params(mesh)


def compute_all_logits(
  params: Params, model: ModelConfig, prompts: Sequence[Sequence[int]]
) -> list[np.ndarray]:
  """Returns [T, V] float32 logits of each prompt, all positions in one pass."""
  length = max(map(len, prompts))

  @jax.jit
  def run(params, ids, lengths):
    positions = jnp.broadcast_to(jnp.arange(length), ids.shape)
    segment_ids = (positions < lengths[:, None]).astype(jnp.int32)
    hidden, _ = forward(
      params, model, ids, positions=positions, segment_ids=segment_ids
    )
    return compute_logits(params, model, hidden)

  found = []
  for start in range(0, len(prompts), _ROWS):
    part = prompts[start : start + _ROWS]
    ids = np.zeros((_ROWS, length), np.int32)
    lengths = np.zeros(_ROWS, np.int32)
    for row, prompt in enumerate(part):
      ids[row, : len(prompt)] = prompt
      lengths[row] = len(prompt)
    logits = np.asarray(run(params, ids, lengths), np.float32)
    found += [logits[row, : len(prompt)] for row, prompt in enumerate(part)]
  return found


def continue_greedily(
  params: Params,
  model: ModelConfig,
  prompts: Sequence[Sequence[int]],
  new_tokens: int,
) -> list[list[int]]:
  """Returns the most probable token at each step, past the end of an answer."""
  longest = max(map(len, prompts))
  sampler = JaxSampler(
    params,
    model,
    SamplingLaw(temperature=0.0, max_length=longest + new_tokens),
    stop_ids=(),
    batch_size=len(prompts),
    seed=0,
  )
  completions = sampler.sample(prompts, [(i,) for i in range(len(prompts))])
  return [list(completion.token_ids[:new_tokens]) for completion in completions]
