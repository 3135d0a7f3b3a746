"""Formulas of a web page as TeX between dollars: MathML, MathJax, KaTeX, images.

MathML with an annotation gives the TeX that it was made from; MathML without one is
written as TeX as far as its structure goes (fractions, roots, scripts, tables).
"""

import re

_TEX_ANNOTATION = ("application/x-tex", "tex", "latex", "application/x-latex")
# What pages show beside the formula itself: each would be the formula once more.
_RENDERED = re.compile(
  r"(?:^|\s)(?:MathJax(?:_Preview|_Display|_SVG|_CHTML)?|mjx-chtml|katex-html|"
  r"mwe-math-fallback-image-(?:inline|display))(?:\s|$)"
)
_FORMULA_IMAGE = re.compile(
  r"(?:^|[\s_/?&.-])(?:tex|latex|math|mathtex|mimetex|codecogs|texvc|"
  r"ql-img-\w+-formula|mwe-math-fallback-image-\w+)(?:$|[\s_/?&.-])",
  re.IGNORECASE,
)
_GREEK = dict(
  zip(
    "αβγδεζηθικλμνξπρστυφχψωΓΔΘΛΞΠΣΦΨΩ",
    [
      "alpha",
      "beta",
      "gamma",
      "delta",
      "epsilon",
      "zeta",
      "eta",
      "theta",
      "iota",
      "kappa",
      "lambda",
      "mu",
      "nu",
      "xi",
      "pi",
      "rho",
      "sigma",
      "tau",
      "upsilon",
      "phi",
      "chi",
      "psi",
      "omega",
      "Gamma",
      "Delta",
      "Theta",
      "Lambda",
      "Xi",
      "Pi",
      "Sigma",
      "Phi",
      "Psi",
      "Omega",
    ],
    strict=True,
  )
)
# Characters that have a name in TeX.
OPERATORS = {
  **{letter: f"\\{name} " for letter, name in _GREEK.items()},
  "∑": "\\sum ",
  "∏": "\\prod ",
  "∫": "\\int ",
  "∞": "\\infty ",
  "≤": "\\leq ",
  "≥": "\\geq ",
  "≠": "\\neq ",
  "≈": "\\approx ",
  "∈": "\\in ",
  "→": "\\to ",
  "×": "\\times ",
  "⋅": "\\cdot ",
  "±": "\\pm ",
  "∂": "\\partial ",
  "∇": "\\nabla ",
  "−": "-",
  "\u2061": "",  # function application, invisible times, separator, plus
  "\u2062": "",
  "\u2063": "",
  "\u2064": "",
}
_FUNCTIONS = frozenset(
  [
    "sin",
    "cos",
    "tan",
    "cot",
    "sec",
    "csc",
    "arcsin",
    "arccos",
    "arctan",
    "sinh",
    "cosh",
    "tanh",
    "exp",
    "log",
    "ln",
    "lim",
    "max",
    "min",
    "sup",
    "inf",
    "det",
    "dim",
    "gcd",
    "arg",
    "ker",
  ]
)


def in_dollars(tex: str, *, display: bool) -> str:
  """Returns TeX as a formula of its own line (two dollars) or of the text (one)."""
  tex = " ".join(tex.split())
  # Wikipedia says \displaystyle in front of everything.
  match = re.fullmatch(r"\{\s*\\(?:display|text)style\b\s*(.*)\}", tex)
  tex = (match[1] if match else tex).strip()
  tex = tex.strip("$").strip() if tex.startswith("$") else tex
  if not tex:
    return ""
  return f"$${tex}$$" if display else f"${tex}$"


def is_rendered(element) -> bool:
  """Says whether an element only shows a formula that stands beside it as source."""
  name = element.get("class") or ""
  return bool(_RENDERED.search(name)) or element.tag == "mjx-container"


def script_formula(element) -> str:
  """Returns the formula of a `<script type="math/tex">`, or "" for other scripts."""
  kind = (element.get("type") or "").lower()
  if not kind.startswith("math/tex"):
    return ""
  return in_dollars(element.text or "", display="mode=display" in kind.replace(" ", ""))


def image_formula(element) -> str:
  """Returns the formula that an image shows, by its alt text, or ""."""
  alt = (element.get("alt") or "").strip()
  if not alt or len(alt) > 5_000:
    return ""
  where = f"{element.get('class') or ''} {element.get('src') or ''}"
  delimited = re.fullmatch(r"\$\$?.+\$\$?|\\[(\[].+\\[)\]]", alt, re.DOTALL)
  if not delimited and not _FORMULA_IMAGE.search(where):
    return ""
  if not delimited and not re.search(r"[\\^_=<>+*/()\d{}-]|^\w$", alt):
    return ""  # "math department" is no formula
  display = alt.startswith(("$$", "\\["))
  if alt.startswith(("\\(", "\\[")) and delimited:
    alt = alt[2:-2]
  return in_dollars(alt, display=display)


def mathml_formula(math) -> str:
  """Returns the formula of a `<math>` element."""
  display = math.get("display") == "block" or math.get("mode") == "display"
  for annotation in math.iter("annotation"):
    if (annotation.get("encoding") or "").strip().lower() in _TEX_ANNOTATION:
      return in_dollars("".join(annotation.itertext()), display=display)
  if math.get("alttext"):
    return in_dollars(math.get("alttext"), display=display)
  return in_dollars(mathml_to_tex(math), display=display)


def mathml_to_tex(element) -> str:
  """Writes presentation MathML as TeX; what has no rule gives its content."""
  if not isinstance(element.tag, str):
    return ""  # a comment
  name = element.tag.rpartition("}")[2].rpartition(":")[2].lower()
  if name in ("annotation", "annotation-xml", "mphantom"):
    return ""
  if name in ("mi", "mn", "mo", "mtext", "ms"):
    text = "".join(element.itertext()).strip()
    if name == "mi" and text in _FUNCTIONS:
      return f"\\{text} "
    if name in ("mtext", "ms"):
      return f"\\text{{{text}}}" if text else ""
    return "".join(OPERATORS.get(character, character) for character in text)
  parts = [mathml_to_tex(child) for child in element if isinstance(child.tag, str)]
  rule = _RULES.get(name)
  if rule is not None and len(parts) == rule[0]:
    parts = [part.strip() for part in parts]
    if name not in ("mfrac", "mroot") and len(parts[0]) > 1 and parts[0][0] != "\\":
      parts[0] = f"{{{parts[0]}}}"  # the base of a script is a group
    return rule[1].format(*parts)
  if name == "msqrt":
    return f"\\sqrt{{{''.join(parts).strip()}}}"
  if name == "mtr":
    return " & ".join(part.strip() for part in parts)
  if name == "mtable":
    rows = " \\\\ ".join(parts)
    return f"\\begin{{matrix}}{rows}\\end{{matrix}}"
  if name == "mfenced":
    left, right = element.get("open", "("), element.get("close", ")")
    return left + ", ".join(part.strip() for part in parts) + right
  own = (element.text or "").strip() if not parts else ""
  return own + "".join(parts)


_RULES = {
  "mfrac": (2, r"\frac{{{0}}}{{{1}}}"),
  "mroot": (2, r"\sqrt[{1}]{{{0}}}"),
  "msup": (2, r"{0}^{{{1}}}"),
  "msub": (2, r"{0}_{{{1}}}"),
  "msubsup": (3, r"{0}_{{{1}}}^{{{2}}}"),
  "munder": (2, r"{0}_{{{1}}}"),
  "mover": (2, r"{0}^{{{1}}}"),
  "munderover": (3, r"{0}_{{{1}}}^{{{2}}}"),
}
