"""The durable draw: nothing twice, nothing lost, and no order that matters."""

import json
import random
import time

import pytest

from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.common.sampler import Branch
from phi4_jax.pts.draws import Outcome
from phi4_jax.pts.oracle_process import OracleFailure
from tests.pts.drawing import (
  MANY,
  QUESTIONS,
  Engine,
  LastTokenIsEven,
  branch,
  draw_many,
  open_draw,
)


def test_outcomes_come_in_the_order_that_was_asked(tmp_path):
  outcomes = draw_many(tmp_path)
  assert len(outcomes) == len(MANY)
  for one, outcome in zip(MANY, outcomes, strict=True):
    seed = random.Random(repr(one.key_path))
    ids = [seed.randrange(10) for _ in range(seed.randrange(1, 9))]
    assert outcome == Outcome(ids[0], len(ids), ids[-1] % 2 == 0)


def test_the_oracle_sees_the_whole_response_without_the_prompt(tmp_path):
  oracle = LastTokenIsEven()
  plain, forced = branch(2, 0, position=4), branch(2, 1, position=4, first_id=7)
  with open_draw(tmp_path, oracle=oracle) as draw:
    draw([plain, forced], label="")
  responses = {response[:3] for _, response, _ in oracle.judged}
  assert {r[:2] for r in responses} == {(1, 2)} and any(r[2] == 7 for r in responses)
  assert {name for name, _, _ in oracle.judged} == {"q2"}


def test_no_order_batch_or_repetition_matters(tmp_path):
  wanted = draw_many(tmp_path / "first")
  for order in range(1, 4):
    assert draw_many(tmp_path / str(order), Engine(order, places=order)) == wanted
  twice = [*MANY, *reversed(MANY)]
  engine = Engine(9)
  got = draw_many(tmp_path / "twice", engine, twice)
  assert got == [*wanted, *reversed(wanted)] and len(engine.drawn) == len(MANY)


def test_the_log_is_read_back_and_nothing_is_drawn_again(tmp_path):
  wanted = draw_many(tmp_path)
  engine = Engine(1)
  assert draw_many(tmp_path, engine) == wanted and engine.drawn == []
  more = [*MANY, branch(0, 99)]
  assert draw_many(tmp_path, engine, more)[:-1] == wanted
  assert engine.drawn == [more[-1].key_path]


@pytest.mark.parametrize("cut", range(0, 1200, 61))
def test_a_log_cut_at_any_byte_goes_on_to_the_same(tmp_path, cut):
  wanted = draw_many(tmp_path)
  log = tmp_path / "draws.jsonl"
  whole = log.read_bytes()
  log.write_bytes(whole[:cut])
  kept = whole[:cut].count(b"\n")
  engine = Engine(cut)
  assert draw_many(tmp_path, engine) == wanted
  assert len(engine.drawn) == len(MANY) - kept


def test_a_damaged_record_in_the_middle_names_file_and_row(tmp_path):
  draw_many(tmp_path)
  log = tmp_path / "draws.jsonl"
  lines = log.read_text().splitlines(keepends=True)
  for damage in ('[1, 0, 0, 1, 3, "x", 4, 1]\n', "[1, 0, 0\n", "{}\n", "[1, 2]\n"):
    log.write_text("".join([*lines[:4], damage, *lines[5:]]))
    with pytest.raises(DataError, match=r"Row 5 of .*draws.jsonl .*Delete that row"):
      open_draw(tmp_path)
  # As it says: without the row its rollout is drawn again.
  log.write_text("".join([*lines[:4], *lines[5:]]))
  engine = Engine()
  draw_many(tmp_path, engine)
  assert len(engine.drawn) == 1


def test_responses_are_kept_with_all_their_tokens(tmp_path):
  bare = [
    Branch(text=q.prompt_ids, position=2, key_path=(0, i, 0, 0, k))
    for i, q in enumerate(QUESTIONS)
    for k in (0, 1)
  ]
  with open_draw(tmp_path) as draw:
    found = draw.draw_responses(bare, label="filter")
  for one, response in zip(bare, found, strict=True):
    seed = random.Random(repr(one.key_path))
    ids = tuple(seed.randrange(10) for _ in range(seed.randrange(1, 9)))
    assert response.token_ids == ids and response.logprobs == (-0.5,) * len(ids)
    assert (response.question, response.index) == (one.key_path[1], one.key_path[4])
    assert response.prompt_ids is QUESTIONS[response.question].prompt_ids
  with open_draw(tmp_path, Engine(1)) as draw:
    assert draw.draw_responses(bare, label="filter") == found


class TestFailures:
  def test_an_oracle_that_raises_gives_up_its_question_and_no_other(self, tmp_path):
    class Raises(LastTokenIsEven):
      def judge(self, question, token_ids, finish):
        if question.id == "q1":
          raise KeyError("no\nsuch   answer")
        return super().judge(question, token_ids, finish)

    engine = Engine()
    with open_draw(tmp_path, engine, Raises()) as draw:
      outcomes = draw(MANY, label="")
      assert draw.failures == {1: "the oracle raised KeyError: 'no\\nsuch answer'"}
      assert draw.is_given_up(1) and not draw.is_given_up(0)
      assert [o.failed for o in outcomes] == [b.key_path[1] == 1 for b in MANY]
      # Later rounds draw nothing for it.
      later = draw([branch(1, 99), branch(2, 99)], label="")
    assert [o.failed for o in later] == [True, False]
    assert (1, 1, 0, 1, 99) not in engine.drawn
    # The same after a restart, whatever the oracle would say now.
    with open_draw(tmp_path) as draw:
      assert draw(MANY, label="") == outcomes and list(draw.failures) == [1]

  def test_a_failure_says_its_reason_as_it_is(self, tmp_path):
    class Fails(LastTokenIsEven):
      def judge(self, question, token_ids, finish):
        raise OracleFailure("The oracle f gave no verdict within 2 seconds.")

    with open_draw(tmp_path, oracle=Fails()) as draw:
      draw([branch(0, 0)], label="")
      assert draw.failures == {0: "The oracle f gave no verdict within 2 seconds."}

  @pytest.mark.parametrize("verdict", [None, 1, "yes", 0.5])
  def test_what_is_no_verdict_is_none(self, tmp_path, verdict):
    class Odd(LastTokenIsEven):
      def judge(self, question, token_ids, finish):
        return verdict

    with open_draw(tmp_path, oracle=Odd()) as draw:
      assert draw([branch(0, 0)], label="")[0].failed
      assert draw.failures[0].endswith("which is not True or False")

  def test_a_rule_that_is_gone_stops_the_run(self, tmp_path):
    class Gone(LastTokenIsEven):
      def judge(self, question, token_ids, finish):
        raise ConfigError("the function was changed")

    with (
      open_draw(tmp_path, oracle=Gone()) as draw,
      pytest.raises(ConfigError, match="was changed"),
    ):
      draw([branch(0, 0)], label="")

  def test_the_reason_does_not_depend_on_the_order(self, tmp_path):
    class Says(LastTokenIsEven):
      def judge(self, question, token_ids, finish):
        raise ValueError(token_ids[-1])

    reasons = set()
    for order in range(6):
      with open_draw(tmp_path / str(order), Engine(order), Says()) as draw:
        draw(MANY, label="")
        reasons.add(json.dumps(draw.failures))
    assert len(reasons) == 1

  def test_a_row_without_numbers(self, tmp_path):
    bad = MANY[7].key_path
    with open_draw(tmp_path, Engine(error_for=[bad])) as draw:
      outcomes = draw(MANY, label="")
      assert draw.failures == {0: "no numbers"}
    assert [b for b, o in zip(MANY, outcomes, strict=True) if o.failed] == [MANY[7]]


class TestSeveralWorkers:
  class Slow(LastTokenIsEven):
    workers = 4

    def __init__(self):
      super().__init__()
      self.at_once = self.most = 0

    def judge(self, question, token_ids, finish):
      self.at_once += 1
      self.most = max(self.most, self.at_once)
      time.sleep(0.01 * (token_ids[0] % 3))
      self.at_once -= 1
      if question.id == "q3":
        raise ValueError(token_ids[-1])
      return super().judge(question, token_ids, finish)

  def test_they_come_to_the_same(self, tmp_path):
    oracle = self.Slow()
    with open_draw(tmp_path / "four", oracle=oracle) as draw:
      outcomes = draw(MANY, label="")
      failures = draw.failures
    assert oracle.most > 1 and list(failures) == [3]

    class One(self.Slow):
      workers = 1

    with open_draw(tmp_path / "one", Engine(5), One()) as draw:
      assert draw(MANY, label="") == outcomes and draw.failures == failures

  def test_a_stop_waits_for_what_is_being_judged(self, tmp_path):
    class Stop(Exception):
      pass

    def progress(label, done, total):
      if done == 3:
        raise Stop

    # More than may wait before the judges at once.
    more = [branch(question, k) for question in range(3) for k in range(120)]
    with (
      open_draw(tmp_path, oracle=self.Slow(), progress=progress) as draw,
      pytest.raises(Stop),
    ):
      draw(more, label="")
    second = Engine(2)
    with open_draw(tmp_path, second, self.Slow()) as draw:
      draw(more, label="")
    # What was under way is kept; how much that is depends on the judges' speed.
    assert 0 < len(second.drawn) < len(more)

  def test_a_rule_that_is_gone_stops_the_run(self, tmp_path):
    class Gone(self.Slow):
      def judge(self, question, token_ids, finish):
        raise ConfigError("the function was changed")

    with (
      open_draw(tmp_path, oracle=Gone()) as draw,
      pytest.raises(ConfigError, match="was changed"),
    ):
      draw(MANY, label="")


def test_costs_are_counted_by_phase_and_category(tmp_path):
  with open_draw(tmp_path) as draw:
    first = draw([branch(0, k) for k in range(3)], label="")
    second = draw([branch(1, k, phase=6) for k in range(2)], label="")
    costs = draw.cost_by_phase()
    assert draw.cost_by_category() == {
      "": {"rollouts": 5, "sampled_tokens": draw.num_tokens}
    }
  assert costs == {
    "search": {"rollouts": 3, "sampled_tokens": sum(o.num_tokens for o in first)},
    "leave": {"rollouts": 2, "sampled_tokens": sum(o.num_tokens for o in second)},
  }
