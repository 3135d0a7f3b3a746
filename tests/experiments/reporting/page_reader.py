"""Reads a page back: whether it is well formed, its text, its links, its data."""

import base64
import html.parser
import json
import re
import zlib

_VOID = {"meta", "br", "hr", "img"}


class PageReader(html.parser.HTMLParser):
  """Checks that tags close in order; collects ids, links, text and script elements.

  Attributes:
    text: what a reader sees.
    data: by id, the content of script elements that are not run.
    scripts: the content of those that are.
    unnamed: pictures without a name.
  """

  def __init__(self, text):
    super().__init__()
    self.open, self.ids, self.links, self.tags, self.words = [], [], [], [], []
    self.data, self.scripts, self.unnamed = {}, [], 0
    self._attrs = {}
    self.feed(text)
    self.close()
    assert not self.open

  def handle_starttag(self, tag, attrs):
    found = dict(attrs)
    self._attrs = found
    self.tags.append(tag)
    self.ids += [found["id"]] if "id" in found else []
    self.links += [found[name] for name in ("href", "src") if name in found]
    if tag == "svg" and not found.get("aria-label") and not found.get("aria-hidden"):
      self.unnamed += 1
    if tag not in _VOID:
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if self.open and self.open[-1] == "script":
      kind = self._attrs.get("type")
      if kind is None:
        self.scripts.append(data)
      else:
        name = self._attrs["id"]
        self.data[name] = self.data.get(name, "") + data
    elif not self.open or self.open[-1] != "style":
      self.words.append(data)

  @property
  def text(self):
    return " ".join(" ".join(self.words).split())

  @property
  def index(self):
    """The tables of a search's page."""
    return json.loads(self.data["search-index"])

  def questions(self):
    """Questions with their responses, as the page's script unpacks them."""
    found = {}
    for name, packed in self.data.items():
      if re.fullmatch(r"search-\d+", name):
        chunk = json.loads(zlib.decompress(base64.b64decode(packed)))
        for question in chunk["q"]:
          found[question["n"]] = question | {"words": chunk["s"]}
    return found


def assert_self_contained(text):
  """Nothing in a page is asked of anybody else."""
  page = PageReader(text)
  assert len(page.ids) == len(set(page.ids))
  assert page.links and all(link.startswith("#") for link in page.links)
  assert {link[1:] for link in page.links} <= set(page.ids)
  assert "link" not in page.tags and page.unnamed == 0
  outside = re.findall(r"(?:https?:)?//[\w.]+\.\w+", text)
  assert set(outside) <= {"http://www.w3.org"}  # the name of SVG, not fetched
  for word in ("url(", "@import", "fetch(", "XMLHttpRequest", "import(", "eval("):
    assert word not in text, word
