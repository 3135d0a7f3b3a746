"""A real comparison of two trained models, and the same one after kill -9."""

from pathlib import Path

import pytest

from experiments import run_directory
from phi4_jax.common import io
from tests.experiments.test_chain import _SMALLER, _run, _start, _wait_for

_ROOT = Path(__file__).resolve().parents[2]
_GIN = f"""
include '{_ROOT}/gin_configs/model/tiny.gin'
include '{_ROOT}/gin_configs/mesh/cpu.gin'
CompareConfig.model = @ModelConfig()
CompareConfig.mesh = @MeshConfig()
CompareConfig.vocabulary = 'stage:tokenizer'
CompareConfig.task = @ArithmeticTaskConfig()
CompareConfig.law = @SamplingLaw()
CompareConfig.num_examples = 256
CompareConfig.batch_size = 16
CompareConfig.arms = {{'sft': ('stage:sft',), 'base': ('stage:pretrain', 'stage:sft')}}
SamplingLaw.max_length = 64
ModelConfig.hidden_size = 16
ModelConfig.intermediate_size = 32
ModelConfig.num_hidden_layers = 2
"""


@pytest.mark.slow
def test_killed_while_answering(tmp_path):
  chain = tmp_path / "chain"
  tiny = f"--gin_file={_ROOT}/gin_configs/tiny_chain.gin"
  code, output = _run("pipeline", tiny, f"--workdir={chain}", *_SMALLER)
  assert code == 0, output
  gin_file = tmp_path / "compare.gin"
  gin_file.write_text(_GIN)

  def arguments(name):
    return f"--gin_file={gin_file}", f"--workdir={chain / name}"

  code, output = _run("compare", *arguments("straight"))
  assert code == 0, output
  assert "| base " in output
  killed = chain / "killed"
  process = _start("compare", *arguments("killed"))
  second = killed / "answers" / "base" / "0" / "samples.jsonl"
  _wait_for(lambda: second.exists() and second.stat().st_size, process)
  process.kill()
  process.communicate()
  assert run_directory.load_result(killed) is None
  code, output = _run("compare", *arguments("killed"))
  assert code == 0, output
  wanted, found = (run_directory.load_result(chain / n) for n in ("straight", "killed"))
  assert wanted is not None and found is not None
  assert found["fingerprint"] == wanted["fingerprint"]
  assert found["metrics"] == wanted["metrics"]
  # The same weights under the same keys give the same answers, whatever the arm.
  single = {
    record["example"]: record["token_ids"]
    for _, record in io.read_jsonl(killed / "answers" / "sft" / "0" / "samples.jsonl")
    if record["sample"] == 1
  }
  second_run = {
    record["example"]: record["token_ids"]
    for _, record in io.read_jsonl(killed / "answers" / "base" / "1" / "samples.jsonl")
  }
  assert single == second_run
