"""Charts as SVG: intervals in rows, curves, bars.

Knows numbers, names and sizes; refuses to know runs. Every chart is an image with a
title that a screen reader says; colours come from the style sheet by class.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from experiments.reporting.markup import Markup, join, tag

WIDE, NARROW = 720, 340


def responsive(draw: Callable[[int], Markup]) -> Markup:
  """A picture drawn twice, for a wide page and for a telephone; one is shown."""
  return join(
    tag("div", draw(WIDE), class_="wide"), tag("div", draw(NARROW), class_="narrow")
  )


def svg(
  width: float, height: float, label: str, /, *children: Any, **attributes: Any
) -> Markup:
  """An SVG image that says what it shows."""
  return tag(
    "svg",
    tag("title", label),
    *children,
    xmlns="http://www.w3.org/2000/svg",
    viewBox=f"0 0 {width:g} {height:g}",
    role="img",
    aria_label=label,
    **attributes,
  )


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
  return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def text(x: float, y: float, content: Any, class_: str = "", anchor: str = "start"):
  return tag("text", content, x=x, y=y, class_=class_ or None, text_anchor=anchor)


class Scale(NamedTuple):
  """Maps numbers from `low` to `high` onto coordinates from `start` to `end`."""

  low: float
  high: float
  start: float
  end: float

  def __call__(self, value: float) -> float:
    share = (value - self.low) / (self.high - self.low)
    return self.start + share * (self.end - self.start)


def find_ticks(low: float, high: float, count: int = 5) -> list[float]:
  """About `count` round numbers from `low` to `high`.

  >>> find_ticks(0.52, 0.71)
  [0.55, 0.6, 0.65, 0.7]
  """
  if not high > low:
    return [low]
  raw = (high - low) / count
  magnitude = 10.0 ** math.floor(math.log10(raw))
  step = magnitude * next(m for m in (1, 2, 5, 10) if m * magnitude >= raw * (1 - 1e-9))
  first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
  return [round(n * step, 12) for n in range(first, last + 1)]


def format_tick(value: float) -> str:
  """A tick's number, as short as it can be."""
  if abs(value) >= 10_000:
    return f"{value / 1000:g}k"
  return f"{value:g}".replace("-", "\N{MINUS SIGN}")


def widen(values: Sequence[float], share: float = 0.06) -> tuple[float, float]:
  """The range of values with a margin; never empty."""
  low, high = min(values), max(values)
  margin = (high - low) * share or max(abs(high), 1.0) * share
  return low - margin, high + margin


class IntervalRow(NamedTuple):
  """One row of `interval_chart`: an estimate, its interval, and single runs."""

  name: str
  estimate: float
  low: float
  high: float
  runs: Sequence[float] = ()
  color: int = 0


def interval_chart(
  rows: Sequence[IntervalRow], label: str, width: int, *, zero: bool = False
) -> Markup:
  """A dot with its bar of uncertainty in each row; small circles are single runs.

  With `zero` the axis holds zero, with a dashed line, and numbers carry a sign.
  """
  narrow = width < 500
  name_width = 0 if narrow else 150
  row_height = 46 if narrow else 34
  left, right = name_width + 8, width - 62
  height = 8 + row_height * len(rows) + 24
  shown = [v for row in rows for v in (row.low, row.high, row.estimate, *row.runs)]
  scale = Scale(*widen([*shown, 0.0] if zero else shown), left, right)
  bottom = height - 24
  parts = []
  for tick in find_ticks(scale.low, scale.high, 4 if narrow else 7):
    parts.append(line(scale(tick), 4, scale(tick), bottom, "grid"))
    parts.append(text(scale(tick), bottom + 16, format_tick(tick), "muted", "middle"))
  if zero:
    parts.append(line(scale(0), 4, scale(0), bottom, "zero"))
  for number, row in enumerate(rows):
    y = 8 + row_height * number + (32 if narrow else row_height / 2)
    where = (0, y - 15) if narrow else (0, y + 4)
    parts.append(text(*where, row.name, "strong halo"))
    color = row.color % 6
    low, high = scale(row.low), scale(row.high)
    parts.append(line(low, y, high, y, f"span stroke-{color}"))
    for end in (low, high):
      parts.append(line(end, y - 5, end, y + 5, f"whisker stroke-{color}"))
    parts += [
      tag("circle", cx=scale(run), cy=y, r=3, class_=f"run stroke-{color}")
      for run in row.runs
    ]
    number_text = f"{row.estimate:+.3f}" if zero else f"{row.estimate:.3f}"
    said = f"{row.name}: {number_text}, 95% from {row.low:.3f} to {row.high:.3f}"
    parts.append(
      tag(
        "circle",
        tag("title", said),
        cx=scale(row.estimate),
        cy=y,
        r=5.5,
        class_=f"dot fill-{color}",
      )
    )
    minus = number_text.replace("-", "\N{MINUS SIGN}")
    parts.append(text(width - 2, y + 4, minus, "strong", "end"))
  return svg(width, height, label, parts)


class Curve(NamedTuple):
  """One line of `curve_chart`."""

  name: str
  xs: Sequence[float]
  ys: Sequence[float]
  color: int = 1
  style: str = ""


def curve_chart(
  curves: Sequence[Curve],
  title: str,
  measure: str,
  *,
  width: int = 320,
  height: int = 196,
) -> Markup:
  """Lines of a measure over steps. Points that are not finite are left out."""
  label = f"{title}: {measure}, by training step"
  kept = [
    [p for p in zip(c.xs, c.ys, strict=True) if math.isfinite(p[1])] for c in curves
  ]
  xs = [x for points in kept for x, _ in points]
  ys = [y for points in kept for _, y in points]
  if not xs:
    return svg(width, 40, label, text(0, 14, f"{label}: nothing finite", "muted"))
  left, right, top, bottom = 40, width - 14, 44, height - 22
  x_scale = Scale(min(xs), max(max(xs), min(xs) + 1), left, right)
  y_scale = Scale(*widen(ys), bottom, top)
  parts = [text(0, 13, title, "strong"), text(0, 30, measure, "muted")]
  for tick in find_ticks(y_scale.low, y_scale.high, 6):
    y = y_scale(tick)
    parts.append(line(left, y, right, y, "grid"))
    parts.append(text(left - 6, y + 4, format_tick(tick), "muted small", "end"))
  for tick in find_ticks(x_scale.low, x_scale.high, 4):
    x = x_scale(tick)
    parts.append(text(x, height - 6, format_tick(tick), "muted small", "middle"))
  for curve, points in zip(curves, kept, strict=True):
    path = " ".join(f"{x_scale(x):.1f},{y_scale(y):.1f}" for x, y in points)
    classes = f"curve stroke-{curve.color % 6} {curve.style}".strip()
    parts.append(tag("polyline", tag("title", curve.name), points=path, class_=classes))
  return svg(width, height, label, parts)


class Bar(NamedTuple):
  """One bar: where it begins and ends on the axis, its height, and its class."""

  low: float
  high: float
  count: float
  class_: str


def bar_chart(
  bars: Sequence[Bar],
  title: str,
  label: str,
  *,
  width: int = 320,
  height: int = 180,
) -> Markup:
  """A histogram; bars with the same ends stand on each other."""
  left, top, bottom = 34, 28, height - 38
  tops: dict[float, float] = {}
  for bar in bars:
    tops[bar.low] = tops.get(bar.low, 0) + bar.count
  x_scale = Scale(min(b.low for b in bars), max(b.high for b in bars), left, width - 8)
  y_scale = Scale(0, max(*tops.values(), 1), bottom, top)
  parts = [text(0, 13, title, "strong")]
  for tick in find_ticks(0, y_scale.high, 5):
    if tick == int(tick):
      parts.append(line(left, y_scale(tick), width - 8, y_scale(tick), "grid"))
      parts.append(
        text(left - 6, y_scale(tick) + 4, format_tick(tick), "muted small", "end")
      )
  stacked: dict[float, float] = {}
  for bar in bars:
    base = stacked.get(bar.low, 0)
    stacked[bar.low] = base + bar.count
    if bar.count:
      said = f"{bar.low:.2g} to {bar.high:.2g}: {bar.count:g}"
      y = y_scale(base + bar.count)
      x, end = x_scale(bar.low) + 1, x_scale(bar.high) - 1
      parts.append(
        tag(
          "rect",
          tag("title", said),
          x=x,
          y=y,
          width=max(end - x, 1.0),
          height=y_scale(base) - y,
          class_=bar.class_,
        )
      )
  for tick in find_ticks(x_scale.low, x_scale.high, 5):
    parts.append(
      text(x_scale(tick), bottom + 15, format_tick(tick), "muted small", "middle")
    )
  parts.append(text((left + width - 8) / 2, height - 5, label, "muted small", "middle"))
  return svg(width, height, f"{title}: {label}", parts)


def make_histogram(
  values: Sequence[float], edges: Sequence[float], class_: str
) -> list[Bar]:
  """Counts values between neighbouring edges; the last one belongs to the last bar."""
  counts = [0] * (len(edges) - 1)
  for value in values:
    for i, (low, high) in enumerate(zip(edges, edges[1:], strict=False)):
      last = i == len(counts) - 1
      if low - 1e-9 <= value < high - 1e-9 or (last and abs(value - high) < 1e-9):
        counts[i] += 1
        break
  return [
    Bar(low, high, count, class_)
    for low, high, count in zip(edges, edges[1:], counts, strict=False)
  ]
