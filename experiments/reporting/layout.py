"""The parts that every page is made of: head, sections, tables, figures.

Knows HTML; refuses to know runs.
"""

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from experiments.reporting.markup import Markup, join, tag
from experiments.reporting.style import page_css


class Section(NamedTuple):
  """A part of a page under a heading; `name` is its anchor."""

  name: str
  title: str
  content: Markup


class Program(NamedTuple):
  """What makes a page answer to its reader.

  Attributes:
    script: JavaScript, run when everything else is there.
    style: a further style sheet.
    data: script elements that are not run.
  """

  script: str
  style: str
  data: Sequence[Markup]


def page(
  title: str,
  kicker: str,
  head: Markup,
  sections: Iterable[Section],
  footer: Markup,
  program: Program | None = None,
  *,
  style: str = "",
) -> str:
  """A whole HTML document; it asks for nothing outside itself.

  Without a program nothing in it can run, and with one only that script can. `style`
  is a further style sheet, in the colours of style.py.
  """
  sections = list(sections)
  links = [tag("li", tag("a", s.title, href=f"#{s.name}")) for s in sections]
  body = join(
    tag(
      "header",
      tag("p", kicker, class_="kicker"),
      tag("h1", title),
      head,
      tag("nav", tag("ul", links), aria_label="Sections of this page"),
    ),
    tag(
      "main",
      [
        tag("section", tag("h2", s.title, id=f"{s.name}-title"), s.content, id=s.name)
        for s in sections
      ],
    ),
    tag("footer", footer),
  )
  policy = "default-src 'none'; style-src 'unsafe-inline'"
  css = page_css() + style
  if program is not None:
    digest = hashlib.sha256(program.script.encode()).digest()
    policy += f"; script-src 'sha256-{base64.b64encode(digest).decode()}'"
    css += program.style
    body = join(body, program.data, tag("script", Markup(program.script)))
  head_tags = join(
    tag("meta", charset="utf-8"),
    tag("meta", http_equiv="Content-Security-Policy", content=policy),
    tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
    tag("title", title),
    tag("style", Markup(css)),
  )
  document = tag("html", tag("head", head_tags), tag("body", body), lang="en")
  # Half a character, as a token of bytes can be, is no UTF-8.
  text = f"<!doctype html>\n{document}\n"
  return text.encode("utf-8", "replace").decode("utf-8")


def paragraph(*content: Any, class_: str | None = None) -> Markup:
  return tag("p", *content, class_=class_)


def note(*content: Any) -> Markup:
  """A paragraph in smaller, paler letters."""
  return tag("p", *content, class_="note")


def warning(*content: Any) -> Markup:
  """A paragraph that nobody should pass over."""
  return tag("p", tag("strong", "Warning: "), *content, class_="warning")


def figure(picture: Markup, *caption: Any) -> Markup:
  return tag("figure", picture, tag("figcaption", *caption) if caption else None)


def facts(values: Mapping[str, Any]) -> Markup:
  """A few figures with their names, side by side."""
  return tag(
    "dl",
    [tag("div", tag("dt", name), tag("dd", value)) for name, value in values.items()],
    class_="figures",
  )


class Cell(NamedTuple):
  """A table cell with a class of its own, for example "up"."""

  content: Any
  class_: str


def table(
  header: Sequence[str],
  rows: Iterable[Sequence[Any]],
  *,
  caption: str,
  numbers: Iterable[int] = (),
) -> Markup:
  """A table that scrolls sideways where it is too wide; `numbers` stand right."""
  right = frozenset(numbers)

  def cell(column: int, value: Any) -> Markup:
    content, extra = (
      (value.content, value.class_) if isinstance(value, Cell) else (value, "")
    )
    classes = " ".join(filter(None, ["number" if column in right else "", extra]))
    return tag("td", content, class_=classes or None)

  head = [
    tag("th", name, scope="col", class_="number" if i in right else None)
    for i, name in enumerate(header)
  ]
  body = [tag("tr", [cell(i, value) for i, value in enumerate(row)]) for row in rows]
  whole = tag(
    "table", tag("caption", caption), tag("thead", tag("tr", head)), tag("tbody", body)
  )
  # A region that scrolls must be reachable with the keyboard.
  return tag(
    "div", whole, class_="scroll", tabindex="0", role="region", aria_label=caption
  )


def details(summary: Any, *content: Any, **attributes: Any) -> Markup:
  """Content that opens on a click."""
  return tag("details", tag("summary", summary), *content, **attributes)


def code(text: str) -> Markup:
  return tag("code", text)


def token(text: str) -> Markup:
  """A token of a response, its blanks kept."""
  return tag("code", text, class_="token")


def listing(text: str) -> Markup:
  """Lines of a file, as they are."""
  return tag("pre", tag("code", text), tabindex="0")


def legend(marks: Iterable[tuple[Markup, str]]) -> Markup:
  """Signs (each 28 by 16) with their meanings."""
  items = [
    tag("li", tag("svg", mark, viewBox="0 0 28 16", aria_hidden="true"), words)
    for mark, words in marks
  ]
  return tag("ul", items, class_="legend")
