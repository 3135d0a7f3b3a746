"""Functions of the user's that misbehave: a reason, and no harm to anything else."""

import concurrent.futures
import subprocess
import sys
import time

import numpy as np
import pytest

from phi4_jax.common.errors import ConfigError
from phi4_jax.pts.oracle import Oracle
from phi4_jax.pts.oracle_process import OracleFailure
from phi4_jax.pts.oracle_rules import PythonRuleConfig, make_rule
from tests.pts.judging import ask, make_oracle

FUNCTIONS = "tests/pts/oracle_functions.py"


@pytest.fixture(scope="module")
def by_response():
  oracle = make_oracle(
    PythonRuleConfig(
      function=f"{FUNCTIONS}:by_response", timeout_seconds=1.5, memory_mib=256
    )
  )
  yield oracle
  oracle.close()


class TestPython:
  def test_it_judges(self):
    oracle = make_oracle(PythonRuleConfig(function=f"{FUNCTIONS}:right"))
    assert isinstance(oracle, Oracle)
    assert ask(oracle, "12", "12") is True
    assert ask(oracle, "13", "12") is False
    assert ask(oracle, "a\nb \u00e9\u2028", "a\nb \u00e9\u2028") is True
    oracle.close()
    assert ask(oracle, "12", "12") is True
    oracle.close()

  def test_functions_are_found_in_files_and_modules(self):
    for where in (FUNCTIONS, "tests.pts.oracle_functions"):
      oracle = make_oracle(PythonRuleConfig(function=f"{where}:asks_the_question"))
      assert ask(oracle, "2 and 2?", "", prompt="2?") is True
      oracle.close()

  def test_a_truth_of_numpys_is_one(self):
    oracle = make_oracle(PythonRuleConfig(function=f"{FUNCTIONS}:returns_numpys"))
    assert ask(oracle, "", "") is True and type(np.True_).__name__ in ("bool", "bool_")
    oracle.close()

  @pytest.mark.parametrize(
    "response, reason",
    [
      ("raise", "raised ValueError: no\nsuch answer"),
      ("exit", "raised SystemExit: 3"),
      ("leave", "ended its process with status 3"),
      ("crash", "ended its process by signal 11"),
      ("hang", "no verdict within 1.5 seconds"),
      ("spin", "no verdict within 1.5 seconds"),
      ("big number", "no verdict within 1.5 seconds"),
      ("eat", "raised MemoryError"),
      ("recurse", "raised RecursionError"),
      ("none", "it returned None, not True or False"),
      ("number", "it returned 1, not True or False"),
      ("text", "it returned 'True', not True or False"),
      ("interrupt", "raised KeyboardInterrupt"),
      ("bad error", "raised _BadError: (and its message cannot be shown)"),
    ],
  )
  def test_a_function_that_misbehaves(self, by_response, response, reason):
    with pytest.raises(OracleFailure) as raised:
      ask(by_response, response, "12")
    assert reason in str(raised.value)
    assert "by_response (PythonRuleConfig.function)" in str(raised.value)
    # The next judgement is as good as any.
    assert ask(by_response, "12", "12") is True

  def test_its_streams_lead_nowhere(self, by_response):
    assert ask(by_response, "read", "12") is False
    assert ask(by_response, "close", "12") is True
    assert ask(by_response, "12", "12") is True

  def test_prints_are_kept_apart_and_reported(self, caplog, capfd):
    oracle = make_oracle(PythonRuleConfig(function=f"{FUNCTIONS}:prints"))
    assert ask(oracle, "12", "12") is True
    assert ask(oracle, "13", "12") is False
    assert oracle.printed["q"].startswith("judging 12\nxxx")
    assert len(oracle.printed["q"]) == 500
    assert caplog.text.count("The oracle prints while it judges (question q)") == 1
    assert capfd.readouterr() == ("", "")
    oracle.close()

  def test_what_it_started_ends_with_it(self, tmp_path):
    oracle = make_oracle(
      PythonRuleConfig(function=f"{FUNCTIONS}:starts_a_process", timeout_seconds=1.0)
    )
    pytest.raises(OracleFailure, ask, oracle, str(tmp_path / "pid"), "")
    _assert_ends(int((tmp_path / "pid").read_text()))
    oracle.close()

  def test_workers_end_when_the_search_is_killed(self, tmp_path):
    code = f"""
import json, os
from phi4_jax.pts.oracle_rules import PythonRuleConfig, make_rule

rule = make_rule(PythonRuleConfig(function={FUNCTIONS!r} + ":by_response"))
worker = rule._pool._processes[0]._process
request = dict(verb="judge", question="", response="hang", reference="")
worker.stdin.write(json.dumps(request).encode() + bytes([10]))
worker.stdin.flush()
print(worker.pid, flush=True)
os.kill(os.getpid(), 9)
"""
    search = subprocess.run(
      [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
    )
    assert search.returncode == -9
    _assert_ends(int(search.stdout))

  def test_several_workers_judge_at_once(self):
    oracle = make_oracle(
      PythonRuleConfig(function=f"{FUNCTIONS}:waits_a_little", workers=4)
    )
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
      list(pool.map(lambda _: ask(oracle, "", ""), range(4)))  # starts all
      begin = time.monotonic()
      verdicts = list(
        pool.map(lambda k: ask(oracle, str(k), str(k // 2 * 2)), range(8))
      )
    assert verdicts == [True, False] * 4
    assert time.monotonic() - begin < 8 * 0.5
    oracle.close()

  def test_the_version_follows_the_file(self, tmp_path):
    path = tmp_path / "judge.py"
    config = PythonRuleConfig(function=f"{path}:judge")
    versions = []
    for value in (True, False):
      path.write_text(f"def judge(question, response, reference):\n  return {value}\n")
      oracle = make_oracle(config)
      versions.append(oracle.fingerprint)
      assert ask(oracle, "", "") is value
    assert versions[0] != versions[1]
    path.write_text(path.read_text() + "# changed\n")
    oracle.close()
    with pytest.raises(ConfigError, match="was changed while it was in use"):
      ask(oracle, "", "")

  @pytest.mark.parametrize(
    "function, reason",
    [
      (f"{FUNCTIONS}:wrong", "no function 'wrong'; it has right, asks"),
      ("tests/pts/no.py:judge", "FileNotFoundError: there is no file tests/pts/no.py"),
      ("no_module.at_all:judge", "ModuleNotFoundError"),
      ("judge", "must read 'module:function'"),
      (":judge", "must read 'module:function'"),
    ],
  )
  def test_a_function_that_cannot_be_loaded(self, function, reason):
    with pytest.raises(ConfigError, match="PythonRuleConfig.function") as raised:
      make_rule(PythonRuleConfig(function=function))
    assert reason in str(raised.value)

  def test_a_file_that_prints_exits_or_raises_when_it_is_loaded(self, tmp_path):
    path = tmp_path / "judge.py"
    for text, reason in [
      ("print('hello')\nraise ValueError('not now')", "ValueError: not now"),
      ("import sys; sys.exit(2)", "SystemExit: 2"),
      ("def judge(", "SyntaxError"),
      ("import os; os._exit(4)", "ended its process with status 4"),
    ]:
      path.write_text(text)
      with pytest.raises(ConfigError) as raised:
        make_rule(PythonRuleConfig(function=f"{path}:judge"))
      assert reason in str(raised.value)


def _assert_ends(pid):
  def runs():
    try:
      with open(f"/proc/{pid}/stat") as file:
        return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
      return False

  deadline = time.monotonic() + 20
  while runs() and time.monotonic() < deadline:
    time.sleep(0.05)
  assert not runs()
