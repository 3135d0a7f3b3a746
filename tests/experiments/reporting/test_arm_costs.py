import json
import shutil

import pytest

from experiments.reporting.arm_costs import add_costs, show
from experiments.reporting.reading import open_chain, open_run
from tests.experiments.made_up_runs import PAIRS_SEEN, write_chain


@pytest.fixture
def folder(tmp_path):
  return write_chain(tmp_path / "demo")


def _costs(folder):
  chain = open_chain(open_run(folder))
  arms = add_costs(chain.compare.metrics, [chain])["arms"]
  return {arm: (e["pairs_seen"], e["sampled_tokens"]) for arm, e in arms.items()}


def test_pairs_are_the_mean_over_runs_and_the_baseline_saw_none(folder):
  costs = _costs(folder)
  assert costs["sft"] == (0, 0)
  assert {costs[arm][0] for arm in costs if arm != "sft"} == {PAIRS_SEEN + 1}


def test_pivotal_pairs_cost_the_search_without_its_traces(folder):
  costs = _costs(folder)
  assert costs["pts_dpo"][1] > costs["full_dpo"][1] > 0
  path = folder / "pts" / "estimates.jsonl"
  estimates = [json.loads(line) for line in path.read_text().splitlines()]
  traced = sum(e["tokens"] for e in estimates if e["phase"] == "trace")
  sampled = open_run(folder / "pts").metrics["sampled_tokens"]
  assert costs["pts_dpo"][1] == sampled - traced < sampled


def test_a_search_without_estimates_has_costs_too(folder):
  """Mode comb writes none, and no traces."""
  (folder / "pts" / "estimates.jsonl").unlink()
  file = folder / "pts" / "result.json"
  result = json.loads(file.read_text())
  stages = result["metrics"]["stages"]
  stages["trace"] = {"rollouts": 0, "sampled_tokens": 0}
  file.write_text(json.dumps(result))
  assert _costs(folder)["pts_dpo"][1] == result["metrics"]["sampled_tokens"]
  del stages["trace"]  # as earlier versions wrote it
  file.write_text(json.dumps(result))
  assert _costs(folder)["pts_dpo"][1] == result["metrics"]["sampled_tokens"]


def test_what_a_run_does_not_say_is_unknown(folder):
  """A run from before pairs were counted, and an arm whose search is gone."""
  file = folder / "pts_dpo_1" / "result.json"
  result = json.loads(file.read_text())
  del result["metrics"]["pairs_seen"]
  file.write_text(json.dumps(result))
  assert _costs(folder)["pts_dpo"][0] is None
  chain = open_chain(open_run(folder))
  shutil.rmtree(folder / "pts")
  arms = add_costs(chain.compare.metrics, [chain])["arms"]
  assert arms["full_dpo"]["sampled_tokens"] is None
  assert arms["full_dpo"]["pairs_seen"] == PAIRS_SEEN + 1
  assert (show(None), show(12345)) == ("unknown", "12,345")


def test_the_ladder_that_is_given_stays_as_it_is(folder):
  chain = open_chain(open_run(folder))
  add_costs(chain.compare.metrics, [chain])
  assert "pairs_seen" not in chain.compare.metrics["arms"]["sft"]
