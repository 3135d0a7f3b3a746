"""Carries formulas, code and tables through an extractor that would damage them.

Before extraction each such piece is replaced by ordinary words between two marks, so
that the extractor sees a text of about the same length; afterwards, what stands between
the marks is replaced by the piece as it should read. The marks are letters and digits,
because extractors remove what cannot be printed and break at punctuation.
"""

import re

from phi4_jax.curation.extract_limits import Unextractable


class Marks:
  """Pieces that are put away and put back.

  >>> marks = Marks("a text")
  >>> marks.put("$x^2$")
  'zqxm0b x 2 zqxm0e'
  >>> marks.restore("see zqxm0b x 2 zqxm0e")
  'see $x^2$'
  """

  def __init__(self, source: str, *, max_characters: int = 20_000_000):
    self._prefix = "zqxm"
    while self._prefix in source:  # somebody writes about these marks
      self._prefix += "q"
      if len(self._prefix) > 40:
        raise Unextractable("unreadable", "is full of the marks of the extractor")
    self._mark = re.compile(rf"{self._prefix}(?:(\d+)([be])|h([1-6]) ?|p)")
    self._pieces: list[str] = []
    self._free = max_characters

  def put(self, piece: str, *, block: bool = False) -> str:
    """Returns what stands for `piece`, which may itself hold marks.

    A block is restored with lines of its own.
    """
    piece = self.restore(piece)
    words = " ".join(re.findall(r"\w+", piece)) or "x"
    self._free -= len(piece)
    if self._free < 0:
      raise Unextractable("too_much_text", "more characters than are allowed")
    number = len(self._pieces)
    self._pieces.append(f"\n\n{piece}\n\n" if block else piece)
    return f"{self._prefix}{number}b {words} {self._prefix}{number}e"

  def heading(self, level: int) -> str:
    """Returns what stands for the number signs in front of a heading."""
    return f"{self._prefix}h{level} "

  def end_of_paragraph(self) -> str:
    """Returns what stands for an empty line."""
    return f" {self._prefix}p"

  def restore(self, text: str) -> str:
    """Puts all pieces back; a mark whose partner was lost still gives its piece."""
    if self._prefix not in text:
      return text
    found = list(self._mark.finditer(text))
    ends = {int(match[1]): match for match in found if match[2] == "e"}
    parts, position = [], 0
    for match in found:
      if match.start() < position:
        continue  # inside a piece that was put back as a whole
      parts.append(text[position : match.start()])
      position = match.end()
      if match[3]:
        parts.append(f"\n{'#' * int(match[3])} ")
      elif not match[1]:
        parts.append("\n")
      elif match[2] == "b":
        number = int(match[1])
        parts.append(self._pieces[number] if number < len(self._pieces) else "")
        end = ends.get(number)
        if end is not None and end.start() >= position:
          position = end.end()
    parts.append(text[position:])
    return "".join(parts)
