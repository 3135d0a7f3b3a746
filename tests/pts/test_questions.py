"""The filter: who is asked, how often, and what becomes of each question."""

import dataclasses

import pytest

from phi4_jax.common.errors import ConfigError
from phi4_jax.common.sampler import (
  Completion,
  SamplingLaw,
  ScriptedSampler,
  as_branches,
)
from phi4_jax.pts.analytic import AnalyticSampler
from phi4_jax.pts.counts import Value
from phi4_jax.pts.oracle import Question
from phi4_jax.pts.questions import choose_responses, filter_questions, success_of
from phi4_jax.pts.rollouts import Budget, Rollouts
from phi4_jax.pts.search import SearchConfig
from tests.pts.processes import draw_rollouts, make_response, tiny_process

PAPER = SearchConfig(mode="paper", rollouts_per_question=5)
COMB = SearchConfig(rollouts_per_question=16, first_rollouts=8)


class FirstTokenDecides:
  """An oracle: a response is right if it begins with a 1."""

  fingerprint = "first"

  def judge(self, question, token_ids, finish):
    return token_ids[0] == 1

  def response_text(self, token_ids, finish):
    return ""

  def token_text(self, token_id):
    return ""


def question(number, prompt_ids=(5,), **kwargs):
  return Question(
    id=f"q{number}", prompt="?", reference="1", prompt_ids=prompt_ids, **kwargs
  )


def scripted(share_of):
  """Question q begins with a 1 in `share_of[q]` of each four rollouts."""

  def answer(prefix, path):
    _, q, _, _, k = path
    return [int(k % 4 < share_of[q]), 2, k]

  return ScriptedSampler(answer, SamplingLaw(max_length=8))


def filter_with(path, sampler, questions, oracle, config, **kwargs):
  branches = as_branches(sampler, rows_per_call=4)
  with Rollouts(
    branches, questions, oracle, log_path=path / "draws.jsonl", **kwargs
  ) as rollouts:
    found = filter_questions(
      rollouts, questions, config, max_length=sampler.law.max_length
    )
    return found, rollouts


def test_rollouts_are_judged_and_kept(tmp_path):
  process = tiny_process()
  sampler = AnalyticSampler(process, 3)
  found, _ = filter_with(tmp_path, sampler, process.questions, process, PAPER)
  wanted = [tuple(draw_rollouts(process, q, 5, seed=3)) for q in range(3)]
  assert [f.rollouts for f in found] == wanted

  # From the log alone, the same to the last bit.
  def answer(prefix, path):
    raise AssertionError("nothing is left to sample")

  silent = ScriptedSampler(answer, SamplingLaw(max_length=5))
  again, _ = filter_with(tmp_path, silent, process.questions, process, PAPER)
  assert again == found


def test_states(tmp_path):
  questions = [question(q) for q in range(3)]
  sampler = scripted({0: 0, 1: 2, 2: 4})
  config = dataclasses.replace(PAPER, rollouts_per_question=8)
  found, _ = filter_with(tmp_path, sampler, questions, FirstTokenDecides(), config)
  assert [f.state for f in found] == ["too_hard", "searched", "too_easy"]
  assert [f.root for f in found] == [Value(0, 8), Value(4, 8), Value(8, 8)]


def test_a_prompt_without_room_for_an_answer_is_not_called_too_hard(tmp_path):
  # Three tokens are wanted, and the prompts leave 2, 3, 4 and 2 of 8.
  questions = [question(q, (5,) * length) for q, length in enumerate((6, 5, 4, 6))]
  sampler = ScriptedSampler(
    lambda prefix, path: [int(path[1] == 3 and path[4] % 2), 2, 9],
    SamplingLaw(max_length=8),
    stop_ids=[9],
  )
  config = dataclasses.replace(PAPER, rollouts_per_question=8)
  found, _ = filter_with(tmp_path, sampler, questions, FirstTokenDecides(), config)
  assert [f.state for f in found] == ["no_room", "too_hard", "too_hard", "searched"]
  assert found[0].reason == (
    "its prompt has 6 tokens and leaves 2 for a response, which 8 of 8 rollouts "
    "outgrew: raise SamplingLaw.max_length (8; prompt and response together)"
  )
  assert not any(f.reason for f in found[1:])


def test_clear_cases_get_fewer_rollouts_in_mode_comb(tmp_path):
  questions = [question(q) for q in range(3)]
  sampler = scripted({0: 0, 1: 2, 2: 1})
  found, rollouts = filter_with(tmp_path, sampler, questions, FirstTokenDecides(), COMB)
  counts = [len(f.rollouts) for f in found]
  assert counts == [8, 16, 16]
  assert [f.state for f in found] == ["too_hard", "searched", "searched"]
  assert rollouts.num_rollouts == sum(counts)
  assert [r.index for r in found[0].rollouts] == list(range(counts[0]))


def test_questions_that_cannot_be_asked_cost_nothing(tmp_path):
  blank = ({"role": "user", "content": " \n"},)
  questions = [
    question(0, ()),
    question(1, (5,) * 8),
    question(2, (5,) * 7),
    question(3, messages=blank),
    question(4),
  ]
  sampler = scripted({2: 2, 4: 2})
  found, rollouts = filter_with(
    tmp_path, sampler, questions, FirstTokenDecides(), PAPER
  )
  states = [f.state for f in found]
  assert states == ["given_up", "given_up", "searched", "given_up", "searched"]
  assert found[0].reason == found[3].reason == "the question is empty"
  assert found[1].reason.startswith("the prompt has 8 tokens, which leaves no room")
  assert rollouts.num_rollouts == 10


def test_a_budget_leaves_later_questions_out(tmp_path):
  said = []
  questions = [question(q) for q in range(600)]
  sampler = scripted(dict.fromkeys(range(600), 2))
  found, rollouts = filter_with(
    tmp_path,
    sampler,
    questions,
    FirstTokenDecides(),
    PAPER,
    budget=Budget(tokens=10_000),
    progress=lambda label, done, total: said.append(label),
  )
  assert list(dict.fromkeys(said)) == [
    "filter: questions 1 to 256 of 600",
    "filter: questions 257 to 512 of 600",
  ]
  states = [f.state for f in found]
  assert states == ["searched"] * 512 + ["not_reached"] * 88
  assert rollouts.num_tokens == 512 * 15


def test_a_row_that_could_not_be_drawn_gives_its_question_up(tmp_path):
  class Broken(ScriptedSampler):
    def sample(self, prefixes, key_paths):
      completions = super().sample(prefixes, key_paths)
      return [
        Completion(token_ids=(), logprobs=(), finish="length", error="no numbers")
        if tuple(path[1:]) == (1, 0, 0, 2)
        else completion
        for completion, path in zip(completions, key_paths, strict=True)
      ]

  sampler = Broken(lambda prefix, path: [path[-1] % 2, 3], SamplingLaw(max_length=8))
  questions = [question(q) for q in range(3)]
  found, rollouts = filter_with(
    tmp_path, sampler, questions, FirstTokenDecides(), PAPER
  )
  assert [f.state for f in found] == ["searched", "given_up", "searched"]
  assert found[1].reason == "no numbers" and len(found[1].rollouts) == 4
  assert rollouts.failures == {1: "no numbers"}


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


def test_a_rollout_like_an_earlier_one_or_without_tokens_is_passed_over():
  rollouts = [
    make_response([0.5] * len(ids), tokens=ids, index=i)
    for i, ids in enumerate([(5,), (), (5,), (6,)])
  ]
  assert [r.index for r in choose_responses(rollouts, 3)] == [0, 3]


@pytest.mark.parametrize("name", ["tokens", "minutes"])
def test_a_budget_of_nothing_is_refused(name):
  with pytest.raises(ConfigError, match=rf"Budget.{name} \(0"):
    Budget(**{name: {"tokens": 0, "minutes": 0.0}[name]})
