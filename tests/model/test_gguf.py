"""A GGUF file gives back the tensors that it was made from, or says what is wrong."""

import gguf
import ml_dtypes
import numpy as np
import pytest

from phi4_jax.common.errors import DataError
from phi4_jax.model import hf_weights
from phi4_jax.model.gguf import READABLE_TYPES, GgufSource, unpermuted_rows
from phi4_jax.model.hf_config import config_from_hf
from tests.model import gguf_files as files
from tests.model.tensors import ArraySource

Kind = gguf.GGMLQuantizationType
Q_PROJ = "model.layers.1.self_attn.q_proj.weight"


def read_all(source: GgufSource) -> dict[str, np.ndarray]:
  everything = slice(None)
  return {
    name: source.read(name, (everything,) * len(source.shape(name)))
    for name in source.names()
  }


def write_as(path, kind: Kind, weights) -> GgufSource:
  """Matrices in `kind`, norms in float32, as all quantisers write them."""
  tensors = files.to_gguf(weights, "llama")
  matrices = [name for name, tensor in tensors.items() if tensor.ndim == 2]
  for name in matrices:
    tensors[name] = gguf.quantize(tensors[name], kind)
  kinds = dict.fromkeys(matrices, kind)
  return GgufSource(files.write_gguf(path, tensors, files.LLAMA_KEYS, kinds=kinds))


def random_blocks(kind: Kind, rows: int, columns: int) -> np.ndarray:
  """Random bytes of a storage type, its float16 scales made small and finite."""
  block, size = gguf.GGML_QUANT_SIZES[kind]
  rng = np.random.default_rng(7)
  data = rng.integers(0, 60, (rows, columns // block * size), dtype=np.uint8)
  return data


class TestTensors:
  def test_rows_of_one_head(self):
    assert unpermuted_rows(6, 1).tolist() == [0, 2, 4, 1, 3, 5]

  @pytest.mark.parametrize("tied", [False, True])
  def test_a_llama_comes_back_bit_for_bit(self, tmp_path, tied):
    weights = files.draw_llama(tied=tied)
    tensors = files.to_gguf(weights, "llama")
    assert not np.array_equal(tensors["blk.1.attn_q.weight"], weights[Q_PROJ])
    source = GgufSource(files.write_gguf(tmp_path / "m", tensors, files.LLAMA_KEYS))
    found = read_all(source)
    assert set(found) == set(weights)
    for name, weight in weights.items():
      assert source.shape(name) == weight.shape
      assert source.dtype(name) == found[name].dtype == np.float32
      np.testing.assert_array_equal(found[name], weight, err_msg=name)
    assert source.hf_config()["tie_word_embeddings"] is tied

  def test_a_phi3_comes_back_bit_for_bit(self, tmp_path):
    weights = files.draw_phi3()
    path = files.write_gguf(
      tmp_path / "m",
      files.to_gguf(weights, "phi3"),
      files.PHI3_KEYS,
      architecture="phi3",
    )
    found = read_all(GgufSource(path))
    assert set(found) == set(weights)
    for name, weight in weights.items():
      np.testing.assert_array_equal(found[name], weight, err_msg=name)

  @pytest.mark.parametrize(
    ("kind", "dtype"), [(Kind.F16, np.float16), (Kind.BF16, ml_dtypes.bfloat16)]
  )
  def test_half_precision_is_widened_exactly(self, tmp_path, kind, dtype):
    weights = files.draw_llama()
    source = write_as(tmp_path / "m", kind, weights)
    for name, found in read_all(source).items():
      weight = weights[name]
      wanted = weight.astype(dtype).astype(np.float32) if weight.ndim == 2 else weight
      np.testing.assert_array_equal(found, wanted, err_msg=name)

  @pytest.mark.parametrize(
    ("kind", "steps"),
    [
      (Kind.Q8_0, 127),
      (Kind.Q5_1, 31),
      (Kind.Q5_0, 16),
      (Kind.Q4_1, 15),
      (Kind.Q4_0, 8),
    ],
  )
  def test_quantised_weights_are_off_by_half_a_step(self, tmp_path, kind, steps):
    """A wrong row order or layout would be off by whole weights."""
    weights = files.draw_llama()
    for name, found in read_all(write_as(tmp_path / "m", kind, weights)).items():
      weight = weights[name]
      if weight.ndim == 1:
        np.testing.assert_array_equal(found, weight)
        continue
      blocks = weight.reshape(-1, 32)
      if kind.name.endswith("_1"):
        step = np.ptp(blocks, axis=1, keepdims=True) / steps
      else:
        step = np.abs(blocks).max(axis=1, keepdims=True) / steps
      off = np.abs(found.reshape(-1, 32) - blocks)
      # At most one step where the range is not symmetric; scales are float16.
      assert (off <= step * 1.05 + 2e-3).all(), name
      assert off.mean() < 0.3 * step.mean(), name

  def test_q4_1_and_q8_0_by_their_formula(self, tmp_path):
    weights = files.draw_llama()
    tensors = files.to_gguf(weights, "llama")
    four = tensors["blk.1.attn_q.weight"] = gguf.quantize(
      tensors["blk.1.attn_q.weight"], Kind.Q4_1
    )
    eight = tensors["token_embd.weight"] = gguf.quantize(
      tensors["token_embd.weight"], Kind.Q8_0
    )
    kinds = {"blk.1.attn_q.weight": Kind.Q4_1, "token_embd.weight": Kind.Q8_0}
    path = files.write_gguf(tmp_path / "m", tensors, files.LLAMA_KEYS, kinds=kinds)
    found = read_all(GgufSource(path))

    # 2 bytes scale, 2 bytes minimum, 16 bytes of which the low halves come first.
    blocks = four.reshape(-1, 20)
    scale, low = (
      blocks[:, i : i + 2].copy().view(np.float16).astype(np.float32) for i in (0, 2)
    )
    digits = np.concatenate([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], axis=1)
    permuted = (scale * digits.astype(np.float32) + low).reshape(weights[Q_PROJ].shape)
    heads = permuted.reshape(files.HEADS, files.HEAD_DIM // 2, 2, files.WIDTH)
    wanted = heads.swapaxes(1, 2).reshape(files.WIDTH, files.WIDTH)
    np.testing.assert_array_equal(found[Q_PROJ], wanted)

    # 2 bytes scale, 32 signed bytes.
    blocks = eight.reshape(-1, 34)
    scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    wanted = scale * blocks[:, 2:].copy().view(np.int8).astype(np.float32)
    name = "model.embed_tokens.weight"
    np.testing.assert_array_equal(found[name], wanted.reshape(weights[name].shape))

  @pytest.mark.parametrize("kind", READABLE_TYPES, ids=lambda kind: kind.name)
  def test_a_part_is_the_part_of_the_whole(self, tmp_path, kind):
    """Also shows that each type that is called readable is."""
    width, name = 512, "model.layers.1.mlp.down_proj.weight"
    weights = files.draw_llama()
    tensors = files.to_gguf(weights, "llama")
    for layer in range(files.LAYERS):
      for part in ("gate", "up"):
        shape = (width, files.WIDTH)
        tensors[f"blk.{layer}.ffn_{part}.weight"] = np.zeros(shape, np.float32)
    tensors["blk.0.ffn_down.weight"] = np.zeros((files.WIDTH, width), np.float32)
    tensors["blk.1.ffn_down.weight"] = random_blocks(kind, files.WIDTH, width)
    keys = files.LLAMA_KEYS | {"llama.feed_forward_length": width}
    kinds = {"blk.1.ffn_down.weight": kind}
    if kind in (Kind.F32, Kind.F16):  # the writer takes these as arrays
      kinds = {}
      dtype = {Kind.F32: np.float32, Kind.F16: np.float16}[kind]
      tensors["blk.1.ffn_down.weight"] = tensors["blk.1.ffn_down.weight"].view(dtype)
    source = GgufSource(files.write_gguf(tmp_path / "m", tensors, keys, kinds=kinds))
    whole = source.read(name, (slice(None), slice(None)))
    assert whole.shape == source.shape(name) == (files.WIDTH, width)
    assert np.isfinite(whole).all() and len(np.unique(whole)) > 10
    parts = ((3, 9), (0, 512)), ((0, 64), (250, 270)), ((5, 6), (256, 257))
    for rows, columns in parts:
      part = source.read(name, (slice(*rows), slice(*columns)))
      np.testing.assert_array_equal(part, whole[slice(*rows), slice(*columns)])
      assert part.flags.c_contiguous and part.flags.owndata and part.flags.writeable

  def test_parts_of_reordered_rows_and_of_vectors(self, tmp_path):
    weights = files.draw_llama()
    source = GgufSource(files.write_llama(tmp_path / "m"))
    for name in (Q_PROJ, Q_PROJ.replace("q_proj", "k_proj")):
      part = source.read(name, (slice(7, 21), slice(10, 50)))
      np.testing.assert_array_equal(part, weights[name][7:21, 10:50])
      assert source.read(name, (slice(4, 4), slice(None))).shape == (0, files.WIDTH)
    part = source.read("model.norm.weight", (slice(3, 9),))
    np.testing.assert_array_equal(part, weights["model.norm.weight"][3:9])
    part[:] = 0  # the caller's own
    assert source.read("model.norm.weight", (slice(3, 9),)).all()

  def test_what_was_lost_is_said(self, tmp_path):
    plain = GgufSource(files.write_llama(tmp_path / "a"))
    assert plain.describe_loss().endswith("F32 100.0%; none was quantised")
    source = write_as(tmp_path / "b", Kind.Q4_0, files.draw_llama())
    counts = source.quantization()
    assert list(counts) == ["Q4_0", "F32"]
    assert counts["F32"] == (2 * files.LAYERS + 1) * files.WIDTH
    assert "Q4_0 99.5%" in source.describe_loss()
    assert sum(counts.values()) == sum(w.size for w in files.draw_llama().values())


class TestAsParameters:
  """The same configuration and leaves as from the original tensors."""

  @pytest.mark.parametrize("architecture", ["llama", "phi3"])
  @pytest.mark.parametrize("tied", [False, True])
  def test_every_leaf_is_that_of_the_original(self, tmp_path, architecture, tied):
    draw = {"llama": files.draw_llama, "phi3": files.draw_phi3}[architecture]
    keys = {"llama": files.LLAMA_KEYS, "phi3": files.PHI3_KEYS}[architecture]
    weights = draw(tied=tied)
    tensors = files.to_gguf(weights, architecture)
    path = files.write_gguf(tmp_path / "m", tensors, keys, architecture=architecture)
    source, original = GgufSource(path), ArraySource(weights)
    model = config_from_hf(source.hf_config())
    assert model.tie_word_embeddings is tied
    assert hf_weights.find_architecture(source) == architecture
    leaves = hf_weights.check_tensors(source, model, architecture, where=str(path))
    for leaf in leaves:
      whole = (slice(None),) * len(leaf.shape)
      found, wanted = (
        hf_weights.read_leaf_shard(s, leaf, whole) for s in (source, original)
      )
      np.testing.assert_array_equal(found, wanted, err_msg=leaf.name)


class TestBrokenFiles:
  def test_no_file(self, tmp_path):
    with pytest.raises(DataError, match="does not exist"):
      GgufSource(tmp_path / "nothing.gguf")

  def test_another_format(self, tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(b"PK\x03\x04 and more")
    with pytest.raises(DataError, match="is not a GGUF file: it begins with"):
      GgufSource(path)

  @pytest.mark.parametrize("share", [0.0001, 0.002, 0.01, 0.02, 0.5, 0.999])
  def test_cut_off(self, tmp_path, share):
    whole = files.write_llama(tmp_path / "m").read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(whole[: max(4, int(share * len(whole)))])
    with pytest.raises(DataError, match="is cut off or damaged.* Download it again"):
      GgufSource(path)

  def test_big_endian(self, tmp_path):
    path = files.write_gguf(
      tmp_path / "m",
      files.to_gguf(files.draw_llama(), "llama"),
      files.LLAMA_KEYS,
      endianess=gguf.GGUFEndian.BIG,
    )
    with pytest.raises(DataError, match="big-endian"):
      GgufSource(path)

  def test_part_of_a_split(self, tmp_path):
    path = files.write_llama(tmp_path / "m", split__count=3, split__no=1)
    with pytest.raises(DataError, match="part 2 of 3 of a split GGUF"):
      GgufSource(path)

  def test_an_adapter(self, tmp_path):
    path = files.write_llama(tmp_path / "m", general__type="adapter")
    with pytest.raises(DataError, match="of type 'adapter', not a model"):
      GgufSource(path)

  def test_another_architecture(self, tmp_path):
    tensors = files.to_gguf(files.draw_llama(), "llama")
    path = files.write_gguf(tmp_path / "m", tensors, {}, architecture="qwen2")
    with pytest.raises(DataError, match="'qwen2'; supported: llama, phi3"):
      GgufSource(path)

  def test_missing_extra_and_misshaped_tensors_are_listed_together(self, tmp_path):
    tensors = files.to_gguf(files.draw_llama(), "llama")
    del tensors["blk.1.ffn_up.weight"]
    tensors["blk.0.attn_q.bias"] = np.zeros(64, np.float32)
    tensors["output_norm.weight"] = np.zeros(32, np.float32)
    path = files.write_gguf(tmp_path / "m", tensors, files.LLAMA_KEYS)
    with pytest.raises(DataError) as error:
      GgufSource(path)
    text = str(error.value)
    assert "blk.1.ffn_up.weight is missing" in text
    assert "blk.0.attn_q.bias is not part of a llama model" in text
    assert "output_norm.weight has shape [32], not [64]" in text

  def test_a_type_that_cannot_be_undone(self, tmp_path):
    tensors = files.to_gguf(files.draw_llama(), "llama")
    tensors["output_norm.weight"] = np.zeros(64, np.int32)
    path = files.write_gguf(tmp_path / "m", tensors, files.LLAMA_KEYS)
    with pytest.raises(DataError, match="of type I32, which cannot be dequantised"):
      GgufSource(path)

  def test_an_unknown_name(self, tmp_path):
    source = GgufSource(files.write_llama(tmp_path / "m"))
    with pytest.raises(DataError, match="has no tensor for model.layers.9"):
      source.shape("model.layers.9.mlp.up_proj.weight")
