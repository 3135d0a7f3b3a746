"""What an arm was trained on: pairs that it saw, and tokens sampled to make them.

Arms that see equally many pairs need not have cost the same: a pair of pivotal tokens
takes a search, a pair of whole responses only the rollouts that the search began with.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.reporting.reading import Chain, Run, open_run, read_records
from experiments.run_directory import load_result, resolve_input

# What stands for a number that no file tells.
UNKNOWN = "unknown"


def add_costs(
  ladder: Mapping[str, Any], chains: Sequence[Chain]
) -> dict[str, dict[str, Any]]:
  """Returns a ladder whose arms also have `pairs_seen` and `sampled_tokens`.

  Both are means over an arm's runs in all chains, rounded: 0 for an arm that was
  trained on no pairs, None where a run or its search is not there any more, or does
  not say.
  """
  count_tokens = functools.cache(_sampled_tokens)  # runs share their search
  arms = {}
  for arm, found in ladder["arms"].items():
    costs = [
      _run_costs(_open_input(path, chain.compare), count_tokens)
      for chain in chains
      for path in chain.compare.config["arms"][arm]
    ]
    pairs, tokens = (_mean(values) for values in zip(*costs, strict=True))
    arms[arm] = {**found, "pairs_seen": pairs, "sampled_tokens": tokens}
  return {**ladder, "arms": arms}


def show(count: int | None) -> str:
  """A number as it stands in a table."""
  return UNKNOWN if count is None else f"{count:,}"


def _open_input(path: str, run: Run) -> Run | None:
  """Opens a run that another one names as its input, None if it is not there."""
  folder = resolve_input(path, run.folder)
  return None if load_result(folder) is None else open_run(folder)


def _run_costs(
  run: Run | None, count_tokens: Callable[[Path, str], int]
) -> tuple[int | None, int | None]:
  """Pairs that a run saw, and tokens that were sampled to make them."""
  if run is None:
    return None, None
  if "pairs" not in run.config:
    return 0, 0
  search = _open_input(run.config["data"], run)
  kind = run.config["pairs"]["kind"]
  tokens = None if search is None else count_tokens(search.folder, kind)
  return run.metrics.get("pairs_seen"), tokens


def _sampled_tokens(folder: Path, kind: str) -> int:
  """Tokens that a search sampled for pairs of a kind; traces make no pairs."""
  search = open_run(folder)
  if kind != "pivotal":
    rollouts = read_records(search, "rollouts.jsonl")
    return sum(len(rollout["token_ids"]) for rollout in rollouts)
  # Earlier versions wrote only the stages that had a cost.
  traced = search.metrics["stages"].get("trace", {"sampled_tokens": 0})
  return search.metrics["sampled_tokens"] - traced["sampled_tokens"]


def _mean(values: Sequence[int | None]) -> int | None:
  known = [value for value in values if value is not None]
  return round(sum(known) / len(known)) if len(known) == len(values) else None
