"""Text of TeX: pylatexenc with formulas as they stand, and what it has no rule for.

Formulas stay TeX, as the paper says; comments and the preamble go, `\\input` is
followed, tables become Markdown, verbatim and listings fenced code, a figure its
caption, a citation or reference its key in brackets.

Source: arXiv:2412.08905 section 3.3 (multi-file TeX).
Differs: the paper's parser is not published. Macros that a document defines are not
  expanded.
"""

import functools
import logging
import posixpath
import re
from collections.abc import Callable, Mapping
from typing import Any

from phi4_jax.curation.extract_limits import (
  ExtractLimits,
  Unextractable,
  decode_utf8,
  tidy_text,
)
from phi4_jax.curation.extract_marks import Marks
from phi4_jax.curation.extract_tables import rows_to_markdown

_INPUT_ENCODING = re.compile(rb"\\usepackage\[([\w-]+)\]\{inputenc\}")
_ENCODINGS = {
  "latin1": "latin-1",
  "latin9": "iso8859-15",
  "ansinew": "windows-1252",
  "cp1252": "windows-1252",
  "applemac": "mac-roman",
}
_INCLUDE = re.compile(r"\\(?:input|include|subfile)\s*\{([^{}]{1,200})\}")
_DOCUMENT = re.compile(r"\\begin\{document\}(.*?)(?:\\end\{document\}|\Z)", re.DOTALL)
_CODE = frozenset(
  ["verbatim", "verbatim*", "Verbatim", "lstlisting", "minted", "alltt"]
)
_TABULAR = frozenset(["tabular", "tabular*", "tabularx", "tabulary", "longtable"])
_DROPPED = frozenset(
  [
    "thebibliography",
    "tikzpicture",
    "pgfpicture",
    "filecontents",
    "filecontents*",
    "comment",
  ]
)
_BEGIN = re.compile(r"\\begin\{(\w+\*?)\}")
_OPTIONS = re.compile(r"\s*((?:\[[^\]\n]*\])?(?:\{[^}\n]*\})?)")
_INLINE_CODE = re.compile(r"\\(?:verb\*?|lstinline)([^\w\s*{])([^\n]{0,500}?)\1")
_COMMENT = re.compile(r"(?<!\\)((?:\\\\)*)%[^\n]*(?:\n[ \t]*)?")
# What stands in brackets has a largest length, or a text of brackets that are never
# closed would be read to its end from each of them.
_RULES = re.compile(
  r"\\(?:hline|toprule|midrule|bottomrule|endhead|endfirsthead|endfoot|centering)\b"
  r"|\\(?:cline|cmidrule)(?:\([^)]{0,100}\))?\{[^}]{0,100}\}"
)
_ROW_END = re.compile(r"\\\\(?:\[[^\]]{0,100}\])?|\\tabularnewline\b")
_PLACE = re.compile(r"\A\s*(?:\[[^\]]{0,100}\])?\s*")
# Tables with a width before their columns.
_WIDE = frozenset(["tabular*", "tabularx", "tabulary"])
_DROPPED_MACROS = re.compile(
  r"\\(?:bibliography|bibliographystyle|includegraphics|graphicspath|vspace|hspace|"
  r"label|pagestyle|thispagestyle|setlength|setcounter|addtolength)\*?"
  r"(?:\[[^\]]{0,500}\])?(?:\{[^{}]{0,500}\}){1,3}"
)
_MAX_INCLUDES = 1_000


def tex_to_text(data: bytes | str, *, limits: ExtractLimits) -> str:
  """Returns the text of one TeX file.

  Raises:
    Unextractable: "no_text", "too_deep", "unreadable", "too_much_text", "not_text".
  """
  source = data if isinstance(data, str) else decode_tex(data)
  return _to_text(source, limits=limits)


def tex_files_to_text(files: Mapping[str, bytes], *, limits: ExtractLimits) -> str:
  """Returns the text of a document of several files, by name.

  The main file is the one with `\\documentclass` and a body: main.tex or ms.tex where
  there are several, else the longest.

  Raises:
    Unextractable: as `tex_to_text`; "no_text" if no file is a document.
  """
  sources = {
    posixpath.normpath(name): decode_tex(content)
    for name, content in files.items()
    if name.lower().endswith((".tex", ".ltx", ".latex"))
  }
  mains = [
    name
    for name, source in sources.items()
    if re.search(r"\\document(?:class|style)\b", source)
    and "\\begin{document}" in source
  ]
  if not mains:
    raise Unextractable("no_text", f"{len(files)} files, none of them a TeX document")

  def rank(name: str):
    usual = posixpath.basename(name).lower() in ("main.tex", "ms.tex", "paper.tex")
    return usual, len(sources[name]), name

  main = max(mains, key=rank)
  source = _follow_includes(sources, main, limits=limits)
  return _to_text(source, limits=limits)


def decode_tex(data: bytes) -> str:
  """Decodes TeX by the encoding it declares, as UTF-8, or else as Latin-1."""
  declared = _INPUT_ENCODING.search(data)
  name = declared[1].decode("ascii").lower() if declared else ""
  try:
    return decode_utf8(data, encoding=_ENCODINGS.get(name, ""))
  except Unextractable as error:
    if error.reason == "not_text":
      raise
  return decode_utf8(data, encoding="latin-1")  # old TeX declares nothing


def strip_comments(source: str) -> str:
  """Removes comments and, as TeX does, the newline and indentation after them."""
  return _COMMENT.sub(lambda match: match[1], source)


def _follow_includes(
  sources: Mapping[str, str], main: str, *, limits: ExtractLimits
) -> str:
  """Puts included files in place; one that is missing, or includes itself, is empty."""
  folder = posixpath.dirname(main)
  count = size = 0

  def read(name: str, above: tuple[str, ...]) -> str:
    nonlocal count, size
    count += 1
    source = strip_comments_outside_code(sources[name])
    size += len(source)
    if count > _MAX_INCLUDES or size > limits.max_characters:
      raise Unextractable(
        "too_much_text", f"{count} files included, {size} characters so far"
      )

    def include(match: re.Match) -> str:
      wanted = posixpath.normpath(posixpath.join(folder, match[1].strip()))
      for path in (wanted, f"{wanted}.tex"):
        if path in sources and path not in above:
          inner = read(path, (*above, path))
          body = _DOCUMENT.search(inner)  # a subfile is a document of its own
          return body[1] if body else inner
      return ""

    return _INCLUDE.sub(include, source)

  return read(main, (main,))


def strip_comments_outside_code(source: str) -> str:
  """Removes comments, but no percent sign of a program."""
  return replace_environments(
    source, _CODE, lambda name, body: None, outside=strip_comments
  )


def replace_environments(
  source: str,
  names: frozenset[str],
  replace: Callable[[str, str], str | None],
  *,
  outside: Callable[[str], str] = str,
) -> str:
  """Replaces environments by `replace(name, body)`; None leaves one as it is.

  One pass, whatever the text: an environment that is never closed is looked for once.
  `outside` is applied to what is in none of them.
  """
  parts, position, search, unclosed = [], 0, 0, set()
  while match := _BEGIN.search(source, search):
    search = match.end()
    name = match[1]
    if name not in names or name in unclosed:
      continue
    end = source.find(f"\\end{{{name}}}", search)
    if end < 0:
      unclosed.add(name)
      continue
    search = end + len(f"\\end{{{name}}}")
    replaced = replace(name, source[match.end() : end])
    whole = source[match.start() : search]
    parts += [
      outside(source[position : match.start()]),
      whole if replaced is None else replaced,
    ]
    position = search
  return "".join([*parts, outside(source[position:])])


def _to_text(source: str, *, limits: ExtractLimits) -> str:
  body = _DOCUMENT.search(source)
  title = re.search(r"\\title\s*(?:\[[^\]]{0,500}\])?\s*\{", source)
  if body:
    heading = _group(source, title.end()) if title else ""
    source = (f"\\section*{{{heading}}}\n" if heading else "") + body[1]
  marks = Marks(source, max_characters=limits.max_characters)
  source = replace_environments(
    source, _CODE, lambda name, body: _code_block(body, marks)
  )
  source = _INLINE_CODE.sub(lambda match: marks.put(f"`{match[2]}`"), source)
  source = strip_comments(source)
  source = replace_environments(source, _DROPPED, lambda name, body: "")
  source = _DROPPED_MACROS.sub("", source)
  _check_depth(source, limits.max_depth)
  convert = functools.partial(_convert, limits=limits)
  source = replace_environments(
    source, _TABULAR, lambda name, body: _table(name, body, marks, convert)
  )
  text = tidy_text(marks.restore(convert(source)))
  if not text.strip():
    raise Unextractable("no_text", f"{len(source)} characters of TeX without text")
  return text


def _code_block(body: str, marks: Marks) -> str:
  options = _OPTIONS.match(body)
  assert options is not None  # it matches nothing, too
  language = re.search(r"language=(\w+)|\{(\w+)\}", options[1])
  code = body[options.end() :] if options[1] else body
  name = (language[1] or language[2]).lower() if language else ""
  block = f"```{name}\n{code.strip(chr(10)).rstrip()}\n```"
  return "\n\n" + marks.put(block, block=True) + "\n\n"


def split_rows(name: str, body: str) -> list[str]:
  """Returns the rows of a table's environment, without its columns and rules."""
  # Before the columns there may be a place and a width.
  for _ in range(2 if name in _WIDE else 1):
    body = _PLACE.sub("", body)
    if body.startswith("{"):
      body = body[1 + len(_group(body, 1)) + 1 :].lstrip()
  return _ROW_END.split(_RULES.sub("", body))


def _table(name: str, body: str, marks: Marks, convert) -> str:
  rows = []
  for line in split_rows(name, body):
    line = re.sub(r"\\multi(?:column|row)\{[^{}]*\}\{[^{}]*\}\{([^{}]*)\}", r"\1", line)
    cells = [convert(cell).strip() for cell in re.split(r"(?<!\\)&", line)]
    if any(cells):
      rows.append([marks.restore(cell) for cell in cells])
  if not rows:
    return ""
  return "\n\n" + marks.put(rows_to_markdown(rows), block=True) + "\n\n"


def _group(source: str, start: int) -> str:
  """Returns what stands from `start` to the brace that closes the group."""
  depth = 1
  for match in re.compile(r"(?<!\\)[{}]").finditer(source, start):
    depth += 1 if match[0] == "{" else -1
    if depth == 0:
      return source[start : match.start()]
  return source[start:]


def _check_depth(source: str, max_depth: int) -> None:
  depth = deepest = 0
  for match in re.finditer(r"(?<!\\)[{}]|\\(?:begin|end)\b", source):
    depth = max(0, depth + (1 if match[0] in ("{", "\\begin") else -1))
    deepest = max(deepest, depth)
  if deepest > max_depth:
    raise Unextractable("too_deep", f"groups {deepest} deep, {max_depth} allowed")


def _convert(source: str, *, limits: ExtractLimits) -> str:
  from pylatexenc.latexwalker import LatexWalkerError

  try:
    return _converter().latex_to_text(source)
  except RecursionError:
    raise Unextractable("too_deep", "groups too deep for the TeX reader") from None
  except (LatexWalkerError, ValueError, IndexError, KeyError, TypeError) as error:
    detail = f"{type(error).__name__}: {str(error)[:200]}"
    raise Unextractable("unreadable", detail) from None


@functools.cache
def _converter() -> Any:
  from pylatexenc import latex2text

  # A warning for each macro that is used in an odd way, one a line.
  logging.getLogger("pylatexenc").setLevel(logging.CRITICAL)

  def heading(level: int):
    return lambda node, l2tobj: _heading(node, l2tobj, level)

  # pylatexenc looks at the names of the arguments, which a decorated function hides.
  key = lambda node, l2tobj: f"[{_last_argument(node, l2tobj)}]"  # noqa: E731
  caption = lambda node, l2tobj: f"\n\n{_last_argument(node, l2tobj)}\n\n"  # noqa: E731

  context = latex2text.get_default_latex_context_db()
  macro = latex2text.MacroTextSpec
  names = ("part", "chapter", "section", "subsection", "subsubsection", "paragraph")
  levels = dict(zip(names, (1, 1, 1, 2, 3, 4), strict=True))
  context.add_context_category(
    "phi4_jax",
    prepend=True,
    macros=[
      *(macro(name, heading(level)) for name, level in levels.items()),
      *(macro(name, key) for name in ("cite", "citet", "citep", "ref", "eqref")),
      macro("caption", caption),
      macro("maketitle", ""),
      macro("today", ""),
    ],
  )
  return latex2text.LatexNodes2Text(
    latex_context=context, math_mode="verbatim", keep_comments=False
  )


def _last_argument(node, l2tobj) -> str:
  arguments = node.nodeargd.argnlist if node.nodeargd else []
  given = [argument for argument in arguments if argument is not None]
  return l2tobj.nodelist_to_text([given[-1]]).strip() if given else ""


def _heading(node, l2tobj, level: int) -> str:
  return f"\n\n{'#' * level} {_last_argument(node, l2tobj)}\n\n"
