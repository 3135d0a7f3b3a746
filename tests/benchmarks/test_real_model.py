"""The comparison of a real model says what differs, and where."""

import numpy as np
import pytest

from benchmarks import real_model
from tests.model.tensors import ArraySource


def test_logits_are_compared_at_all_positions(tmp_path):
  theirs = np.zeros((3, 5), np.float32)
  theirs[:, 2] = [4.0, -9.0, 2.0]
  np.save(tmp_path / "logits_0.npy", theirs)
  ours = theirs.copy()
  ours[1, 4] += 0.25
  (record,) = real_model.compare_logits([ours], tmp_path, 1)
  assert record == {
    "tokens": 3,
    "max_abs_difference": 0.25,
    "largest_logit": 9.0,
    "same_best_token": 2,
  }


def test_where_two_continuations_part():
  answers = [
    {"tokens": [4, 5, 6], "gaps": [1.0, 0.5, 2.0]},
    {"tokens": [4, 5, 6], "gaps": [1.0, 0.01, 2.0]},
  ]
  equal, parted = real_model.compare_greedy([[4, 5, 6], [4, 7, 6]], answers)
  assert equal["equal"] == equal["tokens"] == 3
  assert equal["lead_where_they_part"] is None
  assert parted["equal"] == 1
  assert parted["lead_where_they_part"] == parted["smallest_lead"] == 0.01


def test_tensors_are_equal_to_the_last_bit_or_not():
  wanted = {"a": np.ones(3, np.float32), "b": np.zeros((2, 2), np.float32)}
  found = {"a": wanted["a"].copy(), "b": -wanted["b"]}  # -0 equals 0, but not its bits
  counts = real_model.count_equal_tensors(ArraySource(found), ArraySource(wanted))
  assert counts == {"tensors": 2, "bit_identical": 1}
  del found["b"]
  counts = real_model.count_equal_tensors(ArraySource(found), ArraySource(wanted))
  assert counts == {"tensors": 2, "bit_identical": 1}


def a_comparison():
  logits = [{"max_abs_difference": 1e-4, "tokens": 3, "same_best_token": 3}]
  greedy = [{"tokens": 9, "equal": 9, "smallest_lead": 0.1}]
  reading = {"logits": logits, "greedy": greedy}
  return {
    "gguf": {**reading, "loading": {"seconds": 3.0, "messages": ["dequantising"]}},
    "export": {**reading, "loading": {"seconds": 3.0, "messages": []}},
    "tensors": {"export_against_gguf": {"tensors": 2, "bit_identical": 2}},
    "fingerprints": {"run": "abc", "run_again": "abc"},
  }


def test_all_claims_hold_when_all_agree():
  summary = real_model.summarize(a_comparison())
  assert summary["all_hold"] and summary["max_abs_logit_difference"] == 1e-4
  assert "1.0e-04" in real_model.format_result(a_comparison())


@pytest.mark.parametrize(
  ("path", "value", "claim"),
  [
    (("gguf", "logits", 0, "max_abs_difference"), 2e-3, "logits_agree"),
    (("gguf", "greedy", 0, "equal"), 8, "greedy_equal"),
    (
      ("export", "loading", "messages"),
      ["newly initialized"],
      "export_loads_in_silence",
    ),
    (("export", "loading", "missing_keys"), ["x"], "export_loads_in_silence"),
    (("tensors", "export_against_gguf", "bit_identical"), 1, "tensors_bit_identical"),
    (("fingerprints", "run_again"), "abd", "fingerprint_kept"),
  ],
)
def test_a_claim_that_does_not_hold_is_not_made(path, value, claim):
  records = a_comparison()
  records["export"] = {**records["export"], "loading": dict(seconds=1.0, messages=[])}
  *way, last = path
  at = records
  for step in way:
    at = at[step]
  at[last] = value
  summary = real_model.summarize(records)
  assert not summary[claim] and not summary["all_hold"]


def test_without_a_model_nothing_is_compared(tmp_path, capsys):
  assert real_model.main([f"--gguf={tmp_path / 'none'}"]) == 0
  assert "nothing compared" in capsys.readouterr().out
