"""`phi4 filter_questions` with a model that answers: one of ours, and a server's."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from experiments import filter_questions
from phi4_jax.common import io
from tests.experiments.filtered_questions import (
  GIN,
  ROOT,
  assert_same_files,
  read,
  write_questions,
)
from tests.experiments.untrained_runs import (
  MODEL,
  VOCABULARY,
  make_model_run,
  make_tokenizer_run,
)
from tests.sampling.fake_endpoint import MODEL as SERVED
from tests.sampling.fake_endpoint import FakeEndpoint

(_STOP,) = VOCABULARY.stop_ids[:1]


@pytest.fixture(scope="module")
def real(tmp_path_factory):
  """A model's folder, and questions, for the verb in a process of its own."""
  folder = tmp_path_factory.mktemp("real")
  make_model_run(folder / "model")
  VOCABULARY.save(folder / "model" / "vocabulary")
  rows = [{"question": f"{i}?", "answer": i} for i in range(24)]
  write_questions(folder / "my.jsonl", rows)
  return folder


def begin(folder, workdir, batch_size=16):
  ends = tuple("abcdefghijklmnopqrstuvwxyz")
  settings = {
    "FilterQuestionsConfig.num_questions": 0,
    "FilterQuestionsConfig.batch_size": batch_size,
    "SamplingLaw.max_length": MODEL.max_position_embeddings,
    "QuestionFileConfig.ends": ends,
  }
  command = [sys.executable, "-m", "experiments.cli", "filter_questions"]
  command += [f"--gin_file={GIN}", "--checkpoint=model", "--questions=my.jsonl"]
  command += [f"--gin.{name}={value!r}" for name, value in settings.items()]
  return subprocess.Popen(
    [*command, f"--workdir={workdir}"],
    cwd=folder,
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


@pytest.fixture(scope="module")
def answered(real):
  process = begin(real, "whole")
  output, _ = process.communicate(timeout=400)
  assert process.returncode == 0, output
  return real / "whole", output


def test_a_model_answers(answered):
  run, output = answered
  metrics = io.read_json(run / "result.json")["metrics"]
  assert metrics["questions"] == metrics["kept"] + metrics["dropped"] == 24
  assert len(read(run / "answers.jsonl")) == metrics["answers"] == 24 * 8
  # It has never learned to answer, but it does say numbers.
  assert 0 < metrics["unread"] < metrics["answers"]
  assert "24 questions = " in output and "tokens/s" in output


@pytest.mark.slow
def test_killed_again_and_again_with_other_batches(real, answered):
  """kill -9 until it is done, each time with other rows at once: the same files."""
  kills = 0
  while not (real / "killed" / "result.json").exists():
    process = begin(real, "killed", batch_size=(16, 8, 32)[kills % 3])
    log, end = real / "killed" / "answers.jsonl", time.monotonic() + 200
    wanted = 70 * (kills + 1)
    while process.poll() is None and time.monotonic() < end:
      if log.exists() and log.read_bytes().count(b"\n") >= wanted:
        process.send_signal(signal.SIGKILL)
        break
      time.sleep(0.002)
    output, _ = process.communicate(timeout=400)
    kills += process.returncode == -signal.SIGKILL
    assert process.returncode in (0, -signal.SIGKILL), output
    assert kills < 20
  assert kills >= 1
  assert_same_files(real / "killed", answered[0])


def test_a_server_answers(tmp_path, capsys):
  """With tokens 1 and 2 as likely as each other, and then the end."""
  make_tokenizer_run(tmp_path / "tokenizer")
  one, two = (VOCABULARY.encode(digit)[0] for digit in "12")

  def logits(prefix):
    found = np.full(VOCABULARY.size, -30.0)
    found[[_STOP] if prefix[-1] in (one, two) else [one, two]] = 0.0
    return found

  # No prompt ends in a digit: the chat format's last token does.
  file = write_questions(
    tmp_path / "my.jsonl", [{"question": f"{i}?"} for i in range(6)]
  )
  gin = tmp_path / "server.gin"
  gin.write_text(
    "FilterQuestionsConfig.endpoint = @RemoteSamplerConfig()\n"
    "FilterQuestionsConfig.mesh = @MeshConfig()\n"
    "FilterQuestionsConfig.rule = @NumberRuleConfig()\n"
    "FilterQuestionsConfig.law = @SamplingLaw()\n"
    "FilterQuestionsConfig.agreement = @AgreementConfig()\n"
    "FilterQuestionsConfig.batch_size = 8\n"
    f"FilterQuestionsConfig.vocabulary = '{tmp_path / 'tokenizer'}'\n"
    f"RemoteSamplerConfig.model = '{SERVED}'\n"
    "AgreementConfig.num_answers = 5\n"
    "SamplingLaw.max_length = 60\n"
  )
  with FakeEndpoint(logits) as endpoint:
    flags = [
      f"--gin_file={gin}",
      f"--questions={file}",
      f"--workdir={tmp_path / 'run'}",
    ]
    flags.append(f"--gin.RemoteSamplerConfig.url='{endpoint.url}'")
    assert filter_questions.main(flags) == 0, capsys.readouterr()
  metrics = io.read_json(tmp_path / "run" / "result.json")["metrics"]
  assert metrics["answers"] == 30 and metrics["unread"] == 0
  for row in read(tmp_path / "run" / "kept" / "questions.jsonl"):
    counts = row["agreement"]["counts"]
    assert set(counts) == {"1", "2"} and sum(counts.values()) == 5
    assert row["answer"] == max(counts, key=counts.get)
  assert metrics["kept"] + metrics["reasons"]["unanimous"] == 6 and metrics["kept"]
