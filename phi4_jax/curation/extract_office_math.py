"""Formulas of a Word document as TeX: Office MathML, which mammoth passes over.

Each formula becomes a run of text between dollars before mammoth sees the document.
"""

import io
import zipfile

from phi4_jax.curation.extract_math import OPERATORS, in_dollars

_M = "{http://schemas.openxmlformats.org/officeDocument/2006/math}"
_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"


def with_formulas_as_text(data: bytes) -> bytes:
  """Returns a DOCX file whose formulas are text; the file itself if it has none.

  Raises:
    lxml.etree.LxmlError: if the document is no XML.
  """
  from lxml import etree  # pyright: ignore[reportAttributeAccessIssue]

  with zipfile.ZipFile(io.BytesIO(data)) as archive:
    document = archive.read("word/document.xml")
    if b"oMath" not in document:
      return data
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False)
    root = etree.fromstring(document, parser)
    for formula in list(root.iter(f"{_M}oMath")):
      _replace(formula, etree)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as changed:
      for member in archive.infolist():
        content = archive.read(member)
        if member.filename == "word/document.xml":
          content = etree.tostring(root)
        elif not member.filename.endswith((".xml", ".rels")):
          continue  # pictures are not read
        changed.writestr(member.filename, content)
  return buffer.getvalue()


def _replace(formula, etree) -> None:
  parent = formula.getparent()
  if parent is None:
    return
  display = parent.tag == f"{_M}oMathPara"
  run = etree.Element(f"{_W}r")
  text = etree.SubElement(run, f"{_W}t")
  text.text = in_dollars(office_math_to_tex(formula), display=display)
  parent.replace(formula, run)
  if display:  # mammoth passes over what is in it, too
    place = parent.getparent()
    if place is not None:
      place.insert(place.index(parent), run)


def office_math_to_tex(element) -> str:
  """Writes Office MathML as TeX; what has no rule gives its content."""
  if not isinstance(element.tag, str):
    return ""
  name = element.tag.removeprefix(_M)
  if name == "t":
    text = element.text or ""
    return "".join(OPERATORS.get(character, character) for character in text)
  if name.endswith("Pr"):
    return ""  # properties

  def part(child: str) -> str:
    found = element.find(f"{_M}{child}")
    return "" if found is None else _content(found).strip()

  if name == "f":
    return f"\\frac{{{part('num')}}}{{{part('den')}}}"
  if name == "rad":
    degree = f"[{part('deg')}]" if part("deg") else ""
    return f"\\sqrt{degree}{{{part('e')}}}"
  if name in ("sSup", "sSub", "sSubSup", "nary"):
    base = part("e")
    below = f"_{{{part('sub')}}}" if part("sub") else ""
    above = f"^{{{part('sup')}}}" if part("sup") else ""
    if name == "nary":
      return f"{_nary_sign(element)}{below}{above} {base}"
    return (base if len(base) < 2 else f"{{{base}}}") + below + above
  if name == "d":
    begin, end = (_property(element, "dPr", key) for key in ("begChr", "endChr"))
    inner = ", ".join(_content(e).strip() for e in element.findall(f"{_M}e"))
    return f"{'(' if begin is None else begin}{inner}{')' if end is None else end}"
  if name == "m":
    rows = [
      " & ".join(_content(e).strip() for e in row.findall(f"{_M}e"))
      for row in element.findall(f"{_M}mr")
    ]
    return "\\begin{matrix}" + " \\\\ ".join(rows) + "\\end{matrix}"
  return _content(element)


def _content(element) -> str:
  return "".join(office_math_to_tex(child) for child in element)


def _nary_sign(element) -> str:
  sign = _property(element, "naryPr", "chr") or "∫"
  return OPERATORS.get(sign, sign).strip()


def _property(element, group: str, name: str) -> str | None:
  found = element.find(f"{_M}{group}/{_M}{name}")
  return None if found is None else found.get(f"{_M}val")
