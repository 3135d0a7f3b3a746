"""Text of a PDF: its text layer, by pypdfium2. Scans have none and are not read."""

import re

from phi4_jax.curation.extract_limits import ExtractLimits, Unextractable, tidy_text

# pypdfium2's way to say what FPDF_GetLastError gave.
_FAILURES = {4: "encrypted", 5: "encrypted"}
_SOFT_HYPHEN = re.compile("[\u00ad\x02][ \t]*\r?\n?")
_HYPHEN = re.compile(r"([^\W\d_])-\r?\n(?=[^\W\d_])")


def pdf_to_text(data: bytes, *, limits: ExtractLimits) -> str:
  """Returns the text of all pages, words that were broken at a line's end joined.

  Raises:
    Unextractable: "wrong_type", "encrypted", "unreadable", "too_many_pages",
      "no_text_layer", "too_much_text".
  """
  import pypdfium2

  if b"%PDF-" not in data[:1024]:
    raise Unextractable("wrong_type", "does not begin with %PDF-")
  try:
    document = pypdfium2.PdfDocument(data)
  except pypdfium2.PdfiumError as error:
    code = getattr(error, "err_code", None)
    reason = (
      _FAILURES.get(code, "unreadable") if isinstance(code, int) else "unreadable"
    )
    raise Unextractable(reason, str(error)) from None
  try:
    return _text_of(document, limits=limits)
  except pypdfium2.PdfiumError as error:
    raise Unextractable("unreadable", str(error)) from None
  finally:
    document.close()


def _text_of(document, *, limits: ExtractLimits) -> str:
  if len(document) > limits.max_pages:
    raise Unextractable(
      "too_many_pages", f"{len(document)} pages, {limits.max_pages} allowed"
    )
  pages, size = [], 0
  for number in range(len(document)):
    page = document[number]
    layer = page.get_textpage()
    size += layer.count_chars()
    if size > limits.max_characters:
      raise Unextractable(
        "too_much_text", f"more than {limits.max_characters} characters"
      )
    pages.append(tidy_text(join_broken_words(layer.get_text_range())))
    layer.close()
    page.close()
  text = "\n\n".join(page for page in pages if page.strip())
  if not text.strip():
    raise Unextractable("no_text_layer", f"{len(document)} pages without text")
  return text


def join_broken_words(text: str) -> str:
  """Joins what a line's end broke: a hyphen between a letter and a small letter.

  >>> join_broken_words("informa-\\ntion and A-\\nLevel")
  'information and A-\\nLevel'
  """
  text = re.sub("\ufffe\r?\n?", "-\n", text)  # pdfium's hyphen at a line's end
  text = _SOFT_HYPHEN.sub("", text)

  def join(match: re.Match) -> str:
    following = match.string[match.end() : match.end() + 1]
    return match[1] if following.islower() else match[0]

  return _HYPHEN.sub(join, text)
