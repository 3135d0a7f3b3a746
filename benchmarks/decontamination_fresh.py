"""A second set of unrelated questions, for a rule that was chosen with the first.

Written after the thresholds of `ContaminationRule` were chosen and before anything was
compared with it; it is not to be changed to move a count. One thing was changed after
a count: names were put into the questions. Without them, and without any instruction,
2,548 of 10,000 questions had 13 words in a row in common with one of 1,319 items, so
that they were not unrelated; with the instructions 8,750 were put aside. With names it
is 6 and 8,329. Instructions, options and the rest are as they were written. Another
generator than decontamination_data.py, with none of its templates or words for things:
multiple-choice questions as exams have them, of one to three sentences, with four
options. Of what such sets share, they share

- instructions before and behind the question, of 41 words and fewer, in the words in
  which they are given to many models; some name one of twelve subjects;
- the way in which options are written;
- frequent words beside them: no number that no other question has keeps instructions
  and question apart.

Imports the standard library only.
"""

import random
from collections.abc import Iterable

SUBJECTS = (
  "astronomy", "anatomy", "contract law", "geography", "organic chemistry", "music",
  "world history", "nutrition", "philosophy", "marketing", "geology", "botany",
)  # fmt: skip
# Before a question; "{}" takes a subject.
BEFORE = (
  "The following is a multiple choice question about {}.",
  "Answer the question.",
  "You are taking an exam in {}. Read the question and all of the options carefully "
  "before you choose.",
  "The following are multiple choice questions (with answers) about {}. Finish your "
  'answer with "the answer is (X)" where X is the correct letter choice.',
  "Answer the following multiple choice question. The last line of your response "
  "should be of the following format: 'Answer: $LETTER' (without quotes) where LETTER "
  "is one of ABCD. Think step by step before answering.",
)
# Behind the options.
BEHIND = (
  "Answer:",
  "Let's think step by step.",
  "Please answer with the letter of the correct option only, and do not explain your "
  "choice.",
  "Which of the options above is the best answer to the question? Give your reasoning "
  "first and then the letter in parentheses.",
)
_SYLLABLES = (
  "ba", "cor", "du", "fen", "gal", "hi", "jor", "ka", "lem", "mu", "nor", "pi", "rast",
  "se", "tov", "ul", "vin", "wex", "yar", "zo",
)  # fmt: skip
_PEOPLE = (
  "researcher", "student", "patient", "merchant", "surveyor", "court", "committee",
  "captain", "teacher", "traveller", "critic", "observer", "manager", "witness",
)  # fmt: skip
_DID = (
  "measured", "described", "questioned", "compared", "recorded", "rejected",
  "predicted", "examined", "reported", "overlooked", "classified", "explained",
  "disputed", "found",
)  # fmt: skip
_QUALITIES = (
  "gradual", "seasonal", "unexpected", "partial", "reversible", "voluntary", "chronic",
  "regional", "harmless", "rapid", "symbolic", "costly", "measurable", "hidden",
)  # fmt: skip
_MATTERS = (
  "decline", "orbit", "agreement", "sediment", "melody", "fever", "tariff", "enzyme",
  "migration", "eclipse", "argument", "fracture", "pigment", "treaty", "harvest",
  "current", "doctrine", "campaign", "mineral", "reflex", "rhythm", "deficiency",
)  # fmt: skip
_WHERE = (
  "in a coastal town", "during the nineteenth century", "at high altitude",
  "under dim light", "after a long winter", "in the upper layer", "before the trial",
  "among older adults", "at low pressure", "in the second movement",
  "on the southern slope", "without a control group", "in two of five samples",
)  # fmt: skip
_ASKED = (
  "Which of the following best explains the {0} {1}?",
  "What is the most likely cause of the {0} {1} {2}?",
  "Why was the {1} regarded as {0}?",
  "Which statement about the {0} {1} is true?",
  "According to this, the {1} that the {3} {4} was",
  "What should the {3} do next about the {0} {1}?",
)


def draw_question(rng: random.Random) -> str:
  """Returns a question with its four options, without instructions."""
  pick = rng.choice

  def name() -> str:
    return "".join(pick(_SYLLABLES) for _ in range(3)).capitalize()

  sentences = [
    f"A {pick(_PEOPLE)} from {name()} {pick(_DID)} the {pick(_QUALITIES)} "
    f"{pick(_MATTERS)} of {name()} {pick(_WHERE)}, and a {pick(_PEOPLE)} near "
    f"{name()} {pick(_DID)} it {pick(_WHERE)} for {name()}."
    for _ in range(rng.randint(0, 2))
  ]
  sentences.append(
    pick(_ASKED).format(
      pick(_QUALITIES),
      f"{pick(_MATTERS)} of {name()}",
      pick(_WHERE),
      pick(_PEOPLE),
      pick(_DID),
    )
  )
  long = rng.random() < 0.5
  options = [
    f"The {pick(_QUALITIES)} {pick(_MATTERS)} of {name()} {pick(_WHERE)}"
    if long
    else f"{pick(_QUALITIES)} {pick(_MATTERS)}"
    for _ in "ABCD"
  ]
  lines = [f"{letter}. {text}" for letter, text in zip("ABCD", options, strict=True)]
  return "\n".join([" ".join(sentences), *lines])


def add_instructions(texts: Iterable[str], *, seed: str) -> list[str]:
  """Returns texts with instructions before and behind each."""
  rng = random.Random(f"instructions {seed}")
  return [
    f"{rng.choice(BEFORE).format(rng.choice(SUBJECTS))}\n\n{text}\n{rng.choice(BEHIND)}"
    for text in texts
  ]


def draw_exam(count: int, *, seed: str) -> list[str]:
  """Returns questions without instructions; another seed gives unrelated ones."""
  rng = random.Random(f"exam {seed}")
  return [draw_question(rng) for _ in range(count)]


def write_about_instructions() -> list[str]:
  """Returns a reference: texts that quote the instructions, as a handbook does."""
  texts = [f"Some prompts begin so: {text.format(s)} A question follows."
           for text in BEFORE for s in SUBJECTS]  # fmt: skip
  return [
    *texts,
    *(f"Others end so: {text} Then the model answers." for text in BEHIND),
  ]
