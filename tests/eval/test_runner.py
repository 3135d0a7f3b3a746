"""The runner: what it asks, what it writes, and that a killed run goes on."""

import dataclasses
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.common.io import read_json
from phi4_jax.common.sampler import SamplingLaw, ScriptedSampler
from phi4_jax.data.chat import encode_prompt
from phi4_jax.data.tokenizer import ByteVocabulary
from phi4_jax.eval.runner import evaluate
from phi4_jax.eval.statistics import clustered_wilson_interval, wilson_interval
from phi4_jax.eval.types import Example, Verdict

VOCABULARY = ByteVocabulary()
STOP = VOCABULARY.im_end_id
FILES = ("settings.json", "samples.jsonl", "results.json", "transcripts.md")


class ParityTask:
  """Example i asks for i modulo 2."""

  name = "parity"

  def examples(self, num_examples):
    return [
      Example(
        id=f"n{i}",
        messages=({"role": "user", "content": f"{i}?"},),
        reference=str(i % 2),
      )
      for i in range(num_examples)
    ]

  def grade(self, example, response):
    # The label is missing where there is no word before the digit.
    word = response.removesuffix(response[-1:]).strip()
    labels = {"word": word} if word else {}
    return Verdict(correct=response[-1:] == example.reference, labels=labels)


def make_sampler(before_answer=lambda path: None, **law):
  """Answers "odd 1" to sample 0, "1" to sample 1 and never ends in sample 2."""

  def answer(prefix, path):
    before_answer(path)
    text = ("odd 1", "1", "x" * 500)[path[1]]
    return [*VOCABULARY.encode(text), *([STOP] if path[1] < 2 else [])]

  law = SamplingLaw(**({"max_length": 64} | law))
  return ScriptedSampler(answer, law, stop_ids=[STOP])


def run(out_dir, sampler=None, task=None, **kwargs):
  settings = {"num_examples": 6, "samples_per_example": 3, "rows_per_call": 4}
  return evaluate(
    task or ParityTask(),
    sampler or make_sampler(),
    VOCABULARY,
    out_dir=out_dir,
    **(settings | kwargs),
  )


def test_numbers_are_counted_right(tmp_path):
  result = run(tmp_path)
  # Samples 0 and 1 say 1: right for 3 of 6 examples; sample 2 is cut and wrong.
  assert (result.task, result.num_examples, result.num_samples) == ("parity", 6, 18)
  assert result.accuracy.estimate == pytest.approx(6 / 18)
  assert result.accuracy == clustered_wilson_interval([0, 2] * 3, [3] * 6)
  assert result.finished.estimate == pytest.approx(12 / 18)
  lengths = [64 - len(encode_prompt(e.messages, VOCABULARY)) for e in _examples(6)]
  expected = (6 * len("odd 1.") + 6 * len("1.") + sum(lengths)) / 18
  assert result.mean_num_tokens == pytest.approx(expected)


def _examples(num_examples):
  return ParityTask().examples(num_examples)


def test_each_label_value_has_share_and_accuracy(tmp_path):
  result = run(tmp_path, samples_per_example=2)
  assert set(result.labels) == {"word"}
  words = result.labels["word"]
  assert set(words) == {"odd", ""}
  assert words["odd"].count == 6
  assert words["odd"].share.estimate == 0.5
  assert words["odd"].accuracy == wilson_interval(3, 6)
  table = result.table()
  assert "word = odd" in table and "word = (none)" in table
  assert str(wilson_interval(3, 6)) in table


def test_samples_hold_what_was_said(tmp_path):
  run(tmp_path)
  records = [json.loads(line) for line in (tmp_path / FILES[1]).open()]
  assert [(r["example"], r["sample"]) for r in records] == [
    (e, s) for e in range(6) for s in range(3)
  ]
  first = records[0]
  assert first["id"] == "n0" and first["response"] == "odd 1"
  assert first["token_ids"] == [*VOCABULARY.encode("odd 1"), STOP]
  assert (first["num_tokens"], first["finish"]) == (6, "stop")
  assert first["correct"] is False and first["labels"] == {"word": "odd"}
  assert records[2]["finish"] == "length"


def test_the_prompt_is_the_chat_format(tmp_path):
  seen = {}

  def answer(prefix, path):
    seen[path] = prefix
    return [STOP]

  law = SamplingLaw(max_length=64)
  run(tmp_path, ScriptedSampler(answer, law, stop_ids=[STOP]))
  for (example, _), prefix in seen.items():
    messages = [{"role": "user", "content": f"{example}?"}]
    assert list(prefix) == encode_prompt(messages, VOCABULARY)
  assert set(seen) == {(e, s) for e in range(6) for s in range(3)}


def test_transcripts_show_wrong_and_right(tmp_path):
  run(tmp_path, num_transcripts=4)
  text = (tmp_path / "transcripts.md").read_text()
  assert text.count("## n") == 4
  assert text.count(": wrong (") == 2 and text.count(": right (") == 2
  assert "user: 0?\n\nassistant: odd 1" in text
  run(tmp_path / "none", num_transcripts=0)
  assert "## n" not in (tmp_path / "none" / "transcripts.md").read_text()


def test_a_response_with_a_fence_stays_inside_its_transcript(tmp_path):
  def answer(prefix, path):
    return [*VOCABULARY.encode("```\n````"), STOP]

  law = SamplingLaw(max_length=64)
  sampler = ScriptedSampler(answer, law, stop_ids=[STOP])
  run(tmp_path, sampler, num_examples=1, samples_per_example=1)
  assert "`````text\n" in (tmp_path / "transcripts.md").read_text()


class _Stopped(Exception):
  pass


@pytest.mark.parametrize("calls", [0, 1, 3, 7, 12])
def test_a_stopped_run_goes_on_with_identical_files(tmp_path, calls):
  run(tmp_path / "whole")
  asked = []

  def stop(path):
    if len(asked) == calls:
      raise _Stopped
    asked.append(path)

  with pytest.raises(_Stopped):
    run(tmp_path / "parts", make_sampler(stop))
  with open(tmp_path / "parts" / "samples.jsonl", "ab") as file:
    file.write(b'{"example": 5, "sam')  # a torn line
  again = []
  # Other calls than before the stop: rows do not depend on their neighbours.
  run(tmp_path / "parts", make_sampler(again.append), rows_per_call=5)
  finished_calls = calls // 4
  assert len(again) == 18 - 4 * finished_calls
  for name in FILES:
    parts, whole = tmp_path / "parts" / name, tmp_path / "whole" / name
    assert parts.read_bytes() == whole.read_bytes()


_KILLED = """
import os, signal
from pathlib import Path
from tests.eval.test_runner import make_sampler, run

def die(path):
  if path == (3, 1):
    os.kill(os.getpid(), signal.SIGKILL)

run(Path({out_dir!r}), make_sampler(die))
"""


def test_a_run_killed_by_the_system_goes_on(tmp_path):
  out_dir = tmp_path / "killed"
  script = _KILLED.format(out_dir=str(out_dir))
  root = Path(__file__).resolve().parents[2]
  killed = subprocess.run([sys.executable, "-c", script], cwd=root, timeout=120)
  assert killed.returncode == -signal.SIGKILL
  num_kept = len((out_dir / "samples.jsonl").read_text().splitlines())
  assert num_kept == 8  # two calls of four; (3, 1) is the eleventh row
  again = []
  run(out_dir, make_sampler(again.append))
  assert len(again) == 10
  run(tmp_path / "whole")
  for name in FILES:
    assert (out_dir / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_finished_run_samples_nothing_again(tmp_path):
  first = run(tmp_path)
  asked = []
  assert run(tmp_path, make_sampler(asked.append)) == first
  assert asked == []
  assert read_json(tmp_path / "results.json")["accuracy"]["estimate"] == 1 / 3


def test_other_settings_in_the_same_directory_are_refused(tmp_path):
  run(tmp_path, sampler_id="step 10")
  with pytest.raises(ConfigError, match=r"num_examples: 6 -> 7.*directory"):
    run(tmp_path, sampler_id="step 10", num_examples=7)
  with pytest.raises(ConfigError, match="sampler_id: 'step 10' -> 'step 20'"):
    run(tmp_path, sampler_id="step 20")
  with pytest.raises(ConfigError, match=r"law\.temperature: 1\.0 -> 0\.5"):
    run(tmp_path, make_sampler(temperature=0.5), sampler_id="step 10")
  (tmp_path / "settings.json").unlink()
  with pytest.raises(DataError, match="without settings.json"):
    run(tmp_path)


def test_progress_counts_responses_and_correct_ones(tmp_path):
  calls = []
  run(tmp_path, rows_per_call=8, progress=lambda *call: calls.append(call))
  # Rows by example: three wrong, then right, right, wrong, and so on in turn.
  assert calls == [(8, 18, 2), (16, 18, 5), (18, 18, 6)]


class _Backwards:
  """Takes branches; a few end at a time, the last one first."""

  can_exclude = False

  def __init__(self, sampler, error_for=()):
    self._sampler = sampler
    self._error_for = error_for
    self.law = sampler.law

  def run(self, branches):
    branches = list(branches)
    for start in range(0, len(branches), 5):
      for branch in reversed(branches[start : start + 5]):
        (found,) = self._sampler.sample([branch.prefix_ids], [branch.key_path])
        if branch.key_path in self._error_for:
          found = dataclasses.replace(found, error="nothing is finite.")
        yield branch, found


def test_branches_that_end_in_another_order_leave_the_same_files(tmp_path):
  expected = run(tmp_path / "rows")
  asked = []
  with pytest.raises(ValueError, match="Example 'n2' of task 'parity', sample 1: noth"):
    run(tmp_path / "branches", _Backwards(make_sampler(), error_for=[(2, 1)]))
  assert len((tmp_path / "branches" / "samples.jsonl").read_text().splitlines()) == 7
  again = _Backwards(make_sampler(asked.append))
  assert run(tmp_path / "branches", again) == expected
  assert len(asked) == 18 - 7
  for name in FILES:
    rows, branches = tmp_path / "rows" / name, tmp_path / "branches" / name
    assert rows.read_bytes() == branches.read_bytes()


def test_the_first_sample_counts_in_the_key_paths(tmp_path):
  asked = []
  run(tmp_path, make_sampler(asked.append), samples_per_example=2, first_sample=1)
  assert sorted(asked) == [(e, s) for e in range(6) for s in (1, 2)]
  records = [json.loads(line) for line in (tmp_path / FILES[1]).open()]
  assert [r["sample"] for r in records] == [0, 1] * 6
  with pytest.raises(ConfigError, match="first_sample: 1 -> 0"):
    run(tmp_path, samples_per_example=2)
  with pytest.raises(ConfigError, match=r"first_sample \(-1\) must be 0 or more"):
    run(tmp_path, first_sample=-1)


def test_a_run_of_the_version_without_a_first_sample_goes_on(tmp_path):
  whole = run(tmp_path)
  settings = read_json(tmp_path / "settings.json")
  del settings["first_sample"]
  (tmp_path / "settings.json").write_text(json.dumps(settings))
  with pytest.raises(ConfigError, match="first_sample: 0 -> 1"):
    run(tmp_path, first_sample=1)
  lines = (tmp_path / "samples.jsonl").read_text().splitlines(keepends=True)
  (tmp_path / "samples.jsonl").write_text("".join(lines[:7]))
  asked = []
  assert run(tmp_path, make_sampler(asked.append)) == whole
  assert len(asked) == 18 - 7


def test_a_prompt_without_room_is_named(tmp_path):
  with pytest.raises(ValueError, match=r"example 'n0' of task 'parity' has 20 tokens"):
    run(tmp_path, make_sampler(max_length=20))
  assert not (tmp_path / "samples.jsonl").exists()


@pytest.mark.parametrize(
  "name", ["num_examples", "samples_per_example", "rows_per_call"]
)
def test_numbers_must_be_positive(tmp_path, name):
  with pytest.raises(ConfigError, match=rf"{name} \(0\) must be 1 or more"):
    run(tmp_path, **{name: 0})


def test_an_id_beyond_the_vocabulary_is_shown_as_such(tmp_path):
  def answer(prefix, path):
    return [*VOCABULARY.encode("a"), VOCABULARY.size + 3, *VOCABULARY.encode("1"), STOP]

  sampler = ScriptedSampler(answer, SamplingLaw(max_length=64), stop_ids=[STOP])
  run(tmp_path, sampler, num_examples=1, samples_per_example=1)
  record = json.loads((tmp_path / "samples.jsonl").read_text())
  assert record["response"] == "a\ufffd1"
