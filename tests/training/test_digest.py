import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from phi4_jax.common.mesh import MeshConfig, make_mesh
from phi4_jax.training.digest import params_digest


def _params():
  key = jax.random.key(0)
  return {
    "a": {"weight": jax.random.normal(key, (8, 6))},
    "b": {"weight": jnp.arange(16, dtype=jnp.bfloat16)},
  }


def test_same_bits_same_digest_however_they_lie():
  mesh = make_mesh(MeshConfig(data=1, fsdp=8))
  params = _params()
  split = NamedSharding(mesh, PartitionSpec("fsdp"))
  assert params_digest(jax.device_put(params, split)) == params_digest(params)
  assert len(params_digest(params)) == 16


def test_one_bit_an_exchange_and_a_name_are_seen():
  params = _params()
  before = params_digest(params)
  weight = np.array(params["a"]["weight"])
  nudged = weight.copy()
  nudged[3, 4] = np.nextafter(nudged[3, 4], np.float32(np.inf))
  swapped = weight.copy()
  swapped[0, 0], swapped[7, 5] = weight[7, 5], weight[0, 0]
  digests = {
    before,
    params_digest(params | {"a": {"weight": jnp.asarray(nudged)}}),
    params_digest(params | {"a": {"weight": jnp.asarray(swapped)}}),
    params_digest({"c": params["a"], "b": params["b"]}),
  }
  assert len(digests) == 4
