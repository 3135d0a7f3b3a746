"""Odd texts by the thousand, always the same for a seed.

Each text is a few fragments of different kinds in a row, because tokenizers differ
where one kind of character meets another.
"""

import random
from collections.abc import Callable, Sequence

# Blocks that are written in different ways: by spaces, without spaces, from right to
# left, with marks above and below.
_BLOCKS = (
  (0x21, 0x7E), (0xA1, 0x24F), (0x300, 0x36F), (0x370, 0x3FF), (0x400, 0x4FF),
  (0x590, 0x5FF), (0x600, 0x6FF), (0x900, 0x97F), (0xE00, 0xE7F), (0x1100, 0x11FF),
  (0x2000, 0x206F), (0x2150, 0x218F), (0x2200, 0x22FF), (0x3040, 0x30FF),
  (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xE000, 0xE0FF), (0xFF00, 0xFFEF),
  (0x10330, 0x1034F), (0x1D400, 0x1D7FF), (0x20000, 0x2A6DF),
)  # fmt: skip
_SPACES = " \u00a0\u2003\u3000\u200b\u2028\t\n\r\v\f\u0085"
_EMOJI = (
  "\U0001f600\U0001f469\U0001f3fd\u200d\U0001f4bb\ufe0f\U0001f1e9\U0001f1ea\u2764"
)
_DIGITS = "0123456789\u0663\u0967\u2167\u00b2\u2460\uff15"
_ENDINGS = ("'s", "'LL", "'re", "'VE", "'d", "'M", "\u2019s", "'", "''s")
_WORDS = (
  "the", "The", "THE", "hello", "world", "na\u00efve", "stra\u00dfe", "\u0130stanbul",
  "\u4f60\u597d", "\u0645\u0631\u062d\u0628\u0627", "def", "return", "lambda", "import",
  "antidisestablishmentarianism", "e\u0301te\u0301", "x", "I", "ok",
)  # fmt: skip
_CODE = (
  "def f(x):\n    return x ** 2\n", "for (int i = 0; i < n; ++i) {\r\n\t", "}\n\n\n",
  "a[i]->b != c && !d || ~e", "<div class=\"x\">&nbsp;</div>", "// ----- #!/bin/sh",
  "\\begin{align*} x^2_{ij} \\\\ \\end{align*}", "{\"k\": [1, 2.5e-3, null]}",
  "SELECT * FROM t WHERE a='b';", "0xDEADBEEF 1_000_000 3.14159e+10", "\\u00e9\\n",
)  # fmt: skip


def _pick(rng: random.Random, letters: str, most: int) -> str:
  return "".join(rng.choices(letters, k=rng.randint(1, most)))


def _any_script(rng: random.Random) -> str:
  low, high = rng.choice(_BLOCKS)
  return "".join(chr(rng.randint(low, high)) for _ in range(rng.randint(1, 8)))


def _any_character(rng: random.Random) -> str:
  code = rng.randint(0, rng.choice((0x2FF, 0xFFFF, 0x1FFFF, 0x10FFFF)))
  return chr(code) if not 0xD800 <= code < 0xE000 else "\ufffd"


def fuzz_texts(count: int, *, seed: int, controls: Sequence[str]) -> list[str]:
  """Returns `count` texts.

  Args:
    count: how many.
    seed: of all choices.
    controls: names of special tokens, which appear whole, cut and doubled.
  """
  rng = random.Random(seed)

  def look_alike() -> str:
    name = rng.choice(controls)
    cut = rng.randint(1, len(name))
    return rng.choice((name, name, name * 2, name[:cut], name[cut:], f" {name}\n"))

  kinds: list[Callable[[], str]] = [
    lambda: rng.choice(_WORDS),
    lambda: " " + rng.choice(_WORDS),
    lambda: rng.choice(_WORDS) + rng.choice(_ENDINGS),
    lambda: _pick(rng, _SPACES, 6),
    lambda: rng.choice(" \n\t") * rng.randint(1, 40),
    lambda: _pick(rng, _DIGITS, 12),
    lambda: _pick(rng, _EMOJI, 5),
    lambda: rng.choice(_CODE),
    lambda: _pick(rng, "!?.,;:-_=+*/\\|()[]{}<>@#$%^&~`'\"", 10),
    lambda: _any_script(rng),
    lambda: _any_character(rng),
    look_alike,
  ]
  return [
    "".join(rng.choice(kinds)() for _ in range(rng.randint(1, 12)))
    for _ in range(count)
  ]
