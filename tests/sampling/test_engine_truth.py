"""The real engine against the exact law of a Transformer that can be enumerated.

A network of 4 tokens and a horizon of 8 new ones: all 65,536 completions are read by
one plain forward pass each, without a cache, and so the probability of success from
every prefix is known. Then the jitted engine draws, and its means must agree.
"""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from phi4_jax.common.sampler import Branch, SamplingLaw
from phi4_jax.model.transformer import compute_logits, forward, init_params
from phi4_jax.sampling.engine import RolloutEngine
from tests.model.tiny import tiny_config

VOCAB, HORIZON = 4, 8
PROMPT = (1, 2)
STOP = 0
CONFIG = tiny_config(
  vocab_size=VOCAB,
  hidden_size=16,
  intermediate_size=16,
  num_attention_heads=4,
  max_position_embeddings=16,
  initializer_range=0.6,
)
LAW = SamplingLaw(temperature=1.2, max_length=len(PROMPT) + HORIZON)


def is_success(ids: tuple[int, ...]) -> bool:
  """The oracle: completions whose tokens add up to an odd number."""
  return sum(ids) % 2 == 1


class Truth:
  """Every completion's probability, and with it V of every prefix of the response."""

  def __init__(self, params):
    responses = np.array(list(itertools.product(range(VOCAB), repeat=HORIZON)))
    prompts = np.broadcast_to(PROMPT, (len(responses), len(PROMPT)))
    logprobs = _law_logprobs(params, np.concatenate([prompts, responses], axis=1))
    steps = np.take_along_axis(logprobs, responses[..., None], axis=-1)[..., 0]
    ended = np.cumsum(responses == STOP, axis=1) - (responses == STOP) > 0
    self._pi = np.exp(steps)
    self._law = np.exp(logprobs)
    self._ended = ended  # whether the response had ended before a token
    self._responses = responses
    kept = np.where(ended, 0, responses)
    self._success = kept.sum(axis=1) % 2 == 1

  def pi(self, prefix: tuple[int, ...], token: int) -> float:
    """Probability of a token after a prefix of the response."""
    return float(self._law[self._row(prefix), len(prefix), token])

  def value(self, prefix: tuple[int, ...], excluded: int = -1) -> float:
    """P(success) after a prefix, given that `excluded` does not come next."""
    n = len(prefix)
    if STOP in prefix:
      return float(is_success(prefix[: prefix.index(STOP)]))
    below = np.all(self._responses[:, :n] == prefix, axis=1)
    if excluded >= 0:
      below &= self._responses[:, n] != excluded
    # What follows a stop token is summed over evenly: it has weight 1 in all.
    steps = np.where(self._ended[below, n:], 1 / VOCAB, self._pi[below, n:])
    weights = steps.prod(axis=1)
    return float(weights @ self._success[below] / weights.sum())

  def _row(self, prefix: tuple[int, ...]) -> int:
    """A response that begins so: they are in order of their digits."""
    digits = [*prefix, *[0] * (HORIZON - len(prefix))]
    return functools.reduce(lambda number, digit: number * VOCAB + digit, digits)


def _law_logprobs(params, ids: np.ndarray) -> np.ndarray:
  """Log-probabilities [rows, HORIZON, V] of what follows, by teacher forcing."""

  @jax.jit
  def run(ids):
    positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
    hidden, _ = forward(
      params, CONFIG, ids, positions=positions, segment_ids=jnp.ones_like(ids)
    )
    return compute_logits(params, CONFIG, hidden[:, len(PROMPT) - 1 : -1])

  parts = np.split(ids.astype(np.int32), 16)
  logits = np.concatenate([np.asarray(run(part), np.float64) for part in parts])
  scaled = logits / LAW.temperature
  return scaled - special.logsumexp(scaled, axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def params():
  return init_params(CONFIG, jax.random.key(2))


@pytest.fixture(scope="module")
def truth(params):
  return Truth(params)


def make_engine(params, **settings):
  shapes: dict[str, Any] = {"batch_size": 512, "rows_per_group": 64, "prompt_chunk": 8}
  return RolloutEngine(
    params, CONFIG, LAW, stop_ids=(STOP,), seed=5, **(shapes | settings)
  )


def count(engine, cases, rollouts, phase=0):
  """Draws rollouts of (prefix, excluded) pairs; returns what was drawn of each.

  Prefixes leave two whole responses where they can, so that cuts are shared.
  """
  bases = [(*PROMPT, 2, 3, 1, 1, 3, 2, 1), (*PROMPT, 1, 1, 2, 3, 3, 1, 2)]

  def make(case, k):
    prefix, excluded = cases[case]
    ids = (*PROMPT, *prefix)
    text = next((base for base in bases if base[: len(ids)] == ids), ids)
    return Branch(
      text=text, position=len(ids), key_path=(phase, case, k), excluded_id=excluded
    )

  branches = (make(c, k) for k in range(rollouts) for c in range(len(cases)))
  drawn = [[] for _ in cases]
  for branch, completion in engine.run(branches):
    assert completion.error is None
    drawn[branch.key_path[1]].append(completion)
  return drawn


PREFIXES = [
  (),
  (2,),
  (2, 3),
  (2, 3, 1, 1),
  (1,),
  (1, 1, 2),
  (3,),
  (2, 3, 1, 1, 3, 2, 1),
]
CASES = [(prefix, -1) for prefix in PREFIXES] + [
  ((), 2), ((2,), 3), ((2, 3, 1), 1), ((1, 1), 2), ((3,), 0)
]  # fmt: skip


def test_truth_is_a_martingale_and_excludes_by_its_formula(truth):
  for prefix in PREFIXES[:-1]:
    parts = [
      truth.pi(prefix, token) * truth.value((*prefix, token)) for token in range(VOCAB)
    ]
    assert sum(truth.pi(prefix, token) for token in range(VOCAB)) == pytest.approx(1)
    assert truth.value(prefix) == pytest.approx(sum(parts), abs=1e-9)
    pi = truth.pi(prefix, 1)
    rest = (sum(parts) - parts[1]) / (1 - pi)
    assert truth.value(prefix, excluded=1) == pytest.approx(rest, abs=1e-9)


def check_values(truth, drawn):
  """z-tests of every case, and one over all of them."""
  scores = []
  for (prefix, excluded), completions in zip(CASES, drawn, strict=True):
    wins = [
      is_success((*prefix, *(t for t in c.token_ids if t != STOP))) for c in completions
    ]
    exact, n = truth.value(prefix, excluded), len(wins)
    assert 0.02 < exact < 0.98
    scores.append((np.mean(wins) - exact) / np.sqrt(exact * (1 - exact) / n))
  assert np.max(np.abs(scores)) < 4
  assert stats.chi2.sf(np.sum(np.square(scores)), len(scores)) > 1e-3


def check_first_tokens(truth, drawn):
  """Chi-square of the first tokens, none of which is the excluded one."""
  for (prefix, excluded), completions in zip(CASES, drawn, strict=True):
    seen = np.bincount([c.token_ids[0] for c in completions], minlength=VOCAB)
    law = np.array([truth.pi(prefix, token) for token in range(VOCAB)])
    if excluded >= 0:
      assert seen[excluded] == 0
      law[excluded] = 0
    law /= law.sum()
    tokens = law * len(completions) >= 5
    expected = law[tokens] / law[tokens].sum() * seen[tokens].sum()
    assert stats.chisquare(seen[tokens], expected).pvalue > 1e-4


def test_values_and_first_tokens_are_those_of_the_law(params, truth):
  engine = make_engine(params)
  drawn = count(engine, CASES, rollouts=2000)
  check_values(truth, drawn)
  check_first_tokens(truth, drawn)
  assert engine.throughput.occupancy > 0.6
  assert engine.num_compilations <= 4


def test_probabilities_told_are_those_of_teacher_forcing(params, truth):
  for (prefix, excluded), completions in zip(
    CASES, count(make_engine(params), CASES, rollouts=40, phase=1), strict=True
  ):
    for completion in completions:
      ids = prefix
      for step, (token, logprob) in enumerate(
        zip(completion.token_ids, completion.logprobs, strict=True)
      ):
        pi = truth.pi(ids, token)
        if step == 0 and excluded >= 0:
          pi /= 1 - truth.pi(ids, excluded)
        assert logprob == pytest.approx(np.log(pi), abs=2e-5)
        ids = (*ids, token)


def test_sums_over_a_forced_token_give_the_value_before_it(params, truth):
  """Branches with a forced token, weighed by pi, are as good as branches without."""
  base = (*PROMPT, 2, 3, 1, 1, 3, 2, 1)
  position, rollouts = len(PROMPT) + 2, 4000
  branches = [
    Branch(text=base, position=position, first_id=token, key_path=(3, token, k))
    for k in range(rollouts)
    for token in range(1, VOCAB)
  ]
  wins = np.zeros(VOCAB)
  for branch, completion in make_engine(params).run(branches):
    ids = (2, 3, branch.first_id, *(t for t in completion.token_ids if t != STOP))
    wins[branch.first_id] += is_success(ids)
  means = wins / rollouts
  means[STOP] = is_success((2, 3))
  for token in range(1, VOCAB):
    exact = truth.value((2, 3, token))
    error = np.sqrt(exact * (1 - exact) / rollouts)
    assert abs(means[token] - exact) < 4 * error
  total = sum(truth.pi((2, 3), token) * means[token] for token in range(VOCAB))
  assert total == pytest.approx(truth.value((2, 3)), abs=4 * 0.5 / np.sqrt(rollouts))


@pytest.mark.slow
def test_a_million_rollouts_agree_with_the_truth(params, truth):
  engine = make_engine(params, batch_size=4096, rows_per_group=512)
  rollouts = -(-1_000_000 // len(CASES))
  drawn = count(engine, CASES, rollouts, phase=2)
  assert sum(map(len, drawn)) >= 10**6
  check_values(truth, drawn)
  check_first_tokens(truth, drawn)
