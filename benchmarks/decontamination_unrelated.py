"""What decontamination finds in texts without benchmark items, at several thresholds.

The first set of made-up questions is the one that the thresholds of `ContaminationRule`
were chosen with; the second (decontamination_fresh.py) and real texts are not.
"""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import decontamination_data as data
from benchmarks import decontamination_fresh as fresh
from phi4_jax.common.io import read_jsonl
from phi4_jax.common.text import format_table
from phi4_jax.curation.decontaminate import (
  Contamination,
  ContaminationRule,
  Decontaminator,
)
from phi4_jax.curation.decontaminate_allowed import find_allowed
from phi4_jax.curation.decontaminate_index import BenchmarkIndex, BenchmarkItem
from phi4_jax.curation.decontaminate_items import texts_of_record

THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7)
# Of `ContaminationRule.boiler_plate_items`. The first was chosen before it was counted.
BOILER_PLATE_ITEMS = (5, 2, 20)
# Real prompts of two sources; the first are taken for a benchmark.
_IFEVAL, _ARENA = "ifeval_input_data.jsonl", "arena_hard_v0.1_questions.jsonl"


class Unrelated(NamedTuple):
  """Texts that hold no item of an index, which may share instructions with them.

  Attributes:
    index: of the items.
    allowed: the same with an allow-list, or `index` itself.
    texts: to be found clean.
  """

  index: BenchmarkIndex
  allowed: BenchmarkIndex
  texts: Sequence[str]


def make_index(tests: Sequence[str]) -> BenchmarkIndex:
  return BenchmarkIndex(
    BenchmarkItem(dataset="tests", id=str(i), text=text) for i, text in enumerate(tests)
  )


def _make_unrelated(
  items: Sequence[str], reference: Sequence[str], texts: Sequence[str]
) -> Unrelated:
  index = make_index(items)
  return Unrelated(index, index.allowing(find_allowed(index, reference, texts)), texts)


def draw_first(tests: Sequence[str], count: int, seed: int) -> Unrelated:
  """Returns the set that the thresholds were chosen with."""
  rng = random.Random(seed)
  items = [
    f"{rng.choice(data.BOILER_PLATE)} {rng.randint(10**8, 10**9)}: {text}"
    for text in tests
  ]
  texts = data.draw_questions(count, seed=f"unrelated {seed}", boiler_plate=True)
  return _make_unrelated(items, [f"{text} 0" for text in data.BOILER_PLATE], texts)


def draw_fresh(num_items: int, count: int) -> Unrelated:
  """Returns the set that nothing was chosen with: the same one, whatever the seed."""
  return _instruct(
    fresh.draw_exam(num_items, seed="items"), fresh.draw_exam(count, seed="unrelated")
  )


def _instruct(items: Sequence[str], texts: Sequence[str]) -> Unrelated:
  """Returns items and texts behind the same instructions."""
  return _make_unrelated(
    fresh.add_instructions(items, seed="items"),
    fresh.write_about_instructions(),
    fresh.add_instructions(texts, seed="unrelated"),
  )


def _as_they_are(items: Sequence[str], texts: Sequence[str]) -> Unrelated:
  index = make_index(items)
  return Unrelated(index, index, texts)


def draw_fresh_alone(num_items: int, count: int) -> Unrelated:
  """Returns the questions of `draw_fresh` without instructions: they share nothing."""
  return _as_they_are(
    fresh.draw_exam(num_items, seed="items"), fresh.draw_exam(count, seed="unrelated")
  )


def read_real(
  folder: Path, train: Sequence[str], tests: Sequence[str]
) -> dict[str, Unrelated]:
  """Returns real texts beside items of another source, as far as they are there.

  GSM8K's training and test questions are of one source, and a few are much alike.
  """
  found = {
    "GSM8K train, fresh items": _as_they_are(
      fresh.draw_exam(len(tests), seed="items"), train
    ),
    "GSM8K train, GSM8K test items": _as_they_are(tests, train),
    "... both behind the fresh instructions": _instruct(tests, train),
  }
  if all((folder / name).is_file() for name in (_IFEVAL, _ARENA)):
    items, texts = (
      ["\n".join(texts_of_record(record)) for _, record in read_jsonl(folder / name)]
      for name in (_IFEVAL, _ARENA)
    )
    found["Arena-Hard prompts, IFEval items"] = _as_they_are(items, texts)
  return found


def count_flags(check: Decontaminator, texts: Sequence[str]) -> dict[str, int]:
  """Returns how many texts there are, are put aside, and are noted."""
  flags = [found.flag for found in check.check_all(texts)]
  return {
    "texts": len(flags),
    "contaminated": flags.count("contaminated"),
    "partial": flags.count("partial"),
  }


def plant_fresh(unrelated: Unrelated, seed: int) -> dict[str, list[str]]:
  """Returns kind -> texts that each hold an item of `draw_fresh`, in their order.

  With its instructions and without; whole and cut to 13 words in a row, which may be
  of the instructions alone.
  """
  rng = random.Random(seed)
  whole = [item.text for item in unrelated.index.items]
  bare = fresh.draw_exam(len(whole), seed="items")
  return {
    "exact copy": whole,
    "exact copy of the question alone": bare,
    "edit that keeps 13 words of the question": [
      data.edit_around(text, rng) for text in bare
    ],
    "edit that keeps 13 words of either": [
      data.edit_around(text, rng) for text in whole
    ],
  }


def count_boiler_plate(
  index: BenchmarkIndex,
  planted: Mapping[str, Sequence[str]],
  fresh_set: Unrelated,
  seed: int,
) -> dict[str, Any]:
  """Returns what `boiler_plate_items` does to the fresh set and to recall.

  Without an allow-list: {"0": {kind: counts}, "5": ...}, 0 being Algorithm 1.
  """
  kinds: list[tuple[str, BenchmarkIndex, Sequence[str]]] = [
    ("unrelated, fresh set", fresh_set.index, fresh_set.texts),
    *(
      (f"fresh items: {kind}", fresh_set.index, texts)
      for kind, texts in plant_fresh(fresh_set, seed).items()
    ),
    *((f"items: {kind}", index, texts) for kind, texts in planted.items()),
  ]
  table: dict[str, Any] = {}
  for value in (0, *BOILER_PLATE_ITEMS):
    rule = ContaminationRule(boiler_plate_items=value)
    table[str(value)] = {
      kind: count_flags(Decontaminator(of_kind, rule), texts)
      for kind, of_kind, texts in kinds
    }
  return table


def format_boiler_plate(table: Mapping[str, Any]) -> str:
  """Returns the table of `count_boiler_plate`."""
  rows = [
    [
      kind,
      counts["texts"],
      *(f"{of[kind]['contaminated']} + {of[kind]['partial']}" for of in table.values()),
    ]
    for kind, counts in next(iter(table.values())).items()
  ]
  return format_table(["put aside + noted, boiler_plate_items", "texts", *table], rows)


def count_wrong(unrelated: Unrelated) -> dict[str, Any]:
  """Returns what is found in unrelated texts, with and without the allow-list."""
  rule = ContaminationRule()
  arms = {
    "without an allow-list": Decontaminator(unrelated.index, rule),
    "with the allow-list": Decontaminator(unrelated.allowed, rule),
    "... its 7-grams not counted": Decontaminator(
      unrelated.allowed, ContaminationRule(count_allowed_7grams=False)
    ),
  }
  return {name: count_flags(check, unrelated.texts) for name, check in arms.items()}


def count_at_thresholds(
  index: BenchmarkIndex, texts: Sequence[str], *, count_allowed_7grams: bool = True
) -> dict[str, Any]:
  """Returns how many texts are put aside at each `contaminated_7gram`."""
  rule = ContaminationRule(count_allowed_7grams=count_allowed_7grams)
  found = Decontaminator(index, rule).check_all(texts)
  return {
    "texts": len(texts),
    "contaminated": {
      str(threshold): sum(_is_contaminated(result, threshold) for result in found)
      for threshold in THRESHOLDS
    },
  }


def _is_contaminated(found: Contamination, threshold: float) -> bool:
  """What `ContaminationRule.contaminated_7gram` would say of a text."""
  if found.long is not None:
    return True
  return found.short is not None and found.short.ratio >= threshold


def compare_thresholds(
  index: BenchmarkIndex,
  planted: Mapping[str, Sequence[str]],
  unrelated: Mapping[str, Unrelated],
) -> dict[str, Any]:
  """Returns false positives of each set and recall of each kind, by threshold."""
  wrong = {
    name: count_at_thresholds(one.allowed, one.texts) for name, one in unrelated.items()
  }
  wrong |= {
    f"{name}, allowed 7-grams not counted": count_at_thresholds(
      one.allowed, one.texts, count_allowed_7grams=False
    )
    for name, one in unrelated.items()
    if one.allowed.allowed
  }
  return {
    "false_positives": wrong,
    "found": {
      kind: count_at_thresholds(index, texts) for kind, texts in planted.items()
    },
  }


def format_thresholds(table: Mapping[str, Any]) -> str:
  """Returns the tables of `compare_thresholds`."""
  parts = []
  for part, title in (
    ("false_positives", "unrelated texts put aside at contaminated_7gram"),
    ("found", "planted items put aside at contaminated_7gram"),
  ):
    rows = [
      [name, counts["texts"], *counts["contaminated"].values()]
      for name, counts in table[part].items()
    ]
    parts.append(format_table([title, "texts", *map(str, THRESHOLDS)], rows))
  return "\n\n".join(parts)
