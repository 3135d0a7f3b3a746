"""The folders of a run's checkpoints: which count, which are kept, which go.

A folder named `step_00000100` with an integrity file is finished; whatever else
begins with `step_` is the leftover of a save or a deletion that was cut short.
Refuses to know what a checkpoint holds.
"""

import logging
import re
import shutil
from pathlib import Path

from phi4_jax.training.integrity import INTEGRITY_FILE, find_damage

_STEP_NAME = re.compile(r"step_(\d{8,})")
_DELETED = ".deleted"
_log = logging.getLogger(__name__)


def parse_step(name: str) -> int | None:
  """Returns the step of a folder's name, or None when it is not a step's."""
  match = _STEP_NAME.fullmatch(name)
  return int(match[1]) if match else None


class StepFolders:
  """The step folders in one directory. Used by process 0 only.

  Attributes:
    directory: where the folders lie.
    damaged: step -> what is wrong, of the finished folders that were found damaged.
  """

  def __init__(self, directory: Path):
    self.directory = directory
    self.damaged: dict[int, str] = {}

  def path(self, step: int) -> Path:
    """Returns the folder of a step, whether or not it exists."""
    return self.directory / f"step_{step:08d}"

  def finished(self) -> list[int]:
    """Returns the steps with an integrity file, damaged or not, oldest first."""
    steps = (parse_step(path.name) for path in self.directory.glob("step_*"))
    return sorted(
      step
      for step in steps
      if step is not None and (self.path(step) / INTEGRITY_FILE).exists()
    )

  def leftovers(self) -> list[Path]:
    """Returns what saves and deletions that were cut short have left."""
    finished = {self.path(step) for step in self.finished()}
    return sorted(set(self.directory.glob("step_*")) - finished)

  def find_newest_whole(self) -> int | None:
    """Returns the newest step that is whole, hashing its files; None without one.

    Logs a warning, with folder and reason, for each newer one and each leftover.
    """
    for path in self.leftovers():
      if path.suffix != _DELETED:
        reason = find_damage(path) or "its name is not a step's"
        _log.warning("Checkpoint %s is ignored: %s.", path, reason)
    self.damaged = {}
    for step in reversed(self.finished()):
      reason = find_damage(self.path(step))
      if reason is None:
        return step
      self.damaged[step] = reason
      _log.warning("Checkpoint %s is ignored: %s.", self.path(step), reason)
    return None

  def retire(self, newest: int, *, keep_last: int, keep_every: int | None) -> None:
    """Drops old checkpoints; to be called once `newest` is whole on disk.

    A damaged folder that is older than `newest` counts for nothing and goes too.
    """
    self.damaged.pop(newest, None)
    steps = [step for step in self.finished() if step <= newest]
    whole = [step for step in steps if step not in self.damaged]
    keep = set(whole[-keep_last:])
    if keep_every is not None:
      keep |= {step for step in whole if step % keep_every == 0}
    for step in steps:
      if step not in keep:
        self.move_aside(step)

  def move_aside(self, step: int) -> None:
    """Renames a folder so that it no longer counts; `remove_leftovers` deletes it.

    A rename is one action: a deletion that is cut short leaves no half checkpoint.
    """
    path = self.path(step)
    if path.exists():
      target = path.with_name(path.name + _DELETED)
      shutil.rmtree(target, ignore_errors=True)
      path.rename(target)

  def remove_leftovers(self) -> None:
    """Deletes all leftovers; only safe while no save is under way."""
    for path in self.leftovers():
      _log.debug("Removing %s.", path)
      shutil.rmtree(path, ignore_errors=True)
