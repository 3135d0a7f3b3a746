"""The decoder: formula, causality, packing, layouts, recomputation, bfloat16."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.cross_entropy import cross_entropy_from_hidden
from phi4_jax.common.errors import ConfigError
from phi4_jax.model import transformer
from tests.model.tiny import numpy_hidden, random_params, tiny_config

B, T = 2, 12
IDS = np.random.default_rng(0).integers(0, 40, (B, T)).astype(np.int32)
POSITIONS = np.tile(np.arange(T, dtype=np.int32), (B, 1))
ONE_SEGMENT = np.ones((B, T), np.int32)
# Row 0: documents of 5 and 4 tokens, then padding; row 1: padding in front.
SEGMENTS = np.array([[1] * 5 + [2] * 4 + [0] * 3, [0] * 4 + [1] * 8], np.int32)
PACKED_POSITIONS = np.array(
  [[*range(5), *range(4), 0, 0, 0], [0, 0, 0, 0, *range(8)]], np.int32
)


@functools.partial(jax.jit, static_argnums=1)
def _hidden(params, config, ids, positions, segment_ids):
  return transformer.forward(
    params, config, ids, positions=positions, segment_ids=segment_ids
  )[0]


@functools.partial(jax.jit, static_argnums=1)
def _loss_and_gradient(params, config):
  def loss(params):
    hidden = _hidden(params, config, IDS, PACKED_POSITIONS, SEGMENTS)
    head = transformer.output_head(params, config)
    ids, weights = jnp.asarray(IDS), jnp.float32(SEGMENTS != 0)
    sums = cross_entropy_from_hidden(hidden, head, ids, weights, num_chunks=2)
    return sums.loss_sum / weights.sum()

  return jax.value_and_grad(loss)(params)


@pytest.mark.parametrize("window", [None, 3])
def test_packed_rows_match_the_float64_decoder(window):
  config = tiny_config(sliding_window=window)
  params = random_params(config)
  hidden = _hidden(params, config, IDS, PACKED_POSITIONS, SEGMENTS)
  expected = numpy_hidden(params, config, IDS, PACKED_POSITIONS, SEGMENTS)
  np.testing.assert_allclose(hidden, expected, atol=1e-5)


def test_logits_match_the_float64_head():
  config = tiny_config()
  params = random_params(config)
  hidden = np.random.default_rng(1).standard_normal((2, 3, 32)).astype(np.float32)
  logits = transformer.compute_logits(params, config, jnp.asarray(hidden))
  assert logits.dtype == jnp.float32
  expected = np.float64(hidden) @ np.float64(params["lm_head"]["weight"])
  np.testing.assert_allclose(logits, expected, atol=2e-6)


def test_rope_theta_reaches_the_rotation():
  config, other = tiny_config(), tiny_config(rope_theta=250_000.0)
  params = random_params(config)
  hidden = [_hidden(params, c, IDS, POSITIONS, ONE_SEGMENT) for c in (config, other)]
  assert np.abs(np.asarray(hidden[0] - hidden[1])).max() > 1e-2
  expected = numpy_hidden(params, other, IDS, POSITIONS, ONE_SEGMENT)
  np.testing.assert_allclose(hidden[1], expected, atol=1e-5)


def test_rms_norm_eps_reaches_the_norms():
  config = tiny_config(rms_norm_eps=0.5)
  params = random_params(config)
  hidden = _hidden(params, config, IDS, POSITIONS, ONE_SEGMENT)
  expected = numpy_hidden(params, config, IDS, POSITIONS, ONE_SEGMENT)
  np.testing.assert_allclose(hidden, expected, atol=1e-5)


def test_head_dim_may_differ_from_width_over_heads():
  config = tiny_config(head_dim=6)
  params = random_params(config)
  assert params["layers"]["self_attn"]["q_proj"]["weight"].shape == (2, 32, 48)
  hidden = _hidden(params, config, IDS, POSITIONS, ONE_SEGMENT)
  expected = numpy_hidden(params, config, IDS, POSITIONS, ONE_SEGMENT)
  np.testing.assert_allclose(hidden, expected, atol=1e-5)


def test_later_tokens_change_nothing():
  config = tiny_config()
  params = random_params(config)
  changed = IDS.copy()
  changed[:, 7:] = (changed[:, 7:] + 1) % 40
  hidden = _hidden(params, config, IDS, POSITIONS, ONE_SEGMENT)
  other = _hidden(params, config, changed, POSITIONS, ONE_SEGMENT)
  np.testing.assert_array_equal(hidden[:, :7], other[:, :7])
  assert np.abs(np.asarray(hidden - other)[:, 7:]).min(axis=1).max() > 0


def test_packed_documents_equal_documents_alone():
  config = tiny_config()
  params = random_params(config)
  packed = np.asarray(_hidden(params, config, IDS, PACKED_POSITIONS, SEGMENTS))
  for row, start, end in [(0, 0, 5), (0, 5, 9), (1, 4, 12)]:
    ids, segments = np.zeros_like(IDS), np.zeros_like(IDS)
    ids[0, : end - start] = IDS[row, start:end]
    segments[0, : end - start] = 1
    alone = _hidden(params, config, ids, POSITIONS, segments)[0, : end - start]
    np.testing.assert_allclose(packed[row, start:end], alone, atol=1e-5)


def test_other_documents_and_padding_change_nothing():
  config = tiny_config()
  params = random_params(config)
  changed = np.where(SEGMENTS == 2, (IDS + 1) % 40, IDS)
  changed = np.where(SEGMENTS == 0, 0, changed).astype(np.int32)
  hidden = _hidden(params, config, IDS, PACKED_POSITIONS, SEGMENTS)
  other = _hidden(params, config, changed, PACKED_POSITIONS, SEGMENTS)
  same = SEGMENTS == 1
  np.testing.assert_array_equal(np.asarray(hidden)[same], np.asarray(other)[same])


def test_the_same_key_gives_the_same_numbers_in_both_layouts():
  stacked = transformer.init_params(tiny_config(), jax.random.key(3))
  config = tiny_config(scan_layers=False)
  separate = transformer.init_params(config, jax.random.key(3))
  assert "layers" not in separate
  assert separate["layers_1"]["mlp"]["up_proj"]["weight"].shape == (32, 48)
  jax.tree.map(
    np.testing.assert_array_equal, transformer.stack_layers(separate), stacked
  )
  jax.tree.map(
    np.testing.assert_array_equal, transformer.unstack_layers(stacked, config), separate
  )
  first, second = np.asarray(stacked["layers"]["mlp"]["up_proj"]["weight"])
  assert np.abs(first - second).max() > 0.1


def test_initial_weights_have_the_range_and_are_float32():
  config = tiny_config(compute_dtype="bfloat16", initializer_range=0.03)
  params = transformer.init_params(config, jax.random.key(3))
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
  for leaf in (
    params["embed_tokens"]["weight"],
    params["lm_head"]["weight"],
    params["layers"]["mlp"]["gate_proj"]["weight"],
  ):
    # 1,280 draws or more: their deviation is known to 2%.
    np.testing.assert_allclose(np.std(leaf), 0.03, rtol=0.08)
    assert abs(np.mean(leaf)) < 0.003
  np.testing.assert_array_equal(params["norm"]["weight"], 1.0)
  np.testing.assert_array_equal(params["layers"]["input_layernorm"]["weight"], 1.0)


def test_what_is_added_to_the_residual_stream_may_begin_smaller():
  same, small = (
    transformer.init_params(
      tiny_config(initializer_range=0.03, residual_initializer_range=value),
      jax.random.key(3),
    )["layers"]
    for value in (None, 0.01)
  )
  outer = (("self_attn", "o_proj"), ("mlp", "down_proj"))
  for block, name in outer:
    ours, theirs = small[block].pop(name)["weight"], same[block].pop(name)["weight"]
    np.testing.assert_allclose(np.std(theirs), 0.03, rtol=0.08)
    np.testing.assert_allclose(ours, theirs / 3, rtol=1e-6)
  jax.tree.map(np.testing.assert_array_equal, small, same)


@pytest.mark.parametrize(
  "change",
  [
    dict(remat="full"),
    dict(remat="dots"),
    dict(scan_layers=False, remat="full", attention="chunked"),
  ],
  ids=str,
)
def test_recomputation_and_layout_change_neither_loss_nor_gradient(change):
  config, other = tiny_config(), tiny_config(**change)
  params = random_params(config)
  loss, gradient = _loss_and_gradient(params, config)
  if not other.scan_layers:
    params = transformer.unstack_layers(params, other)
  other_loss, other_gradient = _loss_and_gradient(params, other)
  if not other.scan_layers:
    other_gradient = transformer.stack_layers(other_gradient)
  np.testing.assert_allclose(loss, other_loss, rtol=1e-6)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), gradient, other_gradient
  )


def test_remat_keeps_less_the_more_it_recomputes():
  def kept_bytes(remat):
    config = tiny_config(num_hidden_layers=8, remat=remat)
    params = transformer.abstract_params(config)

    def loss(params):
      ids = jnp.zeros((4, 64), jnp.int32)
      hidden, _ = transformer.forward(
        params, config, ids, positions=ids, segment_ids=jnp.ones_like(ids)
      )
      return jnp.sum(hidden)

    saved = jax.eval_shape(lambda params: jax.vjp(loss, params)[1], params)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(saved))

  none, dots, full = (kept_bytes(remat) for remat in ("none", "dots", "full"))
  assert full < 0.7 * dots
  assert dots < 0.7 * none


def test_bfloat16_loss_and_gradient_run_and_are_close_to_float32():
  config = tiny_config()
  params = random_params(config)
  loss, gradient = _loss_and_gradient(params, config)
  narrow = tiny_config(compute_dtype="bfloat16")
  narrow_loss, narrow_gradient = _loss_and_gradient(params, narrow)
  np.testing.assert_allclose(narrow_loss, loss, rtol=0.02)

  def close(ours, theirs):
    assert ours.dtype == jnp.float32
    error = np.linalg.norm(np.asarray(ours - theirs))
    assert error < 0.05 * np.linalg.norm(theirs)

  jax.tree.map(close, narrow_gradient, gradient)


def test_tied_bfloat16_gradient_is_that_of_both_uses_of_the_embedding():
  tied = tiny_config(compute_dtype="bfloat16", tie_word_embeddings=True)
  config = tiny_config(compute_dtype="bfloat16")
  params = random_params(tied)
  assert "lm_head" not in params
  untied = params | {"lm_head": {"weight": params["embed_tokens"]["weight"].T}}
  loss, gradient = _loss_and_gradient(params, tied)
  untied_loss, untied_gradient = _loss_and_gradient(untied, config)
  np.testing.assert_allclose(loss, untied_loss, rtol=1e-6)
  head = untied_gradient.pop("lm_head")["weight"]
  untied_gradient["embed_tokens"]["weight"] += head.T
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradient, untied_gradient
  )


@pytest.mark.parametrize("tied", [False, True])
def test_bfloat16_head_gradient_is_the_same_by_logits_and_by_chunks(tied):
  config = tiny_config(tie_word_embeddings=tied, compute_dtype="bfloat16")
  owner = "embed_tokens" if tied else "lm_head"
  params = {owner: random_params(config)[owner]}
  hidden = jnp.asarray(
    np.random.default_rng(1).standard_normal((B, T, 32)), config.dtype
  )
  ids, weights = jnp.asarray(IDS), jnp.ones(IDS.shape)

  def by_logits(params):
    logprobs = jax.nn.log_softmax(transformer.compute_logits(params, config, hidden))
    return -jnp.take_along_axis(logprobs, ids[..., None], axis=-1).sum()

  def by_chunks(params, num_chunks):
    head = transformer.output_head(params, config)
    return cross_entropy_from_hidden(
      hidden, head, ids, weights, num_chunks=num_chunks
    ).loss_sum

  expected = jax.jit(jax.grad(by_logits))(params)[owner]["weight"]
  assert np.abs(expected).max() > 0.1
  for num_chunks in (1, 3):
    by = functools.partial(by_chunks, num_chunks=num_chunks)
    gradient = jax.jit(jax.grad(by))(params)[owner]["weight"]
    np.testing.assert_allclose(gradient, expected, atol=1e-5)


def test_bfloat16_weights_are_accepted_as_they_are():
  config = tiny_config(compute_dtype="bfloat16")
  params = random_params(config)
  narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
  hidden = _hidden(params, config, IDS, POSITIONS, ONE_SEGMENT)
  other = _hidden(narrow, config, IDS, POSITIONS, ONE_SEGMENT)
  assert hidden.dtype == other.dtype == jnp.bfloat16
  np.testing.assert_array_equal(np.float32(hidden), np.float32(other))


def test_rows_longer_than_the_model_are_refused():
  config = tiny_config(max_position_embeddings=11)
  params = transformer.abstract_params(config)
  with pytest.raises(ConfigError, match="Rows of 12 tokens exceed .*embeddings .11."):
    jax.eval_shape(
      functools.partial(_hidden, config=config),
      params,
      ids=IDS,
      positions=POSITIONS,
      segment_ids=ONE_SEGMENT,
    )
