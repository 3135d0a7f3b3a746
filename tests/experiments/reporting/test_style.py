"""The palette: every text and mark can be told from what it stands on."""

import re

import pytest

from experiments.reporting import style


def _luminance(color: str) -> float:
  channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
  linear = [
    c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels
  ]
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(first: str, second: str) -> float:
  """As WCAG 2.2 defines it."""
  high, low = sorted((_luminance(first), _luminance(second)), reverse=True)
  return (high + 0.05) / (low + 0.05)


def test_contrast_of_black_and_white():
  assert _contrast("#000000", "#ffffff") == pytest.approx(21)


@pytest.mark.parametrize("palette", [style.LIGHT, style.DARK], ids=["light", "dark"])
class TestContrast:
  def test_text(self, palette):
    for surface in ("paper", "card"):
      for text in ("ink", "muted", "link", "up", "down"):
        assert _contrast(palette[text], palette[surface]) >= 4.5, (text, surface)
    for surface in ("up-soft", "down-soft", "even-soft"):
      assert _contrast(palette["ink"], palette[surface]) >= 4.5, surface

  def test_tokens_on_their_tints(self, palette):
    for step in range(style.NUM_TINTS):
      assert _contrast(palette["ink"], palette[f"p-{step}"]) >= 4.5

  def test_marks(self, palette):
    for name in [f"arm-{i}" for i in range(6)]:
      assert _contrast(palette[name], palette["card"]) >= 3, name


def test_both_schemes_name_the_same_colours():
  assert style.LIGHT.keys() == style.DARK.keys()
  css = style.page_css()
  assert set(re.findall(r"var\(--([\w-]+)\)", css)) <= style.LIGHT.keys()
  assert "prefers-color-scheme: dark" in css


def test_a_picture_of_its_own_needs_no_variables():
  css = style.picture_css()
  assert "var(" not in css and style.LIGHT["ink"] in css
