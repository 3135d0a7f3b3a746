"""A bfloat16 model under the evaluation runner: resumed runs are equal bit for bit."""

import jax
import pytest

from phi4_jax.common.sampler import SamplingLaw
from phi4_jax.data.tokenizer import ByteVocabulary
from phi4_jax.eval.runner import evaluate
from phi4_jax.eval.tasks.arithmetic import ArithmeticTask, ArithmeticTaskConfig
from phi4_jax.model.transformer import init_params
from phi4_jax.sampling.engine import RolloutEngine
from phi4_jax.sampling.generate import JaxSampler
from tests.model.tiny import tiny_config

VOCABULARY = ByteVocabulary()
# Padded beyond the vocabulary, as Phi-4's is: such ids are drawn by this model.
CONFIG = tiny_config(
  vocab_size=VOCABULARY.size + 8,
  hidden_size=16,
  intermediate_size=16,
  num_hidden_layers=1,
  num_attention_heads=2,
  num_key_value_heads=1,
  max_position_embeddings=48,
  compute_dtype="bfloat16",
  initializer_range=0.02,
)


class _KilledError(Exception):
  pass


@pytest.mark.parametrize("make", [JaxSampler, RolloutEngine])
def test_a_resumed_evaluation_of_a_model_is_identical(tmp_path, make):
  sampler = make(
    init_params(CONFIG, jax.random.key(0)),
    CONFIG,
    SamplingLaw(max_length=48),
    stop_ids=(VOCABULARY.im_end_id,),
    batch_size=4,
    seed=1,
    prompt_chunk=16,
  )

  def run(out_dir, rows_per_call, stop_after=None):
    calls = []

    def progress(*call):
      calls.append(call)
      if len(calls) == stop_after:
        raise _KilledError

    task = ArithmeticTask(ArithmeticTaskConfig())
    return evaluate(
      task,
      sampler,
      VOCABULARY,
      num_examples=5,
      samples_per_example=2,
      out_dir=out_dir,
      rows_per_call=rows_per_call,
      progress=progress,
    )

  whole = run(tmp_path / "whole", rows_per_call=10)
  with pytest.raises(_KilledError):
    run(tmp_path / "parts", rows_per_call=3, stop_after=2)
  assert len((tmp_path / "parts" / "samples.jsonl").read_text().splitlines()) == 6
  assert run(tmp_path / "parts", rows_per_call=7) == whole
  for name in ("samples.jsonl", "results.json", "transcripts.md"):
    parts, expected = tmp_path / "parts" / name, tmp_path / "whole" / name
    assert parts.read_bytes() == expected.read_bytes()
