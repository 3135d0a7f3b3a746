"""Made-up questions for decontamination: unrelated ones, and edits of given ones.

Unrelated questions have people, actions and numbers of their own; what they share is
boiler-plate, the only thing of 5 words or more that is fixed. Imports the standard
library only: peers read the files that it writes.
"""

import json
import random
from collections.abc import Sequence
from pathlib import Path

NAMES = (
  "Amara", "Bruno", "Chidi", "Dalia", "Emil", "Farah", "Goran", "Hana", "Imre",
  "Jonas", "Keiko", "Lars", "Mirela", "Nadim", "Olga", "Pavel", "Quirin", "Rosa",
  "Selma", "Tarik", "Ulla", "Vito", "Wanda", "Xenia", "Yusuf", "Zora",
)  # fmt: skip
JOBS = (
  "baker", "carpenter", "dentist", "engineer", "florist", "gardener", "hunter",
  "jeweller", "librarian", "mason", "nurse", "optician", "painter", "roofer",
  "sailor", "tailor", "violinist", "weaver", "chemist", "farmer",
)  # fmt: skip
ACTIONS = (
  "buys", "sells", "counts", "packs", "carries", "borrows", "paints", "repairs",
  "stores", "weighs", "orders", "returns", "collects", "sorts", "loses", "ships",
)  # fmt: skip
KINDS = (
  "small", "heavy", "blue", "wooden", "broken", "cheap", "old", "round", "wet",
  "narrow", "bright", "empty", "painted", "square", "imported", "folded",
)  # fmt: skip
THINGS = (
  "barrels", "candles", "drums", "envelopes", "feathers", "gears", "hammers", "icicles",
  "jars", "kettles", "lamps", "mirrors", "needles", "oars", "pillows", "quilts",
  "ropes", "stools", "tiles", "umbrellas", "vases", "wheels", "yokes", "zips",
)  # fmt: skip
PLACES = (
  "attic", "bridge", "cellar", "dock", "embassy", "factory", "garage", "harbour", "inn",
  "junction", "kitchen", "lighthouse", "museum", "nursery", "office", "palace",
  "quarry", "railway", "school", "theatre",
)  # fmt: skip
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
# Each has 13 words or more. What follows is a number that no other question has:
# twelve such words and a frequent one would be 13 words that many share.
BOILER_PLATE = (
  "Choose the one option that answers the question best and write only its letter. "
  "Question",
  "Read the text below with care, think step by step and then give one number. Task",
  "Answer with A, B, C or D; no explanation of the choice is needed in any case. No",
)


def draw_question(rng: random.Random, *, boiler_plate: bool) -> str:
  """Returns a question of some 45 words, or of 60 with boiler-plate before it."""
  sentences = []
  for _ in range(3):
    name, job, kind = rng.choice(NAMES), rng.choice(JOBS), rng.choice(KINDS)
    sentences.append(
      f"On {rng.choice(DAYS)} {name} the {job} {rng.choice(ACTIONS)} "
      f"{rng.randint(2, 999)} {kind} {rng.choice(THINGS)} near the "
      f"{rng.choice(PLACES)}."
    )
  asked = (
    f"How many of {rng.randint(10**3, 10**5)} {rng.choice(THINGS)} are with "
    f"{rng.choice(NAMES)} the {rng.choice(JOBS)} then?"
  )
  text = " ".join([*sentences, asked])
  if not boiler_plate:
    return text
  return f"{rng.choice(BOILER_PLATE)} {rng.randint(10**8, 10**9)}: {text}"


def draw_questions(count: int, *, seed: str, boiler_plate: bool = False) -> list[str]:
  """Returns questions; another seed gives unrelated ones."""
  rng = random.Random(seed)
  return [draw_question(rng, boiler_plate=boiler_plate) for _ in range(count)]


def replace_words(text: str, share: float, rng: random.Random) -> str:
  """Returns a text with a share of its words replaced by others, at random places."""
  words = text.split()
  for i in rng.sample(range(len(words)), round(share * len(words))):
    words[i] = f"{rng.choice(KINDS)}{rng.randint(0, 99)}"
  return " ".join(words)


def edit_around(text: str, rng: random.Random, *, kept: int = 13) -> str:
  """Replaces every word of a text but `kept` in a row, somewhere in it.

  In a shorter text nothing is replaced. A "word" has no blank in it and a letter or a
  digit, so that the run has `kept` words or more also for who cuts at other characters.
  Signs between blanks are left out.
  """
  words = [word for word in text.split() if any(map(str.isalnum, word))]
  at = rng.randint(0, max(0, len(words) - kept))
  return " ".join(
    word if at <= i < at + kept else f"{rng.choice(THINGS)}{rng.randint(0, 99)}"
    for i, word in enumerate(words)
  )


def write_rows(path: Path, texts: Sequence[str]) -> None:
  """Writes texts as JSON lines with `text`."""
  path.parent.mkdir(parents=True, exist_ok=True)
  lines = [json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts]
  path.write_text("".join(lines), "utf-8")
