"""The word problems are right, and their splits are two."""

import re

from benchmarks.word_problems import draw_problems, write_files
from phi4_jax.eval.tasks.gsm8k import load_gsm8k


def test_every_step_is_right_and_the_last_one_is_the_answer():
  for problem in draw_problems("train", 300):
    answer = problem["answer"]
    steps = re.findall(r"(\d+) ([-+*]) (\d+) = (\d+)", answer)
    assert steps, answer
    for left, operator, right, result in steps:
      a, b = int(left), int(right)
      assert int(result) == {"+": a + b, "-": a - b, "*": a * b}[operator], answer
    assert answer.endswith(f"\n#### {steps[-1][-1]}")
    numbers = set(re.findall(r"\d+", problem["question"]))
    assert {steps[0][0], steps[0][2]} <= numbers


def test_splits_share_nothing_and_fewer_are_a_prefix_of_more():
  train, test = draw_problems("train", 500), draw_problems("test", 200)
  assert len({p["question"] for p in train + test}) == 700
  assert draw_problems("test", 50) == test[:50]
  assert draw_problems("test", 50, seed=1) != test[:50]


def test_the_files_are_read_as_gsm8k(tmp_path):
  write_files(tmp_path)
  examples = load_gsm8k(tmp_path / "test.jsonl")
  assert len(examples) == 256
  assert examples[0].reference == draw_problems("test", 1)[0]["answer"].split()[-1]
