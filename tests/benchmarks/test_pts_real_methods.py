"""Two searches of one tiny model, in turn; what was finished is not done again."""

import types

import jax
import pytest

from benchmarks import pts_real_methods as methods
from benchmarks.pts_real_questions import rank_questions
from benchmarks.pts_real_summary import compare_costs, format_result
from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.common.sampler import SamplingLaw
from phi4_jax.model.config import ModelConfig
from phi4_jax.model.transformer import init_params
from phi4_jax.pts.find import NothingToSearch
from phi4_jax.pts.oracle import Question
from phi4_jax.sampling.engine import RolloutEngine

MODEL = ModelConfig(
  vocab_size=16,
  hidden_size=8,
  intermediate_size=12,
  num_hidden_layers=1,
  num_attention_heads=2,
  num_key_value_heads=1,
  max_position_embeddings=16,
  tie_word_embeddings=True,
  compute_dtype="float32",
)
NEW = 4
SIZES = {"samples": 7, "rollouts": 50, "seed": 3}


class FirstIsEven:
  """Right is a response that begins with an even token: the first one is a pivot."""

  fingerprint = "first is even"

  def judge(self, question, token_ids, finish):
    return token_ids[0] % 2 == 0

  def response_text(self, token_ids, finish):
    return " ".join(map(str, token_ids))

  def token_text(self, token_id):
    return str(token_id)


class FirstIsFound:
  """A public method that names the first token and one more."""

  pid = 0

  def __init__(self):
    self.asked = []

  def ask(self, timeout_seconds, do, **fields):
    self.asked.append(fields)
    pivots = [
      {"position": 0, "before": 0.5, "after": float(fields["correct"])},
      {"position": 1, "before": 0.5, "after": 0.9},
    ]
    return {"pivots": pivots, "seconds": 9.0, "cpu_seconds": 9.0, "sampled_tokens": 99}


@pytest.fixture(scope="module")
def setting():
  params = init_params(MODEL, jax.random.key(0))
  engine = RolloutEngine(
    params,
    MODEL,
    SamplingLaw(max_length=3 + NEW),
    stop_ids=(),
    batch_size=8,
    seed=1,
  )
  oracle, peer = FirstIsEven(), FirstIsFound()
  return types.SimpleNamespace(engine=engine, params=params, oracle=oracle, peer=peer)


@pytest.fixture(scope="module")
def questions():
  return [
    Question(id=f"q{i}", prompt="?", reference="0", prompt_ids=(i, 5, 6))
    for i in range(3)
  ]


def test_both_lists_are_held_against_what_was_measured(setting, questions, tmp_path):
  parts = methods.Parts(tmp_path, {"a": 1})
  records, costs = methods.compare(setting, questions, parts, **SIZES)
  assert 1 <= len(records) <= 3 and len(costs) == len(records)
  for record in records:
    first = next(c for c in record["reference"] if c["position"] == 0)
    # Of 16 nearly equally probable tokens half are right.
    assert abs(first["delta"]) == pytest.approx(0.5, abs=0.2) and first["above_gamma0"]
    assert [p["true"] for p in record["public"]["pivots"]] == [True, False]
    assert all(pivot["position"] == 0 for pivot in record["ours"]["pivots"])
    assert record["public"]["cost"]["seconds"] == 9.0
    assert len(record["tokens"][str(first["response"])]) == NEW
  assert len({cost["sampled_tokens"] for cost in costs}) == 1
  assert costs[0]["sampled_tokens"] > 0
  # All of what is asked is read on the clock, whatever was searched before.
  texts = sum(3 + NEW for _ in records) + 3 * (len(questions) - len(records))
  assert all(texts - NEW <= cost["prefill_tokens"] for cost in costs)
  assert (tmp_path / methods.WARM_UP).exists()
  text = format_result({**compare_costs(records, costs), "records": records})
  assert f"{records[-1]['id']}/{first['response']}/0" in text


def test_a_run_that_was_killed_goes_on(setting, questions, tmp_path):
  parts = methods.Parts(tmp_path, {"a": 1})
  before = methods.compare(setting, questions, parts, **SIZES)
  (tmp_path / "public.0.json").unlink()
  asked, sampled = len(setting.peer.asked), setting.engine.throughput.sampled_tokens
  again = methods.Parts(tmp_path, {"a": 1})
  assert methods.compare(setting, questions, again, **SIZES)[1] == before[1]
  assert len(setting.peer.asked) == asked + 1
  assert setting.engine.throughput.sampled_tokens == sampled
  with pytest.raises(ConfigError, match="other settings"):
    methods.Parts(tmp_path, {"a": 2})


def test_questions_that_are_not_worth_a_search(
  setting, questions, tmp_path, monkeypatch
):
  monkeypatch.setattr(setting.oracle, "judge", lambda *_: True, raising=False)
  parts = methods.Parts(tmp_path, {})
  with pytest.raises(DataError, match="None of 3"):
    methods.compare(setting, questions, parts, **SIZES)
  assert not methods.io.read_json(tmp_path / "ours.0.json")["kept"]


def test_questions_in_the_range_are_ranked_by_length(setting, questions):
  options = {"rollouts": 8, "low": 0.1, "high": 0.9}
  ranked = rank_questions(setting.engine, questions, setting.oracle, **options)
  assert ranked and all(r.right_tokens == NEW for r in ranked)
  assert all(0.1 <= r.success <= 0.9 for r in ranked)
  assert not rank_questions(
    setting.engine, questions, setting.oracle, rollouts=8, low=1.0, high=1.0
  )


def test_a_question_that_was_given_up_or_a_damaged_file_is_no_easy_question(
  setting, questions, tmp_path, monkeypatch
):
  def fail(*_):
    raise OSError("no such rule")

  search = (setting, questions, tmp_path / "ours", 3)
  with monkeypatch.context() as patched:
    patched.setattr(setting.oracle, "judge", fail, raising=False)
    with pytest.raises(NothingToSearch, match="no such rule"):
      methods.search_ours(*search)

  def damaged(*_, **__):
    raise DataError("draws.jsonl is damaged")

  monkeypatch.setattr(methods, "find_pivotal_tokens", damaged)
  with pytest.raises(DataError, match="is damaged"):
    methods.search_ours(*search)


def test_a_search_that_compiled_is_timed_anew(
  setting, questions, tmp_path, monkeypatch
):
  search, compiled = methods.search_ours, iter([0.0, 0.5, 0.0])

  def spy(*args, **kwargs):
    found = search(*args, **kwargs)
    found["cost"]["compile_seconds"] = next(compiled, 0.0)
    return found

  monkeypatch.setattr(methods, "search_ours", spy)
  _, costs = methods.compare(setting, questions, methods.Parts(tmp_path, {}), **SIZES)
  assert not any(cost["compile_seconds"] for cost in costs)
  assert next(compiled, None) is None
