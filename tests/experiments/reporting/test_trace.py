import xml.etree.ElementTree as ET

import numpy as np
import pytest

from experiments.reporting import trace
from experiments.reporting.search_responses import Searched
from experiments.reporting.trace import Trace
from phi4_jax.eval.statistics import wilson_interval
from phi4_jax.pts.counts import Value

_SVG = "{http://www.w3.org/2000/svg}"


def _trace(tokens, successes, *, confirmed=(), probs=None):
  """Of ten rollouts at each token; behind the last one stands the verdict."""
  counts = [Value(each, 10) for each in successes[:-1]]
  spans = [wilson_interval(*value[:2]) for value in counts]
  spans.append((successes[-1],) * 3)
  estimates, lows, highs = np.array(spans, float).T
  response = Searched(
    question=3,
    index=1,
    correct=bool(successes[-1]),
    token_ids=tuple(range(len(tokens))),
    tokens=tuple(tokens),
    probs=tuple(probs or [0.5] * len(tokens)),
    estimates=estimates,
    lows=lows,
    highs=highs,
    counts=dict(enumerate(counts)),
    left={},
    alternatives={},
    hypotheses={},
  )
  return Trace(
    response=response,
    prompt="1+1?",
    confirmed=frozenset(confirmed),
    gap=0.2,
    word="confirmed",
  )


def _parse(picture):
  return ET.fromstring(str(picture))


def _all(root, name, class_):
  return [
    e for e in root.iter(f"{_SVG}{name}") if class_ in e.attrib.get("class", "").split()
  ]


def test_values_and_boxes():
  found = _trace(["a", "b", "c"], [5, 3, 4, 1], confirmed=[1])
  assert found.values == [0.5, 0.3, 0.4, 1.0]
  assert [found.is_boxed(i) for i in range(3)] == [True, True, True]
  assert not _trace(["a", "b"], [5, 4, 0]).is_boxed(0)


def test_confirmed_boxes_are_solid_and_others_dashed():
  root = _parse(trace.draw_trace(_trace(list("abc"), [5, 8, 8, 1], confirmed=[0]), 720))
  boxes = _all(root, "rect", "box")
  assert [("doubt" in box.attrib["class"]) for box in boxes] == [False, True]
  changes = [e.text for e in root.iter(f"{_SVG}text") if e.text and e.text[0] == "+"]
  assert changes == ["+.30", "+.20"]
  assert len(_all(root, "line", "move-up")) == 2


def test_improbable_tokens_are_underlined():
  found = _trace(list("abc"), [5, 5, 5, 1], probs=[0.1, 0.11, 0.02])
  assert len(_all(_parse(trace.draw_trace(found, 720)), "line", "rare")) == 2


def test_the_line_goes_through_the_values():
  root = _parse(trace.draw_trace(_trace(list("abcd"), [0, 5, 10, 5, 0]), 720))
  (path,) = _all(root, "polyline", "path")
  heights = [float(p.split(",")[1]) for p in path.attrib["points"].split()]
  assert heights[0] == heights[4] > heights[1] == heights[3] > heights[2]
  assert heights[0] - heights[1] == pytest.approx(heights[1] - heights[2], abs=0.11)


@pytest.mark.parametrize("width", [340, 720])
def test_long_responses_go_on_in_the_next_row_and_fit(width):
  tokens = ["token"] * 40 + ["x" * 100]
  root = _parse(trace.draw_trace(_trace(tokens, [5] * 41 + [1]), width))
  rows = _all(root, "polyline", "path")
  assert len(rows) > 1
  # The end of a row and the beginning of the next are one value.
  points = sum(len(row.attrib["points"].split()) for row in rows)
  assert points == 42 + len(rows) - 1
  edges = [float(p.split(",")[0]) for r in rows for p in r.attrib["points"].split()]
  assert max(edges) <= width
  shown = [e.text for e in _all(root, "text", "mono")]
  assert len(shown) == 41 and shown[-1] == "x" * 17 + "\N{HORIZONTAL ELLIPSIS}"


def test_blanks_are_shown():
  assert (
    trace.show_token(" a\n") == "\N{OPEN BOX}a\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}"
  )
  assert trace.show_token("") == "\N{EMPTY SET}"


def test_picture_stands_alone_and_escapes():
  found = _trace(["</text>", "&"], [5, 2, 0], confirmed=[0])
  picture = trace.draw_picture(found)
  root = _parse(picture)
  assert [e.text for e in _all(root, "text", "mono")] == ["</text>", "&"]
  assert "var(" not in picture and "href" not in picture
  assert root.attrib["width"] == "760"
  assert "wrong answer" in root.attrib["aria-label"]
  legend = [e for e in root.iter(f"{_SVG}text") if e.text and "not confirmed" in e.text]
  assert legend
