"""The sampler against the full forward pass, exact enumeration and itself."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from phi4_jax.common.errors import ConfigError
from phi4_jax.common.mesh import MeshConfig, make_mesh
from phi4_jax.common.sampler import SamplingLaw
from phi4_jax.model.sharding import param_shardings
from phi4_jax.model.transformer import (
  compute_logits,
  forward,
  init_params,
  unstack_layers,
)
from phi4_jax.sampling.generate import JaxSampler
from tests.model.tiny import tiny_config

VOCAB = 11
CONFIG = tiny_config(
  vocab_size=VOCAB,
  hidden_size=16,
  intermediate_size=24,
  num_attention_heads=4,
  max_position_embeddings=16,
  initializer_range=0.5,  # far from uniform, so that a wrong mask is seen
)
LAW = SamplingLaw(temperature=0.8, top_k=7, max_length=16)
# Lengths below, at and above the chunk of 4 tokens.
PREFIXES = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 1], [2, 2, 2, 2], [3, 1, 4, 1, 5, 9]]
PATHS = [(0, 0), (0, 1), (1, 0), (7, 3), (2**31, 5)]
STOP = 10


@pytest.fixture(scope="module")
def params():
  return init_params(CONFIG, jax.random.key(0))


def _make(params, law=LAW, config=CONFIG, **kwargs):
  settings = {"stop_ids": (STOP,), "batch_size": 4, "seed": 3, "prompt_chunk": 4}
  return JaxSampler(params, config, law, **(settings | kwargs))


@pytest.fixture(scope="module")
def sampler(params):
  return _make(params)


@functools.partial(jax.jit, static_argnums=1)
def _full_logits(params, config, ids):
  """Logits of every position by one forward pass without a cache."""
  positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
  segments = jnp.ones_like(ids)
  hidden, _ = forward(params, config, ids, positions=positions, segment_ids=segments)
  return compute_logits(params, config, hidden)


@pytest.fixture(scope="module")
def full_logits(params):
  """Logits of every position of one list of ids."""

  def of(ids):  # padded behind, which causality makes harmless
    row = np.zeros((1, LAW.max_length), np.int32)
    row[0, : len(ids)] = ids
    return np.asarray(_full_logits(params, CONFIG, row), np.float64)[0, : len(ids)]

  return of


def _log_law(logits, law, excluded=-1):
  """Float64 log-probabilities of one step."""
  logits = logits / law.temperature
  kept = np.full_like(logits, -np.inf)
  best = np.argsort(-logits, kind="stable")[: law.top_k or None]
  kept[best] = logits[best]
  if excluded >= 0:
    kept[excluded] = -np.inf
  return kept - np.log(np.exp(kept - kept.max()).sum()) - kept.max()


def test_greedy_is_the_argmax_of_the_full_forward_pass(params, full_logits):
  law = SamplingLaw(temperature=0.0, max_length=16)
  completions = _make(params, law).sample(PREFIXES, PATHS)
  for prefix, completion in zip(PREFIXES, completions, strict=True):
    ids = list(prefix)
    while len(ids) < 16 and ids[-1] != STOP or len(ids) == len(prefix):
      ids.append(int(full_logits(ids)[-1].argmax()))
    assert completion.token_ids == tuple(ids[len(prefix) :])
    assert set(completion.logprobs) == {0.0}
    assert completion.finish == ("stop" if ids[-1] == STOP else "length")


def test_logprobs_are_those_of_the_law_by_full_forward_pass(sampler, full_logits):
  completions = sampler.sample(PREFIXES, PATHS)
  assert len({completion.finish for completion in completions}) == 2
  for prefix, completion in zip(PREFIXES, completions, strict=True):
    tokens = completion.token_ids
    assert len(tokens) == len(completion.logprobs) > 0
    logits = full_logits([*prefix, *tokens])
    for step, token in enumerate(tokens):
      exact = _log_law(logits[len(prefix) + step - 1], LAW)[token]
      assert completion.logprobs[step] == pytest.approx(exact, abs=1e-4)
    assert STOP not in tokens[:-1]
    if completion.finish == "stop":
      assert tokens[-1] == STOP
    else:
      assert len(prefix) + len(tokens) == LAW.max_length


def test_a_row_depends_on_its_prefix_and_key_path_only(sampler):
  together = sampler.sample(PREFIXES, PATHS)
  for i in range(len(PREFIXES)):
    assert sampler.sample([PREFIXES[i]], [PATHS[i]]) == [together[i]]
  order = [3, 0, 4, 2, 1]
  shuffled = sampler.sample([PREFIXES[i] for i in order], [PATHS[i] for i in order])
  assert shuffled == [together[i] for i in order]


def test_one_program_serves_all_lengths_and_counts_its_work(params):
  sampler = _make(params)
  assert sampler.num_compilations == 0
  prefixes = [[1] * length for length in range(1, 16)]
  completions = sampler.sample(prefixes, [(i,) for i in range(15)])
  sampler.set_params(jax.tree.map(lambda x: x * 0.9, params))
  changed = sampler.sample(prefixes, [(i,) for i in range(15)])
  assert sampler.num_compilations == 1
  assert changed != completions
  counted = sampler.throughput
  assert counted.sampled_tokens == sum(
    len(completion.token_ids) for completion in completions + changed
  )
  assert counted.prompt_tokens == 2 * sum(range(1, 16))
  assert counted.row_steps >= counted.sampled_tokens
  assert counted.seconds > 0 and counted.compile_seconds > 0
  assert counted.tokens_per_second == counted.sampled_tokens / counted.seconds


def _assert_same_draws(first, second):
  """Equal tokens; log-probabilities equal up to the rounding of other shapes."""
  assert [c.token_ids for c in first] == [c.token_ids for c in second]
  assert [c.finish for c in first] == [c.finish for c in second]
  for a, b in zip(first, second, strict=True):
    np.testing.assert_allclose(a.logprobs, b.logprobs, rtol=0, atol=1e-5)


def test_devices_batches_and_layouts_do_not_change_what_is_drawn(params, sampler):
  """Eight devices, another batch size, chunk and layout of the parameters at once."""
  mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
  separate = unstack_layers(params, CONFIG)
  separate = jax.device_put(separate, param_shardings(mesh, separate))
  other = _make(separate, batch_size=8, prompt_chunk=32, mesh=mesh)
  _assert_same_draws(other.sample(PREFIXES, PATHS), sampler.sample(PREFIXES, PATHS))


def test_every_completion_is_drawn_as_often_as_it_is_probable():
  """All completions of a model with 4 tokens and horizon 3, by chi-square."""
  config = tiny_config(
    vocab_size=4,
    hidden_size=8,
    intermediate_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    max_position_embeddings=8,
    initializer_range=0.7,
  )
  params = init_params(config, jax.random.key(1))
  law = SamplingLaw(temperature=1.3, max_length=4)
  all_ids = np.array([[1, *rest] for rest in itertools.product(range(4), repeat=3)])
  logits = np.asarray(_full_logits(params, config, all_ids), np.float64) / 1.3
  logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  exact: dict[tuple[int, ...], float] = {}
  for row, ids in enumerate(all_ids):  # token 0 stops
    end = next((i for i in (1, 2) if ids[i] == 0), 3)
    steps = sum(logprobs[row, i - 1, ids[i]] for i in range(1, end + 1))
    exact[tuple(ids[1 : end + 1].tolist())] = float(np.exp(steps))
  assert sum(exact.values()) == pytest.approx(1, abs=1e-5)

  num_draws = 4096
  sampler = JaxSampler(params, config, law, stop_ids=(0,), batch_size=1024, seed=0)
  completions = sampler.sample([[1]] * num_draws, [(i,) for i in range(num_draws)])
  counts = dict.fromkeys(exact, 0)
  for completion in completions:
    counts[completion.token_ids] += 1
    total = np.exp(sum(completion.logprobs))
    assert total == pytest.approx(exact[completion.token_ids], rel=1e-4)
  # Completions expected fewer than five times are put together.
  rare = [ids for ids, p in exact.items() if p * num_draws < 5]
  observed = [counts[ids] for ids in exact if ids not in rare]
  expected = [exact[ids] * num_draws for ids in exact if ids not in rare]
  if rare:
    observed.append(sum(counts[ids] for ids in rare))
    expected.append(sum(exact[ids] for ids in rare) * num_draws)
  expected = np.array(expected) / sum(expected) * num_draws
  assert stats.chisquare(observed, expected).pvalue > 0.01


def test_an_excluded_first_token_leaves_the_conditional_law(sampler, full_logits):
  excluded = [int(full_logits(prefix)[-1].argmax()) for prefix in PREFIXES]
  excluded[1] = -1
  completions = sampler.sample(PREFIXES, PATHS, excluded)
  for prefix, token, completion in zip(PREFIXES, excluded, completions, strict=True):
    first = completion.token_ids[0]
    assert first != token
    exact = _log_law(full_logits(prefix)[-1], LAW, token)[first]
    assert completion.logprobs[0] == pytest.approx(exact, abs=1e-4)
  assert completions[1] == sampler.sample([PREFIXES[1]], [PATHS[1]])[0]


def test_excluding_a_certain_token_is_refused(params, full_logits):
  greedy = _make(params, SamplingLaw(temperature=0.0, max_length=16))
  best = int(full_logits([4])[-1].argmax())
  with pytest.raises(ValueError, match=f"Row 0 excludes token {best} .* only one"):
    greedy.sample([[4]], [(0,)], [best])


def test_logits_that_are_not_finite_are_refused(params, sampler):
  broken = _make(jax.tree.map(lambda x: x * jnp.nan, params))
  with pytest.raises(ValueError, match="new token 0 of row 1 are not finite"):
    broken.sample([[1] * 16, [4]], [(0,), (1,)])


def test_prefix_at_the_cap_gets_nothing_and_a_longer_one_an_error(sampler):
  at_cap, below = sampler.sample([[1] * 16, [1] * 15], [(0,), (1,)])
  assert at_cap.token_ids == () and at_cap.finish == "length"
  assert len(below.token_ids) == 1
  with pytest.raises(ValueError, match=r"Prefix 1 has 17 tokens.*max_length \(16\)"):
    sampler.sample([[1], [1] * 17], [(0,), (1,)])


def test_unusable_rows_are_refused(sampler):
  assert sampler.sample([], []) == []
  with pytest.raises(ValueError, match="Prefix 0 is empty"):
    sampler.sample([[]], [(0,)])
  with pytest.raises(ValueError, match=r"from 1 to 11.*vocab_size \(11\)"):
    sampler.sample([[1, 11]], [(0,)])
  with pytest.raises(ValueError, match="1 prefixes came with 2 key paths"):
    sampler.sample([[1]], [(0,), (1,)])
  with pytest.raises(ValueError, match="1 prefixes came with 0 excluded ids"):
    sampler.sample([[1]], [(0,)], [])


def test_settings_that_do_not_fit_are_refused(params):
  with pytest.raises(ConfigError, match=r"max_length \(17\).*\(16\)"):
    _make(params, SamplingLaw(max_length=17))
  with pytest.raises(ConfigError, match=r"stop id \(11\).*vocab_size \(11\)"):
    _make(params, stop_ids=(11,))
  with pytest.raises(ConfigError, match="batch_size"):
    _make(params, batch_size=0)
  with pytest.raises(ConfigError, match="prompt_chunk"):
    _make(params, prompt_chunk=0)
  mesh = make_mesh(MeshConfig(data=8))
  with pytest.raises(ConfigError, match=r"batch_size \(4\) must be a multiple.*\(8\)"):
    _make(params, mesh=mesh)
  mesh = make_mesh(MeshConfig(data=4, context=2))
  with pytest.raises(ConfigError, match=r"MeshConfig.context \(2\) must be 1"):
    _make(params, mesh=mesh)
  mesh = make_mesh(MeshConfig(data=1, tensor=8))
  with pytest.raises(ConfigError, match=r"batch_size \(4\).*MeshConfig.tensor \(8\)"):
    _make(params, mesh=mesh)


def test_progress_is_told_after_each_batch(params):
  calls = []
  sampler = _make(params, progress=lambda done, total: calls.append((done, total)))
  sampler.sample([[1]] * 6 + [[2] * 5], [(i,) for i in range(7)])
  assert calls == [(4, 7), (6, 7), (7, 7)]
