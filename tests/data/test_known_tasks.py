"""Published question sets: their rows in every layout, and where files are found."""

import gzip
import json
import os

import pytest
import zstandard

from phi4_jax.common.compression import COMPRESSED
from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.data import known_tasks
from phi4_jax.data.known_files import (
  KnownTaskSource,
  Places,
  benchmark_files,
  benchmark_texts,
  find_files,
  open_records,
)
from phi4_jax.data.known_rows import answer_text, question_text, whole_text
from phi4_jax.data.known_tasks import KNOWN_MIXTURES, KNOWN_TASKS, task_names
from tests.data import record_files as make

ABCD = {"text": ["w", "x", "y", "z"], "label": ["A", "B", "C", "D"]}
STEM = {"stem": "Q", "choices": [{"text": "x", "label": "A"}]}
STEM["choices"].append({"text": "y", "label": "B"})
TFDS_STEM = {"stem": b"Q", "choice_A": b"x", "choice_B": b"y"}

# A row as a publisher has it, and the answer as it is taught (None: there is none).
ROWS = [
  ("gsm8k", {"question": "Q", "answer": "2+2=4\n#### 4"}, "2+2=4\n#### 4"),
  ("math", {"problem": "Q", "solution": "$4$", "level": "Level 1"}, "$4$"),
  ("mmlu", {"question": "Q", "choices": list("wxyz"), "answer": 2}, "C. y"),
  ("mmlu", {"question": "Q", "choices": list("wxyz"), "answer": "D"}, "D. z"),
  ("mmlu_pro", {"question_id": 7, "question": "Q", "options": list("abcdefghij"),
                "answer": "I", "answer_index": 8}, "I. i"),
  ("arc_easy", {"id": "M1", "question": "Q", "choices": ABCD, "answerKey": "B"},
   "B. x"),
  ("arc_challenge", {"question": "Q", "answerKey": "2", "choices":
                     {"text": ["x", "y"], "label": ["1", "2"]}}, "B. y"),
  ("arc_challenge", {"question": b"Q", "answerKey": 6, "choices":
                     {"text": [b"x", b"y"], "label": [5, 6]}}, "B. y"),
  ("arc_easy", {"question": STEM, "answerKey": "B"}, "B. y"),
  ("trivia_qa", {"question": "Q", "answer": {"value": "Rome"}}, "Rome"),
  ("trivia_qa", {"question": "Q", "answer": {"value": ""}}, None),
  ("humaneval", {"task_id": "HumanEval/0", "prompt": "def f():\n",
                 "canonical_solution": "  return 1\n", "test": "t"}, "  return 1\n"),
  ("mbpp", {"task_id": 2, "text": "Q", "code": "def f(): pass"}, "def f(): pass"),
  ("mbpp", {"task_id": 2, "prompt": "Q", "code": "def f(): pass"}, "def f(): pass"),
  ("hellaswag", {"ctx": "Q", "endings": list("wxyz"), "label": "3"}, "D. z"),
  ("hellaswag", {"ctx": "Q", "endings": list("wxyz"), "label": ""}, None),
  ("hellaswag", {"context": b"Q", "endings": [b"w", b"x"], "label": 1}, "B. x"),
  ("piqa", {"goal": "Q", "sol1": "x", "sol2": "y", "label": 1}, "B. y"),
  ("piqa", {"goal": "Q", "sol1": "x", "sol2": "y", "label": -1}, None),
  ("openbookqa", {"question_stem": "Q", "choices": ABCD, "answerKey": "D"}, "D. z"),
  ("openbookqa", {"question": TFDS_STEM, "answerKey": 1}, "B. y"),
  ("commonsense_qa", {"question": "Q", "choices": ABCD, "answerKey": ""}, None),
  ("winogrande", {"sentence": "Q _", "option1": "x", "option2": "y", "answer": "1"},
   "A. x"),
  ("winogrande", {"sentence": "Q _", "option1": b"x", "option2": b"y", "label": 1},
   "B. y"),
  ("medqa", {"question": "Q", "options": {"A": "x", "B": "y"}, "answer_idx": "B",
             "answer": "y"}, "B. y"),
  ("medqa", {"question": "Q", "answer": "x", "options":
             [{"key": "A", "value": "x"}, {"key": "B", "value": "y"}]}, "A. x"),
  ("agieval", {"passage": "P", "question": "Q", "options": ["(A)x", "(B)y"],
               "label": "B"}, "B. y"),
  ("agieval", {"passage": None, "question": "Q", "options": None, "answer": "7"}, "7"),
  ("arena_hard", {"uid": "u1", "prompt": "Q"}, None),
  ("arena_hard", {"question_id": "u1", "turns": [{"content": "Q"}]}, None),
  ("mt_bench", {"question_id": 81, "turns": ["Q", "And then?"]}, None),
]  # fmt: skip


@pytest.mark.parametrize(("name", "row", "answer"), ROWS)
def test_rows_as_publishers_have_them(name, row, answer):
  item = KNOWN_TASKS[name].read(row, "Row 1 of x")
  assert answer_text(item) == answer
  assert "Q" in question_text(item) or name == "humaneval"
  assert all(choice in whole_text(item) for choice in item.choices)
  assert set(row) & set(KNOWN_TASKS[name].columns)


def test_every_set_has_a_row_here_and_gpqa_hides_where_the_right_answer_is():
  assert {name for name, _, _ in ROWS} | {"gpqa"} == set(KNOWN_TASKS)
  places = set()
  for i in range(40):
    row = {"Question": f"Q{i}", "Correct Answer": "right", "Record ID": f"r{i}"}
    row |= {f"Incorrect Answer {k}": f"wrong {k}" for k in (1, 2, 3)}
    item = KNOWN_TASKS["gpqa"].read(row, "Row 1 of x")
    assert item.choices[item.answer] == "right" and len(item.choices) == 4
    assert item == KNOWN_TASKS["gpqa"].read(row, "elsewhere") and item.id == f"r{i}"
    places.add(item.answer)
  assert places == {0, 1, 2, 3}


def test_the_papers_public_benchmarks_are_here():
  in_paper = {name for name, task in KNOWN_TASKS.items() if task.in_paper}
  assert len(in_paper) == 18  # 20 less phibench and mcphi, which are not public
  assert set(KNOWN_TASKS) - in_paper == {"trivia_qa"}
  for task in KNOWN_TASKS.values():
    assert task.scored in task.sizes and task.license and "/" in task.huggingface


BAD_ROWS = [
  ("gsm8k", {"body": "x"}, "Row 1 of .* has no 'question' field .found: 'body'"),
  ("gsm8k", {"question": 3, "answer": "x"}, "field 'question' is a number .3.; text"),
  ("mmlu", {"question": "Q", "choices": ["x"], "answer": 4}, "4 names none of the"),
  ("mmlu", {"question": "Q", "choices": "x", "answer": 0}, "choices are no list"),
  ("arc_easy", {"question": "Q", "answerKey": "A"}, "no question with choices"),
  ("arc_easy", {"question": "Q", "choices": ABCD, "answerKey": "Z"}, "'Z' names none"),
  ("mt_bench", {"turns": []}, "no 'turns' or 'prompt'"),
  ("medqa", {"question": "Q", "options": {}, "answer": "x"}, "options have no letters"),
  ("mmlu_pro", {"question": "Q", "options": ["x"] * 30, "answer_index": 1}, "30 choic"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "row", "why"), BAD_ROWS)
def test_bad_rows_are_named(tmp_path, name, row, why):
  path = tmp_path / "a.jsonl"
  path.write_bytes(make.jsonl([row]))
  with pytest.raises(DataError, match=why):
    list(KnownTaskSource(path=str(path), task=name).documents())
  with pytest.raises(DataError, match=why):
    list(benchmark_texts(name, str(path)))


GSM8K = [{"question": f"How many, {i}?", "answer": f"It is {i}.\n#### {i}"} for i in
         range(4)]  # fmt: skip


def test_documents_are_chats_or_texts_with_their_origin(tmp_path):
  path = tmp_path / "gsm8k_train.jsonl"
  path.write_bytes(make.jsonl(GSM8K))
  chat, *_ = KnownTaskSource(path=str(path), task="gsm8k").documents()
  assert [m["content"] for m in chat.messages] == list(GSM8K[0].values())
  assert chat.id == "gsm8k/train:gsm8k_train.jsonl:1"
  assert (chat.source, chat.license) == ("openai/gsm8k", "MIT")
  assert chat.lineage == ("gsm8k_train.jsonl:1",)
  text, *_ = KnownTaskSource(path=str(path), task="gsm8k", form="text").documents()
  assert text.text == "Question: How many, 0?\nAnswer: It is 0.\n#### 0"
  texts = dict(benchmark_texts("gsm8k", str(path), split="train"))
  assert texts["gsm8k/train:gsm8k_train.jsonl:1"] == "How many, 0?\nIt is 0.\n#### 0"
  assert len(texts) == 4


def test_a_row_without_its_answer_says_what_it_has(tmp_path):
  path = tmp_path / "a.jsonl"
  for row, why in (
    ({"question": "Q"}, r"it has no 'answer' field \(found: 'question'\). Mend"),
    ({"question": "Q", "answer": None}, "'answer' is None. Publishers"),
    ({"question": "Q", "answer": ""}, "'answer' is ''. Publishers"),
  ):
    path.write_bytes(make.jsonl([row]))
    with pytest.raises(DataError, match=f"Row 1 of .* of gsm8k has no answer: {why}"):
      list(KnownTaskSource(path=str(path), task="gsm8k").documents())
  path.write_bytes(make.jsonl([{"question_id": 1, "turns": ["hello"]}]))
  with pytest.raises(DataError, match="mt_bench has prompts only, without answers"):
    list(KnownTaskSource(path=str(path), task="mt_bench").documents())


def test_every_set_with_answers_knows_their_field():
  without = {name for name, task in KNOWN_TASKS.items() if not task.answer_fields}
  assert without == {"arena_hard", "mt_bench"}


def test_answers_that_are_kept_back(tmp_path):
  path = tmp_path / "a.jsonl"
  row = {"goal": "Q", "sol1": "x", "sol2": "y", "label": -1}
  path.write_bytes(make.jsonl([row]))
  source = KnownTaskSource(path=str(path), task="piqa", split="test")
  with pytest.raises(DataError, match="of piqa has no answer.*split 'test'") as found:
    list(source.documents())
  assert "'label' is -1. Publishers keep" in str(found.value)
  assert "--gin.KnownTaskSource.on_bad_row=drop" in str(found.value)
  dropped = []
  drop = KnownTaskSource(path=str(path), task="piqa", on_bad_row="drop")
  assert list(drop.documents(dropped.append)) == []
  assert [row.reason for row in dropped] == ["no_answer"]
  (text,) = KnownTaskSource(path=str(path), task="piqa", form="text").documents()
  assert text.text == "Question: Q\nA. x\nB. y"
  ((_, whole),) = benchmark_texts("piqa", str(path))
  assert whole == "Q\nx\ny"


def test_where_sets_are_found_and_in_which_order(tmp_path):
  data, hub, tfds = (tmp_path / name for name in ("data", "hf", "tfds"))
  places = Places(data=(str(data),), huggingface=str(hub), tfds=str(tfds))
  gsm8k = KNOWN_TASKS["gsm8k"]
  assert find_files(gsm8k, "train", places) is None

  def found():
    path = find_files(gsm8k, "train", places)
    source = KnownTaskSource(path=path, task="gsm8k", split="train")
    texts = sorted(d.messages[0]["content"] for d in source.documents())
    assert texts == sorted(row["question"] for row in GSM8K)
    shards = [d for shard in source.shards() for d in shard.documents()]
    assert shards == list(source.documents())
    return path

  folder = tfds / "gsm8k/1.0.0"
  folder.mkdir(parents=True)
  for i in range(2):
    name = f"gsm8k-train.tfrecord-{i:05d}-of-00002"
    make.write_tfrecord(folder / name, GSM8K[2 * i : 2 * i + 2])
  assert found() == str(folder)
  snapshot = hub / "hub/datasets--openai--gsm8k/snapshots/abc"
  for config in ("main", "socratic"):
    (snapshot / config).mkdir(parents=True)
    rows = GSM8K if config == "main" else GSM8K[:1]
    # As in the cache: a snapshot has links to files that are named by their digests.
    blob = hub / f"blob-{config}"
    make.write_parquet(blob, rows)
    (snapshot / config / "train-00000-of-00001.parquet").symlink_to(blob)
    make.write_parquet(snapshot / config / "test-00000-of-00001.parquet", rows[:1])
  assert found() == str(snapshot)
  cached = hub / "datasets/openai___gsm8k/main/0.0.0/0123"
  cached.mkdir(parents=True)
  make.write_arrow(cached / "gsm8k-train.arrow", GSM8K)
  assert found() == str(cached)
  (data / "gsm8k").mkdir(parents=True)
  make.write_zstd(data / "gsm8k/train.jsonl.zst", make.jsonl(GSM8K))
  (data / "gsm8k/test.jsonl").write_bytes(make.jsonl(GSM8K[:1]))
  assert found() == str(data / "gsm8k")
  (data / "gsm8k_train.csv").write_text(
    "question,answer\n" + "\n".join(f'"{r["question"]}","{r["answer"]}"' for r in GSM8K)
  )
  assert found() == str(data / "gsm8k_train.csv")


@pytest.mark.parametrize("end", ["", *COMPRESSED])
def test_every_compressed_file_is_found_and_read(tmp_path, end):
  content = {"": bytes, ".gz": gzip.compress}.get(end, zstandard.compress)
  (tmp_path / f"gsm8k_test.jsonl{end}").write_bytes(content(make.jsonl(GSM8K)))
  path = find_files(KNOWN_TASKS["gsm8k"], "test", Places(data=(str(tmp_path),)))
  assert path == str(tmp_path / f"gsm8k_test.jsonl{end}")
  assert len(list(benchmark_texts("gsm8k", path))) == len(GSM8K)
  assert benchmark_files("gsm8k", path) == [path]


def test_times_of_change_choose_nothing(tmp_path):
  """Two machines with the same snapshots read the same, whichever came last."""
  hub, tfds = tmp_path / "hf", tmp_path / "tfds"
  places = Places(huggingface=str(hub), tfds=str(tfds))
  gsm8k = KNOWN_TASKS["gsm8k"]

  def chosen(folder, *names):
    """The name that is chosen, the same for every order of times."""
    answers = set()
    for order in (names, names[::-1]):
      for seconds, name in enumerate(order):
        os.utime(folder / name, (1e9 + seconds, 1e9 + seconds))
      path = find_files(gsm8k, "train", places)
      answers.add(os.path.relpath(path, folder))
    (answer,) = answers
    return answer

  for version in ("9.0.0", "10.0.0"):
    (tfds / "gsm8k" / version).mkdir(parents=True)
    make.write_tfrecord(
      tfds / "gsm8k" / version / "gsm8k-train.tfrecord-00000-of-00001", GSM8K
    )
  assert chosen(tfds / "gsm8k", "9.0.0", "10.0.0") == "10.0.0"
  repository = hub / "hub/datasets--openai--gsm8k"
  for commit in ("aaa", "bbb", "ccc"):
    (repository / "snapshots" / commit / "main").mkdir(parents=True)
    make.write_parquet(
      repository / "snapshots" / commit / "main/train-00000-of-00001.parquet", GSM8K
    )
  snapshots = (repository / "snapshots", "aaa", "bbb", "ccc")
  assert chosen(*snapshots) == "ccc"
  (repository / "refs").mkdir()
  (repository / "refs/main").write_text("bbb\n")
  assert chosen(*snapshots) == "bbb"
  cached = hub / "datasets/openai___gsm8k/main"
  for folder in ("0.0.0/bbb", "0.0.0/ccc", "1.0.0/aaa"):
    (cached / folder).mkdir(parents=True)
    make.write_arrow(cached / folder / "gsm8k-train.arrow", GSM8K)
  assert chosen(cached, "0.0.0/bbb", "0.0.0/ccc", "1.0.0/aaa") == "0.0.0/bbb"
  (repository / "refs/main").write_text("gone")
  assert chosen(cached, "0.0.0/bbb", "0.0.0/ccc", "1.0.0/aaa") == "1.0.0/aaa"


def test_a_saved_dataset_and_a_split_that_it_lacks(tmp_path):
  path = make.save_to_disk(tmp_path / "d", {"train": GSM8K})
  assert len(list(KnownTaskSource(path=path, task="gsm8k").documents())) == 4
  with pytest.raises(DataError, match="no split 'test'; it has train"):
    list(benchmark_texts("gsm8k", path))


def test_a_set_of_many_files_in_folders(tmp_path):
  for subject in ("algebra", "geometry"):
    (tmp_path / subject).mkdir()
    for split in ("train", "test"):
      row = {"problem": f"{subject} {split}", "solution": "$1$"}
      make.write_parquet(tmp_path / subject / f"{split}-00000-of-00001.parquet", [row])
  texts = [text for _, text in benchmark_texts("math", str(tmp_path))]
  assert texts == ["algebra test\n$1$", "geometry test\n$1$"]
  ids = [item for item, _ in benchmark_texts("math", str(tmp_path))]
  assert ids[0] == "math/test:algebra/test-00000-of-00001.parquet:1"


def test_folders_that_do_not_say_what_they_hold(tmp_path):
  (tmp_path / "part.jsonl").write_bytes(make.jsonl(GSM8K))
  with pytest.raises(DataError, match="no file of split 'train'.*it has part.jsonl"):
    open_records(str(tmp_path), "train")
  (tmp_path / "x.bin").write_bytes(b"x")
  with pytest.raises(DataError, match="cannot be told a format by its name"):
    open_records(str(tmp_path / "x.bin"), "train")
  # "test" is a word of the name, not a part of one.
  (tmp_path / "latest.jsonl").write_bytes(make.jsonl(GSM8K))
  with pytest.raises(DataError, match="no file of split 'test'"):
    open_records(str(tmp_path), "test")


def test_names():
  names = task_names()
  assert {"gsm8k_sft", "gsm8k_text", "arena_hard_text"} <= set(names)
  assert "arena_hard_sft" not in names and len(set(names)) == len(names)
  assert {n for tasks in KNOWN_MIXTURES.values() for n in tasks} <= set(names)
  assert known_tasks.split_name("arc_easy_sft")[1] == "chat"
  assert known_tasks.split_name("nothing_sft") is None
  with pytest.raises(ConfigError, match="no question set 'gsm'. Known: gsm8k, math"):
    list(benchmark_texts("gsm", "x"))
  with pytest.raises(ConfigError, match="split .'dev'.: gsm8k has train, test"):
    KnownTaskSource(path="x", task="gsm8k", split="dev")


def test_recipes_do_not_depend_on_where_files_lie(tmp_path):
  sources = []
  for name in ("a", "b"):
    (tmp_path / name).mkdir()
    (tmp_path / name / "gsm8k_train.jsonl").write_bytes(make.jsonl(GSM8K))
    path = str(tmp_path / name / "gsm8k_train.jsonl")
    sources.append(KnownTaskSource(path=path, task="gsm8k"))
  assert sources[0].recipe() == sources[1].recipe()
  json.dumps(sources[0].recipe())
  text = KnownTaskSource(path=sources[0].path, task="gsm8k", form="text")
  assert text.recipe() != sources[0].recipe()
