"""Why a file gives no text, and the limits that keep a hostile one harmless.

Everything that takes a file apart raises `Unextractable`, never an error of a library:
what a stranger wrote is not a bug here.
"""

import dataclasses
import re

from phi4_jax.common.errors import ConfigError


class Unextractable(Exception):
  """A file whose text cannot be had: the reason is counted, the detail is shown."""

  def __init__(self, reason: str, detail: str):
    super().__init__(f"{reason}: {detail}")
    self.reason = reason
    self.detail = detail


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExtractLimits:
  """What a file may cost; what costs more is dropped, with the number that it had.

  All but the last two depend on the file alone, so that the same files are dropped on
  every machine. The last two are for what the others do not foresee; they hold only
  where the work is done in a process of its own (`ExtractText.isolate`).

  Attributes:
    max_bytes: of the file.
    max_unpacked_bytes: of all that an archive holds.
    max_ratio: of the unpacked to the packed bytes of an archive; ordinary XML packs
      about 10 to 1, and what unpacks to less than 1 MB may have any ratio.
    max_members: of an archive.
    max_elements: of an HTML tree.
    max_depth: of an HTML tree and of groups in TeX.
    max_pages: of a PDF.
    max_characters: of the text that is taken out.
    max_cpu_seconds: of one file. Processor time, so that a busy machine makes no
      difference.
    max_memory_mb: beyond what an idle process holds.
  """

  max_bytes: int = 50_000_000
  max_unpacked_bytes: int = 200_000_000
  max_ratio: float = 200.0
  max_members: int = 10_000
  max_elements: int = 300_000
  max_depth: int = 200
  max_pages: int = 2_000
  max_characters: int = 20_000_000
  max_cpu_seconds: int = 60
  max_memory_mb: int = 2_000

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if value <= 0:
        raise ConfigError(f"ExtractLimits.{field.name} ({value}) must be positive.")
    if self.max_depth > 2_000:
      raise ConfigError(
        f"ExtractLimits.max_depth ({self.max_depth}) must be 2000 or less: the HTML "
        "parser itself goes no deeper than 2048."
      )


_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")


def tidy_text(text: str) -> str:
  """Returns text with plain newlines, no control characters and few empty lines."""
  text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\f", "\n")
  text = _UNPRINTABLE.sub("", text)
  # What stands before keeps a long run of blanks from being read from each of them on.
  text = re.sub(r"(?<![ \t])[ \t]++\n", "\n", text)
  return re.sub(r"\n{3,}", "\n\n", text).strip("\n")


def decode_utf8(data: bytes, *, encoding: str = "") -> str:
  """Decodes text by its byte order mark, the encoding it was said to have, or UTF-8.

  Raises:
    Unextractable: "not_text" where there are NUL bytes, "unknown_encoding" otherwise.
  """
  for mark, name in _MARKS:
    if data.startswith(mark):
      encoding = name
      break
  encoding = encoding or "utf-8"
  try:
    text = data.decode(encoding)
  except LookupError:
    raise Unextractable("unknown_encoding", f"no encoding named {encoding!r}") from None
  except (UnicodeError, ValueError) as error:
    at = f" at byte {error.start}" if isinstance(error, UnicodeDecodeError) else ""
    raise Unextractable("unknown_encoding", f"not {encoding}{at}") from None
  if "\0" in text:
    raise Unextractable("not_text", f"NUL at character {text.index(chr(0))}")
  return text.removeprefix("\ufeff")


_MARKS = (
  (b"\xef\xbb\xbf", "utf-8"),
  (b"\xff\xfe\x00\x00", "utf-32"),
  (b"\x00\x00\xfe\xff", "utf-32"),
  (b"\xff\xfe", "utf-16"),
  (b"\xfe\xff", "utf-16"),
)
