"""A draw that is stopped, out of budget or out of disk goes on to the same."""

import errno
import os

import pytest

from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.common.sampler import Branch, as_branches
from phi4_jax.pts.draws import OutOfBudget
from phi4_jax.pts.rollout_log import RolloutLog
from phi4_jax.pts.rollouts import Budget
from tests.pts.drawing import MANY, Engine, branch, draw_many, open_draw


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
      with pytest.raises(OutOfBudget, match="of 3.0 minutes"):
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


def test_filter_and_screen_leave_some_of_the_budget(tmp_path):
  """The filter goes to .4 of it, the screen to .7, the confirmation to .95."""
  spent = {}
  with open_draw(tmp_path, budget=Budget(tokens=1000)) as draw:
    for phase in (0, 5, 6, 7):
      number = 0
      while phase not in spent:
        one = [branch(q, number, phase=phase) for q in range(4)]
        number += 1
        try:
          draw(one, label="")
        except OutOfBudget:
          spent[phase] = draw.num_tokens
  most = 4 * 8  # tokens of a round
  for phase, share in ((0, 0.4), (5, 0.7), (6, 0.95), (7, 1.0)):
    assert 1000 * share <= spent[phase] < 1000 * share + most
