"""The Python example of the README."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from tests.experiments.untrained_runs import VOCABULARY, make_model_run

_ROOT = Path(__file__).resolve().parents[2]


def example() -> str:
  text = (_ROOT / "README.md").read_text("utf-8")
  blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
  (found,) = [block for block in blocks if "find_pivotal_tokens(" in block]
  return found


# An untrained model knows no number: half of its answers count as right.
_EVEN = """
class Even:
  version = "even 1"

  def judge(self, question, response, reference):
    return bool(response) and ord(response[0]) % 2 == 0, ""

  def refuse(self, reference): ...

  def close(self): ...

oracle_rules.NumberRule = Even

"""


def test_the_example_runs_and_finds_something(tmp_path):
  make_model_run(tmp_path / "ckpt" / "model")
  VOCABULARY.save(tmp_path / "ckpt" / "model" / "vocabulary")
  rows = [{"question": f"{i}?", "answer": i} for i in range(6)]
  (tmp_path / "my.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
  code = example()
  assert len(code.strip().splitlines()) <= 13
  imports, rest = code.replace("max_length=512", "max_length=40").split("\n\n")
  (tmp_path / "example.py").write_text(imports + _EVEN + rest)
  done = subprocess.run(
    [sys.executable, "example.py"],
    cwd=tmp_path,
    env=os.environ | {"PYTHONPATH": str(_ROOT)},
    capture_output=True,
    text=True,
    timeout=300,
  )
  found = re.search(r"(\d+) pivotal tokens, (\d+) pairs", done.stdout)
  assert found and int(found[1]) > 0, done.stdout + done.stderr
  assert (tmp_path / "runs" / "pts" / "pairs.jsonl").is_file()
