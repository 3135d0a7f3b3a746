"""The arithmetic of the comparison with brute force."""

import json

import pytest

from benchmarks import pts_truth
from phi4_jax.common.errors import ConfigError
from phi4_jax.pts.counts import Value
from phi4_jax.pts.responses import Point, Responses
from tests.pts.processes import make_response

GAP = 0.2


@pytest.mark.parametrize(
  "before, after, confirmed, verdict",
  [
    (Value(500, 1000), Value(800, 1000), True, "found"),
    (Value(500, 1000), Value(800, 1000), False, "missed"),
    (Value(500, 1000), Value(400, 1000), True, "false"),
    (Value(500, 1000), Value(400, 1000), False, "rightly left"),
    # Two standard errors of the difference are .043.
    (Value(500, 1000), Value(670, 1000), True, "false, in between"),
    (Value(500, 1000), Value(730, 1000), False, "missed, in between"),
    (Value(500, 1000), Value(650, 1000), True, "false"),
    (Value(900, 1000), Value(1, 1, exact=True), True, "false"),
  ],
)
def test_verdicts(before, after, confirmed, verdict):
  record = {"confirmed": confirmed, **pts_truth.judge_token(before, after, GAP)}
  assert pts_truth.verdict_of(record) == verdict
  low, high = record["interval"]
  assert low <= record["true_delta"] <= high


def test_tokens_are_compared_by_what_they_are(tmp_path):
  """The run's pivot is on another response with the same prefix."""
  pivot = {"question": 0, "prefix_ids": [7, 1], "token_id": 2, "delta": 0.5}
  (tmp_path / "pivotal_tokens.jsonl").write_text(json.dumps(pivot) + "\n")
  response = make_response([0.5, 0.4, 0.3], tokens=(1, 2, 3), index=6)
  truth = {
    Point(0, 6, 1): (Value(300, 1000), Value(700, 1000)),
    Point(0, 6, 2): (Value(700, 1000), Value(1, 1, exact=True)),
  }
  records = pts_truth.compare(tmp_path, Responses([response]), truth, str, gap=GAP)
  assert [r["verdict"] for r in records] == ["found", "missed"]
  assert [r["token"] for r in records] == ["2", "3"]
  summary = pts_truth.summarize(records)
  assert summary["found"] == summary["missed"] == 1
  assert (summary["truly_pivotal"], summary["confirmed"]) == (2, 1)
  assert summary["mean_excess"] == pytest.approx(0.1) and not summary["wrong_sign"]


def test_a_folder_that_is_no_finished_search_is_refused(tmp_path):
  with pytest.raises(ConfigError, match="finished `phi4 find_pivotal_tokens`"):
    pts_truth.load_run(tmp_path)


def test_without_a_demo_it_says_what_to_run_first(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(pts_truth, "DEFAULT_RUN", tmp_path / "pts")
  assert pts_truth.main([]) == 0
  assert "Run `make demo` first" in capsys.readouterr().out


def test_a_run_that_was_named_must_be_there(tmp_path, capsys):
  assert pts_truth.main([f"--run={tmp_path}"]) == 2
  error = capsys.readouterr().err
  assert error.startswith("error: --run") and "Traceback" not in error
