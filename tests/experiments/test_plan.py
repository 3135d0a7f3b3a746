"""phi4 plan: flags, points, reports; one real compilation of a tiny run."""

import json
import re

import pytest

from experiments import plan
from experiments.plan_points import make_points, parse_axes
from experiments.plan_report import best_index, compare_text, plan_text, sweep_text
from experiments.plan_request import PlanRequest
from phi4_jax.common.errors import ConfigError

TINY = "gin_configs/pretrain/tiny.gin"
LARGE = "gin_configs/pretrain/phi4_14b.gin"
SAMPLE = "gin_configs/sample/phi4_14b.gin"

REQUEST = PlanRequest(
  root="PretrainConfig", gin_files=[TINY], bindings=[], topology="v6e-8", cache="x"
)
ANSWER = {
  "title": "pretrain: train step of 14.7B parameters",
  "topology": "v6e-8: 8 chips",
  "chips": 8,
  "settings": {"remat": "full", "fsdp": 8},
  "fits": True,
  "hbm_gib_per_device": 20.0,
  "limit_gib": 31.2,
  "memory": {
    "arguments_gib": 12.0,
    "temporaries_gib": 8.0,
    "results_gib": 0.0,
    "held_gib": 0.0,
    "host_gib": 0.0,
    "largest": [{"gib": 4.0, "shapes": "bf16[40,4096,5120]"}],
  },
  "error": "",
  "would_fit": [],
  "predicted_mfu": 0.5,
  "step_seconds": 2.0,
  "tokens_per_step": 4096,
  "tokens_per_second": 2048.0,
  "seconds": {"matmul": 1.5, "kernels": 0.3, "collectives": 0.2, "copies": 0.0},
  "collectives": [
    {
      "kind": "all-gather",
      "group_size": 8,
      "count": 40,
      "logical_bytes": 2.0**30,
      "wire_bytes": 2.0**29,
      "is_async": False,
      "crosses_slices": False,
    }
  ],
  "kernel_calls": {"phi4_attention_forward": 40},
  "operations": [],
  "unknown_loops": [],
  "total_tokens": 4_096_000,
  "days": 0.02,
  "chip_hours": 4.4,
  "assumptions": {"peak_flops": 9e14, "clock_hz": 1e9, "overlap": "none"},
  "versions": {"jax": "0.10.2", "jaxlib": "0.10.2", "libtpu": "0.0.42.1"},
}


def test_a_tiny_run_is_compiled_for_a_slice(tmp_path, capsys):
  file = tmp_path / "plan.json"
  code = plan.main(
    [f"--gin_file={TINY}", "--topology=v5e-4", f"--json={file}", "--tokens=1e9"]
  )
  assert code == 0
  printed = capsys.readouterr().out
  assert "predicted by XLA's cost model" in printed
  assert "fits" in printed and "kernel_efficiency = 0.5" in printed
  found = json.loads(file.read_text())
  for name in (
    "fits",
    "hbm_gib_per_device",
    "limit_gib",
    "predicted_mfu",
    "step_seconds",
    "tokens_per_second",
    "collective_bytes",
    "kernel_calls",
    "assumptions",
  ):
    assert name in found, name
  assert found["fits"] and 0 < found["predicted_mfu"] < 1
  seconds = 1e9 / found["tokens_per_second"]
  assert found["days"] == pytest.approx(seconds / 86400)
  assert found["chip_hours"] == pytest.approx(4 * seconds / 3600)
  # Gradients of the whole model are summed over four replicas.
  (kind,) = {c["kind"] for c in found["collectives"]}
  assert kind == "all-reduce"
  assert found["collective_bytes"] >= 2 * 3 / 4 * 4 * 280_000


def test_the_store_of_held_texts_counts(tmp_path, capsys):
  gin = tmp_path / "rollouts.gin"
  gin.write_text(
    "include 'gin_configs/model/tiny.gin'\n"
    "RolloutsConfig.model = @ModelConfig()\n"
    "RolloutsConfig.mesh = @MeshConfig()\n"
    "RolloutsConfig.law = @SamplingLaw()\n"
    "RolloutsConfig.batch_size = 32\n"
    "RolloutsConfig.rows_per_group = 2\n"
    "RolloutsConfig.base_capacity = 24\n"
    "RolloutsConfig.suffix_capacity = 16\n"
    "RolloutsConfig.held_gib = 1.5\n"
    "SamplingLaw.max_length = 24\n"
  )
  file = tmp_path / "plan.json"
  flags = ["--sample", f"--gin_file={gin}", "--topology=v5e-4", f"--json={file}"]
  assert plan.main(flags) == 0
  assert "held texts 1.50 GiB" in capsys.readouterr().out
  found = json.loads(file.read_text())
  memory = found["memory"]
  program = sum(memory[f"{p}_gib"] for p in ("arguments", "temporaries", "results"))
  assert 0 < program < 0.5 and memory["held_gib"] == 1.5
  assert found["hbm_gib_per_device"] == pytest.approx(program + 1.5)
  assert plan.main([*flags, "--hbm_gib=1.4"]) == 1
  printed = capsys.readouterr().out
  assert "DOES NOT FIT" in printed and "RolloutsConfig.held_gib below 1.5" in printed


def test_a_batch_that_does_not_divide_is_explained_with_layouts(capsys):
  code = plan.main(
    [
      f"--gin_file={LARGE}",
      "--topology=v5p-512",
      "--gin.MeshConfig.data=1",
      "--gin.MeshConfig.fsdp=-1",
    ]
  )
  assert code == 2
  error = capsys.readouterr().err
  assert "5760 rows (= 2^7 x 45)" in error
  assert "cannot be split over 256 devices" in error
  assert "Layouts of as many microbatches that work: data" in error
  assert "tensor 2" in error


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ([f"--gin_file={TINY}"], "--topology v5p-256"),
    ([f"--gin_file={TINY}", "--topology=v9-4"], "--topology 'v9-4' is not known"),
    (["--topology=v6e-8"], "Give the configuration"),
    (["--gin_file=nowhere.gin", "--topology=v6e-8"], "nowhere.gin does not exist"),
    (["--gin_file=gin_configs/evaluate/tiny.gin", "--topology=v6e-8"], "sets none"),
    ([f"--gin_file={TINY}", "--sample", "--topology=v6e-8"], "SampleConfig"),
    ([f"--gin_file={TINY}", "--topology=v6e-8", "--batch=4"], "only with --sample"),
    (
      [f"--gin_file={SAMPLE}", "--sample", "--topology=v6e-8", "--batch_per_device=4"],
      "only without --sample",
    ),
    ([f"--gin_file={TINY}", "--topology=v6e-8", "--assume=x"], "must be NAME=VALUE"),
    ([f"--gin_file={TINY}", "--topology=v6e-8", "--sweep=rmat"], "no 'rmat'.*remat"),
    ([f"--gin_file={TINY}", "--topology=v6e-8", "--sweep=fsdp=a"], "whole numbers"),
    (["--compare", "a.json", "b.json"], "a.json does not exist"),
  ],
)
def test_refusals(arguments, message, capsys):
  assert plan.main(arguments) == 2
  assert re.search(message, capsys.readouterr().err, re.DOTALL)


def test_points_of_a_sweep():
  points = make_points(
    REQUEST, parse_axes("remat=full/matmuls,batch_per_device=2,fsdp")
  )
  assert len(points) == 2 * 1 * 4
  first = points[0]
  assert first.values == {"remat": "full", "batch_per_device": 2, "fsdp": 8}
  assert first.request.batch_per_device == 2
  assert first.request.settings == {"remat": "full", "fsdp": 8, "data": -1}
  assert [p.values["fsdp"] for p in points[:4]] == [8, 4, 2, 1]


def test_an_axis_may_stand_once():
  with pytest.raises(ConfigError, match="names fsdp twice"):
    parse_axes("fsdp=1,fsdp=2")


def test_the_report_of_one_plan():
  text = plan_text(ANSWER)
  assert "memory of a device: 20.00 GiB of 31.2 GiB: fits" in text
  assert "2000 ms a step, 2,048 tokens/s, MFU 50.0%" in text
  assert "40 x phi4_attention_forward" in text
  assert "| matrix products" in text and "| copies" not in text


def test_the_report_of_a_plan_that_does_not_fit():
  answer = {
    **ANSWER,
    "fits": False,
    "hbm_gib_per_device": 46.9,
    "error": "E1000: CompileTimeHbmOom: exceeds available HBM (31.24G)",
    "would_fit": ["ModelConfig.remat = 'full'"],
  }
  text = plan_text(answer)
  assert "DOES NOT FIT" in text and "E1000" in text
  assert "bf16[40,4096,5120]" in text
  assert "would fit, by estimate:\n  ModelConfig.remat = 'full'" in text
  assert "MFU" not in text


def test_a_sweep_marks_the_best_that_fits():
  points = make_points(REQUEST, parse_axes("remat=full/matmuls/attention"))
  answers = [
    ANSWER,
    {**ANSWER, "tokens_per_second": 9999.0, "fits": False},
    {"refused": "cannot be split"},
  ]
  assert best_index(answers) == 0
  lines = sweep_text(points, answers).splitlines()
  assert "<- best" in lines[2] and "NO" in lines[3] and "refused" in lines[4]
  assert "cannot be split" in "\n".join(lines)


def test_two_plans_beside_each_other():
  after = {**ANSWER, "hbm_gib_per_device": 30.0, "settings": {"remat": "matmuls"}}
  text = compare_text(ANSWER, after)
  assert "remat: full -> matmuls" in text
  assert "+50.0%" in text
