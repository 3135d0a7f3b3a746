import math
import xml.etree.ElementTree as ET

import pytest

from experiments.reporting import charts
from experiments.reporting.charts import Bar, Curve, IntervalRow, Scale

_SVG = "{http://www.w3.org/2000/svg}"


def _parse(picture):
  """Parses as XML, so that what is malformed fails."""
  return ET.fromstring(str(picture))


def _texts(root):
  return [element.text for element in root.iter(f"{_SVG}text")]


def test_scale_is_linear():
  scale = Scale(2, 4, 100, 0)
  assert [scale(v) for v in (2, 3, 4)] == [100, 50, 0]


@pytest.mark.parametrize(
  "low, high, ticks",
  [
    (0.52, 0.71, [0.55, 0.6, 0.65, 0.7]),
    (0, 600, [0, 200, 400, 600]),
    (-0.2, 0.4, [-0.2, 0, 0.2, 0.4]),
    (3, 3, [3]),
  ],
)
def test_ticks_are_round(low, high, ticks):
  assert charts.find_ticks(low, high, 4) == ticks


def test_range_of_equal_values_is_not_empty():
  low, high = charts.widen([0.5, 0.5])
  assert low < 0.5 < high


@pytest.mark.parametrize("width", [charts.WIDE, charts.NARROW])
def test_intervals_are_where_they_should_be(width):
  rows = [
    IntervalRow("a & b", 0.5, 0.4, 0.6, runs=(0.45, 0.55)),
    IntervalRow("c", 0.7, 0.65, 0.75, color=2),
  ]
  root = _parse(charts.interval_chart(rows, "Accuracy", width))
  assert root.attrib["aria-label"] == "Accuracy" and root.attrib["role"] == "img"
  dots = [c for c in root.iter(f"{_SVG}circle") if "dot" in c.attrib["class"]]
  runs = [c for c in root.iter(f"{_SVG}circle") if c.attrib["class"].startswith("run")]
  assert len(dots) == 2 and len(runs) == 2
  x = [float(c.attrib["cx"]) for c in (*runs, dots[1])]
  # Equal steps of the value are equal steps on the page: .45, .55, .7.
  assert (x[2] - x[1]) / (x[1] - x[0]) == pytest.approx(1.5, abs=0.01)
  bars = [b for b in root.iter(f"{_SVG}line") if b.attrib["class"].startswith("span")]
  assert float(bars[0].attrib["x1"]) < x[0] < x[1] < float(bars[0].attrib["x2"])
  assert {"a & b", "c", "0.500", "0.700"} <= set(_texts(root))
  inside = [float(e.attrib["x"]) for e in root.iter(f"{_SVG}text")]
  assert min(inside) >= 0 and max(inside) <= width


def test_differences_have_signs_and_a_line_at_zero():
  rows = [IntervalRow("worse", -0.1, -0.15, -0.05), IntervalRow("better", 0.1, 0, 0.2)]
  root = _parse(charts.interval_chart(rows, "Difference", 720, zero=True))
  zero = next(b for b in root.iter(f"{_SVG}line") if b.attrib["class"] == "zero")
  dots = [c for c in root.iter(f"{_SVG}circle") if "dot" in c.attrib["class"]]
  x = [float(dot.attrib["cx"]) for dot in dots]
  assert float(zero.attrib["x1"]) == pytest.approx(sum(x) / 2, abs=0.02)
  assert {"+0.100", "\N{MINUS SIGN}0.100"} <= set(_texts(root))


def test_curves_leave_out_what_is_not_finite():
  curves = [
    Curve("a", [1, 2, 3, 4], [4.0, math.nan, math.inf, 1.0]),
    Curve("b", [1, 4], [2.0, 2.0], color=2, style="dashed"),
  ]
  root = _parse(charts.curve_chart(curves, "sft", "loss"))
  lines = list(root.iter(f"{_SVG}polyline"))
  assert [len(line.attrib["points"].split()) for line in lines] == [2, 2]
  assert "stroke-2 dashed" in lines[1].attrib["class"]
  first, last = (
    [float(v) for v in point.split(",")] for point in lines[0].attrib["points"].split()
  )
  assert first[0] < last[0] and first[1] < last[1]  # y grows downwards
  assert {"sft", "loss"} <= set(_texts(root))


def test_a_curve_without_any_number_says_so():
  root = _parse(charts.curve_chart([Curve("a", [1], [math.nan])], "sft", "loss"))
  assert "nothing finite" in _texts(root)[0]
  one = _parse(charts.curve_chart([Curve("a", [7], [0.5])], "sft", "loss"))
  assert len(list(one.iter(f"{_SVG}polyline"))) == 1


def test_histogram_counts_every_value_once():
  edges = [i / 10 for i in range(11)]
  bars = charts.make_histogram([0.0, 0.1, 0.3, 0.6, 0.95, 1.0], edges, "kept")
  assert [bar.count for bar in bars] == [1, 1, 0, 1, 0, 0, 1, 0, 0, 2]


def test_bars_stand_on_each_other():
  bars = [Bar(0, 1, 2, "kept"), Bar(1, 2, 1, "kept"), Bar(0, 1, 3, "neutral")]
  root = _parse(charts.bar_chart(bars, "Questions", "share"))
  first, second, third = root.iter(f"{_SVG}rect")
  assert float(third.attrib["y"]) + float(third.attrib["height"]) == pytest.approx(
    float(first.attrib["y"]), abs=0.02
  )
  heights = [float(each.attrib["height"]) for each in (first, second, third)]
  assert heights[2] == pytest.approx(1.5 * heights[0], rel=0.01)
  assert heights[0] == pytest.approx(2 * heights[1], rel=0.01)
