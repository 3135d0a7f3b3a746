"""The append-only log of a search: one line for each rollout, in the order they ended.

A line is a JSON array, so that a million rollouts take 30 MB:

  [phase, question, response, position, number, first_id, num_tokens, verdict]

The first five are the key path, which names the draw; the verdict is 1 (right), 0
(wrong) or text (why there is none). A rollout from a bare question, which may become a
base response, has [token_ids, logprobs, finish] behind that. A line {"seconds": s}
says how long the run has taken so far. The order of lines means nothing.
"""

from pathlib import Path
from typing import Any, NamedTuple

from phi4_jax.common.errors import DataError
from phi4_jax.common.io import JsonlLog
from phi4_jax.pts.draws import Outcome

KeyPath = tuple[int, ...]
_PATH_LENGTH = 5
_SHORT, _LONG = _PATH_LENGTH + 3, _PATH_LENGTH + 4


class Drawn(NamedTuple):
  """A rollout as the log has it.

  Attributes:
    outcome: what a search sees of it.
    reason: why there is no verdict; "" where there is one.
    response: (token_ids, logprobs, finish) of a rollout from a bare question.
  """

  outcome: Outcome
  reason: str = ""
  response: tuple[list[int], list[float], str] | None = None


class RolloutLog:
  """Reads and appends; a torn last line is cut when it is opened.

  Attributes:
    drawn: what the file had when it was opened, by key path.
    seconds: how long the run had taken when it was last written.
  """

  def __init__(self, path: Path):
    """Raises:
    DataError: if a row is damaged; names file and row.
    """
    self.drawn: dict[KeyPath, Drawn] = {}
    self.seconds = 0.0
    self._log = JsonlLog(path)
    try:
      for row, record in self._log.rows():
        self._take(row, record)
    except BaseException:
      self._log.close()
      raise

  def _take(self, row: int, record: Any) -> None:
    if isinstance(record, dict) and isinstance(record.get("seconds"), float):
      self.seconds = record["seconds"]
      return
    if not _is_rollout(record):
      raise DataError(
        f"Row {row} of {self._log.path} is no rollout ({str(record)[:60]}). Delete "
        "that row: what it said is drawn again."
      )
    *path, first_id, num_tokens, verdict = record[:_SHORT]
    failed = isinstance(verdict, str)
    outcome = Outcome(first_id, num_tokens, verdict == 1, failed)
    self.drawn[tuple(path)] = Drawn(
      outcome,
      verdict if failed else "",
      tuple(record[_SHORT]) if len(record) == _LONG else None,
    )

  def append(self, path: KeyPath, drawn: Drawn) -> None:
    """Appends a rollout.

    Raises:
      DataError: if the disk is full; nothing is half-written.
    """
    outcome = drawn.outcome
    verdict = drawn.reason if outcome.failed else int(outcome.correct)
    record = [*path, outcome.first_id, outcome.num_tokens, verdict]
    if drawn.response is not None:
      record.append(list(drawn.response))
    self._log.append(record)

  def append_seconds(self, seconds: float) -> None:
    """Notes how long the run has taken so far."""
    self._log.append({"seconds": round(seconds, 3)})

  def close(self) -> None:
    self._log.close()


def _is_rollout(record: Any) -> bool:
  if not isinstance(record, list) or len(record) not in (_SHORT, _LONG):
    return False
  *numbers, verdict = record[:_SHORT]
  if any(type(number) is not int for number in numbers):
    return False
  if not isinstance(verdict, str) and verdict not in (0, 1):
    return False
  if len(record) == _SHORT:
    return True
  response = record[_SHORT]
  if not isinstance(response, list) or len(response) != 3:
    return False
  token_ids, logprobs, finish = response
  return (
    isinstance(token_ids, list)
    and isinstance(logprobs, list)
    and len(token_ids) == len(logprobs) == record[_SHORT - 2]
    and finish in ("stop", "length")
  )
