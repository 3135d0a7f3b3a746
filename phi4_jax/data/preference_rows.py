"""Chooses preference data and lays it out as rows: three kinds, plain numpy.

  pivotal    one row a response, with all its pairs of single tokens
  full       one row a (right, wrong) pair of whole responses to one question
  rejection  one row a right response

The longest candidate of the folder, chosen or not, sets the row length, so that
runs which choose differently share one compiled program.
"""

import dataclasses
from collections.abc import Callable, Hashable, Iterable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.data.pivotal_files import (
  Pair,
  Rollout,
  count_pairs,
  read_pairs,
  read_questions,
  read_rollouts,
)

Kind = Literal["pivotal", "full", "rejection"]
_Item = TypeVar("_Item")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreferenceRows:
  """Rows of one kind.

  Attributes:
    arrays: name -> array, all with N rows. With [S] = [T] for `pivotal` and
      `rejection` and [2, T] (right, wrong) for `full`:
        token_ids, segment_ids, positions: int32 [N, *S]; padding has segment 0;
      `full` and `rejection`:
        targets: int32 [N, *S], the next token;
        loss_weights: float32 [N, *S], 1 where the next token is of the response;
      `pivotal`:
        pair_positions: int32 [N, P], the position that predicts the pair's token;
        accepted_ids, rejected_ids: int32 [N, P];
        pair_weights: float32 [N, P], 1, or 0 where a row has fewer pairs than P;
        context_weights: float32 [N, T], 1 where the next token is of the response,
          stands before the row's last pair, and is no pair itself.
    num_pairs: pairs in all rows (responses, for `rejection`).
    num_questions: questions that they belong to.
    num_repeated: pairs whose token ids another row has too.
  """

  arrays: dict[str, np.ndarray]
  num_pairs: int
  num_questions: int
  num_repeated: int = 0


def make_rows(
  folder: Path, kind: Kind, *, num_pairs: int | None, seed: int
) -> PreferenceRows:
  """Reads the folder of a pivotal token search and makes rows of one kind.

  With fewer than all, questions take turns in an order drawn from the seed, and
  what repeats the ids of another choice comes last.

  Args:
    folder: the search's folder.
    kind: what a row is.
    num_pairs: how many pairs (or responses); None takes as many as there are pairs
      of pivotal tokens, for every kind, so that kinds can be compared.
    seed: of the choice.

  Raises:
    ConfigError: if there are fewer than asked for.
    DataError: if a file is missing or damaged; names file, row and field.
  """
  if kind == "pivotal":
    return _make_pivotal(folder, num_pairs, seed)
  wanted = count_pairs(folder) if num_pairs is None else num_pairs
  questions = read_questions(folder)
  groups: dict[int, list[Rollout]] = {}
  for rollout in read_rollouts(folder, questions):
    if questions[rollout.question].kept:
      groups.setdefault(rollout.question, []).append(rollout)
  if not groups:
    raise DataError(
      f"{folder} has no rollout of a question that was kept. Search more questions, "
      "or widen SearchConfig.min_success and max_success."
    )
  prompts = {number: questions[number].prompt_ids for number in groups}
  length = max(
    len(prompts[r.question]) + len(r.token_ids) - 1 for g in groups.values() for r in g
  )
  if kind == "full":
    chosen, repeated = _choose(
      [_mixed_pairs(groups[q], seed, q) for q in sorted(groups)],
      wanted,
      seed,
      lambda pair: tuple(r.token_ids for r in pair),
      what=f"pairs of a right and a wrong response in {folder}",
    )
  else:
    chosen, repeated = _choose(
      [
        [
          (r,)
          for r in _shuffled(
            [r for r in groups[q] if r.correct], seed, _WITHIN_QUESTION, q
          )
        ]
        for q in sorted(groups)
      ],
      wanted,
      seed,
      lambda single: single[0].token_ids,
      what=f"right responses in {folder}",
    )
  width = 2 if kind == "full" else 1
  arrays = _stack(
    [_whole_response(prompts[r.question], r, length) for one in chosen for r in one]
  )
  if kind == "full":
    arrays = {name: x.reshape(-1, width, length) for name, x in arrays.items()}
  return PreferenceRows(
    arrays=arrays,
    num_pairs=len(chosen),
    num_questions=len({one[0].question for one in chosen}),
    num_repeated=repeated,
  )


# What a generator is for: each purpose has a stream of its own (preferences.py: 3).
_WITHIN_QUESTION, _AMONG_QUESTIONS = 1, 2


def _rng(*path: int) -> np.random.Generator:
  return np.random.default_rng(np.random.SeedSequence(path))


def _shuffled(items: Sequence[_Item], *path: int) -> list[_Item]:
  return [items[i] for i in _rng(*path).permutation(len(items))]


def _mixed_pairs(
  rollouts: Sequence[Rollout], seed: int, question: int
) -> list[tuple[Rollout, Rollout]]:
  """All (right, wrong) pairs; the first min(right, wrong) have none in common."""
  mixed = _shuffled(rollouts, seed, _WITHIN_QUESTION, question)
  right = [r for r in mixed if r.correct]
  wrong = [r for r in mixed if not r.correct]
  return [
    (right[i], wrong[(i + shift) % len(wrong)])
    for shift in range(len(wrong))
    for i in range(len(right))
  ]


def _choose(
  groups: Sequence[Sequence[_Item]],
  wanted: int,
  seed: int,
  content: Callable[[_Item], Hashable],
  *,
  what: str,
) -> tuple[list[_Item], int]:
  """Takes `wanted` items, groups in turn; returns them and how many repeat others.

  Raises:
    ConfigError: if there are fewer.
  """
  groups = _shuffled(groups, seed, _AMONG_QUESTIONS)
  new: list[list[_Item]] = []
  repeated: list[list[_Item]] = []
  for group in groups:
    seen: set[Hashable] = set()
    new.append([])
    repeated.append([])
    for item in group:
      (repeated if content(item) in seen else new)[-1].append(item)
      seen.add(content(item))
  first, then = list(_take_turns(new)), list(_take_turns(repeated))
  if len(first) + len(then) < wanted:
    raise ConfigError(
      f"There are {len(first) + len(then)} {what}, fewer than the {wanted} asked for. "
      "Set PreferenceConfig.num_pairs to at most that, for every arm that is "
      "compared, or search with more SearchConfig.rollouts_per_question."
    )
  return (first + then)[:wanted], max(wanted - len(first), 0)


def _take_turns(groups: Iterable[Sequence[_Item]]) -> Iterable[_Item]:
  nothing = object()
  for turn in zip_longest(*groups, fillvalue=nothing):
    yield from (item for item in turn if item is not nothing)  # pyright: ignore


def _stack(rows: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
  return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _inputs(ids: Sequence[int], length: int) -> dict[str, np.ndarray]:
  token_ids = np.zeros(length, np.int32)
  token_ids[: len(ids)] = ids
  segment_ids = (np.arange(length) < len(ids)).astype(np.int32)
  positions = np.arange(length, dtype=np.int32) * segment_ids
  return {"token_ids": token_ids, "segment_ids": segment_ids, "positions": positions}


def _whole_response(
  prompt: tuple[int, ...], rollout: Rollout, length: int
) -> dict[str, np.ndarray]:
  ids = prompt + rollout.token_ids
  targets = np.zeros(length, np.int32)
  targets[: len(ids) - 1] = ids[1:]
  weights = np.zeros(length, np.float32)
  weights[len(prompt) - 1 : len(ids) - 1] = 1
  return _inputs(ids[:-1], length) | {"targets": targets, "loss_weights": weights}


def _make_pivotal(folder: Path, num_pairs: int | None, seed: int) -> PreferenceRows:
  pairs = read_pairs(folder)
  # What stands after the last pair of a response can have no effect on a loss.
  length = max(len(pair.prompt_ids) + pair.position for pair in pairs)
  slots = max(len(row) for row in _by_response(pairs))
  chosen = pairs
  if num_pairs is not None:
    questions = sorted({pair.question for pair in pairs})
    chosen, _ = _choose(
      [
        _shuffled([p for p in pairs if p.question == q], seed, _WITHIN_QUESTION, q)
        for q in questions
      ],
      num_pairs,
      seed,
      lambda pair: (pair.response, pair.position, pair.accepted_id, pair.rejected_id),
      what=f"pairs in {folder}",
    )
  rows = [_pivotal_row(row, length, slots) for row in _by_response(chosen)]
  return PreferenceRows(
    arrays=_stack(rows),
    num_pairs=len(chosen),
    num_questions=len({pair.question for pair in chosen}),
  )


def _by_response(pairs: Iterable[Pair]) -> list[list[Pair]]:
  rows: dict[Any, list[Pair]] = {}
  for pair in pairs:
    rows.setdefault((pair.question, pair.response), []).append(pair)
  return [
    sorted(rows[key], key=lambda p: (p.position, p.accepted_id, p.rejected_id))
    for key in sorted(rows)
  ]


def _pivotal_row(pairs: list[Pair], length: int, slots: int) -> dict[str, np.ndarray]:
  prompt, last = pairs[0].prompt_ids, pairs[-1].position
  start = len(prompt) - 1  # predicts the first token of the response
  context = np.zeros(length, np.float32)
  context[start : start + last] = 1
  context[[start + pair.position for pair in pairs]] = 0
  columns = {
    "pair_positions": [start + pair.position for pair in pairs],
    "accepted_ids": [pair.accepted_id for pair in pairs],
    "rejected_ids": [pair.rejected_id for pair in pairs],
    "pair_weights": [1] * len(pairs),
  }
  padded = {
    name: np.asarray(
      values + [0] * (slots - len(values)),
      np.float32 if name == "pair_weights" else np.int32,
    )
    for name, values in columns.items()
  }
  ids = prompt + pairs[0].response_ids[:last]
  return _inputs(ids, length) | padded | {"context_weights": context}
