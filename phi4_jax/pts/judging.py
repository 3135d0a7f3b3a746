"""Completions become verdicts: one after the other, or several at once.

An oracle that judges in processes of its own says how many (`workers`); so many
threads then wait for it while the sampler goes on. What an oracle raises is the reason
why there is no verdict, and no error of the run.
"""

import collections
import contextlib
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from phi4_jax.common.errors import ConfigError
from phi4_jax.common.sampler import Branch, Completion
from phi4_jax.pts.draws import Outcome
from phi4_jax.pts.oracle import Oracle, Question
from phi4_jax.pts.oracle_process import OracleFailure
from phi4_jax.pts.rollout_log import Drawn

_MAX_REASON = 300
# Judgements that may wait for each worker: enough for what a block of rollouts ends.
_WAITING = 64


class Judges:
  """Judges completions of branches of questions. A context manager."""

  def __init__(self, questions: Sequence[Question], oracle: Oracle):
    self._questions = questions
    self._oracle = oracle
    self._workers: int = getattr(oracle, "workers", 1)
    self._pool: ThreadPoolExecutor | None = None
    if self._workers > 1:
      self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix="judge")
    self._waiting: collections.deque[tuple[Branch, Future[Drawn]]] = collections.deque()

  def __enter__(self) -> "Judges":
    return self

  def __exit__(self, *unused) -> None:
    self._waiting.clear()
    if self._pool is not None:
      self._pool.shutdown(wait=False, cancel_futures=True)

  def add(self, branch: Branch, completion: Completion) -> list[tuple[Branch, Drawn]]:
    """Takes a completion; returns what has been judged meanwhile, perhaps nothing."""
    if self._pool is None:
      return [(branch, self.judge(branch, completion))]
    self._waiting.append((branch, self._pool.submit(self.judge, branch, completion)))
    done = []
    while self._waiting and (
      self._waiting[0][1].done() or len(self._waiting) > _WAITING * self._workers
    ):
      done.append(self._take())
    return done

  def finish(self) -> list[tuple[Branch, Drawn]]:
    """Waits for what is left, and returns it."""
    done = []
    while self._waiting:
      done.append(self._take())
    return done

  def _take(self) -> tuple[Branch, Drawn]:
    branch, future = self._waiting[0]
    try:
      drawn = future.result()
    finally:
      with contextlib.suppress(IndexError):
        self._waiting.popleft()
    return branch, drawn

  def judge(self, branch: Branch, completion: Completion) -> Drawn:
    """Returns the outcome of a branch, with the whole response where it may be kept."""
    question = self._questions[branch.key_path[1]]
    start = len(question.prompt_ids)
    ids = completion.token_ids
    first_id = int(ids[0]) if ids else -1
    is_bare = branch.position == start == len(branch.text)
    kept = None
    if is_bare and branch.first_id < 0 and branch.excluded_id < 0:
      logprobs = [float(logprob) for logprob in completion.logprobs]
      kept = ([int(i) for i in ids], logprobs, completion.finish)
    reason, correct = (completion.error or "")[:_MAX_REASON], False
    if not reason:
      response = (*branch.prefix_ids[start:], *ids)
      reason, correct = self._ask(question, response, completion)
    if reason:
      return Drawn(Outcome(first_id, len(ids), False, failed=True), reason)
    return Drawn(Outcome(first_id, len(ids), correct), "", kept)

  def _ask(
    self, question: Question, response: Sequence[int], completion: Completion
  ) -> tuple[str, bool]:
    """Returns why there is no verdict ("" if there is one), and the verdict."""
    verdict: Any = None
    try:
      verdict = self._oracle.judge(question, response, completion.finish)
    except ConfigError:
      raise  # the rule itself is gone or was changed: no question can be judged
    except OracleFailure as error:
      return _one_line(str(error)), False
    except Exception as error:  # whatever a user's function raises
      return _one_line(f"the oracle raised {type(error).__name__}: {error}"), False
    if not isinstance(verdict, bool | np.bool_):
      return f"the oracle returned {verdict!r:.60}, which is not True or False", False
    return "", bool(verdict)


def _one_line(text: str) -> str:
  return " ".join(text.split())[:_MAX_REASON]
