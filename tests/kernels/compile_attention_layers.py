"""Compiles layers around the attention kernels for a TPU that is not there.

A program of its own because libtpu may abort it. Prints one JSON object: how often each
kernel is called under remat policies, and what is copied between kernels and products.

  python -m tests.kernels.compile_attention_layers
"""

import json
import os
import re

os.environ |= {
  "TPU_SKIP_MDS_QUERY": "1",
  "JAX_PLATFORMS": "cpu",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax.experimental import topologies  # noqa: E402
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec  # noqa: E402

from kernels.attention import attention  # noqa: E402

T, N, K, H = 1024, 4, 2, 128
D = N * H
# A copy or a transpose, alone or as the root of a fusion named after it.
_COPY = re.compile(
  r"%(?:copy|transpose)[\w.]* = (\w+\[[\d,]+\])\{[^}]*\} (?!copy-done)"
)


def _layer(x, weights):
  wq, wk, wv, wo = weights
  segments = jnp.ones(x.shape[:2], jnp.int32)
  angles = jnp.ones((*x.shape[:2], H // 2), jnp.float32)
  q, k, v = (
    (x @ w).reshape(*x.shape[:2], heads, H) for w, heads in ((wq, N), (wk, K), (wv, K))
  )
  y = attention(
    q,
    k,
    v,
    q_positions=segments,
    kv_positions=segments,
    q_segment_ids=segments,
    kv_segment_ids=segments,
    in_order=True,
    rotation=(angles, angles),
    implementation="pallas_tpu",
  )
  return x + y.reshape(x.shape) @ wo, None


def _compile(loss, *arguments) -> str:
  shapes = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in arguments]
  topology = topologies.get_topology_desc(
    "v5p:1x1x1", "tpu", chips_per_host_bounds=(1, 1, 1)
  )
  mesh = Mesh(np.array(topology.devices[:1]), ("data",), axis_types=(AxisType.Auto,))
  with jax.set_mesh(mesh):
    everywhere = NamedSharding(mesh, PartitionSpec())
    traced = jax.jit(jax.grad(loss, argnums=range(len(shapes)))).trace(
      *(shape.update(sharding=everywhere) for shape in shapes)
    )
    return traced.lower(lowering_platforms=("tpu",)).compile().as_text() or ""


def _calls(names: tuple[str, ...]) -> list[int]:
  policy = jax.checkpoint_policies.save_only_these_names(*names)
  layer = jax.checkpoint(_layer, policy=policy)

  def loss(x, *weights):
    return jnp.sum(jnp.square(jax.lax.scan(layer, x, weights)[0]))

  square, narrow = (3, D, D), (3, D, K * H)
  text = _compile(loss, (1, T, D), square, narrow, narrow, square)
  return [
    len(re.findall(rf"%phi4_attention_{kernel}[.\d]* = ", text))
    for kernel in ("forward", "backward")
  ]


def _copied() -> list[str]:
  def loss(x, *weights):
    return jnp.sum(jnp.square(_layer(x, weights)[0]))

  return _COPY.findall(
    _compile(loss, (2, T, D), (D, D), (D, K * H), (D, K * H), (D, D))
  )


if __name__ == "__main__":
  names = ("attention_out", "attention_lse")
  print(json.dumps({"calls": [_calls(()), _calls(names)], "copied": _copied()}))
