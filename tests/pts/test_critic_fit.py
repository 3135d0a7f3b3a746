"""The regression behind the critic: against formulas, and what it says of itself."""

import numpy as np
import pytest
from scipy import special

from phi4_jax.pts.critic_fit import _fit, _fit_line, fit_scores, soft_auc


def make_rows(strength, *, num=3000, width=8, rate=0.1, certainty=3.0, seed=0):
  """Rows whose log odds rise by `strength` a unit of the first feature.

  Evidence is a normal law's: it says how things are as often as it says it does.
  """
  rng = np.random.default_rng(seed)
  features = rng.normal(size=(num, width))
  offsets = special.logit(rate) + 0.5 * rng.normal(size=num)
  truth = rng.random(num) < special.expit(offsets + strength * features[:, 0])
  mean = np.where(truth, 0.5, -0.5) * certainty
  evidence = mean + np.sqrt(certainty) * rng.normal(size=num)
  groups = np.arange(num) // 30
  return features / np.sqrt(width), offsets, evidence, groups, truth


def test_auc_is_the_share_of_pairs_that_are_in_order():
  rng = np.random.default_rng(1)
  scores, labels = rng.integers(0, 5, 40).astype(float), rng.random(40)
  counts = rng.integers(0, 3, 40).astype(float)
  won = pairs = 0.0
  for i in range(40):
    for j in range(40):
      if i != j:
        chance = labels[i] * (1 - labels[j])
        won += chance * ((scores[i] > scores[j]) + (scores[i] == scores[j]) / 2)
        pairs += chance
  assert soft_auc(scores, labels) == pytest.approx(won / pairs, abs=1e-12)
  sure = (labels > 0.5).astype(float)
  every = np.repeat(np.arange(40), counts.astype(int))
  assert soft_auc(scores, sure, counts) == pytest.approx(
    soft_auc(scores[every], sure[every])
  )
  assert np.isnan(soft_auc(scores, np.zeros(40)))


def test_gradient_is_that_of_the_likelihood_and_both_methods_agree():
  features, offsets, evidence, _, _ = make_rows(1.0, num=400)
  counts = np.ones(400)
  line = features[:, 0]
  intercept, slope = _fit_line(line, offsets, evidence, counts, np.zeros(2))
  found = _fit(line[:, None], offsets, evidence, counts, 0.0, np.zeros(2))
  assert found == pytest.approx([slope, intercept], abs=2e-2)

  def likelihood(a, b):
    p = special.expit(offsets + a + b * line)
    return np.log1p(p * np.expm1(evidence)).sum()

  best = likelihood(intercept, slope)
  for a, b in ((0.05, 0), (-0.05, 0), (0, 0.1), (0, -0.1)):
    assert likelihood(intercept + a, slope + b) < best


@pytest.mark.parametrize("certainty", [2.0, 5.0])
def test_strength_and_auc_are_found_though_nothing_is_certain(certainty):
  features, offsets, evidence, groups, truth = make_rows(1.5, certainty=certainty)
  fit = fit_scores(features, offsets, evidence, groups, seed=0)
  score = fit.slope * features @ fit.weights
  strength = float(np.polyfit(features[:, 0] * np.sqrt(8), score, 1)[0])
  assert strength == pytest.approx(1.5, abs=0.45)
  auc = soft_auc(features[:, 0], truth.astype(float))
  assert fit.auc.low <= auc <= fit.auc.high
  assert fit.auc.value == pytest.approx(auc, abs=0.05)
  again = fit_scores(features, offsets, evidence, groups, seed=0)
  assert again.auc == fit.auc and again.weights.tolist() == fit.weights.tolist()


def test_scores_that_tell_nothing_are_not_heeded():
  factors, aucs = [], []
  for seed in range(6):
    features, offsets, evidence, groups, _ = make_rows(0.0, num=900, seed=seed)
    fit = fit_scores(features, offsets, evidence, groups, seed=seed)
    factors.append(float(np.exp((fit.slope * features @ fit.weights).std())))
    aucs.append(fit.auc.value)
    assert fit.auc.low < 0.5 + 0.05
  assert np.median(factors) < 1.02 and max(factors) < 1.4
  assert np.mean(aucs) == pytest.approx(0.5, abs=0.05)
