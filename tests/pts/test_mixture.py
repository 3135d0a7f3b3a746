"""Mixtures of kinds of questions: bounds that are kept, and who gives."""

import collections
import json

import pytest

from phi4_jax.common.errors import ConfigError
from phi4_jax.pts.analytic import AnalyticProcess, AnalyticSampler, make_process
from phi4_jax.pts.find import find_pivotal_tokens
from phi4_jax.pts.mixture import check_quotas, within_quotas
from phi4_jax.pts.oracle import Question
from phi4_jax.pts.search import SearchConfig


def questions_of(categories):
  return [
    Question(id=str(i), prompt="", reference="", prompt_ids=(i,), category=name)
    for i, name in enumerate(categories)
  ]


QUESTIONS = questions_of(["math", "math", "code", "", "math"])
NUMBERS = [0, 0, 0, 0, 1, 2, 2, 3, 4, 4]


def kept(quotas, seed=0):
  flags = within_quotas(NUMBERS, QUESTIONS, quotas, seed)
  return [i for i, flag in enumerate(flags) if flag]


def test_quotas_are_upper_bounds_and_others_give_none():
  assert kept({"math": 100, "code": 1}) == [0, 1, 2, 3, 4, 5, 8, 9]
  assert kept({"": 5}) == [7]
  assert kept({}) == [] and kept({"math": 0}) == []


def test_questions_give_in_turn():
  assert kept({"math": 3}) == [0, 4, 8]
  assert kept({"math": 5}) == [0, 1, 4, 8, 9]
  firsts = collections.Counter(kept({"math": 1}, seed)[0] for seed in range(60))
  assert set(firsts) == {0, 4, 8} and min(firsts.values()) > 8
  assert kept({"math": 1}, 7) == kept({"math": 1}, 7)


def test_a_category_that_no_question_has_is_named():
  with pytest.raises(ConfigError, match="names 'maths'.*'', 'code', 'math'"):
    check_quotas({"maths": 3}, QUESTIONS)
  with pytest.raises(ConfigError, match="must be 0 or more"):
    check_quotas({"math": -1}, QUESTIONS)
  check_quotas({"math": 0, "": 2}, QUESTIONS)


@pytest.mark.parametrize("mode", ["comb", "paper"])
def test_a_search_keeps_pairs_within_quotas_and_its_pivots(tmp_path, mode):
  process = make_process(0, num_steps=12, forks=0.15)
  process = AnalyticProcess(
    process.probs, process.next_states, process.rewards, num_questions=8
  )
  questions = [
    Question(**{**vars(q), "category": "odd" if i % 2 else "even"})
    for i, q in enumerate(process.questions)
  ]
  config = SearchConfig(mode=mode, num_traces=0)

  def search(name, quotas):
    found = find_pivotal_tokens(
      AnalyticSampler(process, 1),
      questions,
      process,
      config,
      out_dir=tmp_path / name,
      seed=1,
      pairs_per_category=quotas,
    )
    pairs = [json.loads(line) for line in (tmp_path / name / "pairs.jsonl").open()]
    assert len(pairs) == found["pairs"]
    counts = collections.Counter(questions[p["question"]].category for p in pairs)
    return found, counts

  everything, counts = search("all", None)
  assert counts["odd"] > 2 and counts["even"] > 0
  some, bounded = search("some", {"odd": 2})
  assert bounded == {"odd": 2}
  assert some["pivotal_tokens"] == everything["pivotal_tokens"]
  over = some["pivots_without_pair"]["over_quota"]
  assert over == everything["pairs"] - 2
  # The same folder may be mixed anew: nothing is drawn again.
  assert search("some", None)[1] == counts
