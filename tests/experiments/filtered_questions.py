"""What the tests of `phi4 filter_questions` read and write."""

import json
from pathlib import Path

from phi4_jax.common import io

ROOT = Path(__file__).resolve().parents[2]
GIN = ROOT / "gin_configs" / "filter_questions" / "tiny.gin"
FILES = ("kept/questions.jsonl", "dropped/questions.jsonl", "answers.jsonl")


def write_questions(path, rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return path


def read(path):
  return [json.loads(line) for line in path.open()]


def assert_same_files(one, two):
  for name in FILES:
    assert (one / name).read_bytes() == (two / name).read_bytes(), name
  results = [io.read_json(folder / "result.json") for folder in (one, two)]
  for name in ("metrics", "fingerprint"):
    assert results[0][name] == results[1][name]
