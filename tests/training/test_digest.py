import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from phi4_jax.common.mesh import MeshConfig, make_mesh
from phi4_jax.training.digest import DigestOfParts, params_digest


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


def test_float32_digests_are_those_of_old_runs():
  """Pinned: result.json files of earlier versions must stay valid."""
  params = {"a": {"weight": jnp.arange(12, dtype=jnp.float32).reshape(3, 4) / 7}}
  assert params_digest(params) == "d3929d6aa3bb65ff"


def every_half(dtype):
  """All 65,536 bit patterns but the NaNs, whose payload a conversion may change."""
  values = np.arange(2**16, dtype=np.uint16).view(dtype)
  return values[~np.isnan(values.astype(np.float32))].reshape(2, -1)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_half_precision_counts_as_the_float32_it_widens_to(dtype):
  half = every_half(dtype)
  wide = half.astype(np.float32)
  np.testing.assert_array_equal(
    wide.astype(dtype).view(np.uint16), half.view(np.uint16)
  )
  digest = params_digest({"a": {"weight": jnp.asarray(half)}})
  assert digest == params_digest({"a": {"weight": jnp.asarray(wide)}})


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
def test_parts_in_any_order_give_the_digest_of_the_whole(dtype):
  rng = np.random.default_rng(0)
  params = {
    "b": {"weight": rng.standard_normal((5, 6, 7)).astype(dtype)},
    "a": {"weight": rng.standard_normal(9).astype(dtype)},
  }
  digest = DigestOfParts(params)
  digest.add(("b", "weight"), (2, 0, 4), params["b"]["weight"][2:, :, 4:])
  digest.add(("b", "weight"), (0, 0, 0), params["b"]["weight"][:2])
  digest.add(("a", "weight"), (0,), params["a"]["weight"])
  with pytest.raises(AssertionError, match="not every part"):
    digest.hexdigest()
  digest.add(("b", "weight"), (2, 0, 0), params["b"]["weight"][2:, :, :4])
  assert digest.hexdigest() == params_digest(jax.tree.map(jnp.asarray, params))


def test_other_dtypes_are_refused():
  with pytest.raises(TypeError, match="not int8"):
    params_digest({"a": {"weight": jnp.zeros(3, jnp.int8)}})
