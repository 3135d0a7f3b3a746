"""Text of a web page: trafilatura, between a pre-pass that saves what it would lose.

The pre-pass turns formulas into TeX, `<pre>` into fenced code with its indentation and
tables of data into Markdown, and carries them past trafilatura as marks
(extract_marks.py). Where trafilatura finds nothing, the text of the body without
scripts and navigation is taken, and labelled as that.

Source: arXiv:2412.08905 section 3.3 (TeX and MathML, code blocks, tables kept).
Differs: the paper's own extractor, which prunes the DOM by tags, CSS classes, content
  length and depth, is not published; trafilatura does that here.
"""

import copy
import logging
import re
from typing import Any

from phi4_jax.curation.extract_limits import ExtractLimits, Unextractable, tidy_text
from phi4_jax.curation.extract_marks import Marks
from phi4_jax.curation.extract_math import (
  image_formula,
  is_rendered,
  mathml_formula,
  script_formula,
)
from phi4_jax.curation.extract_tables import rows_to_markdown, table_rows, unwrap_table

_CHARSET = re.compile(rb"""charset\s*=\s*["']?\s*([\w.:-]+)""", re.IGNORECASE)
_XML_ENCODING = re.compile(rb"""<\?xml[^>]{0,100}encoding\s*=\s*["']([\w.:-]+)""")
_INVISIBLE = frozenset(
  [
    "script",
    "style",
    "noscript",
    "template",
    "svg",
    "canvas",
    "iframe",
    "object",
    "embed",
  ]
)
_FURNITURE = frozenset(
  ["nav", "header", "footer", "aside", "form", "button", "select", "dialog"]
)
_BLOCKS = frozenset(
  [
    "p",
    "div",
    "section",
    "article",
    "li",
    "ul",
    "ol",
    "dl",
    "dt",
    "dd",
    "tr",
    "table",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "br",
    "hr",
    "blockquote",
    "figure",
    "figcaption",
    "main",
    "pre",
  ]
)
_PIECE = "phi4-piece"  # a tag that is only there while pieces are put away
# Attributes by which text may be left out, and so have to stay.
_TELLING = frozenset(["class", "id", "hidden", "style", "aria-hidden"])
_HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6")
_LINE_NUMBERS = re.compile(
  r"(?:^|\s)(?:linenos?|linenodiv|gutter|line-numbers|lnt|rouge-gutter)(?:\s|$)"
)
_CODE_LANGUAGE = re.compile(r"(?:^|\s)(?:language|lang|highlight|source)-([\w+#]+)")


def html_to_text(
  data: bytes | str, *, charset: str = "", fast: bool, limits: ExtractLimits
) -> tuple[str, str]:
  """Returns the text of a page and what took it out: "trafilatura" or "body_text".

  Raises:
    Unextractable: "no_text" if the page has none, "wrong_type", "too_deep",
      "too_many_elements", "too_much_text", "unreadable".
  """
  import trafilatura

  logging.getLogger("trafilatura").setLevel(logging.CRITICAL)
  source = data if isinstance(data, str) else decode_html(data, charset=charset)
  tree = parse_html(source, limits=limits)
  marks = Marks(source, max_characters=limits.max_characters)
  put_pieces_away(tree, marks)
  body = copy.deepcopy(tree)
  extractor = "trafilatura"
  # Without its own Markdown, which sets a backslash before every underscore.
  try:
    text = trafilatura.extract(tree, fast=fast, include_comments=True)
  except (ValueError, TypeError, AttributeError, IndexError, KeyError):
    text = ""  # it met a tree that nobody had tried on it
  if not (text or "").strip():
    extractor, text = "body_text", _body_text(body)
  text = tidy_text(marks.restore(text or ""))
  if not text.strip():
    raise Unextractable("no_text", f"{len(source)} characters of HTML without text")
  return text, extractor


def decode_html(data: bytes, *, charset: str = "") -> str:
  """Decodes a page as a browser does: mark, header, `<meta>`, UTF-8, Windows-1252."""
  for mark, name in ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16")):
    if data.startswith(mark):
      return data.decode(name, "replace")
  if data.startswith(b"\xfe\xff"):
    return data.decode("utf-16", "replace")
  if b"\0" in data:
    raise Unextractable("wrong_type", f"NUL at byte {data.index(0)}: not HTML")
  declared = _CHARSET.search(data[:4096]) or _XML_ENCODING.match(data)
  for name in (charset, declared[1].decode("ascii") if declared else "", "utf-8"):
    try:
      if name:
        return data.decode(name)
    except (LookupError, UnicodeError, ValueError):
      continue  # a wrong label is common; the next may be right
  return data.decode("windows-1252", "replace")


def parse_html(source: str, *, limits: ExtractLimits) -> Any:
  """Returns the tree of a page.

  Raises:
    Unextractable: if it is no page, or larger or deeper than the limits.
  """
  from lxml import (
    etree,  # pyright: ignore[reportAttributeAccessIssue]
    html,
  )

  if "<" not in source:
    raise Unextractable("wrong_type", "no tag: not HTML")
  parser = html.HTMLParser(
    encoding="utf-8", remove_comments=True, remove_pis=True, huge_tree=True
  )
  try:
    tree = html.document_fromstring(source.encode("utf-8", "replace"), parser=parser)
  except (etree.LxmlError, ValueError, AssertionError) as error:
    if "unknown error" in str(error):
      raise MemoryError from None  # what lxml says where libxml2 got no memory
    raise Unextractable("no_text", f"the parser found nothing: {error}") from None
  if any("Excessive depth" in entry.message for entry in parser.error_log):
    raise Unextractable("too_deep", "tags nested deeper than 2048")
  elements = depth = deepest = 0
  for event, _ in etree.iterwalk(tree, events=("start", "end")):
    if event == "end":
      depth -= 1
      continue
    elements += 1
    depth += 1
    deepest = max(deepest, depth)
  if deepest > limits.max_depth:
    raise Unextractable(
      "too_deep", f"tags nested {deepest} deep, {limits.max_depth} allowed"
    )
  if elements > limits.max_elements:
    raise Unextractable(
      "too_many_elements", f"{elements} elements, {limits.max_elements} allowed"
    )
  return tree


def put_pieces_away(tree: Any, marks: Marks) -> None:
  """Replaces formulas, code and tables in the tree by marks, innermost first."""
  from lxml import etree  # pyright: ignore[reportAttributeAccessIssue]

  codes, pres, tables, gone = [], [], [], []
  for element in list(tree.iter("*")):
    name = element.tag.rpartition(":")[2]
    formula = ""
    if name == "math":
      formula = mathml_formula(element)
    elif name == "img":
      # Wikipedia's image may stand beside its source as MathML.
      if not (is_rendered(element) and _has_math(element)):
        formula = image_formula(element)
    elif name == "script":
      formula = script_formula(element)
    if formula:
      _uncover(element)
      _replace_by_text(element, marks.put(formula))
    elif name == "math" or name in _INVISIBLE or _only_shows(element):
      gone.append(element)
    elif name == "span" and not _TELLING.intersection(element.keys()):
      element.tag = _PIECE  # a colour is no reason for a line of its own
    elif name == "code":
      codes.append(element)
    elif name == "pre":
      pres.append(element)
    elif name == "table":
      tables.append(element)
  for element in gone:
    _remove(element)
  for element in pres:
    if _is_attached(element, tree):
      _replace_by_block(element, marks.put(fenced_code(element, marks), block=True))
  for element in codes:
    text = "".join(element.itertext())
    if _is_attached(element, tree) and text.strip():
      _replace_by_text(element, marks.put(_inline_code(text)))
  for table in reversed(tables):  # an inner table comes after its outer one
    rows = table_rows(table)
    if rows is None:
      unwrap_table(table)
    else:
      rows = [[marks.restore(cell) for cell in row] for row in rows]
      _replace_by_block(table, marks.put(rows_to_markdown(rows), block=True))
  etree.strip_tags(tree, _PIECE)
  for element in tree.iter("p", "blockquote", *_HEADINGS):
    if element.tag in _HEADINGS and (element.text or len(element)):
      element.text = marks.heading(int(element.tag[1])) + (element.text or "").lstrip()
    if len(element):
      element[-1].tail = (element[-1].tail or "") + marks.end_of_paragraph()
    elif (element.text or "").strip():
      element.text += marks.end_of_paragraph()


def fenced_code(pre: Any, marks: Marks) -> str:
  """Returns a `<pre>` as fenced code; lines and indentation stay as they are.

  >>> fenced_code(<pre><code class="language-c">int x;</code></pre>)
  '```c\\nint x;\\n```'
  """
  for element in list(pre.iter()):
    if element is not pre and _LINE_NUMBERS.search(element.get("class") or ""):
      _remove(element)
    elif element.tag == "br":
      element.tail = "\n" + (element.tail or "")
  code = marks.restore("".join(pre.itertext()))
  code = code.replace("\r\n", "\n").expandtabs(4).strip("\n").rstrip()
  if not code:
    return ""
  longest = max((len(run) for run in re.findall(r"`{3,}", code)), default=2)
  fence = "`" * (longest + 1)
  return f"{fence}{_code_language(pre)}\n{code}\n{fence}"


def _code_language(pre: Any) -> str:
  candidates = [*pre.iter("code"), pre, *list(pre.iterancestors())[:2]]
  for element in candidates:
    match = _CODE_LANGUAGE.search(element.get("class") or "")
    if match and match[1] not in ("default", "none", "text", "source"):
      return match[1].lower()
  return ""


def _inline_code(text: str) -> str:
  if "\n" in text.strip():
    return f"\n\n```\n{text.strip(chr(10))}\n```\n\n"
  text = " ".join(text.split())
  return f"`` {text} ``" if "`" in text else f"`{text}`"


def _only_shows(element: Any) -> bool:
  # A rendered formula whose source is inside it (KaTeX, MathJax 3) must stay: only
  # its visible part goes.
  return is_rendered(element) and not any(
    isinstance(inner.tag, str) and inner.tag.rpartition(":")[2] == "math"
    for inner in element.iterdescendants()
  )


def _has_math(image: Any) -> bool:
  parent = image.getparent()
  before = parent.text or "" if parent is not None else ""
  texts = [before, *(sibling.tail or "" for sibling in image.itersiblings())]
  texts += [
    "".join(sibling.itertext()) for sibling in image.itersiblings(preceding=True)
  ]
  return any("zqxm" in text for text in texts)


def _is_attached(element: Any, tree: Any) -> bool:
  return element is tree or any(above is tree for above in element.iterancestors())


def _uncover(formula: Any) -> None:
  """Takes styles and classes from the spans round a formula.

  MathML is often hidden from the eye, and what is hidden is not extracted.
  """
  for above in list(formula.iterancestors())[:4]:
    if above.tag != "span":
      return
    above.attrib.clear()
    above.tag = _PIECE


def _remove(element: Any) -> None:
  """Empties an element; the text that follows it stays."""
  _replace_by_text(element, "")


def _replace_by_text(element: Any, text: str) -> None:
  # Joined to the text round it at the end, all at once: one by one, each join would
  # copy what was joined before.
  if element.getparent() is not None:
    _empty(element)
    element.tag, element.text = _PIECE, text


def _replace_by_block(element: Any, text: str) -> None:
  _empty(element)
  element.set("data-block", "1")
  element.tag, element.text = "p", text


def _empty(element: Any) -> None:
  for child in list(element):
    element.remove(child)
  element.attrib.clear()


def _body_text(tree: Any) -> str:
  """Returns the text of the body without navigation, a line for each block."""
  from lxml import etree  # pyright: ignore[reportAttributeAccessIssue]

  body = tree.find("body")
  parts: list[str] = []
  hidden = 0
  root = tree if body is None else body
  for event, element in etree.iterwalk(root, events=("start", "end")):
    name = element.tag if isinstance(element.tag, str) else ""
    start = event == "start"
    if name in _FURNITURE:
      hidden += 1 if start else -1
    if name in _BLOCKS:
      parts.append("\n")
    text = element.text if start else element.tail
    if text and not hidden and not (not start and element is root):
      parts.append(" ".join(text.split()) if not text.isspace() else " ")
      if text[-1:].isspace():
        parts.append(" ")
  lines = (" ".join(line.split()) for line in "".join(parts).split("\n"))
  return "\n".join(line for line in lines if line)
