"""Suffixes that are summed piece by piece: equal to the last bit, however long."""

from typing import Any

import jax
import numpy as np
import pytest

from kernels.decode_attention import decode_attention
from tests.kernels.decode_cases import attend_in_float64, make_inputs

# P, R, T, N, K, H, S, S2.
SIZES = {
  "two heads": (2, 3, 1, 4, 2, 16, 20, 64),
  "SmolLM2": (2, 4, 1, 9, 3, 64, 45, 256),
  "phi-4": (1, 2, 1, 40, 10, 128, 33, 1024),
}


def attend(inputs, slots, piece, **options):
  """Attends with only the first `slots` of the suffixes there."""

  def cut(x: Any) -> Any:
    return None if x is None else x[:, :, :, :slots]

  def scales(cache: Any, change: Any = lambda x: x) -> Any:
    if cache.k_scale is None:
      return None
    return change(cache.k_scale), change(cache.v_scale)

  @jax.jit
  def run(q, prefix, suffix):
    return decode_attention(
      q,
      prefix.k,
      prefix.v,
      prefix.lengths,
      cut(suffix.k),
      cut(suffix.v),
      suffix.lengths,
      prefix_scales=scales(prefix),
      suffix_scales=scales(suffix, cut),
      suffix_piece=piece,
      **{"implementation": "merged", **options},
    )

  return np.asarray(run(*inputs), np.float32)


def lengths_up_to(sizes, most):
  rows = np.arange(sizes[0] * sizes[1]).reshape(sizes[:2])
  return np.full(sizes[0], sizes[6]), 1 + rows * (most - 1) // rows.max()


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("window", [None, 20])
def test_slots_that_nobody_sees_change_no_bit(name, dtype, window):
  sizes = SIZES[name]
  slots = sizes[7]
  piece = slots // 4
  for quarters in (1, 2):
    lengths = lengths_up_to(sizes, quarters * piece)
    inputs = make_inputs(sizes, lengths=lengths, dtype=dtype)
    outs = [
      attend(inputs, n * piece, piece, sliding_window=window)
      for n in (1, 2, 4)
      if n >= quarters
    ]
    for out in outs[1:]:
      np.testing.assert_array_equal(out, outs[0])


@pytest.mark.parametrize("name", SIZES)
def test_pieces_match_the_definition(name):
  inputs = make_inputs(SIZES[name], lengths=lengths_up_to(SIZES[name], SIZES[name][7]))
  out = attend(inputs, SIZES[name][7], SIZES[name][7] // 4)
  np.testing.assert_allclose(out, attend_in_float64(inputs), atol=1e-6)


def test_the_definition_cannot_keep_the_promise_and_refuses():
  inputs = make_inputs(SIZES["two heads"])
  with pytest.raises(ValueError, match="reference: it sums over all .* suffix_piece"):
    attend(inputs, 64, 16, implementation="reference")
  assert attend(inputs, 64, None, implementation="reference").any()


def test_pieces_that_do_not_fill_a_suffix_are_refused():
  inputs = make_inputs(SIZES["two heads"])
  for piece in (0, 24):
    with pytest.raises(ValueError, match=rf"suffix_piece \({piece}\) must divide"):
      attend(inputs, 64, piece)
