"""Which layouts of devices divide a global batch and a model."""

from phi4_jax.model.config import ModelConfig


def propose_layouts(
  config: ModelConfig,
  *,
  batch_size: int,
  row_length: int,
  num_devices: int,
  num_slices: int = 1,
  limit: int = 4,
) -> list[str]:
  """Returns meshes that use all devices and divide the batch, the plainest first.

  5760 = 2^7 x 45 rows go over at most 128 of 256 devices; two devices then share each
  row, as tensor = 2 or context = 2. Where nothing uses all devices, the nearest
  smaller numbers of devices that do are named.

  Args:
    config: the model: tensor must divide its heads and width, fsdp its width.
    batch_size: rows of the global batch.
    row_length: tokens of a row, which context must divide.
    num_devices: of all slices.
    num_slices: `data` is a multiple of it.
    limit: how many to return.
  """
  sizes = (batch_size, row_length, num_slices)
  found = _layouts(config, num_devices, *sizes)
  texts = [
    f"data {data} x fsdp {fsdp} x context {context} x tensor {tensor} "
    f"({batch_size // (data * fsdp)} rows at a time in each of {data * fsdp} groups)"
    for data, fsdp, context, tensor in found[:limit]
  ]
  if texts:
    return texts
  for fewer in range(num_devices - 1, 0, -1):
    if fewer % num_slices == 0 and _layouts(config, fewer, *sizes):
      return [f"{fewer} devices instead of {num_devices}"]
  return []


def _layouts(config, num_devices, batch_size, row_length, num_slices):
  """Returns (data, fsdp, context, tensor), fewest devices sharing a row first."""
  kv_heads, width = config.num_key_value_heads, config.intermediate_size
  found = []
  for shared in _divisors(num_devices):
    shards = num_devices // shared
    if batch_size % shards:
      continue
    for tensor in _divisors(shared):
      if kv_heads % tensor or width % tensor or row_length % (shared // tensor):
        continue
      for data in _divisors(shards):
        fsdp = shards // data
        if data % num_slices == 0 and config.hidden_size % fsdp == 0:
          # A shard of the width that is no multiple of 8 fills no whole tiles, and
          # every gathered matrix is laid out anew.
          aligned = (config.hidden_size // fsdp) % 8 == 0
          found.append((not aligned, shared, data, fsdp, shared // tensor, tensor))
          if aligned:
            break
  return [tuple(layout[2:]) for layout in sorted(found)]


def _divisors(n: int) -> list[int]:
  return [d for d in range(1, n + 1) if n % d == 0]
