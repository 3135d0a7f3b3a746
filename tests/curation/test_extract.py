"""What each format gives; the hostile ones are in test_extract_hostile.py."""

import gzip
import io
import tarfile

import pytest

from phi4_jax.common.errors import ConfigError
from phi4_jax.curation.extract import DOCX, ExtractText
from phi4_jax.curation.extract_limits import ExtractLimits
from phi4_jax.curation.extract_marks import Marks
from phi4_jax.curation.extract_pdf import join_broken_words
from phi4_jax.curation.extract_tex import split_rows
from phi4_jax.curation.steps import DocumentStep, Drop, Keep
from phi4_jax.data.documents import Document
from tests.curation.made_files import (
  make_docx,
  make_epub,
  make_pdf,
  make_zip,
  page,
  word_paragraph,
)

TEX = r"""\documentclass{article} % a comment
\title{On \emph{Things}}
\begin{document}
\maketitle
\section{First}
We show 50\% of it. % not this
As \cite{knuth84} said: $x_1 = \frac{1}{2}$ and
\begin{equation}\label{eq:1} a = b \end{equation}
\begin{lstlisting}[language=Python]
x = 7 % 2
  y = 1
\end{lstlisting}
\begin{table}\begin{tabular}{l|r} \hline a & $b$ \\ \hline 1 & 2 \\ \end{tabular}
\caption{Numbers}\end{table}
\begin{figure}\includegraphics[width=1in]{a.png}\caption{A figure.}\end{figure}
\input{more}
\end{document}
"""


@pytest.mark.parametrize(
  "name, body, rows",
  [
    ("tabular", r"[t]{l@{}r} a & b \\[2pt] c & d \\", ["a & b ", " c & d ", ""]),
    ("tabular", r"{l}{\bf a} \\ \hline b", [r"{\bf a} ", "  b"]),
    ("tabular*", r"{3cm}[b]{l} a\tabularnewline b", ["a", " b"]),
    ("tabularx", r"{\textwidth}{lX} \cmidrule(lr){1-2} a", [" a"]),
  ],
)
def test_rows_of_tex_tables(name, body, rows):
  assert split_rows(name, body) == rows


def extract(content: bytes | str, media_type: str, **fields) -> Document:
  step = ExtractText(isolate=False, **fields)
  if isinstance(content, str):
    document = Document(id="d", text=content, media_type=media_type)
  else:
    document = Document(id="d", data=content, media_type=media_type)
  verdict = step.make_judge()(document)
  assert isinstance(verdict, Keep), verdict
  return verdict.document


def html(body: str) -> str:
  return extract(page(f"<article>{body}</article>"), "text/html").text or ""


# --- HTML --------------------------------------------------------------------------


@pytest.mark.parametrize(
  "body, text",
  [
    ('<p>See <script type="math/tex">E=mc^2</script> here.</p>', "See $E=mc^2$ here."),
    (
      '<p>So <script type="math/tex; mode=display">x^2</script> is.</p>',
      "So $$x^2$$ is.",
    ),
    (r'<p>An <img class="tex" alt="\frac{1}{2}" src="a.png"> is.</p>', None),
    (
      '<p>An <img src="https://latex.codecogs.com/png?x" alt="x^2"> b.</p>',
      "An $x^2$ b.",
    ),
    ('<p>A <img alt="$a_1 &lt; b$"> c.</p>', "A $a_1 < b$ c."),
    ('<p>A <img alt="a dog" src="dog.png"> c.</p>', "A c."),
    (
      "<p>If <math><semantics><mrow><mi>x</mi></mrow><annotation "
      'encoding="application/x-tex">x \\in A</annotation></semantics></math> then.</p>',
      r"If $x \in A$ then.",
    ),
    (
      "<p>Is <math><mfrac><mn>1</mn><mrow><mi>x</mi><mo>+</mo><mi>α</mi></mrow></mfrac>"
      "<mo>≤</mo><msup><mrow><mi>a</mi><mi>b</mi></mrow><mn>2</mn></msup></math> so."
      "</p>",
      r"Is $\frac{1}{x+\alpha}\leq {ab}^{2}$ so.",
    ),
    (
      '<p>Is <math display="block"><msqrt><mi>x</mi></msqrt><msub><mi>y</mi><mi>i</mi>'
      "</msub></math> so.</p>",
      r"Is $$\sqrt{x}y_{i}$$ so.",
    ),
    (r"<p>Set \(a_1 * b\) and $x_2$ in it.</p>", r"Set \(a_1 * b\) and $x_2$ in it."),
    ("<p>Call <code>f_x(*a)</code> then.</p>", "Call `f_x(*a)` then."),
  ],
)
def test_formulas_and_code_in_the_text(body, text):
  wanted = r"An $\frac{1}{2}$ is." if text is None else text
  assert html(body) == wanted


def test_what_only_shows_a_formula_is_not_a_second_one():
  katex = (
    '<span class="katex"><span class="katex-mathml"><math><semantics><mrow/>'
    "<annotation "
    'encoding="application/x-tex">c^2</annotation></semantics></math></span>'
    '<span class="katex-html" aria-hidden="true">c2</span></span>'
  )
  wikipedia = (
    '<span class="mwe-math-element"><span style="display: none;"><math><semantics>'
    '<mrow/><annotation encoding="application/x-tex">{\\displaystyle a^{2}}'
    "</annotation>"
    '</semantics></math></span><img class="mwe-math-fallback-image-inline" '
    'alt="{\\displaystyle a^{2}}"></span>'
  )
  mathjax = (
    '<span class="MathJax_Preview">b2</span><span class="MathJax">b2</span>'
    '<script type="math/tex">b^2</script>'
  )
  assert html(f"<p>By {katex}, {wikipedia}, {mathjax} and.</p>") == (
    "By $c^2$, $a^{2}$, $b^2$ and."
  )


def test_code_blocks_keep_lines_and_indentation():
  body = (
    "<p>Some code:</p>"
    '<div class="highlight-python"><div class="highlight"><pre><span>def</span> f(x):\n'
    "    if x &lt; 1:\n\n        return <b>x</b>\n</pre></div></div>"
    "<pre>a<br>\tb</pre>"
    '<pre><code class="language-c">int x;</code></pre>'
  )
  assert html(body) == (
    "Some code:\n\n```python\ndef f(x):\n    if x < 1:\n\n        return x\n```\n\n"
    "```\na\n    b\n```\n\n```c\nint x;\n```"
  )


def test_tables_of_data_become_markdown_and_others_blocks():
  data = (
    "<table><thead><tr><th>n</th><th>value</th></tr></thead><tbody><tr><td>1</td>"
    "<td><math><mi>x</mi></math> | <b>y</b></td></tr></tbody></table>"
  )
  assert html(f"<p>A table:</p>{data}") == (
    "A table:\n\n| n | value |\n| --- | --- |\n| 1 | $x$ \\| y |"
  )
  layout = "<table><tr><td><p>The left column.</p></td><td><pre>x\n y</pre></td></tr>"
  assert html(f"{layout}</table>") == "The left column.\n\n```\nx\n y\n```"


def test_headings_lists_and_paragraphs():
  body = (
    "<h1>One</h1><p>First.</p><p>Second.</p><h2>Two</h2><ul><li>a</li><li>b</li></ul>"
  )
  assert html(body + "<p>End.</p>") == (
    "# One\n\nFirst.\n\nSecond.\n\n## Two\n\n- a\n- b\nEnd."
  )


def test_the_body_is_taken_and_labelled_where_no_main_text_is_found(monkeypatch):
  frames = "<frameset><noframes>It is here.</noframes></frameset>"
  document = extract(frames, "text/html")
  assert document.text == "It is here."
  assert document.labels["extractor"] == "body_text"
  monkeypatch.setattr("trafilatura.extract", lambda *args, **kwargs: None)
  body = (
    "<nav>Home</nav><script>x</script><h1>One</h1><p>Two <b>bold</b> <i>words</i></p>"
    "<div>Three<pre>a\n b</pre></div><footer>Ours</footer>tail"
  )
  document = extract(page(body), "text/html")
  assert document.text == "# One\n\nTwo bold words\n\nThree\n\n```\na\n b\n```\n\ntail"
  assert document.labels["extractor"] == "body_text"


@pytest.mark.parametrize(
  "data, media_type",
  [
    ("<p>Grüße</p>".encode(), "text/html"),
    ("<p>Grüße</p>".encode("latin-1"), "text/html; charset=latin-1"),
    ("<p>Grüße</p>".encode("windows-1252"), "text/html"),
    ('<meta charset="iso-8859-1"><p>Grüße</p>'.encode("latin-1"), "text/html"),
    ("\ufeff<p>Grüße</p>".encode("utf-16-le"), "text/html"),
    ("<p>Grüße</p>".encode(), "text/html; charset=no-such"),
  ],
)
def test_encodings_of_html(data, media_type):
  assert extract(data, media_type).text == "Grüße"


def test_pieces_come_back_although_a_page_writes_about_marks():
  marks = Marks("zqxm0b")
  put = marks.put("$x$")
  assert not put.startswith("zqxm0b")
  assert marks.restore(f"zqxm0b and {put}") == "zqxm0b and $x$"
  # A partner that was lost, and one that never was.
  assert marks.restore(put.split()[0]) == "$x$"
  assert marks.restore("zqxmq99b and zqxmq5e") == " and "


# --- TeX ---------------------------------------------------------------------------


def test_tex():
  document = extract(TEX.encode(), "application/x-tex")
  assert (document.text or "").split("\n\n") == [
    "# On Things",
    "# First",
    "We show 50% of it. As [knuth84] said: $x_1 = \\frac{1}{2}$ and",
    "\\begin{equation} a = b \\end{equation}",
    "```python\nx = 7 % 2\n  y = 1\n```",
    "| a | $b$ |\n| --- | --- |\n| 1 | 2 |",
    "Numbers",
    "A figure.",
  ]


def make_tar(files: dict[str, bytes]) -> bytes:
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode="w") as archive:
    for name, content in files.items():
      member = tarfile.TarInfo(name)
      member.size = len(content)
      archive.addfile(member, io.BytesIO(content))
  return buffer.getvalue()


@pytest.mark.parametrize("packed", ["zip", "tar", "tar.gz"])
def test_tex_of_several_files(packed):
  files = {
    "a/paper.tex": TEX.encode(),
    "a/more.tex": b"Included. \\input{paper} \\input{none}",
    "a/fig.png": b"\x89PNG",
  }
  data = make_zip(files) if packed == "zip" else make_tar(files)
  media_type = "application/zip"
  if packed != "zip":
    media_type = "application/x-tar"
  if packed == "tar.gz":
    data, media_type = gzip.compress(data), "application/x-eprint-tar"
  text = extract(data, media_type).text or ""
  assert text.startswith("# On Things") and text.rstrip().endswith("Included.")


def test_tex_in_old_encodings():
  packed = gzip.compress("Fr\xfcher war \\emph{alles} besser.".encode("latin-1"))
  assert extract(packed, "application/x-eprint").text == "Früher war alles besser."
  declared = "\\usepackage[applemac]{inputenc}\\begin{document}für\\end{document}"
  assert extract(declared.encode("mac-roman"), "application/x-tex").text == "für"


# --- PDF, ePub, DOCX, plain --------------------------------------------------------


def test_pdf():
  data = make_pdf([["Some informa-", "tion of it", "and A-", "Level."], [], ["Two."]])
  document = extract(data, "application/pdf")
  assert document.text == "Some information of it\nand A-\nLevel.\n\nTwo."
  assert document.labels == {"extracted_from": "pdf", "extractor": "pypdfium2"}


def test_broken_words_are_joined():
  assert (
    join_broken_words("inter-\r\nnational 1-\n2 x-\nY") == "international 1-\n2 x-\nY"
  )
  assert join_broken_words("soft\u00ad\nly, un\ufffedone") == "softly, undone"


def test_epub_is_read_in_the_order_of_its_spine():
  chapters = {
    "b": page("<h1>Two</h1><p>Second <math><mi>x</mi></math>.</p>"),
    "cover": page("<img src='a.png'>"),
    "a": page("<h1>One</h1><p>First.</p>"),
  }
  data = make_epub(chapters, spine=["cover", "a", "b"])
  document = extract(data, "application/epub+zip")
  assert document.text == "# One\n\nFirst.\n\n# Two\n\nSecond $x$."
  assert document.labels["extracted_from"] == "epub"


def test_docx_with_a_table_and_formulas():
  def row(*cells):
    inner = "".join(f"<w:tc>{word_paragraph(cell)}</w:tc>" for cell in cells)
    return f"<w:tr>{inner}</w:tr>"

  def run(text):
    return f"<m:r><m:t>{text}</m:t></m:r>"

  fraction = (
    f"<m:f><m:num>{run(1)}</m:num><m:den><m:sSup><m:e>{run('x')}</m:e>"
    f"<m:sup>{run(2)}</m:sup></m:sSup></m:den></m:f>"
  )
  body = (
    word_paragraph("A paragraph of Word.")
    + f"<w:p><w:r><w:t>It is </w:t></w:r><m:oMath>{fraction}</m:oMath></w:p>"
    + f"<w:p><m:oMathPara><m:oMath>{run('α≤1')}</m:oMath></m:oMathPara></w:p>"
    + f"<w:tbl>{row('a', 'b')}{row('1', '2')}</w:tbl>"
  )
  document = extract(make_docx(body), DOCX)
  assert document.text == (
    "A paragraph of Word.\n\nIt is $\\frac{1}{x^{2}}$\n\n$$\\alpha \\leq 1$$\n\n"
    "| a | b |\n| --- | --- |\n| 1 | 2 |"
  )
  assert document.labels["extractor"] == "mammoth+trafilatura"


@pytest.mark.parametrize(
  "data, text",
  [
    (b"a\r\nb  \n\n\n\nc\n", "a\nb\n\nc"),
    ("\ufeffGrüße".encode(), "Grüße"),
    ("Grüße".encode("utf-16"), "Grüße"),
    (b"bell\x07 and \x1b[0m", "bell and [0m"),
  ],
)
def test_plain_text(data, text):
  assert extract(data, "text/plain").text == text


# --- The step ----------------------------------------------------------------------


def test_what_is_text_already_goes_on_as_it_is():
  judge = ExtractText().make_judge()
  for document in (
    Document(id="d", text="  as it is\r\n"),
    Document(id="d", messages=({"role": "user", "content": "x"},)),
  ):
    assert judge(document) == Keep(document)


def test_the_kept_document_says_where_it_comes_from():
  step = ExtractText(isolate=False).make_judge()
  document = Document(
    id="d",
    data=b"<p>Some text</p>",
    media_type="TEXT/HTML; charset=utf-8",
    source="site",
    license="CC0-1.0",
    lineage=("dump",),
    labels={"status": 200},
  )
  verdict = step(document)
  assert verdict == Keep(
    Document(
      id="d",
      text="Some text",
      source="site",
      license="CC0-1.0",
      lineage=("dump", "step:ExtractText"),
      labels={"status": 200, "extracted_from": "html", "extractor": "trafilatura"},
    )
  )


def test_settings_and_recipe():
  assert isinstance(ExtractText(), DocumentStep)
  with pytest.raises(ConfigError, match=r"ExtractText.kinds \(html, doc\).*epub"):
    ExtractText(kinds=("html", "doc"))
  with pytest.raises(ConfigError, match=r"ExtractLimits.max_pages \(0\)"):
    ExtractLimits(max_pages=0)
  with pytest.raises(ConfigError, match=r"ExtractLimits.max_depth \(3000\).*2048"):
    ExtractLimits(max_depth=3_000)
  recipe = ExtractText().recipe()
  assert recipe["trafilatura"] and recipe["limits"]["max_pages"] == 2_000
  wanted = ExtractText(kinds=("pdf",), isolate=False).make_judge()
  verdict = wanted(Document(id="d", data=b"<p>x</p>", media_type="text/html"))
  assert verdict == Drop("kind_not_wanted", "html, wanted: pdf")
