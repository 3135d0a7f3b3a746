r"""Finds what a response gives as its answer: a boxed text, a number, a letter.

    | in the response | find_boxed | find_final_number | find_choice |
    |---|---|---|---|
    | `so \boxed{12}` | `12` | `12` | None |
    | `\boxed{\frac{1}{2}}` | `\frac{1}{2}` | None: no plain number | None |
    | `6 + 6 = 12. #### 12` | None | `12` | None |
    | `The answer is (B).` | None | None | `B` |

Texts only; refuses to know what is right.
"""

import re
from typing import NamedTuple

from phi4_jax.eval.answers import (
  find_last_number,
  find_marked_number,
  normalize_number,
)

_BRACES = re.compile(r"\\f?box(?:ed)?\s*\{|\\.|[{}]", re.DOTALL)
_STYLE = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mathit)\s*\{([^{}]*)\}")
# Spaces of LaTeX that stand inside numbers, and the comma that is no list's.
_SPACES = re.compile(r"\\[,!;: ]|(?<=\d)\s*\{,\}\s*(?=\d)|\$|\\displaystyle")
# What makes of several numbers one value that is none of them.
_OPERATION = re.compile(r"[/^_]|\\[dt]?frac|\\sqrt|\\times|\\cdot|\\pm|\\div")


def find_boxed(text: str) -> str | None:
  r"""Returns what stands in the last `\boxed{...}` that is closed, else None.

  Of boxes inside each other the inner one counts: `\boxed{\boxed{3}}` gives `3`. A
  box without anything in it is part of the box around it, and so is an `\fbox` that
  is not all it holds: `\boxed{12 \fbox{cm}}` gives `12 \fbox{cm}`.
  """
  boxes = _closed_boxes(text)
  return text[boxes[-1].inside : boxes[-1].end - 1].strip() if boxes else None


def find_single_box(text: str) -> str | None:
  r"""Returns what `find_boxed` does unless its line has boxes that say otherwise.

  `$x = \boxed{1}$ or $\boxed{2}$` gives None: neither box is the answer.
  """
  boxes = _closed_boxes(text)
  line = text.rfind("\n", 0, boxes[-1].begin) if boxes else 0
  said = {
    normalize_text(text[box.inside : box.end - 1]) for box in boxes if box.begin > line
  }
  return find_boxed(text) or None if len(said) == 1 else None


def find_boxed_line(text: str) -> str | None:
  r"""Returns the last line's boxes and what stands between them, else None.

  `so $x = \boxed{1}$ or $\boxed{2}$.` gives `$\boxed{1}$ or $\boxed{2}$`.
  """
  boxes = _closed_boxes(text)
  if not boxes:
    return None
  line = text.rfind("\n", 0, boxes[-1].begin) + 1
  begin = min(box.begin for box in boxes if box.begin >= line)
  return f"${text[begin : boxes[-1].end]}$"


def find_final_number(text: str) -> str | None:
  r"""Returns the canonical number that a response ends in, else None.

  What is boxed or follows `####` is the answer, whichever comes last; without either,
  the last number is. A box that holds more than a number with a unit or a name
  (`x = 12`, `12 \text{ cm}`) has no number. Spelled as by `answers.normalize_number`.
  """
  box = find_boxed(text)
  if box is not None and text.rfind("####") < text.rfind(box):
    return _number_in_box(box)
  marked = find_marked_number(text)
  return find_last_number(text) if marked is None else marked


def find_choice(text: str, letters: str = "ABCD") -> str | None:
  r"""Returns the letter that a response chooses, else None.

  In this order: the box, if a letter opens it; the last "answer is B" (or option,
  choice; with or without brackets, stars, a colon); a response that is or begins with
  a letter ("B", "(B) Paris"); the last letter in brackets; a last word that is a
  letter. Small letters count in a box and in brackets only.

  Args:
    text: the response.
    letters: those that may be chosen, as capitals.
  """
  some = f"[{letters}]"
  any_case = f"[{letters}{letters.lower()}]"
  plain = _STYLE.sub(r"\1", text)
  box = find_boxed(plain)
  if box is not None:
    found = re.match(rf"\W*({any_case})(?![\w'])", box)
    if found:
      return found[1].upper()
  # "The answer is A number": the article, unless a reason follows.
  goes_on = r"(?!\s+(?!because|since|as\b|and|but|for\b|which)[a-z])"
  stated = re.compile(
    rf"(?i:answer|option|choice)\b[^A-Za-z0-9]*(?i:(?:is|was|be)\b)?[^A-Za-z0-9]*"
    rf"(?i:(?:option|choice)\b)?[^A-Za-z0-9]*({some})(?![\w'\u2019]){goes_on}"
  )
  found = list(stated.finditer(plain))
  if found:
    return found[-1][1]
  alone = re.fullmatch(rf"\W*({some})\W*", plain) or re.match(
    rf"\s*[(*]*({some})[).:*]", plain
  )
  if alone:
    return alone[1]
  found = re.findall(rf"[(\[]({any_case})[)\]]", plain)
  if found:
    return found[-1].upper()
  last = re.search(rf"(?<![\w'])({some})\W*$", plain)
  return last[1] if last else None


def normalize_text(text: str) -> str:
  r"""Returns an answer without what says nothing, to be compared as a string.

  Spaces, dollar signs, `\left`, `\right`, styles and a full stop go; `\dfrac` becomes
  `\frac`; letters become small.
  """
  text = _SPACES.sub("", _STYLE.sub(r"\1", text))
  text = re.sub(r"\\left\b|\\right\b", "", text)
  text = re.sub(r"\\[dt]frac\b", r"\\frac", text)
  return re.sub(r"\s+", "", text).rstrip(".").lower()


class _Box(NamedTuple):
  begin: int
  inside: int
  end: int


def _closed_boxes(text: str) -> list[_Box]:
  r"""Returns the boxes that are closed, and of boxes inside each other the innermost.

  Of those inside only a `\boxed` that holds something counts. Of a box that is never
  closed, what it holds is returned.

  Source: the graders of MATH (`last_boxed_only_string`; lm-evaluation-harness has it,
  too) begin at the last `\boxed`, which of nested ones is the inner one.
  Differs: they find nothing where that one is never closed; here the last closed one
  counts. They take an inner one that is empty, too; here it never replaces the outer.
  """
  open_braces: list[tuple[int, int] | None] = []
  boxes: list[_Box] = []
  minor: list[_Box] = []  # those that give way to a box around them
  for match in _BRACES.finditer(text):
    if match[0] == "}":
      opened = open_braces.pop() if open_braces else None
      if opened is None:
        continue
      box = _Box(*opened, match.end())
      content = text[box.inside : match.start()].strip()
      if minor and content == text[minor[-1].begin : minor[-1].end]:
        inner = minor[-1]
        if text[inner.inside : inner.end - 1].strip():
          continue  # a box around a box and nothing else
      while minor and minor[-1].begin > box.begin:
        minor.pop()
      if boxes and boxes[-1].begin > box.begin:
        continue
      is_boxed = text.startswith(r"\boxed", box.begin)
      (boxes if is_boxed and content else minor).append(box)
    elif match[0].endswith("{") and match[0] != r"\{":
      is_box = match[0] != "{"
      open_braces.append((match.start(), match.end()) if is_box else None)
  return sorted(boxes + minor)


def _number_in_box(box: str) -> str | None:
  plain = _SPACES.sub(lambda found: "," if "{" in found[0] else "", box)
  plain = _STYLE.sub(r" \1", plain).rpartition("=")[2].strip()
  number = normalize_number(plain)
  if number is not None or _OPERATION.search(plain):
    return number
  numbers = re.findall(r"\d+(?:[.,]\d+)*", plain)
  return find_last_number(plain) if len(numbers) == 1 else None
