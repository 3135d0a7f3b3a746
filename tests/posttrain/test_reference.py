import jax
import numpy as np
import pytest

from phi4_jax.common.errors import CheckpointError
from phi4_jax.model.sharding import param_shardings
from phi4_jax.posttrain.reference import (
  compute_reference,
  load_reference,
  make_reference_fn,
  save_reference,
)
from tests.posttrain.batches import MODEL, logprobs64, params, rows_of
from tests.training.problems import mesh_of

IDENTITY = {"parent": "abc", "kl_top_k": None}


def test_rows_that_do_not_fill_a_call_are_all_there_in_order():
  arrays = rows_of("full")
  mesh = mesh_of(2, 1)
  placed = jax.device_put(params(), param_shardings(mesh, params()))
  fn = make_reference_fn(MODEL, "full", kl_top_k=None, num_loss_chunks=1)
  columns = compute_reference(fn, placed, arrays, mesh=mesh, rows_per_call=6)
  assert list(columns) == ["reference_logprobs"]
  assert columns["reference_logprobs"].shape == (8, 2)
  for row in range(8):
    for side in (0, 1):
      weights = arrays["loss_weights"][row, side] > 0
      logprobs = logprobs64(params(), arrays["token_ids"][row, side])
      picked = logprobs[np.arange(len(weights)), arrays["targets"][row, side]]
      assert columns["reference_logprobs"][row, side] == pytest.approx(
        picked[weights].sum(), rel=1e-5
      )


def test_saved_columns_come_back_to_the_bit(tmp_path):
  columns = {"reference_margins": np.random.default_rng(0).normal(size=(5, 3))}
  file = tmp_path / "reference.npz"
  assert load_reference(file, IDENTITY) is None
  save_reference(file, IDENTITY, columns)
  again = load_reference(file, IDENTITY)
  assert again is not None and again.keys() == columns.keys()
  assert again["reference_margins"].tobytes() == columns["reference_margins"].tobytes()


def test_columns_of_something_else_are_not_taken_and_it_is_said(tmp_path, caplog):
  file = tmp_path / "reference.npz"
  nested = IDENTITY | {"model": {"hidden_size": 8, "vocab_size": 9}}
  save_reference(file, nested, {"reference_margins": np.zeros(3)})
  assert load_reference(file, nested) is not None and not caplog.messages
  other = {"parent": "other", "model": {"hidden_size": 16, "vocab_size": 9}}
  assert load_reference(file, nested | other) is None
  (message,) = caplog.messages
  assert message == (
    "reference computed anew because model.hidden_size was 8 and is 16; parent was "
    f"'abc' and is 'other' ({file})"
  )


@pytest.mark.parametrize("damage", ["truncated", "changed"])
def test_a_damaged_file_is_named(tmp_path, damage):
  file = tmp_path / "reference.npz"
  save_reference(file, IDENTITY, {"reference_margins": np.arange(1000.0)})
  content = bytearray(file.read_bytes())
  if damage == "truncated":
    content = content[: len(content) // 2]
  else:
    content[len(content) // 2] ^= 1
  file.write_bytes(content)
  with pytest.raises(CheckpointError, match="reference.npz is damaged .* Remove it"):
    load_reference(file, IDENTITY)
