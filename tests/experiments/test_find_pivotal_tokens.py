"""`phi4 find_pivotal_tokens` as a user runs it, on an untrained model and a toy task.

The parity task succeeds about every other time whatever the model, and the first
character decides: so there is something to find, without training anything.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

from experiments import find_pivotal_tokens, run_directory
from phi4_jax.common import io
from phi4_jax.common.errors import ConfigError
from phi4_jax.common.sampler import SamplingLaw
from phi4_jax.eval.types import Example, Verdict
from tests.experiments.untrained_runs import MODEL, make_model_run, make_tokenizer_run

_ROOT = Path(__file__).resolve().parents[2]
_FILES = ("rollouts", "questions", "hypotheses", "pivotal_tokens", "pairs", "traces")
_SETTINGS = {
  "FindPivotalTokensConfig.num_questions": 14,
  "FindPivotalTokensConfig.batch_size": 32,
  "SamplingLaw.max_length": 40,
  "SearchConfig.rollouts_per_question": 8,
  **{f"ModelConfig.{field}": getattr(MODEL, field) for field in vars(MODEL)},
}
# The verb itself, with the toy task in place of arithmetic.
_SCRIPT = """
import sys
from experiments import find_pivotal_tokens, search_setup
from tests.experiments.test_find_pivotal_tokens import ParityTask
if sys.argv.pop(1) == "parity":
  search_setup.make_task = lambda config: ParityTask()
sys.exit(find_pivotal_tokens.main())
"""


class ParityTask:
  """A response is right if its first character has an even number."""

  name = "parity"

  def examples(self, num_examples):
    turns = [{"role": "user", "content": f"{i}?"} for i in range(num_examples)]
    return [
      Example(id=f"n{i}", messages=(turn,), reference="even")
      for i, turn in enumerate(turns)
    ]

  def grade(self, example, response):
    return Verdict(correct=bool(response) and ord(response[0]) % 2 == 0)


@pytest.fixture(scope="module")
def parents(tmp_path_factory):
  folder = tmp_path_factory.mktemp("parents")
  make_tokenizer_run(folder / "tokenizer")
  make_model_run(folder / "sft")
  return folder


def start(parents, workdir, *arguments, task="parity", **settings):
  given = {
    **_SETTINGS,
    "FindPivotalTokensConfig.parent": str(parents / "sft"),
    "FindPivotalTokensConfig.vocabulary": str(parents / "tokenizer"),
    **settings,
  }
  flags = [
    f"--gin.{name}={json.dumps(value) if value is not None else 'None'}"
    if not isinstance(value, bool)
    else f"--gin.{name}={value}"
    for name, value in given.items()
  ]
  command = [sys.executable, "-c", _SCRIPT, task]
  command += [f"--gin_file={_ROOT}/gin_configs/pts/tiny.gin", f"--workdir={workdir}"]
  return subprocess.Popen(
    [*command, *flags, *arguments],
    cwd=_ROOT,
    env=os.environ | {"PYTHONPATH": str(_ROOT)},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def run(*args, **kwargs):
  process = start(*args, **kwargs)
  output, _ = process.communicate(timeout=400)
  return process.returncode, output


@pytest.fixture(scope="module")
def whole(parents, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("whole") / "pts"
  code, output = run(parents, workdir)
  assert code == 0, output
  return workdir, output


def read(folder, name):
  return [json.loads(line) for line in (folder / f"{name}.jsonl").open()]


def assert_same_results(first, second):
  for name in _FILES:
    one, two = (folder / f"{name}.jsonl" for folder in (first, second))
    assert one.read_bytes() == two.read_bytes(), name
  results = [run_directory.load_result(folder) for folder in (first, second)]
  for name in ("metrics", "fingerprint", "vocabulary"):
    assert results[0][name] == results[1][name]


def test_it_finds_the_first_token_and_writes_a_complete_run(whole):
  workdir, output = whole
  result = run_directory.load_result(workdir)
  metrics = result["metrics"]
  pivots = read(workdir, "pivotal_tokens")
  assert metrics["pivotal_tokens"] == len(pivots) > 5
  assert sum(pivot["position"] == 0 for pivot in pivots) > 0.8 * len(pivots)
  assert metrics["pairs"] == len(read(workdir, "pairs")) > 0
  assert metrics["positive"] + metrics["negative"] == len(pivots)
  assert f"{len(pivots)} exported" in output and "| token" in output
  perf = result["perf"]
  assert perf["last_process"]["sampled_tokens"] == metrics["sampled_tokens"]
  assert perf["last_process"]["held_tokens"] > 0
  speed = metrics["sampled_tokens"] / perf["search_seconds"]
  assert perf["tokens_per_second"] == pytest.approx(speed)
  screen = f"screen: {metrics['screen']['rounds']} rounds; what it promoted holds "
  assert screen in output
  vocabulary = io.read_json(workdir / "lineage.json")["vocabulary"]["fingerprint"]
  assert result["vocabulary"] == vocabulary
  assert len(result["fingerprint"]) == 64


def test_called_again_it_has_nothing_to_do(parents, whole):
  code, output = run(parents, whole[0])
  assert code == 0 and "already complete" in output


@pytest.mark.slow
def test_sigterm_stops_between_batches_and_the_command_continues(
  parents, whole, tmp_path
):
  workdir = tmp_path / "pts"
  process = start(parents, workdir)
  _wait_for_lines(workdir / "draws.jsonl", 300, process)
  process.send_signal(signal.SIGTERM)
  output, _ = process.communicate(timeout=120)
  assert process.returncode == 128 + signal.SIGTERM
  assert "stopped in" in output and "The same command continues." in output
  assert not (workdir / "result.json").exists()
  code, output = run(parents, workdir)
  assert code == 0, output
  assert_same_results(workdir, whole[0])
  # The second process sampled what was missing, and no more.
  results = [run_directory.load_result(folder) for folder in (workdir, whole[0])]
  sampled = [r["perf"]["last_process"]["sampled_tokens"] for r in results]
  assert 0 < sampled[0] < sampled[1]
  # Its speed is of both.
  perf = results[0]["perf"]
  whole_speed = sampled[1] / perf["search_seconds"]
  assert perf["tokens_per_second"] == pytest.approx(whole_speed)


@pytest.mark.slow
def test_a_model_that_never_succeeds_is_refused_with_the_way_out(parents, tmp_path):
  code, output = run(parents, tmp_path / "pts", task="arithmetic")
  assert code == 2 and "Traceback" not in output
  assert "None of 14 questions has a success between SearchConfig.min_success" in output
  assert "0.0% of all rollouts were right" in output


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_killed_again_and_again(parents, whole, tmp_path, seed):
  """kill -9 at random moments until it is done: the same files."""
  rng = random.Random(seed)
  workdir = tmp_path / "pts"
  lines = kills = 0
  while not (workdir / "result.json").exists():
    process = start(parents, workdir)
    lines += rng.randrange(50, 900)
    try:
      _wait_for_lines(workdir / "draws.jsonl", lines, process)
    except _Finished:
      break
    process.send_signal(signal.SIGKILL)
    process.communicate()
    kills += 1
    assert kills < 60
  assert kills >= 3
  assert_same_results(workdir, whole[0])


@pytest.mark.slow
@pytest.mark.parametrize(
  "changed",
  [
    {"FindPivotalTokensConfig.batch_size": 8},
    {"FindPivotalTokensConfig.batch_size": 128},
    {"MeshConfig.cpu_devices": 1},
    {"MeshConfig.cpu_devices": 8},
  ],
)
def test_slots_and_devices_change_nothing_that_is_found(
  parents, whole, tmp_path, changed
):
  """Probabilities may differ in their last digits; what is drawn and found does not."""
  code, output = run(parents, tmp_path / "pts", **changed)
  assert code == 0, output
  assert_same_findings(tmp_path / "pts", whole[0])


def assert_same_findings(first, second):
  free = {"prob", "logprobs", "probs", "values", "posterior", "lower", "log_e", "delta"}
  free |= {"stay", "weight", "value_before", "value_after", "key_paths"}
  for name in _FILES:
    one, two = (
      [{k: v for k, v in record.items() if k not in free} for record in read(at, name)]
      for at in (first, second)
    )
    assert one == two, name


@pytest.mark.slow
def test_a_begun_search_goes_on_with_other_slots_and_devices(parents, whole, tmp_path):
  workdir = tmp_path / "pts"
  process = start(parents, workdir)
  _wait_for_lines(workdir / "draws.jsonl", 300, process)
  process.send_signal(signal.SIGTERM)
  process.communicate(timeout=120)
  first = (workdir / "draws.jsonl").read_bytes()
  other = {"FindPivotalTokensConfig.batch_size": 8, "MeshConfig.cpu_devices": 1}
  code, output = run(parents, workdir, **other)
  assert code == 0, output
  assert "goes on with other resources" in output and "-> 8" in output
  assert (workdir / "draws.jsonl").read_bytes().startswith(first)
  assert_same_findings(workdir, whole[0])


@pytest.mark.slow
def test_holding_texts_spares_reading_and_changes_no_byte(parents, whole, tmp_path):
  settings = {"FindPivotalTokensConfig.held_gib": 0.0}
  code, output = run(parents, tmp_path / "pts", **settings)
  assert code == 0, output
  assert_same_results(tmp_path / "pts", whole[0])
  without, with_store = (
    run_directory.load_result(folder)["perf"]["last_process"]
    for folder in (tmp_path / "pts", whole[0])
  )
  assert without["held_tokens"] == 0
  assert with_store["prefill_tokens"] < without["prefill_tokens"]


class _Finished(Exception):
  pass


def _wait_for_lines(path, count, process, seconds=200):
  end = time.monotonic() + seconds
  while not path.exists() or path.read_bytes().count(b"\n") < count:
    if process.poll() is not None:
      output, _ = process.communicate()
      assert process.returncode == 0, output
      raise _Finished
    assert time.monotonic() < end
    time.sleep(0.01)


def test_what_draws_and_what_judges_are_closed_whatever_happens(monkeypatch):
  closed = []

  def closing(name):
    return types.SimpleNamespace(close=lambda: closed.append(name), throughput=None)

  asked = {"questions": (), "oracle": None, "unusable": ()}
  module = find_pivotal_tokens
  monkeypatch.setattr(module, "load_vocabulary", lambda folder: None)
  monkeypatch.setattr(
    module,
    "make_asked",
    lambda *args, **kwargs: types.SimpleNamespace(**asked, **vars(closing("judge"))),
  )
  monkeypatch.setattr(
    module, "make_search_sampler", lambda *args: (closing("sampler"), "x")
  )

  def fail(*args):
    raise ConfigError("no critic")

  monkeypatch.setattr(module, "make_critic", fail)
  config = types.SimpleNamespace(
    inputs=dict, task=None, oracle=None, num_questions=1, law=SamplingLaw(max_length=8)
  )
  directory = types.SimpleNamespace(
    link_inputs=lambda inputs: {"vocabulary": Path("v")}, path=Path("run")
  )
  with pytest.raises(ConfigError, match="no critic"):
    module.run(config, directory)
  assert closed == ["sampler", "judge"]
