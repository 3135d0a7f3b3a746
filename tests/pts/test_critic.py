"""The critic in a world with known truth, and hidden states that carry it."""

import dataclasses

import numpy as np
import pytest

from benchmarks.simulated_rollouts import SimulatedDraw
from phi4_jax.common.errors import DataError
from phi4_jax.pts.comb_config import CombConfig
from phi4_jax.pts.comb_search import search_comb
from phi4_jax.pts.critic import fit_critic, load_critic
from phi4_jax.pts.critic_fit import soft_auc
from phi4_jax.pts.screen import find_movers
from phi4_jax.pts.screening import critic_odds
from phi4_jax.pts.worlds import true_changes
from tests.pts.critic_worlds import GAP, Searched, States, teach


@pytest.fixture(scope="module")
def early():
  return Searched(range(2))


@pytest.fixture(scope="module")
def late():
  return Searched(range(100, 101))


@pytest.fixture(scope="module")
def lessons(early):
  return teach(early.screen()[0])


@pytest.fixture(scope="module")
def critic(early, late, lessons):
  return fit_critic(States(2.5, early, late), lessons, seed=0, source="early")


def measure(critic, searched):
  """AUC for the truth, and the log of the factors, over tokens that can be pivotal."""
  rows = list(searched.responses)
  can_be = [find_movers(row.probs, GAP) for row in rows]
  odds = critic_odds(critic, rows, GAP)
  logs = np.concatenate([np.log(o[c]) for o, c in zip(odds, can_be, strict=True)])
  truth = [searched.pivotal(r)[c] for r, c in zip(rows, can_be, strict=True)]
  return soft_auc(logs, np.concatenate(truth).astype(float)), logs


def test_lessons_know_each_token_once_and_are_surer_than_their_prior(early, lessons):
  truth = np.concatenate([early.pivotal(x.response)[x.used] for x in lessons])
  labels = np.concatenate([x.labels[x.used] for x in lessons])
  priors = np.concatenate([x.priors[x.used] for x in lessons])
  names = [
    (x.response.question, x.response.token_ids[: position + 1])
    for x in lessons
    for position in np.flatnonzero(x.used)
  ]
  assert len(names) == len(set(names)) > 800
  # Calibrated in the mean, and better than what was known before.
  assert labels.mean() == pytest.approx(truth.mean(), rel=0.35)
  loss = [-np.mean(np.log(np.where(truth, p, 1 - p))) for p in (labels, priors)]
  assert loss[0] < 0.8 * loss[1]


def test_it_finds_what_hidden_states_carry_and_says_how_well(critic, late):
  auc, logs = measure(critic, late)
  assert auc == pytest.approx(0.961, abs=0.05)  # Phi(2.5 / sqrt(2))
  report = critic.report
  assert report.auc.low <= 0.961 and report.auc.value == pytest.approx(auc, abs=0.06)
  assert report.auc.low < report.auc.value < report.auc.high
  assert report.factor > 2 and report.questions > 20 and report.tokens > 800
  assert abs(logs).max() <= 10


def test_the_screen_finds_more_with_fewer_tokens(critic, late):
  board, tokens = late.screen()
  guided, fewer = late.screen(critic, screen_price=2 * CombConfig().screen_price)
  assert fewer < 0.85 * tokens
  assert late.recall(guided) >= late.recall(board)


def test_labels_that_were_shuffled_teach_next_to_nothing(early, late, lessons):
  rng = np.random.default_rng(0)
  used = [np.flatnonzero(x.used) for x in lessons]
  both = np.concatenate(
    [np.stack([x.labels, x.priors])[:, u] for x, u in zip(lessons, used, strict=True)],
    axis=1,
  )
  both = both[:, rng.permutation(both.shape[1])]
  parts = np.split(both, np.cumsum([len(u) for u in used])[:-1], axis=1)
  shuffled = []
  for lesson, where, part in zip(lessons, used, parts, strict=True):
    labels, priors = lesson.labels.copy(), lesson.priors.copy()
    labels[where], priors[where] = part
    shuffled.append(dataclasses.replace(lesson, labels=labels, priors=priors))
  critic = fit_critic(States(2.5, early, late), shuffled, seed=0)
  _, logs = measure(critic, late)
  assert critic.report.factor < 1.25
  assert np.quantile(abs(logs), 0.9) < np.log(1.5)
  assert critic.report.auc.low < 0.55


def test_one_that_is_wrong_costs_findings_and_no_truth(critic, late):
  class Wrong:
    def pivot_probs(self, responses):
      return [1 - p for p in critic.pivot_probs(responses)]

  config = CombConfig(pair_rollouts=0)
  draw = SimulatedDraw(late.places, seed=1)
  search = (late.responses, late.kept, config, draw)
  found = search_comb(*search, gap=GAP, seed=3, critic=Wrong())
  assert len(found.exported) > 5
  false = 0
  for finding in found.exported:
    response = late.responses.of(finding.point)
    process = late.places[finding.point.question].process
    change = true_changes(process, response)[finding.point.position]
    false += finding.sign * change <= config.gamma0
  assert false <= 0.1 * len(found.exported)


def test_it_is_the_same_when_read_back(critic, late, tmp_path):
  critic.save(tmp_path)
  again = load_critic(tmp_path, States(2.5, late))
  assert again is not None and again.report == critic.report
  assert again.fingerprint == critic.fingerprint
  rows = list(late.responses)[:5]
  for one, two in zip(critic.pivot_probs(rows), again.pivot_probs(rows), strict=True):
    np.testing.assert_array_equal(one, two)
  assert load_critic(tmp_path / "none", States(2.5, late)) is None
  (tmp_path / "critic.npz").write_bytes(b"PK torn")
  with pytest.raises(DataError, match=r"critic.npz or critic.json beside it is damag"):
    load_critic(tmp_path, States(2.5, late))


def test_too_little_to_learn_from_is_refused(early, lessons):
  first = {x.response.question for x in lessons[:8]}
  few = [x for x in lessons if x.response.question in first]
  with pytest.raises(DataError, match=r"needs 10 questions.*there are \d questions"):
    fit_critic(States(2.5, early), few, seed=0)
  sure = [dataclasses.replace(x, labels=0 * x.labels) for x in lessons]
  with pytest.raises(DataError, match=r"5 pivotal ones among them.*about 0.0"):
    fit_critic(States(2.5, early), sure, seed=0)
