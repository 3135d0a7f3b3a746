"""What is read from MaxText's output and program, and which row counts as the best."""

import pytest

from benchmarks import maxtext
from benchmarks.peers import maxtext as peer
from phi4_jax.common.errors import ConfigError
from phi4_jax.planning.hlo import read_hlo

# From `python -m maxtext.trainers.pre_train.train_compile` of MaxText 0.2.5, shortened.
OUTPUT = """\
I1125 21:02:37.1 pyconfig.py:591] Config param remat_policy: minimal_with_context
Jitting and compiling train step...
Jitting and compilation complete!
Finished train_compile.py successfully!
Cost analysis: {'utilization13{}': 6.0, 'bytes accessed': 61308948480.0}
Memory analysis: CompiledMemoryStats(generated_code_size_in_bytes=48270336, \
argument_size_in_bytes=1379606528, output_size_in_bytes=1379284736, \
alias_size_in_bytes=1379278848, temp_size_in_bytes=64537952256, \
host_generated_code_size_in_bytes=0, host_argument_size_in_bytes=0, \
host_output_size_in_bytes=0, host_alias_size_in_bytes=0, host_temp_size_in_bytes=512)
"""
# One layer's loop of a program by libtpu 0.0.52: the condition names an element of its
# parameter without an instruction of its own.
HLO = """\
HloModule jit_train_step, is_scheduled=true

%wide.region_4.7 (wide.param.87: (s32[], bf16[3,4096])) -> pred[] {
  %constant.352 = s32[]{:T(128)} constant(40)
  %wide.param.87 = (s32[]{:T(128)}, bf16[3,4096]{1,0}) parameter(0)
  ROOT %lt.34 = pred[]{:T(512)} compare(%wide.param.87#0, %constant.352), direction=LT
}

%wide.region_1.6 (param: (s32[], bf16[3,4096])) -> (s32[], bf16[3,4096]) {
  %param = (s32[]{:T(128)}, bf16[3,4096]{1,0}) parameter(0)
  %splash_mha_fwd_segmented_residuals.1 = bf16[3,4096]{1,0} custom-call(%param#1), \
custom_call_target="tpu_custom_call"
  %splash_mha_dkv_segmented_no_residuals.1 = bf16[3,4096]{1,0} custom-call(%param#1), \
custom_call_target="tpu_custom_call"
  ROOT %tuple.1 = (s32[]{:T(128)}, bf16[3,4096]{1,0}) tuple(%param#0, \
%splash_mha_dkv_segmented_no_residuals.1)
}

ENTRY %main.1 (p0: bf16[3,4096]) -> (s32[], bf16[3,4096]) {
  %p0 = bf16[3,4096]{1,0} parameter(0)
  %constant.1 = s32[]{:T(128)} constant(0)
  %tuple.2 = (s32[]{:T(128)}, bf16[3,4096]{1,0}) tuple(%constant.1, %p0)
  ROOT %while.64 = (s32[]{:T(128)}, bf16[3,4096]{1,0}) while(%tuple.2), \
condition=%wide.region_4.7, body=%wide.region_1.6
}
"""


def test_memory_is_read():
  report = peer.read_output(OUTPUT)
  assert report == {
    "error": "",
    "argument_bytes": 1379606528,
    "temporary_bytes": 64537952256,
    "host_bytes": 512,
  }


def test_a_program_that_is_too_large_says_how_large():
  words = (
    "XlaRuntimeError: RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out "
  )
  words += "of memory in memory space hbm. Used 44.25G of 31.24G hbm. Exceeded hbm "
  report = peer.read_output("Jitting\n" + words + "capacity by 13.01G.\n")
  assert report is not None
  assert report["error"].startswith("RESOURCE_EXHAUSTED")
  assert report["temporary_bytes"] == int(44.25 * 2**30)


def test_other_failures_are_no_refusal():
  assert peer.read_output("ValueError: Invalid flag format detected") is None
  vmem = "RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem"
  assert peer.read_output(vmem) is None


def test_kernels_are_counted_as_often_as_they_run():
  reading = read_hlo(HLO)
  assert reading.unknown_loops == ()
  assert reading.kernel_calls == {
    "splash_mha_fwd_segmented_residuals": 40,
    "splash_mha_dkv_segmented_no_residuals": 40,
  }
  assert maxtext.count_forward_calls(reading.kernel_calls) == 40
  assert maxtext.count_forward_calls({"phi4_attention_forward": 40}) == 40


@pytest.mark.parametrize(
  "name, options, visited, products",
  [
    # 8 blocks of 512: a triangle of 36.
    ("splash_mha_fwd_segmented_residuals", {}, 36 * 512**2, 2),
    ("splash_mha_dq_segmented", {}, 36 * 512**2, 3),
    ("splash_mha_dkv_segmented", {}, 36 * 512**2, 4),
    ("splash_mha_dkv_segmented", {"sa_use_fused_bwd_kernel": "true"}, 36 * 512**2, 5),
    ("splash_mha_dkv_no_residuals", {"use_tokamax_splash": "true"}, 36 * 512**2, 5),
    # 8 x 4 oblong blocks: 1 1 2 2 3 3 4 4.
    ("splash_mha_dkv_segmented", {"sa_block_kv_dkv": "1024"}, 20 * 512 * 1024, 4),
    ("splash_mha_fwd_residuals", {"sa_block_q": 1024}, 20 * 512 * 1024, 2),
    # Blocks that are longer than the row.
    ("splash_mha_dq", {"sa_block_q_dq": 8192, "sa_block_kv_dq": 8192}, 4096**2, 3),
  ],
)
def test_kernel_operations(name, options, visited, products):
  flops = peer.kernel_flops(name, options, rows=3, length=4096, heads=40, width=128)
  assert flops == 2 * products * visited * 128 * 40 * 3


def test_an_unknown_kernel_is_not_taken_for_free():
  with pytest.raises(ConfigError, match="gmm"):
    peer.kernel_flops("gmm.1", {}, rows=1, length=512, heads=1, width=128)


def test_options_are_those_of_our_model():
  model = maxtext.workload.load_model("tiny")
  candidate = maxtext.Candidate(
    shape=maxtext.Shape(topology="v5p-8", length=1024, rows=2),
    policy="full",
    options={"sa_block_q": 256},
  )
  options = maxtext.peer_options(model, candidate)
  assert options["max_target_length"] == 1024 and options["per_device_batch_size"] == 2
  assert options["base_emb_dim"] == model.hidden_size
  assert options["base_num_kv_heads"] == model.num_key_value_heads
  assert options["remat_policy"] == "full" and options["sa_block_q"] == 256
  assert candidate.label == "full sa_block_*=256"


def test_the_best_fits_and_keeps_its_memory_on_the_device():
  def row(name, hbm, mfu, *, host=0.0, fits=True):
    return {
      "settings": name,
      "fits": fits,
      "hbm_gib_per_device": hbm,
      "host_gib_per_device": host,
      "predicted_mfu": mfu,
    }

  rows = [
    row("all", 61.0, 0.61),
    row("some", 28.0, 0.56),
    row("few", 12.0, 0.53),
    row("host", 28.0, 0.60, host=30.0),
    {"fits": False, "hbm_gib_per_device": 0.0, "host_gib_per_device": 0.0},
  ]
  for limit, name in ((95.0, "all"), (30.0, "some"), (20.0, "few")):
    best = maxtext.pick_best(rows, limit)
    assert best is not None and best["settings"] == name
  assert maxtext.pick_best(rows, 5.0) is None


def test_python_3_12_is_asked_for(tmp_path, monkeypatch):
  with pytest.raises(ConfigError, match="--python="):
    peer.find_python(str(tmp_path / "python"))
  monkeypatch.setenv("PATH", str(tmp_path))
  monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
  with pytest.raises(ConfigError, match="Python 3.12"):
    peer.find_python()


def test_children_load_their_own_libtpu(monkeypatch):
  monkeypatch.setenv("TPU_LIBRARY_PATH", "/elsewhere/libtpu.so")
  monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
  environment = peer.child_environment()
  assert "TPU_LIBRARY_PATH" not in environment and "XLA_FLAGS" not in environment
  assert environment["JAX_PLATFORMS"] == "cpu" and "PATH" in environment


def test_a_smaller_model_is_noticed():
  model = maxtext.workload.load_model("tiny")
  topology = maxtext.parse_topology("v5p-8")
  with pytest.raises(ValueError, match="not train the same model"):
    maxtext.check_size(model, topology, 12)
