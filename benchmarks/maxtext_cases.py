"""What `benchmarks.maxtext` compiles: shapes, MaxText's settings, and ours.

Knows names of settings; refuses to know what they cost.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
  """What is trained where; `rows` is of each device in a step."""

  topology: str
  length: int
  rows: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
  """A setting of MaxText: its remat policy and what else is not its default.

  Attributes:
    options: of MaxText's configuration; block sizes are all set to one number.
    flags: of libtpu, as MaxText takes them.
    lends_flags: whether the flags are those of our step, which no script of MaxText
      sets for that chip; such programs are compared apart.
  """

  shape: Shape
  policy: str
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  flags: Sequence[str] = ()
  lends_flags: bool = False

  @property
  def program(self) -> str:
    return "MaxText with our flags" if self.lends_flags else "MaxText"

  @property
  def label(self) -> str:
    shown = {
      "sa_block_*" if name.startswith("sa_block_") else name: value
      for name, value in self.options.items()
    }
    more = [f"{name}={value}" for name, value in shown.items()]
    return " ".join([self.policy, *more, *self.flags])


@dataclasses.dataclass(frozen=True, kw_only=True)
class OurSetting:
  """A setting of our step.

  Attributes:
    settings: as `phi4 plan --sweep` names them.
    xla_options: of libtpu.
  """

  shape: Shape
  settings: Mapping[str, Any]
  xla_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def label(self) -> str:
    more = {**self.settings, **self.xla_options}
    return " ".join(f"{name}={value}" for name, value in more.items())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
  """Programs that are compared with each other.

  Attributes:
    limits_gib: of one device; the best program within each is looked for. None is the
      chip's own memory.
  """

  name: str
  model: str
  gin_file: str
  limits_gib: Sequence[float | None]
  peers: Sequence[Candidate]
  ours: Sequence[OurSetting]


_PRETRAIN = "gin_configs/pretrain/phi4_14b.gin"
_V5P = Shape(topology="v5p-256", length=4096, rows=3)
_V5P_LONG = Shape(topology="v5p-256", length=16384, rows=1)
_V6E = {rows: Shape(topology="v6e-256", length=4096, rows=rows) for rows in (3, 4)}
_QUICK = Shape(topology="v5p-8", length=1024, rows=2)

# Fewer devices share a parameter: gradients are reduce-scattered then.
_MESH_4_32: dict[str, Any] = {"ici_data_parallelism": 4, "ici_fsdp_parallelism": 32}
_MESH_4_64: dict[str, Any] = {
  "allow_split_physical_axes": "true",
  "ici_data_parallelism": 4,
  "ici_fsdp_parallelism": 64,
}
_FUSED: dict[str, Any] = {"use_tokamax_splash": "true", "dq_reduction_steps": 3}
_BLOCKS = (
  "q",
  "kv",
  "kv_compute",
  "q_dkv",
  "kv_dkv",
  "kv_dkv_compute",
  "q_dq",
  "kv_dq",
)
_BLOCKS_256: dict[str, Any] = {f"sa_block_{name}": 256 for name in _BLOCKS}
_KEEP_QKV = {
  name: "device" for name in ("context", "query_proj", "key_proj", "value_proj")
}
# As our own step is compiled for a v5p; MaxText's scripts for the v6e set the other.
_V5P_VMEM = ("--xla_tpu_scoped_vmem_limit_kib=32768",)
_V6E_VMEM = ("--xla_tpu_scoped_vmem_limit_kib=98304",)


def _keep_all(shape: Shape, flags: Sequence[str] = (), **options: Any) -> Candidate:
  return Candidate(
    shape=shape,
    policy="minimal_with_context",
    options=options,
    flags=flags,
    lends_flags=flags == _V5P_VMEM,
  )


def _keep_attention(
  shape: Shape, flags: Sequence[str] = (), **options: Any
) -> Candidate:
  return Candidate(
    shape=shape,
    policy="save_dot_with_context_except_mlp",
    options=options,
    flags=flags,
    lends_flags=flags == _V5P_VMEM,
  )


CASES = (
  Case(
    name="v5p-256, 4096 tokens, 3 rows a device",
    model="phi4_14b",
    gin_file=_PRETRAIN,
    limits_gib=(None, 30.0),
    peers=(
      _keep_all(_V5P),
      _keep_all(_V5P, sa_use_fused_bwd_kernel="true"),
      _keep_all(_V5P, **_FUSED),
      _keep_all(_V5P, **_MESH_4_32),
      _keep_all(_V5P, **_MESH_4_32, **_BLOCKS_256),
      _keep_all(_V5P, _V5P_VMEM, **_MESH_4_32, **_BLOCKS_256),
      _keep_attention(_V5P),
      _keep_attention(_V5P, _V5P_VMEM),
      _keep_attention(
        _V5P,
        num_vocab_tiling=4,
        allow_split_physical_axes="true",
        ici_data_parallelism=2,
        ici_fsdp_parallelism=64,
      ),
    ),
    ours=(
      OurSetting(shape=_V5P, settings={"remat": "matmuls", "data": 4, "fsdp": 32}),
      # This one sums gradients over devices in bfloat16, as MaxText always does.
      OurSetting(
        shape=_V5P,
        settings={
          "remat": "attention",
          "data": 2,
          "fsdp": 64,
          "num_loss_chunks": 32,
          "gradient_dtype": "bfloat16",
        },
      ),
    ),
  ),
  Case(
    name="v5p-256, 16384 tokens, 1 row a device",
    model="phi4_14b",
    gin_file=_PRETRAIN,
    limits_gib=(None,),
    peers=(
      _keep_all(_V5P_LONG),
      _keep_all(_V5P_LONG, **_FUSED, **_MESH_4_32),
      _keep_all(_V5P_LONG, _V5P_VMEM, **_FUSED, **_MESH_4_32),
    ),
    ours=(
      OurSetting(shape=_V5P_LONG, settings={"remat": "matmuls", "data": 4, "fsdp": 32}),
    ),
  ),
  Case(
    name="v6e-256, 4096 tokens",
    model="phi4_14b",
    gin_file=_PRETRAIN,
    limits_gib=(None,),
    peers=(
      _keep_attention(_V6E[3], **_MESH_4_64),
      _keep_attention(_V6E[3], _V6E_VMEM, **_MESH_4_64),
      Candidate(
        shape=_V6E[4],
        policy="custom",
        options={**_KEEP_QKV, "num_vocab_tiling": 4, **_MESH_4_64},
        flags=_V6E_VMEM,
      ),
    ),
    ours=(
      OurSetting(shape=_V6E[3], settings={"remat": "attention", "data": 4, "fsdp": 64}),
    ),
  ),
)

# Narrow and two layers deep: the same code, in a minute.
QUICK_CASES = (
  Case(
    name="two narrow layers, v5p-8, 1024 tokens, 2 rows a device",
    model="phi4_14b",
    gin_file=_PRETRAIN,
    limits_gib=(None,),
    peers=(Candidate(shape=_QUICK, policy="minimal_with_context"),),
    ours=(
      OurSetting(shape=_QUICK, settings={"remat": "matmuls", "data": 1, "fsdp": 4}),
    ),
  ),
)
QUICK_MODEL = {
  "vocab_size": 16384,
  "hidden_size": 1024,
  "intermediate_size": 3584,
  "num_hidden_layers": 2,
  "num_attention_heads": 8,
  "num_key_value_heads": 2,
}
