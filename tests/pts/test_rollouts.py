"""The durable draw: nothing twice, nothing lost, and no order that matters."""

import errno
import json
import os
import random

import pytest

from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.common.sampler import BatchedBranches, Branch, Completion, SamplingLaw
from phi4_jax.pts.draws import Outcome, OutOfBudget
from phi4_jax.pts.oracle import Question
from phi4_jax.pts.oracle_process import OracleFailure
from phi4_jax.pts.rollout_log import RolloutLog
from phi4_jax.pts.rollouts import Budget, Rollouts, as_branches

QUESTIONS = [
  Question(id=f"q{q}", prompt="?", reference="", prompt_ids=(90 + q, 5))
  for q in range(4)
]
TEXTS = [(*question.prompt_ids, 1, 2, 3) for question in QUESTIONS]


def branch(question, number, position=3, phase=1, **kwargs):
  path = (phase, question, 0, position - 2, number)
  return Branch(text=TEXTS[question], position=position, key_path=path, **kwargs)


class Engine:
  """A BranchSampler that ends branches in an order of its own.

  What it draws is a function of the key path; `seconds` a rollout move the clock.
  """

  law = SamplingLaw(max_length=20)
  can_exclude = True

  def __init__(self, order=0, error_for=(), seconds=0.0, places=5):
    self.drawn = []
    self.now = 0.0
    self.closed = False
    self._order, self._error_for = random.Random(order), error_for
    self._seconds, self._places = seconds, places

  def run(self, branches):
    running, queue = [], iter(branches)
    try:
      while True:
        while len(running) < self._places and (one := next(queue, None)) is not None:
          running.append(one)
        if not running:
          return
        one = running.pop(self._order.randrange(len(running)))
        self.now += self._seconds
        yield one, self._complete(one)
    finally:
      self.closed = True

  def _complete(self, one):
    self.drawn.append(one.key_path)
    seed = random.Random(repr(one.key_path))
    ids = tuple(seed.randrange(10) for _ in range(seed.randrange(1, 9)))
    error = "no numbers" if one.key_path in self._error_for else None
    logs = (-0.5,) * len(ids)
    return Completion(token_ids=ids, logprobs=logs, finish="stop", error=error)


class LastTokenIsEven:
  fingerprint = "even"

  def __init__(self):
    self.judged = []

  def judge(self, question, token_ids, finish):
    self.judged.append((question.id, tuple(token_ids), finish))
    return token_ids[-1] % 2 == 0

  def response_text(self, token_ids, finish):
    return ""

  def token_text(self, token_id):
    return ""


def open_draw(path, engine=None, oracle=None, **kwargs):
  engine = engine or Engine()
  oracle = oracle or LastTokenIsEven()
  return Rollouts(engine, QUESTIONS, oracle, log_path=path / "draws.jsonl", **kwargs)


MANY = [branch(q, k) for q in range(4) for k in range(12)]


def draw_many(path, engine=None, branches=MANY, **kwargs):
  with open_draw(path, engine, **kwargs) as draw:
    return draw(branches, label="many")


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


class TestStops:
  def test_progress_may_stop_a_round_and_what_was_ready_is_kept(self, tmp_path):
    """With whole batches all of the batch is kept, and none is begun."""
    wanted = draw_many(tmp_path / "whole")

    class Stop(Exception):
      pass

    def progress(label, done, total):
      seen.append((label, done, total))
      if done == 5:
        raise Stop

    calls, seen = [], []

    class Plain:
      law = Engine.law

      def sample(self, prefixes, key_paths):
        calls.append(len(prefixes))
        engine = Engine()
        branches = [Branch(text=(1,), position=1, key_path=p) for p in key_paths]
        found = {b.key_path: c for b, c in engine.run(branches)}
        return [found[path] for path in key_paths]

    plain = as_branches(Plain(), rows_per_call=16)
    with open_draw(tmp_path, plain, progress=progress) as draw, pytest.raises(Stop):
      draw(MANY, label="many")
    assert calls == [16] and seen[-1] == ("many", 5, 48)
    assert len(RolloutLog(tmp_path / "draws.jsonl").drawn) == 16
    seen.clear()
    assert (
      draw_many(tmp_path, plain, progress=lambda *call: seen.append(call)) == wanted
    )
    assert (
      calls == [16, 16, 16] and seen[0][1:] == (17, 48) and seen[-1][1:] == (48, 48)
    )

  def test_an_interrupt_inside_the_sampler_loses_nothing_that_was_logged(
    self, tmp_path
  ):
    class Dies(Engine):
      def _complete(self, one):
        if len(self.drawn) == 20:
          raise KeyboardInterrupt
        return super()._complete(one)

    wanted = draw_many(tmp_path / "whole")
    engine = Dies()
    with open_draw(tmp_path, engine) as draw, pytest.raises(KeyboardInterrupt):
      draw(MANY, label="")
    assert engine.closed
    second = Engine(3)
    assert draw_many(tmp_path, second) == wanted
    assert not set(second.drawn) & set(engine.drawn)

  def test_a_full_disk_is_a_clear_error(self, tmp_path, monkeypatch):
    wanted = draw_many(tmp_path / "whole")
    draw = open_draw(tmp_path)
    log = draw._log._log
    file, fits = log._file, [300]

    class Full:
      def write(self, data):
        if len(data) > fits[0]:
          raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fits[0] -= len(data)
        return file.write(data)

      truncate, close = file.truncate, file.close

    log._file = Full()
    with (
      draw,
      pytest.raises(DataError, match="draws.jsonl cannot be written: No space"),
    ):
      draw(MANY, label="")
    second = Engine()
    assert draw_many(tmp_path, second) == wanted
    assert 30 < len(second.drawn) < len(MANY)


class TestBudget:
  def test_tokens_end_a_run_between_rounds_at_the_same_place(self, tmp_path):
    rounds = [[branch(q, k) for q in range(4)] for k in range(12)]

    def run(path, engine, budget=None):
      outcomes = []
      with open_draw(path, engine, budget=budget) as draw:
        try:
          for number, one in enumerate(rounds):
            outcomes.append(draw(one, label=f"round {number}"))
        except OutOfBudget:
          pass
        return outcomes, draw.num_tokens

    whole, total = run(tmp_path / "whole", Engine())
    bounded, spent = run(tmp_path / "bounded", Engine(1), Budget(tokens=total // 2))
    assert bounded == whole[: len(bounded)] and 0 < len(bounded) < 12
    assert spent >= total // 2 > spent - sum(o.num_tokens for o in bounded[-1])
    # From a log that has more (of a run with a larger budget), the same.
    again = run(tmp_path / "whole", Engine(), Budget(tokens=total // 2))
    assert again == (bounded, spent)
    # And a larger one goes on.
    assert run(tmp_path / "bounded", Engine()) == (whole, total)

  def test_minutes_break_a_round_off_and_nothing_of_it_is_used(self, tmp_path):
    wanted = draw_many(tmp_path / "whole")
    engine = Engine(seconds=10.0)
    budget = Budget(minutes=3.0)
    first, second = MANY[:10], MANY[10:]
    with open_draw(tmp_path, engine, budget=budget, clock=lambda: engine.now) as draw:
      assert draw(first, label="") == wanted[:10]
      with pytest.raises(OutOfBudget, match="3.0 minutes"):
        draw(second, label="")
      assert draw.num_rollouts == 10
    assert 18 <= len(engine.drawn) < 48
    # A restart knows that the time is up: what is whole is served, and no more.
    with open_draw(tmp_path, Engine(), budget=budget) as draw:
      assert draw(first, label="") == wanted[:10]
      with pytest.raises(OutOfBudget):
        draw(second, label="")
    # With more time what was drawn is taken up.
    later = Engine(4)
    assert draw_many(tmp_path, later, budget=Budget(minutes=60.0)) == wanted
    assert len(later.drawn) + len(engine.drawn) == len(MANY)

  @pytest.mark.parametrize("field", ["tokens", "minutes"])
  def test_a_budget_must_be_positive(self, field):
    value = {"tokens": -1, "minutes": 0.0}[field]
    with pytest.raises(ConfigError, match=f"Budget.{field}"):
      Budget(**{field: value})


class TestAdapters:
  def test_a_branch_sampler_is_taken_as_it_is(self):
    engine = Engine()
    assert as_branches(engine, rows_per_call=4) is engine

  def test_a_plain_sampler_can_exclude_if_it_takes_ids_to_exclude(self):
    class Plain:
      law = Engine.law

      def sample(self, prefixes, key_paths):
        return []

    class Excluding(Plain):
      def sample(self, prefixes, key_paths, excluded_ids=None):
        return []

    for sampler, can in ((Plain(), False), (Excluding(), True)):
      adapted = as_branches(sampler, rows_per_call=4)
      assert isinstance(adapted, BatchedBranches) and adapted.can_exclude is can

  def test_rows_per_call_must_be_positive(self):
    with pytest.raises(ConfigError, match=r"rows_per_call \(0\)"):
      as_branches(Engine(), rows_per_call=0)


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
