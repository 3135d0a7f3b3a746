"""What an earlier search came to believe of its tokens, as lessons for a critic.

The beliefs are made anew from the counts of rollouts that left each response, with the
screen's own prior: whatever critic the earlier search had, and whatever gap it asked
for, it teaches nothing but what was drawn.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from phi4_jax.common import io
from phi4_jax.common.axes import Int
from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.pts import records
from phi4_jax.pts.critic import Lesson
from phi4_jax.pts.responses import Response
from phi4_jax.pts.screen import Screen

TRACES = "traces.jsonl"
_LEARN = 8  # steps of expectation maximisation


def make_lessons(
  responses: Sequence[Response],
  successes: Sequence[Int[np.ndarray, "T"]],
  counts: Sequence[Int[np.ndarray, "T"]],
  *,
  gap: float,
) -> list[Lesson]:
  """Returns what rollouts say of the tokens of base responses.

  Args:
    responses: all of a search: the screen learns from them together how frequent
      pivotal tokens are.
    successes: of the rollouts that left each response at each token.
    counts: of the same rollouts.
    gap: least change of p(success) that makes a token pivotal.
  """
  screen = Screen(responses, gap)
  for row, (good, drawn) in enumerate(zip(successes, counts, strict=True)):
    for position in np.flatnonzero(drawn).tolist():
      for k in range(int(drawn[position])):
        screen.add(row, position, bool(k < good[position]))
  screen.update()
  for _ in range(_LEARN):
    screen.learn()
    screen.update()
  before = Screen(responses, gap)
  before.shares = screen.shares
  before.update()
  lessons, known = [], set()
  for row, response in enumerate(responses):
    places = screen.positions[row, : screen.lengths[row]]
    labels, priors = np.zeros((2, len(response)))
    for values, beliefs in ((labels, screen.beliefs), (priors, before.beliefs)):
      values[places] = beliefs.pivot[row, : len(places)].sum(axis=1)
    used = np.zeros(len(response), bool)
    for position in places.tolist():
      name = (response.question, response.token_ids[: position + 1])
      used[position] = name not in known
      known.add(name)
    lesson = Lesson(response=response, labels=labels, priors=priors, used=used)
    lessons.append(lesson)
  return lessons


def read_lessons(
  folder: str | os.PathLike,
  *,
  gap: float,
  weights: str | None = None,
  law: Mapping[str, Any] | None = None,
) -> list[Lesson]:
  """Reads the lessons of a finished search in mode "comb".

  Args:
    folder: of the search.
    gap: as `make_lessons`.
    weights: name of the weights that the critic will read texts with; None for any.
    law: the sampling law of the search to come; None for any.

  Raises:
    ConfigError: if the search had another model, law or mode.
    DataError: if it is not complete, or a file is damaged.
  """
  folder = Path(folder)
  _check_settings(folder, weights, law)
  rollouts = {
    (response.question, response.index): response
    for members in records.load_rollouts(folder).values()
    for response in members
  }
  responses, successes, counts = [], [], []
  for row, record in io.read_jsonl(folder / TRACES):
    name: Any = (record.get("question"), record.get("response"))
    response = rollouts.get(name)
    off = _table(record.get("off"))
    if (
      response is None
      or off.shape != (len(response), 2)
      or (off < 0).any()
      or (off[:, 0] > off[:, 1]).any()
    ):
      raise DataError(
        f"Row {row} of {folder / TRACES} does not fit rollouts.jsonl beside it: "
        "'question' and 'response' must name a rollout of a searched question, and "
        "'off' must have successes and rollouts for each of its tokens."
      )
    responses.append(response)
    successes.append(off[:, 0])
    counts.append(off[:, 1])
  if not responses:
    raise DataError(f"{folder / TRACES} holds no response: nothing can be learned.")
  return make_lessons(responses, successes, counts, gap=gap)


def _table(value: Any) -> np.ndarray:
  """Returns a table of whole numbers; one of no rows where it is none."""
  try:
    found = np.array(value)
  except ValueError:  # rows of several lengths
    return np.zeros((0, 2), int)
  return found if found.dtype.kind == "i" else np.zeros((0, 2), int)


def _check_settings(
  folder: Path, weights: str | None, law: Mapping[str, Any] | None
) -> None:
  path = folder / "settings.json"
  if not path.is_file() or not (folder / TRACES).is_file():
    raise DataError(
      f"{folder} holds no finished search for pivotal tokens ({path.name} and {TRACES} "
      "must be there): a critic cannot learn from it."
    )
  settings = io.read_json(path)
  mode = settings.get("search", {}).get("mode")
  if mode != "comb":
    raise ConfigError(
      f"{folder} holds a search in mode {mode!r}; a critic learns from rollouts that "
      "leave responses, which only mode 'comb' draws."
    )
  theirs = str(settings.get("sampler_id", "")).rpartition(" seed ")[0]
  if weights is not None and theirs != weights:
    raise ConfigError(
      f"{folder} was searched with other weights ({theirs}) than those that are "
      f"searched now ({weights}): hidden states and pivotal tokens are another "
      "model's. Name a search of the same checkpoint, or none."
    )
  if law is not None and settings.get("law") != dict(law):
    raise ConfigError(
      f"{folder} was searched under another sampling law ({settings.get('law')}) than "
      f"{dict(law)}: other tokens are pivotal there. Use the same SamplingLaw, or no "
      "critic."
    )
