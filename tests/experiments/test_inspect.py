"""`phi4 inspect`: which dataset, which row, in what colours, and what is refused."""

import io
import json
import shutil
import sys
import unicodedata

import pytest

from experiments import inspect
from phi4_jax.data.chat import encode_documents
from phi4_jax.data.documents import Document
from phi4_jax.data.materialize import write_dataset
from phi4_jax.data.packing import PackingConfig
from phi4_jax.data.row_view import RowView, TokenView
from phi4_jax.data.tokenizer import ByteVocabulary

V = ByteVocabulary()
DOCUMENTS = [
  Document(
    id=f"d:{i}",
    messages=(
      {"role": "user", "content": f"q{i}"},
      {"role": "assistant", "content": f"a{i}\n\x1b[31mred"},
    ),
  )
  for i in range(5)
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  folder = tmp_path_factory.mktemp("data")
  V.save(folder / "vocabulary")
  for name in ("chat", "other"):
    write_dataset(
      encode_documents(DOCUMENTS, V),
      folder / name,
      task=name,
      source={"made": "here"},
      vocabulary=V,
      packing=PackingConfig(row_length=70, strategy="best_fit"),
    )
  return folder


def show(capsys, *arguments):
  code = inspect.main(list(arguments))
  out, err = capsys.readouterr()
  assert code == 0, err
  return out


def test_a_row_without_colours(data, capsys):
  shown = show(capsys, f"--data={data}", "--dataset=chat", "--index=1")
  lines = shown.splitlines()
  assert lines[0] == (
    "chat, row 1 of 3: 64 tokens, 24 of them count in the loss; documents: 2; "
    "padding: 7 (of 71 slots: row length 70 and the last target)"
  )
  assert lines[2] == "document 1: 32 tokens, 12 in the loss"
  assert lines[3].startswith("      <|im_start|>|u|s|e|r|<|im_sep|>|q|2|<|im_end|>|")
  # Control characters of the data are shown, not sent to the terminal.
  assert lines[4].startswith("loss  a|2|")
  assert "\x1b" not in shown and "<0x1B>" in shown
  assert lines[-1].endswith("|r|e|d|<|im_end|>")
  assert show(capsys, f"--data={data / 'chat'}", "--index=1") == shown


class _Terminal(io.StringIO):
  def isatty(self):
    return True


def test_colours_on_a_terminal_only(data, monkeypatch):
  arguments = [f"--data={data}", "--dataset=chat"]
  monkeypatch.delenv("NO_COLOR", raising=False)
  monkeypatch.setattr(sys, "stdout", _Terminal())
  assert inspect.main(arguments) == 0
  coloured = sys.stdout.getvalue()
  assert "\x1b[32m" in coloured and "\x1b[36m" in coloured and "|q|" not in coloured
  monkeypatch.setenv("NO_COLOR", "1")
  monkeypatch.setattr(sys, "stdout", _Terminal())
  assert inspect.main(arguments) == 0
  assert "\x1b" not in sys.stdout.getvalue()


def test_a_table_of_tokens(data, capsys):
  shown = show(capsys, f"--data={data}", "--dataset=chat", "--tokens")
  rows = [line for line in shown.splitlines() if line.startswith("|")][2:]
  assert len(rows) == 64
  first = [cell.strip() for cell in rows[0].strip("|").split(" | ")]
  assert first == ["0", str(V.im_start_id), "<|im_start|>", "1", "0", "0"]


def test_marks_of_direction_are_shown_and_do_nothing():
  """They would turn round what follows in the line: embeddings, isolates, marks."""
  marks = "".join(
    character
    for character in map(chr, range(0x110000))
    if unicodedata.bidirectional(character)
    in {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
  )
  marks += "\u200e\u200f\u061c"
  assert len(marks) == 12
  view = RowView(
    tokens=tuple(
      TokenView(
        slot=slot,
        token_id=slot,
        text=f"a{mark}b",
        is_special=False,
        segment=1,
        position=slot,
        weight=1.0,
      )
      for slot, mark in enumerate(marks)
    ),
    padding=0,
  )
  for shown in (
    inspect.render_text(view, "row", is_coloured=False),
    inspect.render_text(view, "row", is_coloured=True),
    inspect.render_page(view, "row", []),
  ):
    assert not set(marks) & set(shown)
    assert "a\\u2066b" in shown and "a\\u202eb" in shown


def test_a_page(data, capsys, tmp_path):
  page = tmp_path / "row.html"
  said = show(capsys, f"--data={data}", "--dataset=other", f"--html={page}")
  assert said == f"other, row 0 of 3 -> {page}\n"
  text = page.read_text()
  assert text.startswith("<!doctype html>") and "<script" not in text
  assert 'title="slot 0, id' in text and "&lt;|im_start|&gt;" in text
  assert text.count('class="l"') == 24
  # The page of all reports: no script can run, one h1, and its colours are named.
  assert "Content-Security-Policy" in text and text.count("<h1>") == 1
  assert ".l { color: var(--up)" in text and "--up-soft: #" in text


def test_the_data_of_a_run_that_trained_on_it(data, capsys, tmp_path):
  lineage = {"data": {"path": str(data), "fingerprint": "x"}}
  (tmp_path / "lineage.json").write_text(json.dumps(lineage))
  shown = show(capsys, f"--data={tmp_path}", "--dataset=chat")
  assert shown.startswith("chat, row 0 of 3")


def test_a_midtraining_run_has_the_data_of_its_parent_too(data, capsys, tmp_path):
  long = tmp_path / "long"
  long.mkdir()
  shutil.copytree(data / "vocabulary", long / "vocabulary")
  shutil.copytree(data / "other", long / "long")
  inputs = {"data": long, "parent": tmp_path, "parent_data_1": data}
  lineage = {name: {"path": str(path)} for name, path in inputs.items()}
  (tmp_path / "lineage.json").write_text(json.dumps(lineage))
  run = f"--data={tmp_path}"
  assert show(capsys, run, "--dataset=long").startswith("long, row 0 of")
  assert show(capsys, run, "--dataset=chat").startswith("chat, row 0 of 3")
  assert inspect.main([run]) == 2
  assert "several datasets: chat, long, other. Choose" in capsys.readouterr().err
  # The same rows in both folders are one dataset; others are none that it could name.
  shutil.copytree(data / "other", long / "other")
  assert show(capsys, run, "--dataset=other").startswith("other, row 0 of")
  shutil.copytree(data / "other", long / "chat")
  manifest = json.loads((long / "chat" / "manifest.json").read_text())
  manifest["shards"][0]["sha256"] = "f" * 64
  (long / "chat" / "manifest.json").write_text(json.dumps(manifest))
  assert inspect.main([run, "--dataset=chat"]) == 2
  error = capsys.readouterr().err
  assert f"{long / 'chat'} and {data / 'chat'} have other rows" in error


def test_what_is_refused(data, capsys, tmp_path):
  def refusal(*arguments):
    assert inspect.main(list(arguments)) == 2
    return capsys.readouterr().err

  chat = f"--data={data / 'chat'}"
  assert "in 0 to 2, and 3 does not" in refusal(chat, "--index=3")
  assert "in 0 to 2, and -1 does not" in refusal(chat, "--index=-1")
  assert "several datasets: chat, other. Choose" in refusal(f"--data={data}")
  error = refusal(f"--data={data}", "--dataset=chatt")
  assert "no dataset 'chatt'; it has chat, other. Did you mean chat?" in error
  assert "is not a dataset folder" in refusal(f"--data={tmp_path / 'none'}")
  (tmp_path / "x").write_text("x")
  assert "no manifest.json: it is not a dataset" in refusal(f"--data={tmp_path}")
  shutil.copytree(data / "chat", tmp_path / "alone" / "chat")
  alone = f"--data={tmp_path / 'alone'}"
  assert "has no vocabulary. Give the one that made" in refusal(alone)
  assert show(capsys, alone, f"--vocab={data}").startswith("chat, row 0")
  manifest = tmp_path / "alone/chat/manifest.json"
  record = json.loads(manifest.read_text())
  manifest.write_text(json.dumps(record | {"vocabulary_fingerprint": "f" * 64}))
  error = refusal(alone, f"--vocab={data}")
  assert "was made with another vocabulary (ffffffffffff...)" in error
  manifest.write_text(json.dumps(record | {"format": 7}))
  assert "has format 7; this version reads 1" in refusal(alone)
  manifest.write_text("{")
  assert "is not valid JSON" in refusal(alone)
