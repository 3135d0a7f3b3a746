"""The step that takes the text out of files, one extractor for each media type.

What a stranger wrote may be anything. Each file is measured before it is opened
(`ExtractLimits`), every failure is a Drop with a reason, and by default the work is
done in a process of its own (extract_isolated.py), so that neither a crash in a C
library nor an endless loop ends the run.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from phi4_jax.common.errors import ConfigError
from phi4_jax.curation.extract_archives import (
  docx_to_text,
  epub_to_text,
  unpack_files,
)
from phi4_jax.curation.extract_html import html_to_text
from phi4_jax.curation.extract_limits import (
  ExtractLimits,
  Unextractable,
  decode_utf8,
  tidy_text,
)
from phi4_jax.curation.extract_pdf import pdf_to_text
from phi4_jax.curation.extract_tex import tex_files_to_text, tex_to_text
from phi4_jax.curation.steps import Drop, Judge, Keep, Verdict, make_recipe
from phi4_jax.data.documents import Document

DOCX = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
# The kinds that fields and labels name, and the media types of each.
MEDIA_TYPES = {
  "html": ("text/html", "application/xhtml+xml"),
  "pdf": ("application/pdf", "application/x-pdf"),
  "epub": ("application/epub+zip",),
  "docx": (DOCX,),
  "tex": (
    "application/x-tex",
    "text/x-tex",
    "application/x-latex",
    # Several files: arXiv's "e-print" is a tar.gz, or one file packed by gzip.
    "application/x-eprint-tar",
    "application/x-eprint",
    "application/x-tar",
    "application/gzip",
    "application/zip",
  ),
  "plain": ("text/plain", "text/markdown"),
}
_KIND_OF = {name: kind for kind, names in MEDIA_TYPES.items() for name in names}
# How the files of other kinds begin: what is labelled HTML or text and is none.
_SIGNATURES = {
  b"%PDF-": "a PDF",
  b"PK\x03\x04": "a zip file",
  b"\x1f\x8b": "a gzip file",
  b"\x89PNG": "a PNG image",
  b"\xff\xd8\xff": "a JPEG image",
  b"GIF8": "a GIF image",
  b"\x7fELF": "a program",
  b"{\\rtf": "an RTF file",
  b"\xd0\xcf\x11\xe0": "an old Office file",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExtractText:
  """Takes the text out of HTML, PDF, ePub, DOCX, TeX and plain text.

  A document that is plain text or a conversation already goes on as it is. The kept
  document has the labels "extracted_from" (html, pdf, epub, docx, tex, plain) and
  "extractor"; an extractor that ends in "body_text" means that the main text of a page
  was not found and all of its body was taken.

  Drops: unknown_media_type, kind_not_wanted, wrong_type, too_large, too_deep,
  too_many_elements, too_many_pages, too_much_text, zip_bomb, xml_entities, encrypted,
  unreadable, unknown_encoding, not_text, no_text, no_text_layer; in a process of its
  own also too_slow, too_much_memory, crashed.

  Source: arXiv:2412.08905 section 3.3 (an extractor for each kind of source).
  Differs: the paper's own parsers are not published; well-kept libraries do the work.

  Attributes:
    kinds: which of html, pdf, epub, docx, tex and plain are taken; others are dropped.
    isolate: work in a child process, with the last two limits in force.
    fast_html: let trafilatura do without its second opinions: somewhat faster, and the
      main text of unusual pages is missed more often.
    limits: what a file may cost.
  """

  kinds: tuple[str, ...] = ("html", "pdf", "epub", "docx", "tex", "plain")
  isolate: bool = True
  fast_html: bool = False
  limits: ExtractLimits = ExtractLimits()

  def __post_init__(self):
    unknown = sorted(set(self.kinds) - set(MEDIA_TYPES))
    if unknown or not self.kinds:
      raise ConfigError(
        f"ExtractText.kinds ({', '.join(self.kinds) or 'empty'}) must name some of "
        f"{', '.join(MEDIA_TYPES)}."
      )

  def make_judge(self) -> Judge:
    if not self.isolate:
      return self.judge
    from phi4_jax.curation.extract_isolated import IsolatedJudge

    isolated = IsolatedJudge(self)

    def judge(document: Document) -> Verdict:
      # What costs nothing to judge is not sent to another process.
      verdict = self._judge_by_name(document)
      return isolated(document) if verdict is None else verdict

    return judge

  def recipe(self) -> dict[str, Any]:
    from importlib.metadata import version

    packages = ("trafilatura", "lxml", "pylatexenc", "pypdfium2", "mammoth")
    return make_recipe(self, **{name: version(name) for name in packages})

  def judge(self, document: Document) -> Verdict:
    """Judges one document in this process."""
    verdict = self._judge_by_name(document)
    if verdict is not None:
      return verdict
    media_type, _, parameters = document.media_type.partition(";")
    kind = _KIND_OF[media_type.strip().lower()]
    content = document.text if document.data is None else document.data
    assert content is not None
    try:
      text, extractor = self._extract(kind, content, _charset(parameters))
    except Unextractable as error:
      return Drop(error.reason, error.detail)
    except RecursionError:
      return Drop("too_deep", f"the {kind} reader went too deep")
    except MemoryError:
      return Drop("too_much_memory", f"{len(content)} bytes of {kind}")
    except Exception as error:  # libraries meet what nobody has tried on them
      return Drop("unreadable", f"{type(error).__name__}: {str(error)[:200]}")
    limit = self.limits.max_characters
    if len(text) > limit:
      return Drop("too_much_text", f"{len(text)} characters, {limit} allowed")
    return Keep(
      dataclasses.replace(
        document,
        text=text,
        data=None,
        media_type="text/plain",
        lineage=(*document.lineage, "step:ExtractText"),
        labels={**document.labels, "extracted_from": kind, "extractor": extractor},
      )
    )

  def _judge_by_name(self, document: Document) -> Verdict | None:
    if document.messages is not None:
      return Keep(document)
    media_type = document.media_type.partition(";")[0].strip().lower()
    kind = _KIND_OF.get(media_type)
    if document.text is not None and kind == "plain":
      return Keep(document)
    if kind is None:
      return Drop("unknown_media_type", f"{document.media_type!r}")
    if kind not in self.kinds:
      return Drop("kind_not_wanted", f"{kind}, wanted: {', '.join(self.kinds)}")
    if document.text is not None and kind not in ("html", "tex"):
      return Drop("wrong_type", f"{kind} is bytes, this document is text")
    size = len(document.data if document.data is not None else document.text or "")
    if size > self.limits.max_bytes:
      return Drop("too_large", f"{size} bytes, {self.limits.max_bytes} allowed")
    if size == 0:
      return Drop("no_text", "0 bytes")
    return None

  def _extract(self, kind: str, content: bytes | str, charset: str) -> tuple[str, str]:
    limits, fast = self.limits, self.fast_html
    if isinstance(content, bytes) and kind in ("html", "plain"):
      for signature, name in _SIGNATURES.items():
        if content.startswith(signature):
          raise Unextractable("wrong_type", f"labelled {kind}, but is {name}")
    if kind == "html":
      return html_to_text(content, charset=charset, fast=fast, limits=limits)
    if kind == "tex":
      return _extract_tex(content, limits)
    assert isinstance(content, bytes), kind
    if kind == "plain":
      text = tidy_text(decode_utf8(content, encoding=charset))
      if not text.strip():
        raise Unextractable("no_text", f"{len(content)} bytes of white space")
      return text, "plain"
    if kind == "pdf":
      return pdf_to_text(content, limits=limits), "pypdfium2"
    archives: dict[str, Callable[..., tuple[str, str]]] = {
      "epub": epub_to_text,
      "docx": docx_to_text,
    }
    return archives[kind](content, fast=fast, limits=limits)


def _extract_tex(content: bytes | str, limits: ExtractLimits) -> tuple[str, str]:
  if isinstance(content, str):
    return tex_to_text(content, limits=limits), "pylatexenc"
  for signature, name in _SIGNATURES.items():
    if content.startswith(signature) and name not in ("a zip file", "a gzip file"):
      raise Unextractable("wrong_type", f"labelled tex, but is {name}")
  files = unpack_files(content, limits=limits)
  if list(files) == ["file.tex"]:
    return tex_to_text(files["file.tex"], limits=limits), "pylatexenc"
  return tex_files_to_text(files, limits=limits), "pylatexenc"


def _charset(parameters: str) -> str:
  for parameter in parameters.split(";"):
    name, _, value = parameter.partition("=")
    if name.strip().lower() == "charset":
      return value.strip().strip("\"'")
  return ""
