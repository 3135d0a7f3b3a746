"""Colours and style sheet of the pages, light and dark.

One palette of named colours, twice; everything else refers to the names. Text has a
contrast of 4.5:1 or more on the surfaces it stands on, lines and marks 3:1.
"""

import re

_LIGHT = {
  "paper": "#fbfaf7",
  "card": "#ffffff",
  "ink": "#1b1d21",
  "muted": "#5b606a",
  "rule": "#dcd9d0",
  "grid": "#e9e6de",
  "link": "#1a5591",
  "up": "#0f6b4c",
  "down": "#a5331c",
  "up-soft": "#e1f1ea",
  "down-soft": "#f9e5df",
  "even-soft": "#eeece6",
  "arm-0": "#5b606a",
  "arm-1": "#1a5fa8",
  "arm-2": "#b05a00",
  "arm-3": "#0f7a57",
  "arm-4": "#7a4aa8",
  "arm-5": "#8a6d00",
}
_DARK = {
  "paper": "#14161a",
  "card": "#1c1f25",
  "ink": "#e7e6e2",
  "muted": "#a3a8b2",
  "rule": "#363b44",
  "grid": "#2a2e36",
  "link": "#8ab8ee",
  "up": "#62cda2",
  "down": "#f2957f",
  "up-soft": "#16332a",
  "down-soft": "#42221b",
  "even-soft": "#282c33",
  "arm-0": "#a3a8b2",
  "arm-1": "#74b1f2",
  "arm-2": "#f0a353",
  "arm-3": "#5fcaa0",
  "arm-4": "#c49bee",
  "arm-5": "#d9bf4a",
}
# Tints of p(success) = 0, one half, 1, behind text.
_LIGHT_TINTS = ("#f5c4b8", "#f4f1e8", "#b9d5f3")
_DARK_TINTS = ("#6b2b20", "#2b2e34", "#1f4876")
NUM_TINTS = 11


def _mix(first: str, second: str, share: float) -> str:
  pairs = [(int(first[i : i + 2], 16), int(second[i : i + 2], 16)) for i in (1, 3, 5)]
  return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in pairs)


def _palette(colors: dict[str, str], tints: tuple[str, str, str]) -> dict[str, str]:
  low, middle, high = tints
  steps = {}
  for i in range(NUM_TINTS):
    share = 2 * i / (NUM_TINTS - 1)
    steps[f"p-{i}"] = (
      _mix(low, middle, share) if share <= 1 else _mix(middle, high, share - 1)
    )
  return colors | steps


LIGHT = _palette(_LIGHT, _LIGHT_TINTS)
DARK = _palette(_DARK, _DARK_TINTS)

_CHART_CSS = (
  """
svg text { font: 12px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
  fill: var(--ink); font-variant-numeric: tabular-nums; }
svg .muted { fill: var(--muted); }
svg .small { font-size: 11px; }
svg .strong { font-weight: 650; }
svg .halo { paint-order: stroke; stroke: var(--card); stroke-width: 4px;
  stroke-linejoin: round; }
svg .mono { font: 13px ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono",
  monospace; }
svg .grid { stroke: var(--grid); stroke-width: 1; }
svg .axis { stroke: var(--rule); stroke-width: 1; }
svg .zero { stroke: var(--muted); stroke-width: 1; stroke-dasharray: 3 3; }
svg .curve { fill: none; stroke-width: 1.6; stroke-linejoin: round; }
svg .thin { stroke-width: 1; stroke-opacity: .75; }
svg .dashed { stroke-dasharray: 5 3; }
svg .span { stroke-width: 7; stroke-opacity: .28; }
svg .whisker { stroke-width: 1.5; }
svg .dot { stroke: var(--card); stroke-width: 1.5; }
svg .run { fill: var(--card); stroke-width: 1.2; }
svg .band { fill: var(--arm-1); fill-opacity: .14; stroke: none; }
svg .path { fill: none; stroke: var(--arm-1); stroke-width: 1.8;
  stroke-linejoin: round; stroke-linecap: round; }
svg .move-up { fill: none; stroke: var(--up); stroke-width: 3; stroke-linecap: round; }
svg .move-down { fill: none; stroke: var(--down); stroke-width: 3;
  stroke-linecap: round; }
svg .box { fill: none; stroke: var(--ink); stroke-width: 1.6; }
svg .doubt { stroke: var(--muted); stroke-width: 1.2; stroke-dasharray: 3 2; }
svg .rare { stroke: var(--ink); stroke-width: 1.2; }
svg .up { fill: var(--up); }
svg .down { fill: var(--down); }
svg .neutral { fill: var(--arm-0); fill-opacity: .55; }
svg .kept { fill: var(--arm-1); fill-opacity: .75; }
"""
  + "".join(
    f"svg .fill-{i} {{ fill: var(--arm-{i}); }}\n"
    f"svg .stroke-{i} {{ stroke: var(--arm-{i}); }}\n"
    for i in range(6)
  )
  + "".join(f"svg .p-{i} {{ fill: var(--p-{i}); }}\n" for i in range(NUM_TINTS))
)

_PAGE_CSS = """
* { box-sizing: border-box; }
html { color-scheme: light dark; -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main, header, footer { max-width: 58rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 2.6rem; }
footer { padding: 1.5rem 1.25rem 3rem; color: var(--muted); font-size: .85rem; }
.kicker { color: var(--muted); font-size: .82rem; letter-spacing: .04em; margin: 0; }
h1 { font-size: clamp(1.55rem, 4.6vw, 2.25rem); line-height: 1.18;
  margin: .35rem 0 .9rem; font-weight: 700; letter-spacing: -.015em;
  text-wrap: balance; }
h2 { font-size: 1.28rem; margin: 3rem 0 .6rem; padding-top: .9rem;
  border-top: 1px solid var(--rule); letter-spacing: -.01em; }
h3 { font-size: 1rem; margin: 1.8rem 0 .5rem; }
p { margin: .6rem 0; max-width: 44rem; }
.lead { font-size: 1.06rem; }
.warning { background: var(--down-soft); border-left: 3px solid var(--down);
  padding: .5rem .8rem; overflow-wrap: anywhere; }
.note, figcaption { color: var(--muted); font-size: .88rem; }
a { color: var(--link); }
a:focus-visible, summary:focus-visible, .scroll:focus-visible { outline: 2px solid
  var(--link); outline-offset: 2px; }
.verdicts { list-style: none; margin: 1.2rem 0; padding: 0; display: grid; gap: .5rem; }
.verdicts li { padding: .55rem .8rem; border-left: 4px solid var(--muted);
  background: var(--even-soft); border-radius: 0 6px 6px 0; }
.verdicts .better { border-color: var(--up); background: var(--up-soft); }
.verdicts .worse { border-color: var(--down); background: var(--down-soft); }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(7.6rem, 1fr));
  gap: .6rem; margin: 1.4rem 0 0; }
.figures div { background: var(--card); border: 1px solid var(--rule);
  border-radius: 8px; padding: .55rem .8rem; }
.figures dt { color: var(--muted); font-size: .8rem; }
.figures dd { margin: 0; font-size: 1.18rem; font-weight: 650;
  font-variant-numeric: tabular-nums; }
figure { margin: 1rem 0; background: var(--card); border: 1px solid var(--rule);
  border-radius: 10px; padding: .9rem; }
figcaption { margin-top: .5rem; }
svg { display: block; width: 100%; height: auto; }
.narrow { display: none; }
.panels { display: grid; gap: .8rem 1.2rem;
  grid-template-columns: repeat(auto-fill, minmax(min(20rem, 100%), 1fr)); }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; margin: .4rem 0 0;
  padding: 0; list-style: none; color: var(--muted); font-size: .85rem; }
.legend svg { display: inline-block; width: 1.9rem; height: 1rem; margin-right: .35rem;
  vertical-align: -.15rem; }
.scroll { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; width: 100%; font-size: .9rem;
  font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--muted); font-size: .85rem;
  max-width: calc(100vw - 2.5rem);
  padding: .2rem 0 .4rem; }
th { text-align: left; font-weight: 600; color: var(--muted); font-size: .82rem;
  vertical-align: bottom; }
th, td { padding: .38rem .8rem .38rem 0; border-bottom: 1px solid var(--grid);
  vertical-align: top; }
thead th { border-bottom-color: var(--rule); }
.number { text-align: right; white-space: nowrap; }
.whole { white-space: nowrap; }
td.up { color: var(--up); } td.down { color: var(--down); }
code, pre { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono",
  monospace; font-size: .85em; }
td code { white-space: pre-wrap; overflow-wrap: anywhere; }
.token { background: var(--even-soft); border-radius: 3px; padding: .05em .3em;
  white-space: pre; }
pre { background: var(--card); border: 1px solid var(--rule); border-radius: 8px;
  padding: .7rem .9rem; overflow-x: auto; line-height: 1.45; margin: .5rem 0; }
details { margin: .4rem 0; }
summary { cursor: pointer; padding: .2rem 0; }
summary code { overflow-wrap: anywhere; }
nav ul { list-style: none; display: flex; flex-wrap: wrap; gap: .2rem 1.1rem;
  padding: 0; margin: 1.3rem 0 0; font-size: .9rem; }
@media (max-width: 40rem) {
  .wide { display: none; }
  .narrow { display: block; }
  .context { min-width: 11rem; }
  figure { padding: .6rem; }
}
@media print { details > * { display: block; } }
"""


def page_css() -> str:
  """The style sheet of a page; it follows the reader's colour scheme."""
  dark = f"@media (prefers-color-scheme: dark) {{ {_variables(DARK)} }}"
  return f"{_variables(LIGHT)}\n{dark}\n{_PAGE_CSS}{_CHART_CSS}"


def picture_css() -> str:
  """Chart styles for an SVG file of its own: light, without variables."""
  return re.sub(r"var\(--([\w-]+)\)", lambda match: LIGHT[match[1]], _CHART_CSS)


def _variables(palette: dict[str, str]) -> str:
  return (
    ":root { "
    + " ".join(f"--{name}: {value};" for name, value in palette.items())
    + " }"
  )
