"""The measuring contract, on contenders that sleep for a known time."""

import importlib.metadata
import json
import os
import sys
import time
from pathlib import Path

import pytest

from benchmarks import contender, harness, machine
from benchmarks.arms import ROOT, ContenderError
from benchmarks.harness import Benchmark, Case, Contender
from phi4_jax.common.errors import ConfigError


def fake(name: str, role="ours", timeout_seconds=60.0, **options) -> Contender:
  return Contender(
    name=name,
    role=role,
    command=harness.ours("tests.benchmarks.fake_contender"),
    options={"name": name, **options},
    timeout_seconds=timeout_seconds,
  )


def measure(*contenders: Contender, argv=(), reference=None, no_ceiling="a test"):
  case = Case(
    name="small",
    contenders=contenders,
    reference=reference or contenders[0].name,
    work_unit="tokens",
    no_ceiling=no_ceiling,
  )
  benchmark = Benchmark(
    name="naps",
    question="Who sleeps longest?",
    cases=[case],
    constants={"hours": 8},
    assumptions=["nobody snores"],
  )
  return harness.measure(benchmark, harness.parse_arguments("", list(argv)))


@pytest.fixture(scope="module")
def result(tmp_path_factory):
  trace = str(tmp_path_factory.mktemp("harness") / "trace.txt")
  # Long enough that what a loaded machine adds does not change who wins.
  measured = measure(
    fake("ours", seconds=0.1, work=30, trace=trace),
    fake("peer", role="peer", seconds=0.1, work=10, trace=trace),
    fake("ceiling", role="ceiling", seconds=0.1, work=60, trace=trace),
    argv=["--seed=7", "--quick", "--repeats=6"],
    reference="peer",
    no_ceiling="",
  )
  return measured, Path(trace).read_text().split()


def test_contenders_take_turns_in_changing_order(result):
  _, trace = result
  warm_up, rounds = trace[:3], [trace[i : i + 3] for i in range(3, 21, 3)]
  assert len(trace) == 21
  assert warm_up == ["ours", "peer", "ceiling"]
  assert all(sorted(turn) == ["ceiling", "ours", "peer"] for turn in rounds)
  assert len({tuple(turn) for turn in rounds}) > 1


def test_raw_rounds_and_summaries_agree(result):
  contenders = result[0]["cases"]["small"]["contenders"]
  for record in contenders.values():
    seconds = sorted(answer["seconds"] for answer in record["rounds"])
    summary = record["summary"]["seconds"]
    assert len(seconds) == 6
    assert seconds[0] >= 0.1
    assert summary["min"] == seconds[0] and summary["max"] == seconds[-1]
    assert summary["median"] == pytest.approx((seconds[2] + seconds[3]) / 2)
    assert record["warm_up"]["seconds"] >= 0.1
    assert record["prepare_seconds"] > 0
    # The warm-up was the first run; every run got the seed.
    assert [a["values"]["runs"] for a in record["rounds"]] == [2, 3, 4, 5, 6, 7]
    assert {a["values"]["seed"] for a in record["rounds"]} == {7}


def test_ratios_are_medians_of_ratios_within_a_round(result):
  contenders = result[0]["cases"]["small"]["contenders"]
  pairs = zip(contenders["ours"]["rounds"], contenders["peer"]["rounds"], strict=True)
  ratios = sorted((30 / a["seconds"]) / (10 / b["seconds"]) for a, b in pairs)
  summary = contenders["ours"]["summary"]
  assert summary["times_reference"]["median"] == pytest.approx(
    (ratios[2] + ratios[3]) / 2
  )
  assert contenders["peer"]["summary"]["times_reference"]["median"] == 1.0
  assert contenders["ceiling"]["summary"]["share_of_ceiling"]["max"] == 1.0
  assert summary["share_of_ceiling"]["median"] < 1.0 < ratios[0]


def test_everything_that_the_numbers_depend_on_is_recorded(result):
  measured, _ = result
  assert measured["quick"] is True and measured["seed"] == 7
  assert measured["constants"] == {"hours": 8}
  assert measured["machine"]["cores"] == machine.num_cores()
  assert set(measured["git"]) == {"commit", "changed"}
  assert isinstance(measured["load"]["idle"], bool)
  record = measured["cases"]["small"]["contenders"]["ours"]
  assert record["settings"] == {"device": "cpu", "precision": "float32", "threads": 1}
  assert record["versions"]["numpy"] == importlib.metadata.version("numpy")
  assert record["command"][1:] == ["-m", "tests.benchmarks.fake_contender"]
  text = json.dumps(measured["machine"] | {"command": record["command"]})
  assert str(ROOT) not in text and os.uname().nodename not in text


def test_a_contender_has_a_peak_of_its_own(result):
  measured, _ = result
  (peak,) = {
    round_["peak_memory_bytes"] // 10**8
    for round_ in measured["cases"]["small"]["contenders"]["ours"]["rounds"]
  }
  here = contender._peak_memory_bytes()  # jax alone is more
  assert peak == 0 and here > 10**8


def test_finish_prints_the_table_and_writes_the_file(result, tmp_path, capsys):
  measured, _ = result
  arguments = harness.parse_arguments("", [f"--output={tmp_path / 'naps.json'}"])
  path = harness.finish(measured, arguments)
  assert json.loads(path.read_text()) == measured
  printed = capsys.readouterr().out
  assert "x peer" in printed and "tokens/s" in printed
  assert "100.0%" in printed  # the ceiling's share of itself
  assert "assuming: nobody snores" in printed and "quick form" in printed


@pytest.mark.parametrize("quick", [True, False])
def test_a_quick_form_never_replaces_a_result(result, quick, tmp_path, monkeypatch):
  monkeypatch.setattr(harness, "ROOT", tmp_path)
  arguments = harness.parse_arguments("", ["--quick"] if quick else [])
  path = harness.finish(result[0], arguments)
  folder = "runs/benchmarks" if quick else "benchmarks/results"
  assert path == tmp_path / folder / "naps.json"


def test_without_work_one_run_is_the_unit():
  measured = measure(fake("a", seconds=0.02), fake("b", seconds=0.2))
  contenders = measured["cases"]["small"]["contenders"]
  assert contenders["b"]["summary"]["rate"]["max"] <= 1 / 0.2
  assert contenders["b"]["summary"]["times_reference"]["median"] < 1
  assert "share_of_ceiling" not in contenders["a"]["summary"]
  assert "no ceiling: a test" in harness.format_result(measured)


@pytest.mark.parametrize(
  "fail, message",
  [
    ("prepare", r"'bad' failed to prepare: RuntimeError: no such model.*last words"),
    ("settings", r"must state its settings; threads missing"),
    ("run", r"'bad' died when asked to run \(exit code 9\).*out of memory"),
    ("hang", r"'bad' did not run within 5 s"),
  ],
)
def test_a_failing_contender_fails_the_benchmark_and_says_why(fail, message):
  bad = fake("bad", fail=fail, timeout_seconds=5.0 if fail == "hang" else 60.0)
  with pytest.raises(ContenderError, match=rf"(?s){message}"):
    measure(fake("good"), bad)


def test_a_command_that_is_not_there_is_named():
  with pytest.raises(ContenderError, match="'absent' cannot start.*no-such-program"):
    measure(Contender(name="absent", command=["./no-such-program"]))


def test_contenders_must_agree_on_reporting_work():
  with pytest.raises(ConfigError, match=r"\['a'\] report their work and \['b'\]"):
    measure(fake("a", work=3), fake("b"))


def test_fewer_than_five_rounds_are_refused(capsys):
  with pytest.raises(SystemExit):
    harness.parse_arguments("", ["--repeats=4"])
  assert "--repeats (4) must be 5 or more" in capsys.readouterr().err


@pytest.mark.parametrize(
  "change, message",
  [
    ({"reference": "c"}, r"Case.reference \('c'\).*\['a', 'b'\]"),
    ({"contenders": [fake("a"), fake("a")]}, "names repeat"),
    ({"no_ceiling": ""}, "say in Case.no_ceiling why"),
    ({"contenders": [fake("a"), fake("b", role="ceiling")]}, "not both"),
  ],
)
def test_a_case_that_breaks_the_contract_is_refused(change, message):
  fields = {
    "name": "small",
    "contenders": [fake("a"), fake("b")],
    "reference": "a",
    "no_ceiling": "a test",
  }
  with pytest.raises(ConfigError, match=message):
    Case(**(fields | change))


def test_a_missing_peer_environment_says_how_to_make_it(tmp_path, monkeypatch):
  monkeypatch.setattr(harness, "ROOT", tmp_path)
  with pytest.raises(ConfigError, match="make bench-setup"):
    harness.peer("benchmarks.peers.rollouts")


def test_the_load_watch_sees_others_but_not_its_own(monkeypatch):
  # Ten seconds on the clock: 4 busy core-seconds, 3 of them ours.
  busy, own = iter([100.0, 104.0, 104.0]), iter([50.0, 53.0])
  monkeypatch.setattr(machine, "_busy_seconds", lambda: next(busy))
  monkeypatch.setattr(machine, "_cpu_seconds", lambda pids: next(own))
  monkeypatch.setattr(machine, "num_cores", lambda: 4)
  monkeypatch.setattr(os, "getloadavg", lambda: (3.5, 0.0, 0.0))
  watch = machine.LoadWatch()
  watch.begin([])
  watch.end([])
  verdict = watch.verdict(10.0)
  assert verdict["cores_used_by_others"] == pytest.approx(0.1)
  assert verdict["idle"] is True  # whatever the minute before was like


# Without counters the load average decides.
@pytest.mark.parametrize("load, others", [(1.5, None), (0.0, 3.0)])
def test_a_busy_machine_is_not_called_idle(load, others, result, monkeypatch):
  busy = iter([others and 0.0, others, others])
  monkeypatch.setattr(machine, "_busy_seconds", lambda: next(busy))
  monkeypatch.setattr(machine, "_cpu_seconds", lambda pids: 0.0)
  monkeypatch.setattr(machine, "num_cores", lambda: 4)
  monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
  watch = machine.LoadWatch()
  watch.begin([])
  watch.end([])
  verdict = watch.verdict(10.0)
  assert verdict["idle"] is False
  assert "MACHINE NOT IDLE" in harness.format_result(result[0] | {"load": verdict})


def test_own_processor_time_is_counted():
  begin, spin = machine._cpu_seconds([]), time.process_time() + 0.2
  while time.process_time() < spin:
    pass
  # The system counts in steps of 10 ms. Where it does not tell, nothing is counted.
  seen = machine._cpu_seconds([]) - begin
  assert seen == 0.0 if sys.platform != "linux" else seen >= 0.15
