"""The process whose truth is known, and the facts that the search rests on."""

import itertools

import numpy as np
import pytest

from phi4_jax.common.sampler import Sampler
from phi4_jax.pts.analytic import AnalyticSampler, make_process
from phi4_jax.pts.oracle import Oracle
from tests.pts.processes import draw_rollouts, tiny_process, true_values

EXACT = 1e-9


def test_protocols():
  process = tiny_process()
  assert isinstance(process, Oracle)
  assert isinstance(AnalyticSampler(process, 0), Sampler)


def test_values_equal_the_sum_over_all_responses():
  process = tiny_process()
  for question in range(3):
    total = 0.0
    for tokens in itertools.product(range(3), repeat=4):
      state, prob = question, 1.0
      for step, token in enumerate(tokens):
        prob *= process.probs[step, state, token]
        state = process.next_states[step, state, token]
      total += prob * process.judge(process.questions[question], tokens, "length")
    assert process.value(process.questions[question].prompt_ids) == pytest.approx(
      total, abs=EXACT
    )


def test_values_are_a_martingale():
  """V is the mean of the next V, and at the end it is the verdict."""
  process = make_process(0)
  for response in draw_rollouts(process, 2, 5):
    for position in range(len(response)):
      prefix = response.prefix_ids(position)
      state = process.state_after(prefix)
      mean = sum(
        process.probs[position, state, token] * process.value((*prefix, token))
        for token in range(process.num_tokens)
      )
      assert process.value(prefix) == pytest.approx(mean, abs=EXACT)
    assert true_values(process, response)[-1] == response.correct


@pytest.mark.parametrize("seed", range(3))
def test_a_token_moves_the_value_by_at_most_one_minus_its_probability(seed):
  process = make_process(seed)
  for question in range(4):
    for response in draw_rollouts(process, question, 3):
      values = true_values(process, response)
      for i, prob in enumerate(response.probs):
        before, after = values[i : i + 2]
        change = after - before
        assert abs(change) <= 1 - prob + EXACT
        low = max(-before, -(1 - before) * (1 / prob - 1))
        high = min(1 - before, before * (1 / prob - 1))
        assert low - EXACT <= change <= high + EXACT
        if prob < 1 - 1e-12:
          other = process.value_without(response.prefix_ids(i), response.token_ids[i])
          assert change == pytest.approx((1 - prob) * (after - other), abs=EXACT)


def test_the_bound_holds_for_segments():
  process = make_process(1)
  for response in draw_rollouts(process, 0, 4):
    values, probs = true_values(process, response), np.array(response.probs)
    for low, high in itertools.combinations(range(len(response) + 1), 2):
      bound = 1 - np.prod(probs[low:high])
      assert abs(values[high] - values[low]) <= bound + EXACT


def test_expected_squares_are_the_variance_of_the_verdict():
  process = make_process(2)
  values = process.values[0]
  np.testing.assert_allclose(
    process.expected_squares(), values * (1 - values), atol=EXACT
  )


def test_samples_follow_the_probabilities():
  process = tiny_process()
  sampler = AnalyticSampler(process, seed=5)
  prompt = process.questions[1].prompt_ids
  completions = sampler.sample([prompt] * 4000, [(1, k) for k in range(4000)])
  shares = np.bincount([c.token_ids[0] for c in completions], minlength=3) / 4000
  np.testing.assert_allclose(shares, process.probs[0, 1], atol=0.03)
  success = np.mean(
    [process.judge(process.questions[1], c.token_ids, c.finish) for c in completions]
  )
  assert success == pytest.approx(process.value(prompt), abs=0.03)
  for completion in completions[:50]:
    state = 1
    for step, token in enumerate(completion.token_ids):
      logprob = completion.logprobs[step]
      assert logprob == pytest.approx(np.log(process.probs[step, state, token]))
      state = process.next_states[step, state, token]


def test_a_row_depends_on_its_prefix_and_key_path_only():
  process = make_process(0, num_steps=8)
  sampler = AnalyticSampler(process, seed=5)
  rows = [((6,), (0, 1)), ((9, 0, 0), (0, 2)), ((7, 0), (3, 3))]
  prefixes, paths = zip(*rows, strict=True)
  together = sampler.sample(prefixes, paths)
  apart = [sampler.sample([prefix], [path])[0] for prefix, path in rows]
  assert together == apart
  assert [len(c.token_ids) for c in together] == [8, 6, 7]
  assert sampler.sample([(6,)], [(0, 2)]) != sampler.sample([(6,)], [(0, 1)])
  assert AnalyticSampler(process, 6).sample([(6,)], [(0, 1)]) != together[:1]


def test_an_excluded_first_token_is_never_drawn_and_the_rest_keep_their_law():
  process = tiny_process()
  sampler = AnalyticSampler(process, seed=6)
  prompt = process.questions[1].prompt_ids
  count, excluded = 4000, int(process.probs[0, 1].argmax())
  completions = sampler.sample(
    [prompt] * count, [(1, k) for k in range(count)], [excluded] * count
  )
  law = process.probs[0, 1].copy()
  law[excluded] = 0
  law /= law.sum()
  shares = np.bincount([c.token_ids[0] for c in completions], minlength=3) / count
  np.testing.assert_allclose(shares, law, atol=0.03)
  assert shares[excluded] == 0
  for completion in completions[:20]:
    assert completion.logprobs[0] == pytest.approx(np.log(law[completion.token_ids[0]]))
  success = np.mean(
    [process.judge(process.questions[1], c.token_ids, c.finish) for c in completions]
  )
  assert success == pytest.approx(process.value_without(prompt, excluded), abs=0.03)


def test_the_only_possible_token_cannot_be_excluded():
  process = make_process(0, num_steps=4, certain=1.0)
  step = int(np.flatnonzero((process.probs[0] == 1).any(-1))[0])
  only = int(process.probs[0, step].argmax())
  prompt = process.questions[step].prompt_ids
  with pytest.raises(ValueError, match="only one possible"):
    AnalyticSampler(process, 0).sample([prompt], [(0,)], [only])
