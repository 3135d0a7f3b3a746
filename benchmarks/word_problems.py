"""Easy word problems in the form of GSM8K's files: question, worked answer, `#### n`.

    python -m benchmarks.word_problems runs/word_problems    # train.jsonl, test.jsonl

For models that GSM8K itself is too hard for: one or two steps, small numbers, seven
kinds. Whether a question belongs to train or test is decided by a hash of its text.
"""

import argparse
import hashlib
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from phi4_jax.common.io import write_atomic

Split = Literal["train", "test"]
_COUNTS: dict[Split, int] = {"train": 2048, "test": 256}

_NAMES = ("Mia", "Tom", "Ana", "Ben", "Lea", "Sam", "Eva", "Max")
_THINGS = ("apples", "coins", "books", "stamps", "shells", "pens", "cards", "marbles")
# Question, working, answer.
_KINDS: tuple[tuple[str, str, Callable[[int, int, int], int]], ...] = (
  ("What is {a} + {b}?", "{a} + {b} = {n}.", lambda a, b, c: a + b),
  (
    "There are {a} boxes with {b} {things} each. How many {things} are there?",
    "There are {a} * {b} = {n} {things}.",
    lambda a, b, c: a * b,
  ),
  (
    "{name} has {a_b} {things} and gives {b} away. How many {things} are left?",
    "{name} has {a_b} - {b} = {n} {things} left.",
    lambda a, b, c: a,
  ),
  (
    "{name} has {a} {things} and gets {b} more. How many {things} does {name} have?",
    "{name} has {a} + {b} = {n} {things}.",
    lambda a, b, c: a + b,
  ),
  (
    "{name} buys {a} {things} for {b} dollars each. How many dollars is that?",
    "That is {a} * {b} = {n} dollars.",
    lambda a, b, c: a * b,
  ),
  (
    "{name} has {a} {things}, finds {b} and then finds {c} more. How many {things} "
    "does {name} have?",
    "First {a} + {b} = {a_b}. Then {a_b} + {c} = {n} {things}.",
    lambda a, b, c: a + b + c,
  ),
  (
    "{name} has {a} bags with {b} {things} each and {c} more {things}. How many "
    "{things} does {name} have?",
    "The bags hold {a} * {b} = {ab} {things}. In all there are {ab} + {c} = {n}.",
    lambda a, b, c: a * b + c,
  ),
)


def draw_problems(split: Split, count: int, *, seed: int = 0) -> list[dict[str, str]]:
  """Returns {"question", "answer"} of `count` different questions of a split.

  Fewer are a prefix of more.
  """
  rng = random.Random(seed)
  found: dict[str, str] = {}
  while len(found) < count:
    question, working, solve = rng.choice(_KINDS)
    a, b, c = (rng.randint(2, 9) for _ in range(3))
    values = {"a": a, "b": b, "c": c, "a_b": a + b, "ab": a * b, "n": solve(a, b, c)}
    words = {"name": rng.choice(_NAMES), "things": rng.choice(_THINGS)}
    text = question.format(**values, **words)
    is_test = hashlib.sha256(text.encode()).digest()[0] % 4 == 0
    if is_test == (split == "test"):
      found[text] = f"{working.format(**values, **words)}\n#### {values['n']}"
  return [{"question": text, "answer": answer} for text, answer in found.items()]


def write_files(folder: Path) -> None:
  """Writes both splits as JSON lines."""
  for split, count in _COUNTS.items():
    lines = [json.dumps(problem) for problem in draw_problems(split, count)]
    write_atomic(folder / f"{split}.jsonl", "\n".join(lines) + "\n")
    print(f"{folder / split}.jsonl: {count} problems")


def run(argv: Sequence[str] | None = None) -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("folder", type=Path, help="where both files are written")
  write_files(parser.parse_args(argv).folder)


if __name__ == "__main__":
  run()
