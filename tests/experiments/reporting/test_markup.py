import pytest

from experiments.reporting.markup import Markup, format_number, join, tag


def test_text_is_escaped_and_markup_is_not():
  assert tag("td", "1 < 2 & 3", tag("b", "x")) == "<td>1 &lt; 2 &amp; 3<b>x</b></td>"
  assert join(Markup("<i>"), "<i>") == "<i>&lt;i&gt;"


def test_attributes_are_escaped_named_and_left_out():
  found = tag("a", "t", href='"><script>', class_="up", aria_label=None, hidden=True)
  assert found == '<a href="&quot;&gt;&lt;script&gt;" class="up" hidden>t</a>'
  assert (
    tag("line", x1=0.5, stroke_width=2) == '<line x1="0.5" stroke-width="2"></line>'
  )
  assert tag("meta", name="viewport") == '<meta name="viewport">'


def test_children_may_be_numbers_nothing_and_lists():
  assert tag("p", 3, None, ["a", [tag("b"), 0.5]]) == "<p>3a<b></b>0.5</p>"
  with pytest.raises(TypeError, match="object is no content"):
    tag("p", object())


@pytest.mark.parametrize(
  "value, shown",
  [(0.0, "0"), (1.0, "1"), (1.239, "1.24"), (-0.5, "-0.5"), (100.0, "100")],
)
def test_coordinates_are_short(value, shown):
  assert format_number(value) == shown
