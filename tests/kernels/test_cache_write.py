"""Writing a token of every row into a cache: on every implementation, and for TPUs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from kernels import cache_write as package
from kernels.cache_write import pallas_tpu, reference, write_tokens
from kernels.check import Job, compile_jobs
from kernels.dispatch import choose

DTYPES = ["float32", "bfloat16", "int8", "float8_e4m3fn"]
SLOTS = [0, 39, 15, 16, 31]


def _inputs(dtype, slots=SLOTS, num_slots=40):
  rng = np.random.default_rng(0)

  def numbers(*shape):
    return jnp.asarray(rng.integers(-100, 100, shape), dtype)

  rows = len(slots)
  caches = tuple(numbers(rows, 2, num_slots, 128) for _ in "kv")
  tokens = tuple(numbers(rows, 2, 128) for _ in "kv")
  return caches, tokens, jnp.asarray(slots, jnp.int32)


def _expected(caches, tokens, slots):
  """Row by row."""
  outs = []
  for cache, new in zip(caches, tokens, strict=True):
    out = np.array(cache.astype(jnp.float32))
    for row, slot in enumerate(slots):
      out[row, :, slot] = np.asarray(new.astype(jnp.float32))[row]
    outs.append(out)
  return outs


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
  "run",
  [reference.write_tokens, functools.partial(pallas_tpu.write_tokens, interpret=True)],
  ids=["reference", "pallas_tpu"],
)
def test_one_slot_of_each_row_changes_and_nothing_else(run, dtype):
  inputs = _inputs(dtype)
  found = jax.jit(run)(*inputs)
  for out, expected in zip(found, _expected(*inputs), strict=True):
    assert out.dtype == dtype
    np.testing.assert_array_equal(np.asarray(out, np.float32), expected)


def test_the_kernel_races_with_nothing_and_stays_within_bounds(capfd):
  inputs = _inputs("bfloat16", num_slots=48)
  interpret = pltpu.InterpretParams(detect_races=True, num_cores_or_threads=2)
  run = functools.partial(pallas_tpu.write_tokens, interpret=interpret)
  for out, expected in zip(jax.jit(run)(*inputs), _expected(*inputs), strict=True):
    np.testing.assert_array_equal(np.asarray(out, np.float32), expected)
  # A race is printed, and raised by some versions of jax.
  assert "RACE DETECTED" not in capfd.readouterr().out


def test_not_a_number_is_written_as_it_is():
  caches, tokens, slots = _inputs("bfloat16")
  tokens = (tokens[0].at[1].set(jnp.nan), tokens[1].at[2].set(-jnp.inf))
  run = functools.partial(pallas_tpu.write_tokens, interpret=True)
  found = jax.jit(run)(caches, tokens, slots)
  for out, expected in zip(found, _expected(caches, tokens, slots), strict=True):
    np.testing.assert_array_equal(np.asarray(out, np.float32), expected)


def test_the_operation_writes_in_place():
  inputs = _inputs("float32")
  expected = _expected(*inputs)
  run = jax.jit(write_tokens, donate_argnums=0)
  for out, wanted in zip(run(*inputs), expected, strict=True):
    np.testing.assert_array_equal(out, wanted)
  assert all(cache.is_deleted() for cache in inputs[0])


@pytest.mark.parametrize(
  "change, message",
  [
    (lambda c, t, s: (c, t[:1], s), "2 caches and 1 arrays of tokens"),
    (lambda c, t, s: (c, (t[0], t[1][:, :1]), s), r"got \(5, 2, 40, 128\)"),
    (lambda c, t, s: (c, (t[0], t[1].astype("int8")), s), "the tokens are int8"),
    (lambda c, t, s: (c, t, s[:2]), r"a slot for each row, \(5,\), got \(2,\)"),
  ],
)
def test_refusals_say_what_is_wrong(change, message):
  with pytest.raises(ValueError, match=message):
    package._make_problem(*change(*_inputs("float32")))


def test_the_free_choice():
  def chosen(platform, width=128, dtypes=("bfloat16", "bfloat16"), name="auto"):
    problem = package.WriteProblem(
      shapes=((2, 2, 16, width),), dtypes=dtypes, platform=platform
    )
    return choose("write_tokens", package.IMPLEMENTATIONS, name, problem).name

  assert chosen("cpu") == chosen("gpu") == chosen("tpu", width=64) == "reference"
  assert chosen("tpu", dtypes=("bfloat16", "int8")) == "reference"
  assert chosen("tpu") == "pallas_tpu"
  with pytest.raises(ValueError, match="runs on TPUs, and this is for cpu"):
    chosen("cpu", name="pallas_tpu")


@pytest.mark.parametrize("chip", ["v5p", "v6e"])
def test_compiles_in_every_dtype(chip):
  (found,) = compile_jobs([Job(kernel="cache_write", chip=chip, length=1032)])
  assert not found.error
  assert found.calls == ("phi4_cache_write",) * len(DTYPES)
