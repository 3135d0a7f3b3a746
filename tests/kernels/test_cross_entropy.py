"""Cross-entropy from hidden states: one class of tests for whole and chunked."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from kernels import cross_entropy
from kernels.cross_entropy import reference, sharded
from kernels.matmul import transpose

B, T, D, V = 2, 12, 8, 21

IMPLEMENTATIONS = {
  "reference": reference.cross_entropy_from_hidden,
  "one_chunk": functools.partial(cross_entropy.cross_entropy_from_hidden, num_chunks=1),
  "four_chunks": functools.partial(
    cross_entropy.cross_entropy_from_hidden, num_chunks=4
  ),
}


@pytest.fixture(params=IMPLEMENTATIONS)
def run(request):
  return IMPLEMENTATIONS[request.param]


def _inputs():
  rng = np.random.default_rng(0)
  hidden = jnp.asarray(rng.standard_normal((B, T, D)), jnp.float32)
  head = jnp.asarray(rng.standard_normal((D, V)) * 0.3, jnp.float32)
  targets = jnp.asarray(rng.integers(0, V, (B, T)), jnp.int32)
  weights = jnp.asarray(rng.random((B, T)) * (rng.random((B, T)) < 0.7), jnp.float32)
  return hidden, head, targets, weights


def _float64(hidden, head, targets, weights, z_loss):
  """Returns the sums, and the gradients of loss_sum in hidden and head."""
  hidden, head, weights = (np.asarray(x, np.float64) for x in (hidden, head, weights))
  targets = np.asarray(targets)
  logits = hidden @ head
  log_z = np.log(np.exp(logits).sum(-1))
  picked = np.take_along_axis(logits, targets[..., None], -1)[..., 0]
  loss = np.sum(weights * (log_z - picked + z_loss * log_z**2))
  z_sum = np.sum(weights * log_z**2)
  correct = np.sum(weights * (logits.argmax(-1) == targets))
  probs = np.exp(logits - log_z[..., None])
  dlogits = probs * (1 + 2 * z_loss * log_z[..., None]) - np.eye(V)[targets]
  dlogits *= weights[..., None]
  return (
    loss,
    z_sum,
    correct,
    dlogits @ head.T,
    np.einsum("btd,btv->dv", hidden, dlogits),
  )


class TestCrossEntropy:
  @pytest.mark.parametrize("z_loss", [0.0, 0.01])
  def test_sums_and_gradients_match_float64(self, run, z_loss):
    hidden, head, targets, weights = _inputs()

    @jax.jit
    def value_and_grad(hidden, head):
      def loss(hidden, head):
        sums = run(hidden, head, targets, weights, z_loss=z_loss)
        return sums.loss_sum, sums

      return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(hidden, head)

    (_, sums), (dhidden, dhead) = value_and_grad(hidden, head)
    loss, z_sum, correct, dhidden64, dhead64 = _float64(
      hidden, head, targets, weights, z_loss
    )
    np.testing.assert_allclose(sums.loss_sum, loss, rtol=1e-6)
    np.testing.assert_allclose(sums.z_sum, z_sum, rtol=1e-6)
    np.testing.assert_allclose(sums.correct_sum, correct, rtol=1e-6)
    np.testing.assert_allclose(dhidden, dhidden64, atol=1e-6)
    np.testing.assert_allclose(dhead, dhead64, atol=2e-6)

  def test_a_weight_of_zero_leaves_the_position_out(self, run):
    hidden, head, targets, weights = _inputs()
    other = jnp.where(weights == 0, (targets + 1) % V, targets)
    np.testing.assert_array_equal(
      run(hidden, head, targets, weights), run(hidden, head, other, weights)
    )

  @pytest.mark.parametrize("tied", [False, True])
  def test_bfloat16_runs_and_is_close(self, run, tied):
    hidden, head, targets, weights = _inputs()
    stored = head.T if tied else head

    @jax.jit
    def value_and_grad(hidden, stored):
      def loss(hidden, stored):
        matrix = transpose(stored) if tied else stored
        return run(hidden.astype(jnp.bfloat16), matrix, targets, weights).loss_sum

      return jax.value_and_grad(loss, argnums=(0, 1))(hidden, stored)

    loss, (dhidden, dstored) = value_and_grad(hidden, stored)
    expected, _, _, dhidden64, dhead64 = _float64(hidden, head, targets, weights, 0.0)
    assert loss.dtype == dstored.dtype == jnp.float32
    np.testing.assert_allclose(loss, expected, rtol=0.01)
    np.testing.assert_allclose(dhidden, dhidden64, atol=0.02 * np.abs(dhidden64).max())
    dhead = dstored.T if tied else dstored
    np.testing.assert_allclose(dhead, dhead64, atol=0.02 * np.abs(dhead64).max())


def test_no_array_of_all_logits_is_made():
  vocabulary, length = 4096, 64
  shapes = (
    jax.ShapeDtypeStruct((1, length, D), jnp.float32),
    jax.ShapeDtypeStruct((D, vocabulary), jnp.float32),
  )
  targets = jnp.zeros((1, length), jnp.int32)
  weights = jnp.ones((1, length))

  def temporary_bytes(run):
    def loss(hidden, head):
      return run(hidden, head, targets, weights).loss_sum

    compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*shapes).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  all_logits = 4 * length * vocabulary
  chunked = functools.partial(cross_entropy.cross_entropy_from_hidden, num_chunks=16)
  assert temporary_bytes(chunked) < 0.75 * all_logits
  assert temporary_bytes(reference.cross_entropy_from_hidden) > all_logits


@pytest.mark.parametrize("num_chunks", [0, 5, 13])
def test_chunks_must_divide_the_row(num_chunks):
  with pytest.raises(ValueError, match="Numbers that do: 1, 2, 3, 4, 6, 12"):
    cross_entropy.cross_entropy_from_hidden(*_inputs(), num_chunks=num_chunks)


def _on_mesh(shape, split_vocabulary, dtype=jnp.float32):
  """Loss, other sums, and gradients on a mesh (data, fsdp, context, tensor)."""
  axes = ("data", "fsdp", "context", "tensor")
  mesh = jax.make_mesh(
    shape,
    axes,
    axis_types=(AxisType.Auto,) * 4,
    devices=jax.devices()[: np.prod(shape)],
  )
  split = sharded.Split(
    rows=("data", "fsdp"),
    positions="context",
    width="fsdp",
    vocabulary="tensor" if split_vocabulary else None,
  )
  rng = np.random.default_rng(1)
  rows, width, vocabulary = 4, 8, 24
  hidden = jnp.asarray(rng.standard_normal((rows, T, width)), dtype)
  head = jnp.asarray(rng.standard_normal((width, vocabulary)) * 0.3, jnp.float32)
  targets = jnp.asarray(rng.integers(0, vocabulary, (rows, T)), jnp.int32)
  weights = jnp.asarray(rng.random((rows, T)), jnp.float32)

  def loss(run, hidden, head, weights):
    sums = run(hidden, head, targets, weights, z_loss=0.01)
    return sums.loss_sum, (sums.z_sum, sums.correct_sum)

  def run_sharded(*args, **options):
    return sharded.cross_entropy_from_hidden(
      *args, num_chunks=2, mesh=jax.sharding.get_abstract_mesh(), split=split, **options
    )

  results = []
  for run in (reference.cross_entropy_from_hidden, run_sharded):
    grad = jax.value_and_grad(
      functools.partial(loss, run), argnums=(0, 1, 2), has_aux=True
    )
    with jax.set_mesh(mesh):
      results.append(jax.device_get(jax.jit(grad)(hidden, head, weights)))
  return results


@pytest.mark.parametrize(
  ("shape", "split_vocabulary"),
  [
    ((1, 4, 1, 1), False),
    ((2, 2, 2, 1), False),
    ((1, 2, 1, 4), True),
    ((1, 2, 2, 2), True),
    ((1, 2, 1, 2), False),  # tensor divides nothing here: its devices repeat the work
  ],
)
def test_the_same_on_every_mesh(shape, split_vocabulary):
  expected, found = _on_mesh(shape, split_vocabulary)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), expected, found
  )


def test_the_head_is_gathered_once_and_its_gradient_summed_once():
  mesh = jax.make_mesh(
    (1, 8, 1, 1), ("data", "fsdp", "context", "tensor"), axis_types=(AxisType.Auto,) * 4
  )
  split = sharded.Split(rows=("data", "fsdp"), positions="context", width="fsdp")

  def loss(hidden, head, targets, weights):
    return sharded.cross_entropy_from_hidden(
      hidden, head, targets, weights, num_chunks=4, mesh=mesh, split=split
    ).loss_sum

  shapes = (
    jax.ShapeDtypeStruct((8, T, 16), jnp.bfloat16),
    jax.ShapeDtypeStruct((16, V), jnp.float32),
    jax.ShapeDtypeStruct((8, T), jnp.int32),
    jax.ShapeDtypeStruct((8, T), jnp.float32),
  )
  text = str(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(*shapes))
  assert text.count("all_gather[") == 1
  assert text.count("reduce_scatter[") == 1
  assert f"bf16[16,{V}] = all_gather[" in text  # the low precision is what travels


def test_chunks_are_counted_on_a_device():
  with pytest.raises(ValueError, match=r"must divide the row length \(6"):
    mesh = jax.make_mesh(
      (1, 1, 2, 1),
      ("data", "fsdp", "context", "tensor"),
      axis_types=(AxisType.Auto,) * 4,
      devices=jax.devices()[:2],
    )
    split = sharded.Split(rows=("data", "fsdp"), positions="context", width="fsdp")
    hidden, head, targets, weights = _inputs()
    sharded.cross_entropy_from_hidden(
      hidden, head, targets, weights, num_chunks=4, mesh=mesh, split=split
    )
