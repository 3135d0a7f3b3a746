"""Several trained arms on the same questions: who answers better, and how surely.

An arm is a way of training, with one or more runs (seeds). Knows the folders that
`eval/runner.py` writes; refuses to know how an arm was trained.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from phi4_jax.common.errors import DataError
from phi4_jax.common.io import read_json, read_jsonl
from phi4_jax.common.text import format_table
from phi4_jax.eval.statistics import (
  Interval,
  clustered_wilson_interval,
  crossed_interval,
  wilson_interval,
)

_SAME_TASK = ("task", "num_examples", "examples_sha256", "law")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answers:
  """What one run answered.

  Attributes:
    correct: [samples, questions], whether each answer is right.
    labels: of each answer, with whether it is right.
    task: what was asked and under which law; equal for runs that may be compared.
    folder: where it was read.
  """

  correct: np.ndarray
  labels: tuple[tuple[Mapping[str, str], bool], ...]
  task: Mapping[str, Any]
  folder: Path


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores:
  """An arm's share of right answers to each question.

  Attributes:
    shares: [runs, questions].
    samples: answers behind each share.
  """

  shares: np.ndarray
  samples: int


def load_answers(folder: str | os.PathLike) -> Answers:
  """Reads the folder of one finished evaluation.

  Raises:
    DataError: if answers are missing.
  """
  folder = Path(folder)
  settings = read_json(folder / "settings.json")
  num_samples, num_questions = settings["samples_per_example"], settings["num_examples"]
  correct = np.full((num_samples, num_questions), -1, np.int8)
  labels = []
  for _, record in read_jsonl(folder / "samples.jsonl"):
    correct[record["sample"], record["example"]] = record["correct"]
    labels.append((record["labels"], bool(record["correct"])))
  missing = int((correct < 0).sum())
  if missing:
    raise DataError(
      f"{folder} lacks {missing} of {correct.size} answers. Run its evaluation to the "
      "end: the same command continues it."
    )
  return Answers(
    correct=correct.astype(bool),
    labels=tuple(labels),
    task={name: settings[name] for name in _SAME_TASK},
    folder=folder,
  )


def score_runs(runs: Sequence[Answers]) -> Scores:
  """Returns one row of shares for each run of an arm.

  Raises:
    DataError: if the runs were asked different questions, or asked differently often.
  """
  _check_same_task(runs)
  counts = [len(run.correct) for run in runs]
  if len(set(counts)) > 1:
    raise DataError(
      f"Runs of one arm need equally many answers to each question; {runs[0].folder} "
      f"and those after it have {', '.join(map(str, counts))}."
    )
  return Scores(
    shares=np.stack([run.correct.mean(0) for run in runs]),
    samples=len(runs[0].correct),
  )


def score_chains(
  chains: Sequence[Mapping[str, Sequence[Answers]]],
) -> dict[str, Scores]:
  """Returns one row of shares for each chain: the mean over an arm's runs there.

  The chains are repetitions of the whole experiment, so their number is what counts;
  an arm is compared with another within each chain.

  Raises:
    DataError: if the chains were asked different questions.
  """
  _check_same_task([runs[0] for chain in chains for runs in chain.values()])
  return {
    arm: Scores(
      shares=np.stack([score_runs(chain[arm]).shares.mean(0) for chain in chains]),
      samples=len(chains[0][arm]) * len(chains[0][arm][0].correct),
    )
    for arm in chains[0]
  }


def _check_same_task(runs: Sequence[Answers]) -> None:
  first = runs[0]
  for run in runs[1:]:
    differing = [name for name in _SAME_TASK if run.task[name] != first.task[name]]
    if differing:
      raise DataError(
        f"{run.folder} and {first.folder} cannot be compared: they differ in "
        f"{', '.join(differing)} (see settings.json of each)."
      )


def compare(
  arms: Mapping[str, Sequence[Answers]], baseline: str
) -> dict[str, dict[str, Any]]:
  """Compares arms by their runs' answers; see `compare_scores`.

  Each arm also gets `labels`: label -> value -> share of its answers and accuracy
  within it.

  Raises:
    DataError: if runs were asked different questions.
  """
  _check_same_task([runs[0] for runs in arms.values()])
  scores = {name: score_runs(runs) for name, runs in arms.items()}
  result = compare_scores(scores, baseline)
  for name, runs in arms.items():
    result["arms"][name]["labels"] = count_labels(runs)
  return result


def compare_scores(
  scores: Mapping[str, Scores], baseline: str
) -> dict[str, dict[str, Any]]:
  """Accuracy of each arm, and differences between arms, with intervals.

  Differences are of the same questions: each arm minus `baseline`, and each other
  arm minus those after it. Runs are paired by their number; an arm with one run is
  compared with every run of the other. Intervals are over runs and questions
  jointly (`crossed_interval`), or over questions where there is one run; `over`
  says which.

  Returns:
    `arms`: name -> {accuracy, interval, over, accuracies (of each run), runs,
    questions, samples}; `comparisons`: "A_minus_B" -> {mean, interval, over, runs,
    questions}.
  """
  comparisons = {}
  names = [name for name in scores if name != baseline]
  for number, first in enumerate(names):
    for second in (baseline, *names[number + 1 :]):
      if second in scores:
        table = _difference(first, scores[first].shares, second, scores[second].shares)
        found = crossed_interval(table)
        comparisons[f"{first}_minus_{second}"] = {
          "mean": found.estimate,
          "interval": [found.low, found.high],
          **_extent(table),
        }
  arms = {}
  for name, arm in scores.items():
    found = accuracy_interval(arm)
    arms[name] = {
      "accuracy": found.estimate,
      "interval": [found.low, found.high],
      "accuracies": arm.shares.mean(1).tolist(),
      "samples": arm.samples,
      **_extent(arm.shares),
    }
  return {"arms": arms, "comparisons": comparisons}


def accuracy_interval(scores: Scores) -> Interval:
  """Interval of an arm's accuracy: over its runs and questions, within [0, 1]."""
  shares, samples = scores.shares, scores.samples
  if len(shares) == 1:
    hits = np.rint(shares[0] * samples)
    return clustered_wilson_interval(hits.tolist(), [samples] * hits.size)
  mean, low, high = crossed_interval(shares)
  if low == high:  # all right or all wrong: count the questions, the cautious choice
    return wilson_interval(mean * shares.shape[1], shares.shape[1])
  return Interval(mean, max(low, 0.0), min(high, 1.0))


def _difference(
  first: str, minuend: np.ndarray, second: str, subtrahend: np.ndarray
) -> np.ndarray:
  """Returns [runs, questions] of differences, paired by run and question."""
  counts = {len(minuend), len(subtrahend)}
  if len(counts) > 1 and 1 not in counts:
    raise DataError(
      f"Arms {first!r} and {second!r} have {len(minuend)} and {len(subtrahend)} runs. "
      "Give both as many, or one of them a single run."
    )
  return minuend - subtrahend


def _extent(table: np.ndarray) -> dict[str, Any]:
  return {
    "over": "questions" if len(table) == 1 else "runs and questions",
    "runs": len(table),
    "questions": table.shape[1],
  }


def count_labels(runs: Sequence[Answers]) -> dict[str, dict[str, dict[str, float]]]:
  """label -> value -> {share, accuracy} over all answers of an arm's runs."""
  answers = [answer for run in runs for answer in run.labels]
  found: dict[str, dict[str, dict[str, float]]] = {}
  for name in sorted({name for labels, _ in answers for name in labels}):
    found[name] = {}
    for value in sorted({labels.get(name, "") for labels, _ in answers}):
      verdicts = [right for labels, right in answers if labels.get(name, "") == value]
      found[name][value] = {
        "share": len(verdicts) / len(answers),
        "accuracy": sum(verdicts) / len(verdicts),
      }
  return found


def format_ladder(result: Mapping[str, Mapping[str, Any]], baseline: str) -> str:
  """The ladder as a table: arm, runs, accuracy, difference to the baseline.

  Comparisons between other arms stand in a second table.
  """
  rows = []
  for name, arm in result["arms"].items():
    versus = result["comparisons"].get(f"{name}_minus_{baseline}")
    rows.append(
      [
        name,
        arm["runs"],
        str(Interval(arm["accuracy"], *arm["interval"])),
        format_difference(versus) if versus else "",
      ]
    )
  header = ["arm", "runs", "accuracy [95%]", f"minus {baseline} [95%]"]
  ladder = format_table(header, rows)
  others = [
    [name.replace("_minus_", " minus "), format_difference(found)]
    for name, found in result["comparisons"].items()
    if not name.endswith(f"_minus_{baseline}")
  ]
  if not others:
    return ladder
  return f"{ladder}\n\n{format_table(['between arms', 'difference [95%]'], others)}"


def format_difference(comparison: Mapping[str, Any]) -> str:
  """Formats a comparison as `+0.114 [+0.080, +0.148]`."""
  low, high = comparison["interval"]
  return f"{comparison['mean']:+.3f} [{low:+.3f}, {high:+.3f}]"
