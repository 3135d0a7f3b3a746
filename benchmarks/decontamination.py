"""What does decontamination find, what does it find wrongly, and how fast is it?

  python -m benchmarks.decontamination --data=FOLDER --peer_python=PYTHON

--data is a folder with gsm8k_train.jsonl and gsm8k_test.jsonl, and perhaps
ifeval_input_data.jsonl and arena_hard_v0.1_questions.jsonl; made-up questions take
their place without it. --peer_python is a Python that has datatrove:

  python -m venv PEER; PEER/bin/pip install datatrove==0.10.1 "xxhash<4" spacy regex

(xxhash 4 takes no texts, which it is given). Without it datatrove is left out. A result
without one of the two is none to keep.

Findings are counted: copies and edits of benchmark items among training questions, and
questions that have only boiler-plate in common with items. Of these there are two
sets: the thresholds of the rule were chosen with the first, `false_positives`; the
second, `false_positives_fresh`, was written afterwards (decontamination_fresh.py). Both
are counted at other thresholds, too, and the second with
`ContaminationRule.boiler_plate_items`, beside what that finds of planted items. Speed
is megabytes of a JSON-lines file a second, one core; the ceiling parses, normalises and
hashes the same file and looks nothing up.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import decontamination_data as data
from benchmarks import harness
from benchmarks.arms import ROOT
from benchmarks.decontamination_unrelated import (
  BOILER_PLATE_ITEMS,
  compare_thresholds,
  count_boiler_plate,
  count_flags,
  count_wrong,
  draw_first,
  draw_fresh,
  draw_fresh_alone,
  format_boiler_plate,
  format_thresholds,
  make_index,
  read_real,
)
from benchmarks.harness import Benchmark, Case, Contender
from phi4_jax.common.io import read_jsonl
from phi4_jax.common.statistics import wilson_interval
from phi4_jax.common.text import format_table
from phi4_jax.curation.decontaminate import ContaminationRule, Decontaminator
from phi4_jax.curation.decontaminate_index import BenchmarkIndex

SHARES = (0.05, 0.1, 0.2)
NUM_UNRELATED = 10_000
TRAIN_MEGABYTES, QUICK_MEGABYTES = 16, 2
ARMS = {
  "13-gram only": ContaminationRule(info_7gram=1.0),
  "7-gram only": ContaminationRule(use_13gram=False),
  "both (Algorithm 1)": ContaminationRule(),
}


def load_questions(folder: Path | None, seed: int) -> tuple[list[str], list[str]]:
  """Returns training texts and benchmark questions."""
  if folder is None:
    return (
      data.draw_questions(7500, seed=f"train {seed}"),
      data.draw_questions(1300, seed=f"tests {seed}"),
    )
  train = [record for _, record in read_jsonl(folder / "gsm8k_train.jsonl")]
  tests = [record for _, record in read_jsonl(folder / "gsm8k_test.jsonl")]
  return (
    [f"{record['question']}\n{record['answer']}" for record in train],
    [record["question"] for record in tests],
  )


def plant(
  train: Sequence[str], tests: Sequence[str], seed: int
) -> dict[str, list[str]]:
  """Returns kind -> training texts of which each holds a form of one test item."""
  rng = random.Random(seed)
  around = [rng.choice(train) for _ in tests]
  kinds = {
    "exact copy": list(tests),
    "edit that keeps 13 words": [data.edit_around(text, rng) for text in tests],
  }
  for share in SHARES:
    kinds[f"{share:.0%} of words replaced"] = [
      data.replace_words(text, share, rng) for text in tests
    ]
  return {
    kind: [f"{a}\n\n{text}\n{a}" for a, text in zip(around, texts, strict=True)]
    for kind, texts in kinds.items()
  }


def count_found(
  index: BenchmarkIndex, planted: Mapping[str, Sequence[str]], train: Sequence[str]
) -> dict[str, Any]:
  """Returns, for each arm and kind, shares put aside and noted or put aside.

  The last kind are the training texts themselves: what is found there is either in
  common between the real sets, or wrong.
  """
  table: dict[str, Any] = {}
  for arm, rule in ARMS.items():
    check = Decontaminator(index, rule)
    table[arm] = {}
    for kind, texts in {**planted, "training texts, nothing planted": train}.items():
      table[arm][kind] = count_flags(check, texts)
  return table


def compare_verdicts(
  peer_python: Path, folder: Path, index: BenchmarkIndex, texts: Mapping[str, Sequence]
) -> dict[str, Any]:
  """Returns kind -> how many texts both, one or neither puts aside."""
  check = Decontaminator(index, ContaminationRule())
  table = {}
  for number, (kind, rows) in enumerate(texts.items()):
    path = folder / f"verdicts-{number}.jsonl"
    data.write_rows(path, rows)
    command = [str(peer_python), "-m", "benchmarks.peers.decontamination"]
    done = subprocess.run(
      [*command, str(path), str(folder / "tests.jsonl")],
      stdout=subprocess.PIPE, check=True, cwd=ROOT,
    )  # fmt: skip
    theirs = json.loads(done.stdout)
    ours = [found.flag == "contaminated" for found in check.check_all(rows)]
    pairs = list(zip(ours, theirs, strict=True))
    table[kind] = {
      "texts": len(pairs),
      "both": pairs.count((True, True)),
      "only ours": pairs.count((True, False)),
      "only datatrove": pairs.count((False, True)),
    }
  return table


def make_benchmark(folder: Path, peer_python: Path | None) -> Benchmark:
  """Returns the case of speed: the same file for all, one thread each."""
  files = {"train": str(folder / "train.jsonl"), "tests": str(folder / "tests.jsonl")}
  env = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
  command = harness.ours("benchmarks.ours.decontamination")
  contenders = [
    Contender(name="ours", command=command, env=env, options={**files, "do": "check"}),
    Contender(
      name="read and hash",
      command=command,
      role="ceiling",
      env=env,
      options={**files, "do": "read_and_hash"},
    ),
  ]
  if peer_python is not None:
    contenders += [
      Contender(
        name=f"datatrove, {words}",
        command=(str(peer_python), "-m", "benchmarks.peers.decontamination"),
        role="peer",
        env=env,
        options={**files, "words": words},
      )
      for words in ("spacy", "blanks")
    ]
  return Benchmark(
    name="decontamination",
    question="megabytes of training rows checked a second, one core each",
    cases=[Case(name="check", contenders=contenders, reference="ours", work_unit="MB")],
    assumptions=[
      "all read the file with Python's json; rows are questions of a few hundred bytes",
      "datatrove looks for 13 words in a row only, and compares hashes only",
      "false_positives counts in the set that the 7-gram thresholds were chosen with",
      "the bound of false_positives_fresh holds for questions of its generator",
      "false_positives_fresh_boiler_plate is no count on fresh data: that leaving out "
      "13-grams that are shared whole does not suffice was seen on this set; 5 items "
      "and four of seven 7-grams were fixed before they were counted",
    ],
  )


def add_flags(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--data", type=Path, help="folder with gsm8k_*.jsonl")
  parser.add_argument("--peer_python", type=Path, help="a Python with datatrove")


def main(argv: Sequence[str] | None = None) -> int:
  arguments = harness.parse_arguments(__doc__, argv, add_flags=add_flags)
  train, tests = load_questions(arguments.data, arguments.seed)
  if arguments.quick:
    tests = tests[:200]
  index = make_index(tests)
  planted = plant(train, tests, arguments.seed)
  found = count_found(index, planted, train)
  unrelated = {
    "first set": draw_first(tests, NUM_UNRELATED, arguments.seed),
    "fresh set": draw_fresh(len(tests), NUM_UNRELATED),
    "fresh set without instructions": draw_fresh_alone(len(tests), NUM_UNRELATED),
  }
  wrong = count_wrong(unrelated["first set"])
  fresh = count_wrong(unrelated["fresh set"])
  boiler_plate = count_boiler_plate(
    index, planted, unrelated["fresh set"], arguments.seed
  )
  if arguments.data is not None:
    unrelated |= read_real(arguments.data, train, tests)
  thresholds = compare_thresholds(index, planted, unrelated)
  with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    megabytes = QUICK_MEGABYTES if arguments.quick else TRAIN_MEGABYTES
    times = -(-megabytes * 10**6 // sum(map(len, train)))
    data.write_rows(folder / "train.jsonl", [*train] * times)
    data.write_rows(folder / "tests.jsonl", tests)
    verdicts = {}
    if arguments.peer_python is not None:
      kinds = {**planted, "training texts, nothing planted": train}
      verdicts = compare_verdicts(arguments.peer_python, folder, index, kinds)
    result = harness.measure(make_benchmark(folder, arguments.peer_python), arguments)
    _forget_folder(result, name)
  both = found["both (Algorithm 1)"]
  set_on = boiler_plate[str(BOILER_PLATE_ITEMS[0])]
  summaries = {
    name: record["summary"]
    for name, record in result["cases"]["check"]["contenders"].items()
  }
  peers = [s for name, s in summaries.items() if name.startswith("datatrove")]
  result |= {
    "data": "gsm8k" if arguments.data else "made up",
    "recall_exact": _share(both["exact copy"]),
    "recall_edited": _share(both["edit that keeps 13 words"]),
    "false_positives": wrong["with the allow-list"]["contaminated"],
    "false_positives_fresh": fresh["with the allow-list"]["contaminated"],
    # Of a share, 95%, two-sided; for questions of this generator, and no other.
    "false_positives_fresh_share_upper": wilson_interval(
      fresh["with the allow-list"]["contaminated"], NUM_UNRELATED
    ).high,
    # With ContaminationRule.boiler_plate_items, and no allow-list.
    "false_positives_fresh_boiler_plate": set_on["unrelated, fresh set"][
      "contaminated"
    ],
    "recall_boiler_plate": {
      kind: _share(counts) for kind, counts in set_on.items() if "items: e" in kind
    },
    "mb_per_second": summaries["ours"]["rate"]["median"],
    "share_of_reading_and_hashing": summaries["ours"]["share_of_ceiling"]["median"],
    # To the faster of its two settings.
    "ratio_vs_datatrove": min(
      (1 / peer["times_reference"]["median"] for peer in peers), default=None
    ),
    "found": found,
    "unrelated": wrong,
    "unrelated_fresh": fresh,
    "boiler_plate": boiler_plate,
    "thresholds": thresholds,
    "verdicts": verdicts,
  }
  print(f"\n{format_findings(result)}")
  if (arguments.data is None or not peers) and arguments.output is None:
    # A run without the real data or the peer never replaces a result that has them.
    arguments.output = ROOT / "runs/benchmarks/decontamination.json"
  harness.finish(result, arguments)
  return 0


def _forget_folder(result: dict[str, Any], folder: str) -> None:
  """Takes the names of this machine's folders out of the record."""
  for record in result["cases"]["check"]["contenders"].values():
    for key, value in record["options"].items():
      record["options"][key] = str(value).replace(f"{folder}/", "")


def _share(counts: Mapping[str, int]) -> float:
  return counts["contaminated"] / counts["texts"]


def format_findings(result: Mapping[str, Any]) -> str:
  """Returns the tables of what was found."""
  kinds = list(next(iter(result["found"].values())))
  rows = [
    [
      kind,
      result["found"]["13-gram only"][kind]["texts"],
      *(
        f"{arm[kind]['contaminated']} + {arm[kind]['partial']}"
        for arm in result["found"].values()
      ),
    ]
    for kind in kinds
  ]
  tables = [
    "texts put aside + noted:",
    format_table(["planted", "texts", *result["found"]], rows),
  ]
  for name, title in (("unrelated", "first set"), ("unrelated_fresh", "fresh set")):
    tables += [
      f"unrelated questions with the items' boiler-plate, {title}:",
      format_table(
        ["arm", "texts", "contaminated", "partial"],
        [[arm, *counts.values()] for arm, counts in result[name].items()],
      ),
    ]
  tables.append(format_boiler_plate(result["boiler_plate"]))
  tables.append(format_thresholds(result["thresholds"]))
  if result["verdicts"]:
    header = ["verdicts", "texts", "both", "only ours", "only datatrove"]
    rows = [[kind, *counts.values()] for kind, counts in result["verdicts"].items()]
    tables.append(format_table(header, rows))
  return "\n\n".join(tables)


if __name__ == "__main__":
  sys.exit(main())
