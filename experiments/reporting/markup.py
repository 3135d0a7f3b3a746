"""Writes HTML and SVG elements; all text that goes in is escaped.

Knows tags and attributes; refuses to know what a page shows.
"""

import html
from collections.abc import Iterable
from typing import Any

# Elements that have no end tag in HTML.
_VOID = frozenset({"br", "hr", "meta", "img"})


class Markup(str):
  """Text that is markup already, and goes in as it is."""


def tag(name: str, /, *children: Any, **attributes: Any) -> Markup:
  """Returns an element.

  Children are markup, text (escaped), numbers, None (nothing), or iterables of
  these. In attribute names a trailing `_` falls away and other `_` become `-`; an
  attribute that is None or False is left out, True stands without a value.

  >>> tag("td", "1 < 2", class_="number")
  '<td class="number">1 &lt; 2</td>'
  """
  written = "".join(
    _attribute(key.rstrip("_").replace("_", "-"), value)
    for key, value in attributes.items()
    if value is not None and value is not False
  )
  if name in _VOID:
    return Markup(f"<{name}{written}>")
  return Markup(f"<{name}{written}>{join(*children)}</{name}>")


def join(*children: Any) -> Markup:
  """Returns children one after the other, as `tag` takes them."""
  return Markup("".join(_child(child) for child in children))


def _attribute(name: str, value: Any) -> str:
  if value is True:
    return f" {name}"
  text = format_number(value) if isinstance(value, float) else str(value)
  return f' {name}="{html.escape(text, quote=True)}"'


def _child(child: Any) -> str:
  if child is None:
    return ""
  if isinstance(child, Markup):
    return child
  if isinstance(child, str | int | float):
    return html.escape(str(child), quote=False)
  if isinstance(child, Iterable):
    return "".join(map(_child, child))
  raise TypeError(f"{type(child).__name__} is no content of an element.")


def format_number(value: float) -> str:
  """Formats a coordinate with at most two decimals."""
  return f"{value:.2f}".rstrip("0").rstrip(".") if value else "0"
