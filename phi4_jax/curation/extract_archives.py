"""Archives from strangers, and the two formats that are archives: ePub and DOCX.

An archive is measured before anything in it is unpacked. ePub gives its chapters in
the order of its spine, DOCX goes through mammoth; both end in the HTML extractor.
"""

import contextlib
import io
import posixpath
import re
import tarfile
import urllib.parse
import zipfile
import zlib
from collections.abc import Iterator

from phi4_jax.curation.extract_html import html_to_text
from phi4_jax.curation.extract_limits import ExtractLimits, Unextractable
from phi4_jax.curation.extract_office_math import with_formulas_as_text

_SMALL = 1_000_000  # bytes; less than this may be packed as tightly as it likes
_BROKEN = (
  zipfile.BadZipFile,
  tarfile.TarError,
  zlib.error,
  EOFError,
  OSError,
  ValueError,
  KeyError,
  RuntimeError,  # and with it an unknown method of packing
)


@contextlib.contextmanager
def open_zip(data: bytes, *, limits: ExtractLimits) -> Iterator[zipfile.ZipFile]:
  """Opens a zip file whose claimed sizes are within the limits.

  Python reads no more of a member than it claims, so that a lie about the size ends in
  an error and not in a full memory.

  Raises:
    Unextractable: "wrong_type", "unreadable", "encrypted", "zip_bomb"; also in place of
      every error of the library inside the `with`.
  """
  if not data.startswith(b"PK"):
    raise Unextractable("wrong_type", "does not begin with PK: no zip file")
  try:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
      members = archive.infolist()
      if any(member.flag_bits & 1 for member in members):
        raise Unextractable("encrypted", "members need a password")
      check_size(
        num_members=len(members),
        packed=len(data),
        unpacked=sum(member.file_size for member in members),
        limits=limits,
      )
      yield archive
  except _BROKEN as error:
    raise _unreadable(error) from None


def check_size(
  *, num_members: int, packed: int, unpacked: int, limits: ExtractLimits
) -> None:
  """Refuses an archive that is too large once it is unpacked."""
  if num_members > limits.max_members:
    raise Unextractable(
      "zip_bomb", f"{num_members} members, {limits.max_members} allowed"
    )
  if unpacked > limits.max_unpacked_bytes:
    raise Unextractable(
      "zip_bomb", f"{unpacked} bytes unpacked, {limits.max_unpacked_bytes} allowed"
    )
  if unpacked > _SMALL and unpacked > limits.max_ratio * packed:
    raise Unextractable(
      "zip_bomb",
      f"{unpacked} bytes from {packed}, {limits.max_ratio:g} to 1 allowed",
    )


def unpack_files(data: bytes, *, limits: ExtractLimits) -> dict[str, bytes]:
  """Returns the files of a zip, tar or tar.gz by name; of a lone .gz, one file.

  Raises:
    Unextractable: as `open_zip`.
  """
  if data.startswith(b"PK"):
    with open_zip(data, limits=limits) as archive:
      return {
        member.filename: archive.read(member)
        for member in archive.infolist()
        if not member.is_dir()
      }
  packed = len(data)
  if data.startswith(b"\x1f\x8b"):
    data = _gunzip(data, limits=limits)
  if data[257:262] != b"ustar" and not tar_checks_out(data):
    return {"file.tex": data}
  files: dict[str, bytes] = {}
  try:
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
      unpacked = 0
      for count, member in enumerate(archive, start=1):
        # A sparse member claims holes that take no room in the archive.
        unpacked += member.size
        check_size(num_members=count, packed=packed, unpacked=unpacked, limits=limits)
        if member.isreg():
          file = archive.extractfile(member)
          files[member.name] = file.read() if file else b""
  except _BROKEN as error:
    raise _unreadable(error) from None
  return files


def tar_checks_out(data: bytes) -> bool:
  """Says whether an old tar file (no magic) has a right checksum in its header."""
  header = data[:512]
  if len(header) < 512:
    return False
  try:
    claimed = int(header[148:156].strip(b"\0 ") or b"x", 8)
  except ValueError:
    return False
  return claimed == sum(header[:148]) + sum(header[156:]) + 8 * 32


def epub_to_text(data: bytes, *, fast: bool, limits: ExtractLimits) -> tuple[str, str]:
  """Returns the chapters of a book in reading order, and what took them out.

  Raises:
    Unextractable: as `open_zip` and `html_to_text`; "unreadable" if the book names no
      chapters, "xml_entities", "encrypted".
  """
  texts, extractors = [], set()
  with open_zip(data, limits=limits) as archive:
    if "META-INF/encryption.xml" in archive.namelist():
      protected = archive.read("META-INF/encryption.xml")
      # Fonts are often obscured; a book with protected chapters is no use.
      if re.search(rb"URI=\"[^\"]*\.x?html?\"", protected):
        raise Unextractable("encrypted", "chapters are protected")
    for chapter in _spine(archive):
      content = archive.read(chapter)
      if b"<!ENTITY" in content:
        raise Unextractable("xml_entities", f"{chapter} declares entities")
      try:
        text, extractor = html_to_text(content, fast=fast, limits=limits)
      except Unextractable as error:
        if error.reason == "no_text":
          continue  # a cover
        raise
      texts.append(text)
      extractors.add(extractor)
  if not texts:
    raise Unextractable("no_text", "no chapter has text")
  return "\n\n".join(texts), "+".join(sorted(extractors))


def docx_to_text(data: bytes, *, fast: bool, limits: ExtractLimits) -> tuple[str, str]:
  """Returns the text of a Word document and what took it out.

  Raises:
    Unextractable: as `open_zip` and `html_to_text`; "xml_entities".
  """
  import mammoth

  with open_zip(data, limits=limits) as archive:
    if "word/document.xml" not in archive.namelist():
      raise Unextractable("wrong_type", "no word/document.xml: not a DOCX file")
    for member in archive.infolist():
      if member.filename.lower().endswith((".xml", ".rels")):
        # Office never writes a DTD; in UTF-16 the letters have NULs between them.
        content = archive.read(member).replace(b"\0", b"")
        if b"<!DOCTYPE" in content or b"<!ENTITY" in content:
          raise Unextractable("xml_entities", f"{member.filename} has a DTD")
  try:
    readable = io.BytesIO(with_formulas_as_text(data))
    page = mammoth.convert_to_html(
      readable, convert_image=mammoth.images.img_element(lambda image: {})
    ).value
  except RecursionError:
    raise Unextractable("too_deep", "elements too deep for the DOCX reader") from None
  except MemoryError:
    raise
  except Exception as error:  # anything: it reads what a stranger wrote
    raise _unreadable(error) from None
  if not page.strip():
    raise Unextractable("no_text", "a document without paragraphs")
  text, extractor = html_to_text(
    f"<html><body><article>{page}</article></body></html>", fast=fast, limits=limits
  )
  return text, f"mammoth+{extractor}"


def _spine(archive: zipfile.ZipFile) -> list[str]:
  container = _parse_xml(archive, "META-INF/container.xml")
  paths = [element.get("full-path") for element in container.iter("{*}rootfile")]
  if not paths or not paths[0]:
    raise Unextractable("unreadable", "META-INF/container.xml names no package")
  package = _parse_xml(archive, paths[0])
  folder = posixpath.dirname(paths[0])
  items = {
    item.get("id"): item.get("href", "")
    for item in package.iter("{*}item")
    if "html" in (item.get("media-type") or "")
  }
  chapters = []
  for reference in package.iter("{*}itemref"):
    name = items.get(reference.get("idref"))
    if name:
      name = urllib.parse.unquote(name.partition("#")[0])
      chapters.append(posixpath.normpath(posixpath.join(folder, name)))
  if not chapters:
    raise Unextractable("unreadable", f"{paths[0]} has an empty spine")
  if len(set(chapters)) < len(chapters):
    raise Unextractable("unreadable", "the spine names a chapter twice")
  return chapters


def _parse_xml(archive: zipfile.ZipFile, name: str):
  from lxml import etree  # pyright: ignore[reportAttributeAccessIssue]

  content = archive.read(name)
  if b"<!ENTITY" in content:
    raise Unextractable("xml_entities", f"{name} declares entities")
  parser = etree.XMLParser(
    resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False
  )
  try:
    return etree.fromstring(content, parser)
  except etree.LxmlError as error:
    raise Unextractable("unreadable", f"{name}: {str(error)[:200]}") from None


def _gunzip(data: bytes, *, limits: ExtractLimits) -> bytes:
  allowed = min(
    limits.max_unpacked_bytes, max(_SMALL, int(limits.max_ratio * len(data)))
  )
  unpacker = zlib.decompressobj(wbits=31)
  try:
    content = unpacker.decompress(data, allowed + 1)
  except zlib.error as error:
    raise _unreadable(error) from None
  if len(content) > allowed:
    raise Unextractable("zip_bomb", f"{len(data)} bytes unpack to more than {allowed}")
  if not unpacker.eof:
    raise Unextractable("unreadable", "the gzip file is cut off")
  return content


def _unreadable(error: Exception) -> Unextractable:
  detail = f"{type(error).__name__}: {str(error)[:200]}"
  return Unextractable("unreadable", detail)
