"""Files that mean harm, or are broken: each is a Drop with its reason, and no more."""

import gzip
import io
import os
import signal
import subprocess
import sys
import tarfile
import threading
import zipfile
from pathlib import Path

import pytest

from phi4_jax.curation.extract import DOCX, ExtractText
from phi4_jax.curation.extract_isolated import IsolatedJudge
from phi4_jax.curation.extract_limits import ExtractLimits, tidy_text
from phi4_jax.curation.extract_tex import split_rows
from phi4_jax.curation.steps import Drop, Keep
from phi4_jax.data.documents import Document
from tests.curation.made_files import (
  CONTAINER,
  make_docx,
  make_epub,
  make_pdf,
  make_zip,
  page,
  word_paragraph,
)

HTML, PDF, EPUB = "text/html", "application/pdf", "application/epub+zip"
TEX = "application/x-tex"
LIMITS = ExtractLimits(
  max_bytes=2_000_000,
  max_unpacked_bytes=3_000_000,
  max_ratio=100.0,
  max_members=50,
  max_elements=20_000,
  max_pages=3,
  max_characters=100_000,
)
ZEROS = b"\0" * 2_500_000
BOOK = make_epub({"a": page("<p>Text.</p>")}, spine=["a"])
LAUGHS = (
  '<!DOCTYPE l [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">'
  '<!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;">]>'
)


def lie_about_sizes(data: bytes, size: int) -> bytes:
  """Changes what the directory of a zip claims of its first member."""
  start = data.index(b"PK\x01\x02")
  return data[: start + 24] + size.to_bytes(4, "little") + data[start + 28 :]


def flag_as_encrypted(data: bytes) -> bytes:
  start = data.index(b"PK\x01\x02")
  return data[: start + 8] + b"\x01\x00" + data[start + 10 :]


def many_members() -> bytes:
  return make_zip({f"{i}.tex": "x" for i in range(60)})


def sparse_tar() -> bytes:
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode="w") as archive:
    member = tarfile.TarInfo("a.tex")
    archive.addfile(member)
  data = bytearray(buffer.getvalue())
  data[124:136] = b"77777777777\0"  # eight gigabytes
  data[148:156] = b" " * 8
  data[148:156] = b"%06o\0 " % sum(data[:512])
  return bytes(data)


def includes() -> bytes:
  files = {"main.tex": r"\documentclass{a}\begin{document}" + r"\input{a0}" * 10}
  for i in range(10):
    files[f"a{i}.tex"] = rf"\input{{a{i + 1}}}" * 10
  return make_zip(files)


HOSTILE = {
  # Web pages.
  "nested 100,000 deep": (b"<div>" * 100_000 + b"x", HTML, "too_deep"),
  "nested 300 deep": (b"<b>" * 300 + b"x", HTML, "too_deep"),
  "tables in tables": (b"<table><tr><td>" * 100 + b"x", HTML, "too_deep"),
  "MathML nested": (b"<math>" + b"<mrow>" * 300 + b"<mi>x", HTML, "too_deep"),
  "too many elements": (b"<p>x" * 30_000, HTML, "too_many_elements"),
  "a megabyte of one tag": (b"<a href='" + b"x" * 1_000_000, HTML, "no_text"),
  "only scripts": (b"<script>alert(1)</script><style>a{}</style>", HTML, "no_text"),
  "no tag": (b"just some text", HTML, "wrong_type"),
  "an image as a page": (b"\x89PNG\r\n\x1a\n" + ZEROS[:99], HTML, "wrong_type"),
  "a PDF as a page": (make_pdf([["x"]]), HTML, "wrong_type"),
  "NULs in a page": (b"<p>a\0b</p>", HTML, "wrong_type"),
  "one word of 200,000": (b"<p>" + b"x" * 200_000, HTML, "too_much_text"),
  "a formula that is long": (
    b"<p><script type='math/tex'>" + b"x+" * 90_000 + b"</script></p>",
    HTML,
    "too_much_text",
  ),
  "larger than allowed": (b"<p>" + b"x " * 1_100_000, HTML, "too_large"),
  "nothing": (b"", HTML, "no_text"),
  # PDF.
  "no PDF": (b"<html>", PDF, "wrong_type"),
  "a PDF cut off": (make_pdf([["x"]])[:150], PDF, "unreadable"),
  "only the head of a PDF": (b"%PDF-1.7\n", PDF, "unreadable"),
  "a PDF with a password": (make_pdf([["x"]], encrypt=True), PDF, "encrypted"),
  "a scan": (make_pdf([[], []]), PDF, "no_text_layer"),
  "too many pages": (make_pdf([["x"]] * 4), PDF, "too_many_pages"),
  "a PDF of noise": (b"%PDF-1.4\n" + bytes(range(256)) * 40, PDF, "unreadable"),
  # ePub.
  "a book cut off": (BOOK[: len(BOOK) // 2], EPUB, "unreadable"),
  "no book": (b"PDF", EPUB, "wrong_type"),
  "a zip without a book": (make_zip({"a": "b"}), EPUB, "unreadable"),
  "a bomb in a book": (
    make_epub({"a": page("x")}, spine=["a"], **{"z": ZEROS}),
    EPUB,
    "zip_bomb",
  ),
  "gigabytes claimed": (lie_about_sizes(BOOK, 2**32 - 2), EPUB, "zip_bomb"),
  "fewer bytes claimed": (
    lie_about_sizes(make_zip({"META-INF/container.xml": CONTAINER}), 5),
    EPUB,
    "unreadable",
  ),
  "a book with a password": (flag_as_encrypted(BOOK), EPUB, "encrypted"),
  "protected chapters": (
    make_epub(
      {"a": page("x")},
      spine=["a"],
      **{"META-INF/encryption.xml": '<CipherReference URI="OEBPS/a.xhtml"/>'},
    ),
    EPUB,
    "encrypted",
  ),
  "entities in a chapter": (
    make_epub({"a": LAUGHS + page("<p>&c;</p>")}, spine=["a"]),
    EPUB,
    "xml_entities",
  ),
  "entities in a package": (
    make_epub({}, spine=[], **{"META-INF/container.xml": LAUGHS + CONTAINER}),
    EPUB,
    "xml_entities",
  ),
  "a chapter that is missing": (make_epub({}, spine=["a"]), EPUB, "unreadable"),
  "one chapter many times": (
    make_epub({"a": page("<p>x</p>")}, spine=["a"] * 100),
    EPUB,
    "unreadable",
  ),
  "a deep chapter": (
    make_epub({"a": "<div>" * 500 + "x"}, spine=["a"]),
    EPUB,
    "too_deep",
  ),
  "no chapter with text": (make_epub({"a": page("")}, spine=["a"]), EPUB, "no_text"),
  # Word.
  "a bomb in a Word file": (
    make_docx(word_paragraph("x"), **{"word/media/a.bmp": ZEROS}),
    DOCX,
    "zip_bomb",
  ),
  "entities in a Word file": (
    make_docx(word_paragraph("&c;"), prolog=LAUGHS),
    DOCX,
    "xml_entities",
  ),
  "a DTD in UTF-16": (
    make_docx("", **{"word/styles.xml": f"{LAUGHS}<a/>".encode("utf-16")}),
    DOCX,
    "xml_entities",
  ),
  "a book as a Word file": (BOOK, DOCX, "wrong_type"),
  "broken XML": (make_docx("<w:p><w:r>"), DOCX, "unreadable"),
  "an old Word file": (b"\xd0\xcf\x11\xe0" + ZEROS[:600], DOCX, "wrong_type"),
  "an empty Word file": (make_docx(""), DOCX, "no_text"),
  # TeX.
  "braces": (b"{" * 100_000, TEX, "too_deep"),
  "environments": (rb"\begin{a}" * 10_000, TEX, "too_deep"),
  "an endless verbatim": (rb"\begin{verbatim}" * 10_000, TEX, "too_deep"),
  "files that include files": (includes(), "application/zip", "too_much_text"),
  "a gzip bomb": (gzip.compress(ZEROS * 4), "application/gzip", "zip_bomb"),
  "a gzip cut off": (gzip.compress(os.urandom(999))[:99], TEX, "unreadable"),
  "many members": (many_members(), "application/zip", "zip_bomb"),
  "a tar that claims gigabytes": (sparse_tar(), "application/x-tar", "zip_bomb"),
  "no document among files": (make_zip({"a.tex": "x"}), TEX, "no_text"),
  "only a preamble": (rb"\begin{document}\end{document}", TEX, "no_text"),
  "a program as TeX": (b"\x7fELF" + ZEROS[:99], TEX, "wrong_type"),
  "NULs in TeX": (b"a\0b", TEX, "not_text"),
  # Plain text, and names.
  "invalid UTF-8": (b"abc\xff\xfa", "text/plain", "unknown_encoding"),
  "an encoding nobody knows": (b"x", "text/plain; charset=x-y", "unknown_encoding"),
  "a binary as text": (b"a\0\0b", "text/plain", "not_text"),
  "a zip as text": (BOOK, "text/plain", "wrong_type"),
  "white space": (b" \n\t\n", "text/plain", "no_text"),
  "a video": (b"x", "video/mp4", "unknown_media_type"),
  "no media type": (b"x", "", "unknown_media_type"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_dropped_with_its_reason(name):
  data, media_type, reason = HOSTILE[name]
  judge = ExtractText(isolate=False, limits=LIMITS).make_judge()
  verdict = judge(Document(id="d", data=data, media_type=media_type))
  assert isinstance(verdict, Drop), verdict
  assert verdict.reason == reason, verdict
  assert verdict.detail
  documented = ExtractText.__doc__ or ""
  assert verdict.reason in documented


def test_the_zips_that_are_accepted_are_what_was_broken():
  judge = ExtractText(isolate=False, limits=LIMITS).make_judge()
  verdict = judge(Document(id="d", data=BOOK, media_type=EPUB))
  assert isinstance(verdict, Keep) and verdict.document.text == "Text."
  assert zipfile.is_zipfile(io.BytesIO(BOOK))


def test_blanks_are_tidied_in_time_that_grows_with_their_number():
  # Hours, if a run were read anew from each of its blanks.
  text = "a \t\n b" + " \t" * 2_000_000 + "c" + " " * 2_000_000
  assert tidy_text(text) == "a\n b" + " \t" * 2_000_000 + "c" + " " * 2_000_000
  assert tidy_text(text + "\n\t\n\n\nd \n") == "a\n b" + " \t" * 2_000_000 + "c\n\nd"


@pytest.mark.parametrize("part", [r"\\[", r"\cline{", r"\cmidrule(", "{}"])
def test_tables_are_split_in_time_that_grows_with_their_length(part):
  # Hours, if what is never closed were looked for to the end from each of its places.
  rows = split_rows("tabular", "{ll} a & b" + part * 500_000)
  assert rows[0].startswith("a & b")
  assert len(rows) == (500_001 if part == r"\\[" else 1)


# --- In a process of its own -------------------------------------------------------

SLOW = Document(id="slow", data=rb"\verb|a" * 100_000, media_type=TEX)
GOOD = Document(id="good", data=b"<p>Good text</p>", media_type=HTML)


@pytest.fixture(scope="module")
def isolated():
  judge = IsolatedJudge(
    ExtractText(limits=ExtractLimits(max_cpu_seconds=1, max_memory_mb=400))
  )
  yield judge
  judge.close()


def check_that_it_goes_on(judge) -> None:
  verdict = judge(GOOD)
  assert isinstance(verdict, Keep) and verdict.document.text == "Good text"


def test_a_child_gives_the_same_verdicts(isolated):
  here = ExtractText(isolate=False).make_judge()
  book = Document(id="book", data=BOOK, media_type=EPUB, labels={"a": [1]})
  for document in (GOOD, book, Document(id="d", data=b"\0", media_type=TEX)):
    assert isolated(document) == here(document)


def test_what_takes_too_long_is_stopped_and_the_next_goes_on(isolated):
  verdict = isolated(SLOW)
  assert verdict == Drop(
    "too_slow", "application/x-tex: more than 1 s of processor time"
  )
  check_that_it_goes_on(isolated)


def test_what_takes_too_much_memory_is_stopped_and_the_next_goes_on():
  limits = ExtractLimits(max_memory_mb=30)
  judge = IsolatedJudge(ExtractText(limits=limits))
  data = b"<p>" + b"word " * 4_000_000
  verdict = judge(Document(id="d", data=data, media_type=HTML))
  assert isinstance(verdict, Drop)
  assert verdict.reason == "too_much_memory", verdict
  check_that_it_goes_on(judge)
  judge.close()


def test_a_crash_costs_one_document(isolated):
  check_that_it_goes_on(isolated)
  child = isolated._child
  assert child is not None
  timer = threading.Timer(0.3, os.kill, (child.pid, signal.SIGSEGV))
  timer.start()
  verdict = isolated(SLOW)
  assert verdict == Drop(
    "crashed", "application/x-tex: the child process ended with -11"
  )
  check_that_it_goes_on(isolated)


def test_a_child_that_died_while_idle_costs_nothing(isolated):
  check_that_it_goes_on(isolated)
  assert isolated._child is not None
  isolated._child.kill()
  isolated._child.wait()
  check_that_it_goes_on(isolated)


def test_the_step_isolates_unless_told_otherwise():
  judge = ExtractText().make_judge()
  verdict = judge(GOOD)
  assert isinstance(verdict, Keep) and verdict.document.text == "Good text"
  assert judge(Document(id="d", data=b"", media_type=HTML)) == Drop(
    "no_text", "0 bytes"
  )


# A program of its own: Ctrl-C goes to all of a process group, which here is a test run.
INTERRUPTED = """
import os, signal, threading
from phi4_jax.curation.extract_isolated import IsolatedJudge
from tests.curation.test_extract_hostile import ExtractLimits, ExtractText, GOOD, SLOW

signal.signal(signal.SIGINT, lambda *_: print("interrupted", flush=True))
judge = IsolatedJudge(ExtractText(limits=ExtractLimits(max_cpu_seconds=1)))
assert judge(GOOD).document.text == "Good text"
threading.Timer(0.3, os.killpg, (0, signal.SIGINT)).start()
print(judge(SLOW).reason)
"""


def test_an_interrupt_of_the_parent_is_no_crash_of_the_child(tmp_path):
  ended = run_python(INTERRUPTED, tmp_path)
  assert ended.split() == ["interrupted", "too_slow"]


def test_nothing_is_imported_from_the_working_directory(tmp_path):
  planted = "open(__file__ + '.ran', 'w').close()\nraise SystemExit(1)\n"
  for name in ("trafilatura", "mammoth", "resource", "selectors"):
    (tmp_path / f"{name}.py").write_text(planted)
  # The parent is run with -c, so that its own path begins with the folder.
  program = """
import os, sys
folder = sys.argv[1]
from phi4_jax.curation.extract_isolated import IsolatedJudge
from tests.curation.test_extract_hostile import ExtractText, GOOD
assert sys.path[0] == ""
os.chdir(folder)
print(IsolatedJudge(ExtractText())(GOOD).document.text)
"""
  assert run_python(program, tmp_path) == "Good text\n"
  assert not list(tmp_path.glob("*.ran"))


def run_python(program: str, folder: Path) -> str:
  """Runs a program from the root, in a process group of its own."""
  root = Path(__file__).resolve().parents[2]
  ended = subprocess.run(
    [sys.executable, "-c", program, str(folder)],
    cwd=root,
    env={**os.environ, "PYTHONPATH": str(root)},
    capture_output=True,
    text=True,
    timeout=120,
    start_new_session=True,
  )
  assert ended.returncode == 0, ended.stderr
  return ended.stdout
