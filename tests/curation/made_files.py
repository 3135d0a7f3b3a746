"""Small valid files of each format, and how to break them, made from nothing."""

import io
import zipfile
from collections.abc import Mapping, Sequence

CONTAINER = (
  '<?xml version="1.0"?><container version="1.0" '
  'xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
  '<rootfile full-path="OEBPS/book.opf" media-type="application/oebps-package+xml"/>'
  "</rootfiles></container>"
)
_WORD = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
_MATH = 'xmlns:m="http://schemas.openxmlformats.org/officeDocument/2006/math"'


def make_zip(files: Mapping[str, bytes | str]) -> bytes:
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
    for name, content in files.items():
      archive.writestr(name, content)
  return buffer.getvalue()


def make_pdf(pages: Sequence[Sequence[str]], *, encrypt: bool = False) -> bytes:
  """Returns a PDF with the given lines on each page, in Helvetica."""
  objects: list[bytes] = [b"", b"", b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>"]
  kids = []
  for lines in pages:
    shown = "".join(f"({line}) Tj 0 -14 Td " for line in lines)
    stream = f"BT /F1 12 Tf 72 720 Td {shown}ET".encode("latin-1")
    objects.append(b"<</Length %d>>stream\n%s\nendstream" % (len(stream), stream))
    objects.append(
      b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 612 792]/Contents %d 0 R"
      b"/Resources<</Font<</F1 3 0 R>>>>>>" % len(objects)
    )
    kids.append(b"%d 0 R" % len(objects))
  objects[0] = b"<</Type/Catalog/Pages 2 0 R>>"
  objects[1] = b"<</Type/Pages/Kids[%s]/Count %d>>" % (b" ".join(kids), len(kids))
  trailer = b""
  if encrypt:
    objects.append(
      b"<</Filter/Standard/V 1/R 2/P -44/O<%s>/U<%s>>>" % (b"ab" * 32, b"cd" * 32)
    )
    trailer = b"/Encrypt %d 0 R/ID[<00><00>]" % len(objects)
  body, offsets = b"%PDF-1.4\n", []
  for number, content in enumerate(objects, start=1):
    offsets.append(len(body))
    body += b"%d 0 obj\n%s\nendobj\n" % (number, content)
  table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
  size = len(objects) + 1
  return body + (
    b"xref\n0 %d\n0000000000 65535 f \n%strailer\n<</Size %d/Root 1 0 R%s>>\n"
    b"startxref\n%d\n%%%%EOF\n" % (size, table, size, trailer, len(body))
  )


def make_epub(chapters: Mapping[str, str], *, spine: Sequence[str], **more) -> bytes:
  """Returns a book; `chapters` are pages by name, `spine` their reading order."""
  items = "".join(
    f'<item id="{name}" href="{name}.xhtml" media-type="application/xhtml+xml"/>'
    for name in chapters
  )
  order = "".join(f'<itemref idref="{name}"/>' for name in spine)
  package = (
    '<?xml version="1.0"?><package xmlns="http://www.idpf.org/2007/opf">'
    f"<manifest>{items}</manifest><spine>{order}</spine></package>"
  )
  files = {
    "mimetype": "application/epub+zip",
    "META-INF/container.xml": CONTAINER,
    "OEBPS/book.opf": package,
    **{f"OEBPS/{name}.xhtml": page for name, page in chapters.items()},
    **more,
  }
  return make_zip(files)


def make_docx(body: str, *, prolog: str = "", **more) -> bytes:
  """Returns a Word document with the given WordprocessingML in its body."""
  document = f"{prolog}<w:document {_WORD} {_MATH}><w:body>{body}</w:body></w:document>"
  relation = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
  package = "http://schemas.openxmlformats.org/package/2006"
  files = {
    "[Content_Types].xml": f'<Types xmlns="{package}/content-types"/>',
    "_rels/.rels": (
      f'<Relationships xmlns="{package}/relationships"><Relationship Id="r1" '
      f'Type="{relation}/officeDocument" Target="word/document.xml"/></Relationships>'
    ),
    "word/document.xml": document,
    **more,
  }
  return make_zip(files)


def word_paragraph(text: str) -> str:
  return f"<w:p><w:r><w:t>{text}</w:t></w:r></w:p>"


def page(body: str) -> str:
  return f"<html><head><title>t</title></head><body>{body}</body></html>"
