"""Simulated rollouts have the law of the sampler; claims are held against the truth."""

import concurrent.futures

import numpy as np
import pytest

from benchmarks import pts_cost, pts_cost_methods
from benchmarks.simulated_rollouts import Place, SimulatedDraw
from phi4_jax.common.errors import ConfigError
from phi4_jax.common.sampler import Branch
from phi4_jax.pts.analytic import AnalyticSampler
from phi4_jax.pts.comb_config import CombConfig
from phi4_jax.pts.worlds import TUNING

GAP = pts_cost.SEARCH.gap


@pytest.fixture(scope="module")
def sample():
  return pts_cost_methods.draw_sample(TUNING, [0], pts_cost.SEARCH, 0)


@pytest.mark.parametrize("first_id, excluded_id", [(-1, -1), (2, -1), (-1, 0)])
def test_rollouts_have_the_law_of_the_sampler(first_id, excluded_id):
  process, count = TUNING.process(0), 3000
  prompt = TUNING.num_tokens + 3
  text = (prompt, 1, 0, 2)
  branches = [
    Branch(
      text=text,
      position=3,
      first_id=first_id,
      excluded_id=excluded_id,
      key_path=(4, 0, 0, 3, k),
    )
    for k in range(count)
  ]
  draw = SimulatedDraw([Place(process, 3)], 0)
  drawn = draw(branches)
  prefix = (prompt, 1, 0) + ((first_id,) if first_id >= 0 else ())
  sampled = AnalyticSampler(process, seed=1).sample(
    [prefix] * count,
    [b.key_path for b in branches],
    excluded_ids=[excluded_id] * count,
  )
  firsts = [[o.first_id for o in drawn], [c.token_ids[0] for c in sampled]]
  tables = [np.bincount(ids, minlength=TUNING.num_tokens) / count for ids in firsts]
  np.testing.assert_allclose(*tables, atol=4 * (0.5 / count) ** 0.5)
  assert excluded_id < 0 or tables[0][excluded_id] == 0
  right = np.mean([o.correct for o in drawn])
  verdicts = [
    process.rewards[process.state_after(prefix + c.token_ids)] for c in sampled
  ]
  assert abs(right - np.mean(verdicts)) < 4 * (0.5 / count) ** 0.5
  lengths = {o.num_tokens for o in drawn}
  assert lengths == {len(c.token_ids) for c in sampled}
  assert draw.sampled[0] == count * lengths.pop() and draw.read[0] == 4


def test_exact_values_name_nothing_false(sample):
  claims = pts_cost_methods.search_public(sample, 0, gap=GAP, seed=0)
  found = pts_cost.judge(sample, claims, 0.1)
  assert found["claims"] == found["true_claims"] > 10 and found["wrong_sign"] == 0
  assert found["fdr_gap"] == 0 and 0.4 < found["recall_02"] < 1
  assert found["sampled_per_true_pivot"] == 0


def test_claims_are_judged(sample):
  sizes = sorted(sample.changes, key=lambda name: abs(sample.changes[name]))
  none, most = sizes[0], sizes[-1]
  up = 1 if sample.changes[most] > 0 else -1
  costs = np.full(len(sample.places), 10)
  for sign, true in ((up, 1), (-up, 0)):
    claims = pts_cost_methods.Claims(
      signs={none: 1, most: sign}, sampled=costs, read=2 * costs
    )
    found = pts_cost.judge(sample, claims, 0.1)
    assert (found["claims"], found["true_claims"]) == (2, true)
    assert found["fdr_gap"] == found["fdr_gamma0"] == 1 - true / 2
    assert found["wrong_sign"] == (1 - true) / 2
    if true:
      assert found["sampled_per_true_pivot"] == costs.sum()
      assert found["processed_per_true_pivot"] == 3 * costs.sum()


def test_fewer_rollouts_claim_more_that_is_false(sample):
  few, many = (
    pts_cost.judge(
      sample, pts_cost_methods.search_public(sample, n, gap=GAP, seed=0), 0.1
    )
    for n in (10, 100)
  )
  assert few["fdr_gap"] > 0.5 > 0.2 > many["fdr_gap"]
  assert few["sampled_per_true_pivot"] < many["sampled_per_true_pivot"]
  paper = pts_cost.judge(
    sample, pts_cost_methods.search_paper(sample, 100, gap=GAP, seed=0), 0.1
  )
  assert paper["fdr_gap"] < 0.2 and paper["sampled_by_stage"]["confirm"] > 0
  same = pts_cost.ratio_interval(many, many, processed=True, seed=0)
  assert same == {"ratio": 1.0, "low": 1.0, "high": 1.0}
  ratio = pts_cost.ratio_interval(few, many, processed=False, seed=0)
  assert ratio["low"] < ratio["ratio"] < ratio["high"]


def test_texts_are_read_once_or_in_every_round(sample):
  config = CombConfig(most_times=1.0, screen_rounds=3, max_pairs=8)
  claims = pts_cost_methods.search_by_comb(sample, config, gap=GAP, seed=0)
  texts = sum(len(r.prompt_ids) + len(r) for r in sample.responses)
  prompts = len(sample.places)  # one token each, read by the filter
  assert claims.read.sum() == texts + prompts
  assert claims.read_again is not None
  # No response is asked in every round, and most in more than one.
  assert texts < claims.read_again.sum() < claims.rounds * texts
  found = pts_cost.judge(sample, claims, 0.1)
  assert found["held_tokens"] == texts + prompts
  assert found["true_claims"] > 0
  again = found["processed_per_true_pivot_if_texts_are_read_again"]
  assert again > found["processed_per_true_pivot"] > found["sampled_per_true_pivot"]
  assert found["screen"]["rounds"] == 3 and found["screen"]["ended_by"] == "rounds"
  assert 0 < found["screen"]["promoted"] < 1


def test_a_simulated_critic_has_its_worth(sample):
  critic = pts_cost_methods.SimulatedCritic(sample, 0.77, gap=GAP, seed=0)
  responses = list(sample.responses)
  scores = np.concatenate(critic.pivot_probs(responses))
  truth = np.concatenate(
    [np.abs(np.diff(sample.values[r.question, r.index])) >= GAP for r in responses]
  )
  ranks = scores.argsort().argsort()
  high, low = ranks[truth], ranks[~truth]
  worth = (high.sum() - len(high) * (len(high) - 1) / 2) / (len(high) * len(low))
  assert worth == pytest.approx(0.77, abs=0.08)


def test_settings_are_read():
  assert pts_cost.parse_settings(["promote=.1", "max_pairs=9"]) == {
    "promote": 0.1,
    "max_pairs": 9,
  }
  for wrong in ("promote", "nothing=1", "max_pairs=a"):
    with pytest.raises(ConfigError, match="--comb"):
      pts_cost.parse_settings([wrong])
  with pytest.raises(ConfigError, match="max_pairs"):
    CombConfig(max_pairs=20_000)


def test_every_setting_may_be_given_and_pairs_are_never_drawn(monkeypatch, capsys):
  written = []
  monkeypatch.setattr(pts_cost, "write_json", lambda _, result: written.append(result))
  for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    monkeypatch.setenv(name, "1")  # what it sets itself, taken back at the end
  monkeypatch.setattr(concurrent.futures, "ProcessPoolExecutor", _AtOnce)
  arguments = ["--worlds", "tuning", "--methods", "comb", "--responses=1"]
  settings = ["pair_rollouts=8", "screen_rounds=2", "max_pairs=4"]
  assert pts_cost.main([*arguments, "--comb", *settings]) == 0
  (result,) = written
  assert result["comb"]["pair_rollouts"] == 0 and result["comb"]["max_pairs"] == 4
  assert result["worlds"]["tuning"]["comb"]["screen"]["rounds"] == 2
  assert "tuning" in capsys.readouterr().out


class _AtOnce:
  """A pool of processes that runs all here."""

  def __init__(self, *_, **__):
    pass

  def __enter__(self):
    return self

  def __exit__(self, *_):
    pass

  def submit(self, function, *args):
    future = concurrent.futures.Future()
    future.set_result(function(*args))
    return future
