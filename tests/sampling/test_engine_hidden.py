"""The engine's hidden states are those of a plain forward pass."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from phi4_jax.common.mesh import MeshConfig, make_mesh
from phi4_jax.common.sampler import SamplingLaw
from phi4_jax.model.transformer import forward, init_params
from phi4_jax.sampling.engine import RolloutEngine
from tests.sampling.test_engine import CONFIG, SETTINGS, SHAPES, draw_all, make_branches

# As long as the law allows, a multiple of the chunk of 4, and shorter than it.
LAW = SamplingLaw(max_length=25)
TEXTS = [
  tuple(range(5)) * 5,
  (1, 2, 3),
  (4, 4, 2, 1, 9, 8, 7, 3),
  (6,),
  (1, 2, 3, 4, 5, 6, 7),
  tuple(range(9, -1, -1)),
]
MESHES = {
  "rows": MeshConfig(data=4, fsdp=2),
  "rows and heads": MeshConfig(data=2, fsdp=2, tensor=2),
  "rows over tensor, too": MeshConfig(data=2, tensor=4),
}


@pytest.fixture(scope="module")
def params():
  return init_params(CONFIG, jax.random.key(0))


def read_plainly(params, text):
  ids = jnp.array([text])
  ones = jnp.ones_like(ids)
  positions = jnp.arange(len(text))[None]
  hidden, _ = forward(params, CONFIG, ids, positions=positions, segment_ids=ones)
  return np.asarray(hidden[0], np.float32)


def assert_plain(params, found, texts=TEXTS):
  assert len(found) == len(texts)
  for states, text in zip(found, texts, strict=True):
    assert states.shape == (len(text), CONFIG.hidden_size)
    assert states.dtype == np.float32
    np.testing.assert_allclose(states, read_plainly(params, text), rtol=0, atol=2e-5)


def test_states_are_those_of_the_plain_pass_and_rollouts_stay(params):
  engine = RolloutEngine(params, CONFIG, LAW, prefill_lanes=2, **SETTINGS, **SHAPES)
  branches = make_branches(30)
  drawn = draw_all(engine, branches)
  before = engine.num_compilations
  assert_plain(params, engine.hidden_states(TEXTS))
  assert engine.num_compilations == before + 2
  read = engine.throughput.prefill_tokens
  assert draw_all(engine, branches) == drawn
  # Neither neighbours nor lanes matter, and nothing compiles again.
  again = engine.hidden_states(TEXTS[::-1])[::-1]
  for states, text in zip(again, TEXTS, strict=True):
    np.testing.assert_array_equal(states, engine.hidden_states([text])[0])
  assert engine.num_compilations == before + 2
  assert engine.throughput.prefill_tokens >= read + 2 * sum(map(len, TEXTS))
  assert engine.hidden_states([]) == []


def test_new_weights_are_used_and_broken_ones_are_told_of(params):
  engine = RolloutEngine(params, CONFIG, LAW, **SETTINGS, **SHAPES)
  other = init_params(CONFIG, jax.random.key(1))
  engine.set_params(other)
  assert_plain(other, engine.hidden_states(TEXTS))
  engine.set_params(jax.tree.map(lambda leaf: leaf * jnp.nan, params))
  with pytest.raises(ValueError, match="hidden states of text 0 are not finite"):
    engine.hidden_states(TEXTS[:1])


@pytest.mark.parametrize("name", MESHES)
def test_eight_devices_see_what_one_sees(params, name):
  sizes: dict[str, Any] = SETTINGS | {"batch_size": 16, "rows_per_group": 2}
  engine = RolloutEngine(params, CONFIG, LAW, mesh=make_mesh(MESHES[name]), **sizes)
  assert_plain(params, engine.hidden_states(TEXTS))


@pytest.mark.parametrize(
  "text, said",
  [
    ((), "Prefix 0 is empty"),
    ((1,) * 26, r"26 tokens, more than SamplingLaw.max_length \(25\)"),
    ((1, 11), r"vocab_size \(11\)"),
  ],
)
def test_texts_that_cannot_be_read_are_refused(params, text, said):
  engine = RolloutEngine(params, CONFIG, LAW, **SETTINGS, **SHAPES)
  with pytest.raises(ValueError, match=said):
    engine.hidden_states([text])
