"""attention_on_mesh: a kernel on each device's part equals one on the whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from phi4_jax.common.mesh import MeshConfig, make_mesh
from phi4_jax.model.attention_mesh import attention_on_mesh

B, T, N, K, H = 4, 24, 4, 2, 8


def _run(implementation, mesh=None, sizes=(B, T, N, K, H)):
  B, T, N, K, H = sizes
  rng = np.random.default_rng(0)
  shapes = [(B, T, N, H), (B, T, K, H), (B, T, K, H), (B, T, N, H)]
  q, k, v, upstream = (jnp.asarray(rng.standard_normal(s), "float32") for s in shapes)
  segments = np.sort(rng.integers(0, 3, (B, T)), axis=1)
  angles = jnp.asarray(rng.uniform(0, 6, (B, T, H // 2)), "float32")
  where = dict(
    rotation=(jnp.cos(angles), jnp.sin(angles)),
    positions=jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32), (B, T)),
    segment_ids=jnp.asarray(segments, jnp.int32),
  )

  def both(q, k, v):
    out, pull = jax.vjp(
      lambda *qkv: attention_on_mesh(
        *qkv,
        **where,
        sliding_window=15,
        implementation=implementation,
        interpret=implementation == "pallas_tpu",
      ),
      q,
      k,
      v,
    )
    return out, *pull(upstream)

  if mesh is None:
    return jax.jit(both)(q, k, v), ""
  with jax.set_mesh(mesh):
    return jax.jit(both)(q, k, v), str(jax.make_jaxpr(both)(q, k, v))


@pytest.mark.parametrize(
  "axes",
  [
    dict(data=1, fsdp=2, context=2, tensor=2),
    dict(data=2, fsdp=4),  # eight shards for four rows: fsdp repeats the work
  ],
)
def test_a_kernel_on_eight_devices_equals_the_reference_on_one(axes):
  expected, _ = _run("reference")
  ours, program = _run("pallas_tpu", make_mesh(MeshConfig(**axes)))
  assert "shard_map" in program
  for got, wanted in zip(ours, expected, strict=True):
    np.testing.assert_allclose(got, wanted, atol=1e-5 * float(jnp.abs(wanted).max()))


def test_the_rotation_inside_the_kernel_on_slices_of_a_row():
  # Heads of 128 in whole blocks are turned by the kernel itself, narrow ones before it.
  sizes = (2, 512, 2, 1, 128)
  expected, _ = _run("reference", sizes=sizes)
  mesh = make_mesh(MeshConfig(data=2, context=2), jax.devices()[:4])
  ours, _ = _run("pallas_tpu", mesh, sizes)
  for got, wanted in zip(ours, expected, strict=True):
    np.testing.assert_allclose(got, wanted, atol=1e-5 * float(jnp.abs(wanted).max()))


def test_gathered_keys_send_their_gradients_back_in_parts():
  _, program = _run("pallas_tpu", make_mesh(MeshConfig(fsdp=4, context=2)))
  assert "all_gather" in program and "reduce_scatter" in program


def test_plain_jax_is_left_to_xla():
  mesh = make_mesh(MeshConfig(data=4, tensor=2))
  (out, *_), program = _run("chunked", mesh)
  assert "shard_map" not in program
  (expected, *_), _ = _run("reference")
  np.testing.assert_allclose(out, expected, atol=1e-5)
