"""Sources of whole files: a text, a page, a book or a paper each.

Files of text become texts. What has markup or is binary (HTML, TeX, PDF, ePub, DOCX)
becomes `data` bytes with its media type: a step of curation takes the text out.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

from phi4_jax.common.compression import COMPRESSED
from phi4_jax.common.errors import ConfigError
from phi4_jax.data import files as files_lib
from phi4_jax.data.documents import Document
from phi4_jax.data.source_files import BadRow, FileSource, SourceConfig
from phi4_jax.data.source_records import decode_text

# By the end of the name; .gz and .zst behind it are taken off.
TEXT_SUFFIXES = (".txt", ".text", ".md", ".rst")
MEDIA_TYPES = {
  ".html": "text/html",
  ".htm": "text/html",
  ".xhtml": "application/xhtml+xml",
  ".tex": "application/x-tex",
  ".pdf": "application/pdf",
  ".epub": "application/epub+zip",
  ".docx": "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
}


_TEXT = "text/plain"


def _lower(suffixes: tuple[str, ...]) -> tuple[str, ...]:
  return tuple(suffix.lower() for suffix in suffixes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FolderSource(FileSource):
  """Documents that are a file each.

  A file of another kind is a row that cannot be used ("unknown_kind"); only names that
  begin with a dot are passed over.

  Attributes:
    as_text: ends of names (".py") that are text beside .txt, .text, .md and .rst.
    as_html: ends of names (".php") that are HTML beside .html and .htm.
    files_per_shard: how many files a shard has; in other sources it has one.
  """

  as_text: tuple[str, ...] = ()
  as_html: tuple[str, ...] = ()
  files_per_shard: int = 1000

  def __post_init__(self):
    super().__post_init__()
    if self.files_per_shard < 1:
      raise ConfigError(
        f"FolderSource.files_per_shard ({self.files_per_shard}) must be 1 or more."
      )
    for field in ("as_text", "as_html"):
      bad = [suffix for suffix in getattr(self, field) if not suffix.startswith(".")]
      if bad:
        raise ConfigError(f"FolderSource.{field}: {bad[0]!r} must begin with a dot.")
    both = {*_lower(self.as_html)} & {*TEXT_SUFFIXES, *_lower(self.as_text)}
    if both:
      raise ConfigError(
        f"FolderSource.as_html: {min(both)!r} is text already. Leave it out."
      )

  def files(self) -> list[str]:
    return files_lib.list_files(self.path, hidden=".")

  def read_file(self, file: str) -> Iterator[tuple[str, Any]]:
    """Yields the one row that a file is, its bytes; it has no number."""
    if self._find_kind(file) is None:
      known = ", ".join((*TEXT_SUFFIXES, *MEDIA_TYPES))
      yield (
        "",
        BadRow(
          "unknown_kind",
          f"{file} is of no known kind. Known are {known}; FolderSource.as_text makes "
          "others text, as_html pages.",
        ),
      )
      return
    with files_lib.open_file(file) as opened:
      data = opened.read(self.max_row_bytes + 1)
    if len(data) > self.max_row_bytes:
      yield (
        "",
        BadRow(
          "too_long",
          f"{file} has more than {self.max_row_bytes:,} bytes. Raise "
          "FolderSource.max_row_bytes if it is meant.",
        ),
      )
    elif not data.strip():
      yield "", BadRow("blank", f"{file} is empty.")
    else:
      yield "", data

  def make_document(self, name: str, where: str, row: bytes) -> Document:
    known: dict[str, Any] = {"source": self.source, "license": self.license}
    kind = self._find_kind(name)
    if kind == _TEXT:
      text = decode_text(row, where).removeprefix("\ufeff")
      return Document(id=name, text=text, **known)
    assert kind is not None  # `read_file` has seen to it
    return Document(id=name, data=row, media_type=kind, **known)

  def _find_kind(self, name: str) -> str | None:
    """Returns the media type that the end of a name says; None if it says none."""
    ending = name.lower()
    for suffix in COMPRESSED:
      ending = ending.removesuffix(suffix)
    kinds = {
      **dict.fromkeys((*TEXT_SUFFIXES, *_lower(self.as_text)), _TEXT),
      **dict.fromkeys(_lower(self.as_html), MEDIA_TYPES[".html"]),
    }
    # What a user says of an ending comes before what is said here.
    for end, kind in (*kinds.items(), *MEDIA_TYPES.items()):
      if ending.endswith(end):
        return kind
    return None

  def cut(self, files: list[str], base: str) -> list[SourceConfig]:
    """Returns one source for each `files_per_shard` files."""
    size = self.files_per_shard
    groups = [tuple(files[i : i + size]) for i in range(0, len(files), size)]
    return [dataclasses.replace(self, path=group, base=base) for group in groups]
