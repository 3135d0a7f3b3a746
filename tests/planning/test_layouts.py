"""Layouts that divide a batch and a model."""

from phi4_jax.model.config import ModelConfig
from phi4_jax.planning.layouts import propose_layouts

PHI4 = ModelConfig(
  vocab_size=100352,
  hidden_size=5120,
  intermediate_size=17920,
  num_hidden_layers=40,
  num_attention_heads=40,
  num_key_value_heads=10,
  max_position_embeddings=4096,
)


def _parse(text):
  words = text.split()
  return {
    name: int(words[words.index(name) + 1])
    for name in ("data", "fsdp", "context", "tensor")
  }


def test_5760_rows_do_not_go_over_256_devices():
  proposals = propose_layouts(PHI4, row_length=4096, batch_size=5760, num_devices=256)
  assert proposals
  for text in proposals:
    sizes = _parse(text)
    shards = sizes["data"] * sizes["fsdp"]
    assert shards * sizes["context"] * sizes["tensor"] == 256
    assert 5760 % shards == 0 and shards <= 128
    assert 10 % sizes["tensor"] == 0
    assert 5120 % sizes["fsdp"] == 0
  # Two devices share a row, and rows of the width stay whole tiles.
  first = _parse(proposals[0])
  assert first["context"] * first["tensor"] == 2
  assert (5120 // first["fsdp"]) % 8 == 0


def test_a_batch_that_divides_needs_no_sharing():
  proposals = propose_layouts(PHI4, row_length=4096, batch_size=5120, num_devices=256)
  # 5120 / 256 = 20 fills no tiles: two replicas of 128 devices are better.
  assert _parse(proposals[0]) == {"data": 2, "fsdp": 128, "context": 1, "tensor": 1}


def test_data_crosses_slices():
  for text in propose_layouts(
    PHI4, row_length=4096, batch_size=1024, num_devices=128, num_slices=4
  ):
    assert _parse(text)["data"] % 4 == 0


def test_where_nothing_works_fewer_devices_are_named():
  # 11 divides neither rows nor heads nor positions.
  found = propose_layouts(PHI4, row_length=4096, batch_size=7, num_devices=11)
  assert found == ["10 devices instead of 11"]
