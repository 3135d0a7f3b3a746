import json

from phi4_jax.common.sampler import SamplingLaw, ScriptedSampler
from phi4_jax.pts.analytic import AnalyticSampler
from phi4_jax.pts.counts import Value
from phi4_jax.pts.questions import choose_responses, sample_rollouts, success_of
from tests.pts.processes import draw_rollouts, make_response, tiny_process


def sample(path, sampler, rows_per_call=4):
  process = tiny_process()
  return sample_rollouts(
    sampler, process.questions, process, 5, log_path=path, rows_per_call=rows_per_call
  )


def test_rollouts_are_judged_and_logged(tmp_path):
  process = tiny_process()
  found = sample(tmp_path / "r.jsonl", AnalyticSampler(process, 3))
  assert found == [draw_rollouts(process, q, 5, seed=3) for q in range(3)]
  records = [json.loads(line) for line in (tmp_path / "r.jsonl").open()]
  names = [(r["question"], r["rollout"]) for r in records]
  assert names == [(q, k) for q in range(3) for k in range(5)]
  assert set(records[0]) == {
    *("question", "rollout", "token_ids", "logprobs", "finish", "correct", "response")
  }
  assert records[0]["response"] == " ".join(map(str, records[0]["token_ids"]))

  # From the log alone, the same to the last bit.
  def answer(prefix, path):
    raise AssertionError("nothing is left to sample")

  silent = ScriptedSampler(answer, SamplingLaw(max_length=5))
  assert sample(tmp_path / "r.jsonl", silent) == found


def test_success_is_the_share_of_right_rollouts():
  rollouts = draw_rollouts(tiny_process(), 0, 20)
  assert success_of(rollouts) == Value(sum(r.correct for r in rollouts), 20)


def test_first_right_then_first_wrong_then_the_others_in_order():
  verdicts = [True, True, False, True, False]
  rollouts = [
    make_response([0.5], tokens=(i,), index=i, correct=c)
    for i, c in enumerate(verdicts)
  ]
  chosen = [[r.index for r in choose_responses(rollouts, n)] for n in range(1, 6)]
  assert chosen == [[0], [0, 2], [0, 2, 1], [0, 2, 1, 3], [0, 2, 1, 3, 4]]


def test_a_rollout_like_an_earlier_one_is_passed_over():
  rollouts = [
    make_response([0.5], tokens=(t,), index=i) for i, t in enumerate((5, 5, 6))
  ]
  assert [r.index for r in choose_responses(rollouts, 3)] == [0, 2]
