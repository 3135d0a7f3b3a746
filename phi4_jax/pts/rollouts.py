"""The durable draw: every rollout of a search is drawn once, judged, and kept.

A call is a round (draws.py). What the log has is taken from there; the rest goes to a
sampler, whose completions are judged and appended one by one as they come, in any
order. So a run that was stopped or killed goes on and repeats nothing, and what it
comes to depends neither on batches nor on the order in which rollouts end.

A budget ends a search between two rounds. One in tokens always ends it after the same
round. One in minutes may break a round off; nothing of that round is used then, because
short rollouts come first and their share of successes is not that of all. The filter,
the screen and the confirmation may spend a part of it only: what each finds is worth
nothing without what comes behind it.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from phi4_jax.common.errors import ConfigError
from phi4_jax.common.sampler import Branch, BranchSampler
from phi4_jax.pts.draws import Outcome, OutOfBudget
from phi4_jax.pts.estimates import PHASES
from phi4_jax.pts.judging import Judges
from phi4_jax.pts.oracle import Oracle, Question
from phi4_jax.pts.responses import Response
from phi4_jax.pts.rollout_log import Drawn, KeyPath, RolloutLog

# Called with (what is being done, rollouts done, rollouts to do) of a round.
ReportProgress = Callable[[str, int, int], None]
# A completion that takes longer than this was waited for: the sampler has computed.
_WAIT_SECONDS = 0.05
# How far each of these may go into the budget, what was spent before it included.
_SHARES = {PHASES["filter"]: 0.4, PHASES["screen"]: 0.7, PHASES["leave"]: 0.95}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
  """What a run may spend; what is undecided when it is spent stays so.

  Attributes:
    tokens: sampled ones, of the whole run; None for no bound. The round that reaches
      it is finished.
    minutes: wall time of the whole run, earlier processes included.
  """

  tokens: int | None = None
  minutes: float | None = None

  def __post_init__(self):
    for name in ("tokens", "minutes"):
      value = getattr(self, name)
      if value is not None and value <= 0:
        raise ConfigError(f"Budget.{name} ({value}) must be above 0, or None.")


class Rollouts:
  """Implements the Draw protocol. A context manager.

  Attributes:
    num_rollouts: that rounds have asked for, those from the log included.
    num_tokens: sampled in them.
  """

  def __init__(
    self,
    sampler: BranchSampler,
    questions: Sequence[Question],
    oracle: Oracle,
    *,
    log_path: Path,
    budget: Budget | None = None,
    progress: ReportProgress | None = None,
    clock: Callable[[], float] = time.monotonic,
  ):
    """Args:
      sampler: draws what the log does not have.
      questions: by their number, the second part of every key path.
      oracle: judges whole responses.
      log_path: is continued if it is there.
      budget: None for no bound.
      progress: called after each rollout; what it raises ends the round, once what
        the sampler has ready is kept.
      clock: seconds, for the budget.

    Raises:
      DataError: if the log is damaged; names file and row.
    """
    self._sampler = sampler
    self._questions = questions
    self._oracle = oracle
    self._budget = budget or Budget()
    self._progress = progress
    self._clock = clock
    self._started = clock()
    self._log = RolloutLog(log_path)
    self._logged = self._log.drawn
    self._used: dict[KeyPath, Drawn] = {}
    self._failures: dict[int, tuple[KeyPath, str]] = {}
    # (rollouts, tokens) by phase and question.
    self._costs: dict[tuple[int, int], tuple[int, int]] = {}
    self.num_rollouts = 0
    self.num_tokens = 0

  def __enter__(self) -> "Rollouts":
    return self

  def __exit__(self, *unused) -> None:
    self._log.close()

  def is_given_up(self, question: int) -> bool:
    """Whether a question has had a draw without a verdict."""
    return question in self._failures

  @property
  def failures(self) -> dict[int, str]:
    """Questions that were given up, and why: of the first draw without a verdict."""
    return {question: why for question, (_, why) in sorted(self._failures.items())}

  def cost_by_phase(self) -> dict[str, dict[str, int]]:
    """Returns rollouts and sampled tokens by the name of the phase."""
    names = {number: name for name, number in PHASES.items()}
    return self._sum_costs(lambda phase, question: names[phase])

  def cost_by_category(self) -> dict[str, dict[str, int]]:
    """Returns rollouts and sampled tokens by category of the question."""
    questions = self._questions
    return self._sum_costs(lambda phase, question: questions[question].category)

  def _sum_costs(self, name_of: Callable[[int, int], str]) -> dict[str, dict[str, int]]:
    sums: dict[str, dict[str, int]] = {}
    for key, (rollouts, tokens) in sorted(self._costs.items()):
      total = sums.setdefault(name_of(*key), {"rollouts": 0, "sampled_tokens": 0})
      total["rollouts"] += rollouts
      total["sampled_tokens"] += tokens
    return sums

  @property
  def seconds(self) -> float:
    """Wall time of the run so far, earlier processes included."""
    return self._log.seconds + self._clock() - self._started

  def __call__(self, branches: Sequence[Branch], *, label: str) -> list[Outcome]:
    """See `draws.Draw`. Branches of questions that were given up are not drawn.

    Raises:
      OutOfBudget: as there.
      DataError: if the log cannot be written.
    """
    return [drawn.outcome for drawn in self._round(branches, label)]

  def draw_responses(
    self, branches: Sequence[Branch], *, label: str
  ) -> list[Response | None]:
    """Draws rollouts from bare questions, with all their tokens.

    None stands for one without a verdict. The last part of the key path is the number
    of the response.
    """
    responses: list[Response | None] = []
    for branch, drawn in zip(branches, self._round(branches, label), strict=True):
      if drawn.outcome.failed:
        responses.append(None)
        continue
      assert drawn.response is not None, f"{branch} is no new rollout of a question"
      token_ids, logprobs, finish = drawn.response
      self._used[branch.key_path] = drawn._replace(response=None)  # once is enough
      responses.append(
        Response(
          question=branch.key_path[1],
          index=branch.key_path[-1],
          prompt_ids=branch.text,
          token_ids=tuple(token_ids),
          logprobs=tuple(logprobs),
          finish=finish,  # pyright: ignore[reportArgumentType]
          correct=drawn.outcome.correct,
        )
      )
    return responses

  def _round(self, branches: Sequence[Branch], label: str) -> list[Drawn]:
    given_up = Drawn(Outcome(-1, 0, False, failed=True))
    share = min((_SHARES.get(b.key_path[0], 1.0) for b in branches), default=1.0)
    wanted = {b.key_path: b for b in branches if b.key_path[1] not in self._failures}
    tokens = self._budget.tokens
    if tokens is not None and self.num_tokens >= share * tokens:
      raise OutOfBudget(f"{self.num_tokens} of {tokens} tokens are spent")
    missing = [
      branch
      for path, branch in wanted.items()
      if path not in self._used and path not in self._logged
    ]
    if missing:
      self._draw(missing, label, len(wanted) - len(missing), len(wanted), share)
    for path in wanted:
      if path not in self._used:
        self._use(path, self._logged.pop(path))
    return [
      self._used[branch.key_path] if branch.key_path in wanted else given_up
      for branch in branches
    ]

  def _use(self, path: KeyPath, drawn: Drawn) -> None:
    # A question fails for its first path's reason, whichever came first.
    if drawn.outcome.failed:
      found = (path, drawn.reason)
      self._failures[path[1]] = min(found, self._failures.get(path[1], found))
    self._used[path] = drawn._replace(reason="")
    key = (path[0], path[1])
    rollouts, tokens = self._costs.get(key, (0, 0))
    self._costs[key] = (rollouts + 1, tokens + drawn.outcome.num_tokens)
    self.num_rollouts += 1
    self.num_tokens += drawn.outcome.num_tokens

  def _draw(
    self, missing: list[Branch], label: str, done: int, total: int, share: float
  ) -> None:
    """Draws, judges and logs; on the way out for any reason, what is ready is kept."""
    stop: BaseException | None = self._out_of_time(share)
    if stop is not None:
      raise stop

    def queue() -> Iterator[Branch]:
      for branch in missing:
        if stop is not None:
          return
        yield branch

    def keep(judged: list[tuple[Branch, Drawn]]) -> None:
      nonlocal stop, left
      for branch, drawn in judged:
        self._log.append(branch.key_path, drawn)
        self._logged[branch.key_path] = drawn
        left -= 1
        if stop is None:
          stop = self._report(label, total - left, total)

    completions = iter(self._sampler.run(queue()))
    left = len(missing)
    with Judges(self._questions, self._oracle) as judges:
      try:
        while True:
          asked = self._clock()
          item = next(completions, None)
          waited = self._clock() - asked
          if item is None:
            break
          was_stopped = stop is not None
          keep(judges.add(*item))
          if was_stopped and waited > _WAIT_SECONDS:
            break
          stop = stop or self._out_of_time(share)
        keep(judges.finish())
      finally:
        close = getattr(completions, "close", None)
        if close is not None:
          close()
        self._log.append_seconds(self.seconds)
    if left and stop is not None:
      raise stop
    assert not left, f"the sampler lost {left} branches"
    if stop is not None and not isinstance(stop, OutOfBudget):
      raise stop

  def _report(self, label: str, done: int, total: int) -> BaseException | None:
    if self._progress is not None:
      try:
        self._progress(label, done, total)
      except BaseException as error:
        return error
    return None

  def _out_of_time(self, share: float) -> OutOfBudget | None:
    minutes = self._budget.minutes
    if minutes is not None and self.seconds >= share * 60 * minutes:
      return OutOfBudget(f"{self.seconds / 60:.1f} of {minutes} minutes are over")
    return None
