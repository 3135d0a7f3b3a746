"""A solution token by token, with p(success) along it, as one picture.

Source: arXiv:2412.08905 figure 3 (line over tinted tokens, pivots boxed with their
change, improbable tokens underlined).
Differs: the line has a 95% band; a box is solid where a pivot was found (in mode
"paper" confirmed with fresh rollouts), and dashed where only the trace moves that far.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

from experiments.reporting.charts import Scale, line, svg, text
from experiments.reporting.markup import Markup, join, tag
from experiments.reporting.search_responses import Searched
from experiments.reporting.style import NUM_TINTS, picture_css
from phi4_jax.pts.counts import reaches

RARE = 0.1
_LEFT, _PLOT, _TOKEN, _SUBSCRIPT, _GAP = 34, 92, 22, 16, 14
_CHARACTER = 7.9
_LEGEND_WIDTHS = (106, 130, 150, 206, 136)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trace:
  """A response with p(success) at every token.

  Attributes:
    response: what is shown.
    prompt: the question.
    confirmed: positions of the pivots that were found.
    word: how these are called: not every mode confirms them.
    gap: the least change that counts as pivotal.
  """

  response: Searched
  prompt: str
  confirmed: frozenset[int]
  gap: float
  word: str

  @functools.cached_property
  def values(self) -> list[float]:
    """p(success) before the first token, and after each."""
    return [float(value) for value in self.response.estimates]

  @property
  def verdict(self) -> str:
    return "right" if self.response.correct else "wrong"

  def is_boxed(self, position: int) -> bool:
    """Whether a token was found to be pivotal, or looks like one in the trace."""
    change = self.values[position + 1] - self.values[position]
    return position in self.confirmed or reaches(change, self.gap)


def show_token(token: str) -> str:
  """A token with its blanks and line ends visible."""
  shown = token.replace("\n", "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}")
  return shown.replace(" ", "\N{OPEN BOX}") or "\N{EMPTY SET}"


def describe(trace: Trace) -> str:
  """The picture in words."""
  values = trace.values
  moves = [
    f"{show_token(token)} {values[i]:.2f} to {values[i + 1]:.2f}"
    for i, token in enumerate(trace.response.tokens)
    if i in trace.confirmed
  ]
  return (
    f"p(success) along {len(values) - 1} tokens of a {trace.verdict} answer, from "
    f"{values[0]:.2f} to {values[-1]:.0f}. {trace.word.capitalize()} pivots: "
    f"{', '.join(moves) or 'none'}."
  )


def draw_trace(trace: Trace, width: int) -> Markup:
  """The picture at a given width; long responses go on in the next row."""
  parts, height = _draw_rows(trace, width)
  return svg(width, height, describe(trace), parts)


def draw_picture(trace: Trace, width: int = 760) -> str:
  """The picture as an SVG file of its own: light, with heading and legend."""
  margin, top = 16, 84
  parts, height = _draw_rows(trace, width - 2 * margin)
  question = trace.prompt.strip()
  shown = question if len(question) <= 60 else question[:59] + "\N{HORIZONTAL ELLIPSIS}"
  legend, x = [], 0.0
  marks = legend_marks(trace.word)
  for (mark, words), space in zip(marks, _LEGEND_WIDTHS, strict=True):
    legend.append(
      tag(
        "g", mark, text(36, 12, words, "muted small"), transform=f"translate({x:g} 0)"
      )
    )
    x += space
  content = join(
    tag("style", Markup(picture_css())),
    tag("rect", width=width, height=height + top + margin, fill="#ffffff"),
    tag(
      "g",
      text(0, 16, f"p(success) along a {trace.verdict} answer to: {shown}", "strong"),
      tag("g", legend, transform="translate(0 32)"),
      tag("g", parts, transform=f"translate(0 {top - 24})"),
      transform=f"translate({margin} {margin})",
    ),
  )
  return svg(width, height + top + margin, describe(trace), content, width=width) + "\n"


def legend_marks(word: str) -> list[tuple[Markup, str]]:
  """Each sign of the picture (28 by 16) with its meaning; `word`: see `Trace`."""
  cells = [
    tag("rect", x=4 + 8 * i, y=2, width=7, height=12, class_=f"p-{p}")
    for i, p in enumerate((0, 5, 10))
  ]
  return [
    (join(cells), "p: 0 to 1"),
    (join(_band_mark()), "95% interval"),
    (
      tag("rect", x=5, y=1, width=20, height=14, rx=3, class_="box"),
      f"{word} pivot",
    ),
    (
      tag("rect", x=5, y=1, width=20, height=14, rx=3, class_="box doubt"),
      f"moves as far, not {word}",
    ),
    (line(5, 13, 25, 13, "rare"), f"probability \N{LESS-THAN OR EQUAL TO} {RARE}"),
  ]


def _band_mark() -> list[Markup]:
  return [
    tag("rect", x=2, y=2, width=26, height=12, class_="band"),
    tag("polyline", points="2,11 28,5", class_="path"),
  ]


def _draw_rows(trace: Trace, width: int) -> tuple[list[Markup], float]:
  tokens = [_shorten(show_token(token)) for token in trace.response.tokens]
  widths = [max(18.0, len(token) * _CHARACTER + 8) for token in tokens]
  parts, y = [], 6.0
  for first, last in _wrap(widths, width - _LEFT - 4):
    edges = [float(_LEFT)]
    for token_width in widths[first:last]:
      edges.append(edges[-1] + token_width)
    parts += _draw_line(trace, first, last, edges, y)
    parts += _draw_tokens(trace, tokens, first, last, edges, y + _PLOT + 6)
    y += _PLOT + _TOKEN + _SUBSCRIPT + _GAP
  return parts, y - _GAP + 6


def _wrap(widths: Sequence[float], room: float) -> list[tuple[int, int]]:
  """Splits tokens into rows of about equal length that fit the room."""
  num_rows = max(1, math.ceil(sum(widths) / room))
  target = min(room, sum(widths) / num_rows + max(widths, default=0.0))
  rows, first, used = [], 0, 0.0
  for i, width in enumerate(widths):
    if used and used + width > target:
      rows.append((first, i))
      first, used = i, 0.0
    used += width
  return [*rows, (first, len(widths))]


def _draw_line(trace, first, last, edges, y) -> list[Markup]:
  scale = Scale(0, 1, y + _PLOT, y)
  parts = []
  for tick, label in ((0, "0"), (0.5, ".5"), (1, "1")):
    parts.append(line(edges[0], scale(tick), edges[-1], scale(tick), "grid"))
    parts.append(text(_LEFT - 8, scale(tick) + 4, label, "muted small", "end"))
  rows = slice(first, last + 1)
  lows, highs = trace.response.lows[rows], trace.response.highs[rows]
  estimates = trace.values[rows]
  outline = [(x, scale(low)) for x, low in zip(edges, lows, strict=True)]
  outline += [(x, scale(high)) for x, high in zip(edges, highs, strict=True)][::-1]
  parts.append(tag("polygon", points=_points(outline), class_="band"))
  heights = [scale(value) for value in estimates]
  path = list(zip(edges, heights, strict=True))
  parts.append(tag("polyline", points=_points(path), class_="path"))
  for i in range(last - first):
    if trace.is_boxed(first + i):
      rises = estimates[i + 1] >= estimates[i]
      direction = "move-up" if rises else "move-down"
      parts.append(line(*path[i], *path[i + 1], direction))
  return parts


def _draw_tokens(trace, tokens, first, last, edges, y) -> list[Markup]:
  values, probs = trace.values, trace.response.probs
  parts = []
  for i in range(first, last):
    x, end = edges[i - first], edges[i - first + 1]
    middle = (x + end) / 2
    tint = round(values[i + 1] * (NUM_TINTS - 1))
    drawn = [
      tag("title", _say_token(trace, i)),
      tag("rect", x=x, y=y, width=end - x, height=_TOKEN, class_=f"p-{tint}"),
      text(middle, y + 15, tokens[i], "mono", "middle"),
    ]
    if probs[i] <= RARE:
      drawn.append(line(x + 4, y + 18.5, end - 4, y + 18.5, "rare"))
    if trace.is_boxed(i):
      box = "box" if i in trace.confirmed else "box doubt"
      inside = {"x": x + 1, "y": y + 0.5, "width": end - x - 2, "height": _TOKEN - 1.0}
      drawn.append(tag("rect", **inside, rx=3, class_=box))
    parts.append(tag("g", drawn))
  # Subscripts last, each where it does not run into the one before.
  free = 0.0
  for i in range(first, last):
    if trace.is_boxed(i):
      change = values[i + 1] - values[i]
      middle = max((edges[i - first] + edges[i - first + 1]) / 2, free + 16)
      free = middle + 17
      direction = "up" if change >= 0 else "down"
      shown = f"{change:+.2f}".replace("-", "\N{MINUS SIGN}").replace("0.", ".")
      parts.append(
        text(middle, y + _TOKEN + 13, shown, f"{direction} small strong", "middle")
      )
  return parts


def _say_token(trace: Trace, i: int) -> str:
  values, counted = trace.values, trace.response.counts.get(i + 1)
  said = (
    f"{show_token(trace.response.tokens[i])}: probability "
    f"{trace.response.probs[i]:.2f}, p(success) {values[i]:.2f} to {values[i + 1]:.2f}"
  )
  return f"{said} ({counted.rollouts} rollouts after it)" if counted else said


def _shorten(token: str) -> str:
  return token if len(token) <= 18 else token[:17] + "\N{HORIZONTAL ELLIPSIS}"


def _points(points: Sequence[tuple[float, float]]) -> str:
  return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
