"""Are near-duplicates found, how many wrongly, and how fast beside other libraries?

  python -m benchmarks.near_duplicates            # 12,000 documents, 29 MB
  python -m benchmarks.near_duplicates --quick    # 1,200 documents

Texts are generated; every second one has a copy with words replaced, near a Jaccard
index of 0.6, 0.7, 0.8 or 0.9. The exact index of every pair in the corpus is computed
from the sets, and says what is right. Three thresholds are asked, with three seeds of
the permutations each. Beside what is found stands what theory gives for these very
pairs: a pair exactly at the threshold is found half the time, since an estimate has an
error; so the shares are also given for pairs 0.05 or more away from it.

Speed is that of one process, from the file to the list of dropped documents, beside
datatrove, datasketch and rensa's own index, at threshold 0.8. The ceiling reads the
file, parses it and hashes each text once.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import harness, planted_duplicates
from benchmarks.arms import ROOT
from benchmarks.harness import Benchmark, Case, Contender
from phi4_jax.common.statistics import wilson_interval
from phi4_jax.common.text import format_table
from phi4_jax.curation import minhash
from phi4_jax.curation.dedup import DropNearDuplicates
from phi4_jax.data.documents import Document

NUM_ORIGINALS, QUICK_ORIGINALS = 8000, 800
THRESHOLDS = (0.7, 0.8, 0.9)
NUM_SEEDS = 3
MARGIN = 0.05
SPEED_THRESHOLD = 0.8
PEERS = ("datatrove", "datasketch", "rensa")
ONE_THREAD = {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
# From the root: a record names no folder of this machine.
FOLDER = Path("runs/benchmarks/near_duplicates")


def measure_quality(
  folder: Path, thresholds: Sequence[float], num_seeds: int
) -> dict[str, Any]:
  """Returns, for each threshold, what is found and what should be."""
  truth = planted_duplicates.read_truth(folder)
  return {
    f"{threshold:g}": _measure_threshold(folder, truth, threshold, num_seeds)
    for threshold in thresholds
  }


def _measure_threshold(
  folder: Path, truth: list[dict[str, Any]], threshold: float, num_seeds: int
) -> dict[str, Any]:
  outcomes, dropped, right, nearly_right = [], 0, 0, 0
  members = _members(truth, threshold)
  near = _members(truth, threshold - MARGIN)
  step = DropNearDuplicates(threshold=threshold)
  for seed in range(num_seeds):
    gone = set(_dropped(folder, DropNearDuplicates(threshold=threshold, seed=seed)))
    dropped += len(gone)
    right += len(gone & members)
    nearly_right += len(gone & near)
    outcomes += [(p, p["first"] in gone or p["second"] in gone) for p in truth]
  levels = {}
  for level in planted_duplicates.LEVELS:
    of_level = [(p, found) for p, found in outcomes if p["level"] == level]
    probs = [_prob(step, p["jaccard"]) for p, _ in of_level]
    levels[f"{level:g}"] = {
      "pairs": len(of_level),
      "mean_jaccard": sum(p["jaccard"] for p, _ in of_level) / len(of_level),
      "found": sum(found for _, found in of_level) / len(of_level),
      "expected": sum(probs) / len(probs),
    }
  similar = [found for p, found in outcomes if p["jaccard"] >= threshold]
  clear = [found for p, found in outcomes if p["jaccard"] >= threshold + MARGIN]
  return {
    "bands": step.bands.count,
    "rows": step.bands.rows,
    "levels": levels,
    "recall": wilson_interval(sum(similar), len(similar))._asdict()
    if similar
    else None,
    "recall_beyond_margin": wilson_interval(sum(clear), len(clear))._asdict()
    if clear
    else None,
    "precision": wilson_interval(right, dropped)._asdict() if dropped else None,
    "precision_within_margin": (
      wilson_interval(nearly_right, dropped)._asdict() if dropped else None
    ),
  }


def _prob(step: DropNearDuplicates, jaccard: float) -> float:
  return minhash.match_prob(jaccard, step.bands, step.num_permutations, step.threshold)


def _members(truth: Sequence[dict[str, Any]], threshold: float) -> set[int]:
  """Returns the documents with a partner at the threshold or above."""
  similar = [p for p in truth if p["jaccard"] >= threshold]
  return {number for p in similar for number in (p["first"], p["second"])}


def _dropped(folder: Path, step: DropNearDuplicates) -> list[int]:
  make_key = step.make_key()
  texts = enumerate(planted_duplicates.read_texts(folder))
  keys = (make_key(Document(id=str(i), text=text)) for i, text in texts)
  return [i for i, verdict in enumerate(step.judge_keys(keys)) if verdict]


def make_case() -> Case:
  """Returns the contenders of the measurement of speed."""
  work = {"folder": FOLDER.as_posix(), "threshold": SPEED_THRESHOLD}
  command = harness.ours("benchmarks.ours.near_duplicates")
  contenders = [
    Contender(
      name="phi4_jax", command=command, options={**work, "do": "find"}, env=ONE_THREAD
    ),
    Contender(
      name="read and hash",
      role="ceiling",
      command=command,
      options={**work, "do": "read"},
    ),
  ]
  contenders += [
    Contender(
      name=name,
      role="peer",
      command=harness.peer("benchmarks.peers.near_duplicates"),
      options={**work, "peer": name},
      env=ONE_THREAD,
    )
    for name in PEERS
  ]
  return Case(
    name="one file, one process",
    contenders=contenders,
    reference="datatrove",
    work_unit="MB",
  )


def format_quality(quality: dict[str, Any]) -> str:
  """Returns two tables: by planted level, and over all pairs."""
  header = ["threshold", "planted near", "pairs", "mean exact", "found", "expected"]
  rows = [
    [
      threshold, level, r["pairs"], f"{r['mean_jaccard']:.3f}", f"{r['found']:.4f}",
      f"{r['expected']:.4f}",
    ]
    for threshold, record in quality.items()
    for level, r in record["levels"].items()
  ]  # fmt: skip
  names = (
    "recall", "recall_beyond_margin", "precision", "precision_within_margin",
  )  # fmt: skip
  totals = [
    [threshold, *(_format_share(record[name]) for name in names)]
    for threshold, record in quality.items()
  ]
  return (
    f"{format_table(header, rows)}\n\n"
    f"{format_table(['threshold', *(n.replace('_', ' ') for n in names)], totals)}"
  )


def _format_share(share: dict[str, float] | None) -> str:
  if share is None:
    return "-"
  return f"{share['estimate']:.4f} [{share['low']:.4f}, {share['high']:.4f}]"


def format_peers(case: dict[str, Any]) -> str:
  """Returns what each contender has found in its last round."""
  rows = []
  for name, record in case["contenders"].items():
    values = record["rounds"][-1]["values"]
    if "dropped" in values:
      recall = values["found_pairs"] / values["similar_pairs"]
      precision = values["rightly_dropped"] / max(values["dropped"], 1)
      rows.append([name, int(values["dropped"]), f"{recall:.4f}", f"{precision:.4f}"])
  return format_table(["contender", "dropped", "recall", "precision"], rows)


def main(argv: Sequence[str] | None = None) -> int:
  arguments: argparse.Namespace = harness.parse_arguments(__doc__, argv)
  if harness.is_missing(Path(harness.PEER_PYTHON), "bench-setup"):
    return 0
  folder = ROOT / FOLDER
  count = QUICK_ORIGINALS if arguments.quick else NUM_ORIGINALS
  planted_duplicates.write_corpus(folder, num_originals=count, seed=arguments.seed)
  quality = measure_quality(folder, THRESHOLDS, NUM_SEEDS)
  print(f"{format_quality(quality)}\n", flush=True)
  benchmark = Benchmark(
    name="near_duplicates",
    question="are near-duplicates found, and how fast beside other libraries?",
    cases=[make_case()],
    constants={
      "documents": sum(1 for _ in planted_duplicates.read_texts(folder)),
      "megabytes": planted_duplicates.megabytes(folder),
      "margin": MARGIN,
      "permutation_seeds": NUM_SEEDS,
    },
    assumptions=[
      "words are parted at blanks for every contender",
      "datatrove has its default bands and does not check candidates",
      "recall and precision of peers are those of one seed",
    ],
  )
  result = harness.measure(benchmark, arguments)
  result["quality"] = quality
  harness.finish(result, arguments)
  print(f"\n{format_peers(next(iter(result['cases'].values())))}")
  return 0


if __name__ == "__main__":
  sys.exit(main())
