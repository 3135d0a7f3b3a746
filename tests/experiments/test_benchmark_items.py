import gzip
import json
from pathlib import Path

import fsspec
import pytest
import zstandard

from experiments.benchmark_items import open_benchmark
from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.data.known_tasks import KNOWN_TASKS


def write(path, *rows):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def texts(given, folder=None, *, with_answers=False):
  folder = None if folder is None else str(folder)
  benchmark = open_benchmark(given, folder, with_answers=with_answers)
  found = list(benchmark.items)
  assert {item.dataset for item in found} == {benchmark.name}
  assert benchmark.files and all(Path(file).is_file() for file in benchmark.files)
  return [item.text for item in found]


def test_a_file_of_usual_fields_needs_no_known_name(tmp_path):
  write(tmp_path / "own.jsonl", {"question": "How many?", "answer": "7"})
  assert texts(f"mine={tmp_path}/own.jsonl") == ["How many?"]
  assert texts("own", tmp_path) == ["How many?"]
  assert texts("own", tmp_path, with_answers=True) == ["How many?\n7"]


@pytest.mark.parametrize(
  "end, pack",
  [(".gz", gzip.compress), (".zst", zstandard.compress), (".zstd", zstandard.compress)],
)
def test_own_files_may_be_compressed(tmp_path, end, pack):
  row = json.dumps({"question": "How many?", "answer": "7"}).encode()
  path = tmp_path / f"own.jsonl{end}"
  path.write_bytes(pack(row))
  assert texts(f"mine={path}") == ["How many?"]
  assert texts("own", tmp_path) == ["How many?"]
  with pytest.raises(ConfigError, match=r"In that folder are: own\."):
    texts("other", tmp_path)
  # A published set, too, where it is not laid out as its publisher's.
  assert texts(f"hellaswag={path}") == ["How many?"]
  path.write_bytes(pack(row * 999)[:-9])
  with pytest.raises(DataError, match=f"own.jsonl{end} cannot be decompressed"):
    texts(f"mine={path}")


def test_published_sets_are_found_by_name_in_their_own_layout(tmp_path, monkeypatch):
  row = {"problem": "What is 1 + 1?", "solution": "It is 2.", "answer": "2"}
  write(tmp_path / "data" / "math_test.jsonl", row)
  monkeypatch.chdir(tmp_path)
  assert texts("math") == ["What is 1 + 1?"]
  (both,) = texts("math", with_answers=True)
  assert both.startswith("What is 1 + 1?\n") and both != "What is 1 + 1?"
  assert texts("math", tmp_path / "data") == ["What is 1 + 1?"]


def test_another_format_of_a_published_set_is_read_by_its_layout(tmp_path):
  path = tmp_path / "part.csv"
  path.write_text('question,answer\n"How many?","They are 7. #### 7"\n')
  assert texts(f"gsm8k={path}") == ["How many?"]
  with pytest.raises(ConfigError, match="only JSON lines .* whose layout is not known"):
    texts(f"other={path}")


# A row as its publisher has it, and what an item must hold of it.
ROWS = {
  "hellaswag": (
    {"ctx": "A man sits on a roof. he", "endings": ["falls", "sings"], "label": 1},
    "A man sits on a roof. he\nfalls\nsings",
  ),
  "openbookqa": (
    {"id": "7", "question_stem": "The sun is the cause of",
     "choices": {"text": ["puppies", "plants"], "label": ["A", "B"]}, "answerKey": "B"},
    "The sun is the cause of\npuppies\nplants",
  ),
  "agieval": (
    {"passage": "A long passage.", "question": "Which?", "options": ["(A)x", "(B)y"],
     "label": "A"},
    "A long passage.\nWhich?\nx\ny",
  ),
  "medqa": (
    {"question": "A patient ...", "options": {"A": "This", "B": "That"},
     "answer": "This"},
    "A patient ...\nThis\nThat",
  ),
  "arc_easy": (
    {"id": "q", "question": {"stem": "George wants",
     "choices": [{"text": "dry", "label": "A"}]}, "answerKey": "A"},
    "George wants\ndry",
  ),
  "piqa": ({"goal": "To dry", "sol1": "wring", "sol2": "soak", "label": 0},
           "To dry\nwring\nsoak"),
  "winogrande": ({"sentence": "_ ran.", "option1": "Ann", "option2": "Bo",
                  "answer": "1"}, "_ ran.\nAnn\nBo"),
  "gsm8k": ({"question": "How many?", "answer": "7"}, "How many?"),
  "mbpp": ({"task_id": 3, "text": "Write it.", "code": "pass"}, "Write it."),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_json_lines_of_a_published_set_are_read_by_its_layout(tmp_path, capsys, name):
  row, wanted = ROWS[name]
  write(tmp_path / f"{name}.jsonl", row)
  assert texts(name, tmp_path) == [wanted]
  assert texts(f"{name}={tmp_path}/{name}.jsonl") == [wanted]
  assert capsys.readouterr().out == ""


def test_another_layout_of_a_published_set_is_read_and_said(tmp_path, capsys):
  path = tmp_path / "hellaswag.jsonl"
  write(path, {"text": "A man falls."}, {"question": "How?", "choices": ["a", "b"]})
  assert texts("hellaswag", tmp_path) == ["A man falls.", "How?\na\nb"]
  said = capsys.readouterr().out
  assert "hellaswag is read by the usual names of fields" in said
  assert "has no 'endings' field" in said
  # A row that breaks a layout which the first row has is an error.
  write(path, ROWS["hellaswag"][0], {"text": "A man falls."})
  with pytest.raises(DataError, match=r"Row 2 of .*hellaswag\.jsonl has no 'endings'"):
    texts("hellaswag", tmp_path)
  write(path, {"endings": ["a", "b"]})
  with pytest.raises(DataError, match=r"no 'ctx' or 'context'.*has no question"):
    texts("hellaswag", tmp_path)


def test_a_published_set_whose_file_is_missing_or_empty(tmp_path):
  with pytest.raises(DataError, match="does not exist"):
    texts(f"gsm8k={tmp_path}/none.jsonl")
  (tmp_path / "gsm8k.jsonl").write_text("")
  with pytest.raises(DataError, match="is empty"):
    texts("gsm8k", tmp_path)


def test_a_published_set_may_be_a_pattern_or_lie_in_a_store(tmp_path):
  row = {"question": "How many?", "answer": "7"}
  for part in (1, 2):
    write(tmp_path / f"gsm8k_{part}.jsonl", row)
  items = open_benchmark(f"gsm8k={tmp_path}/gsm8k*.jsonl", None, with_answers=False)
  assert [item.text for item in items.items] == ["How many?", "How many?"]
  assert items.files == [f"{tmp_path}/gsm8k_{part}.jsonl" for part in (1, 2)]
  store = f"memory://{tmp_path.name}/gsm8k.jsonl"
  with pytest.raises(DataError, match=f"{store} does not exist"):
    open_benchmark(f"gsm8k={store}", None, with_answers=False)
  fsspec.filesystem("memory").pipe_file(store, json.dumps(row).encode())
  items = open_benchmark(f"gsm8k={store}", None, with_answers=False)
  assert [item.text for item in items.items] == ["How many?"]
  # Rows of another layout are refused as such.
  write(tmp_path / "gsm8k_1.jsonl", {"text": "How many?"})
  items = open_benchmark(f"gsm8k={tmp_path}/gsm8k*.jsonl", None, with_answers=False)
  with pytest.raises(DataError, match="It is read as a row of gsm8k.$"):
    list(items.items)


def test_what_is_not_there_is_said_with_what_is(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("HF_HOME", str(tmp_path))
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
  with pytest.raises(ConfigError, match=r"names no file.*known by name: .*gsm8k"):
    texts("nothing")
  with pytest.raises(ConfigError, match=r"In that folder are: none\. .*gsm8k"):
    texts("nothing", tmp_path)
  with pytest.raises(ConfigError, match="gsm8k, split 'test', is not on this machine"):
    texts("gsm8k", tmp_path)
  assert len(KNOWN_TASKS) >= 18
