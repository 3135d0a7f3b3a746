"""The rollout engine draws what the plain sampler draws, token for token."""

import dataclasses
import random
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from phi4_jax.common.sampler import Branch, BranchSampler, Sampler, SamplingLaw
from phi4_jax.model.transformer import init_params
from phi4_jax.sampling.engine import RolloutEngine
from phi4_jax.sampling.generate import JaxSampler
from tests.model.tiny import tiny_config

CONFIG = tiny_config(
  vocab_size=11,
  hidden_size=16,
  intermediate_size=24,
  num_attention_heads=4,
  max_position_embeddings=32,
  initializer_range=0.5,  # far from uniform, so that a wrong mask is seen
)
LAW = SamplingLaw(temperature=0.8, top_k=7, max_length=24)
STOP = 10
# More texts than groups; two share their beginning; lengths round the chunk of 4.
TEXTS = [
  (1, 2, 3, 4, 5),
  (5, 6, 7, 8, 9, 0, 1, 2, 3),
  (5, 6, 7, 8, 9, 0, 4),
  (2,),
  tuple(range(10)) * 2,
]
SETTINGS: dict[str, Any] = {
  "stop_ids": (STOP,),
  "batch_size": 8,
  "seed": 3,
  "prompt_chunk": 4,
}
SHAPES: dict[str, Any] = {"rows_per_group": 4, "block_steps": 5, "allowed_idle": 1}


@pytest.fixture(scope="module")
def params():
  return init_params(CONFIG, jax.random.key(0))


def make_branches(count, seed=0):
  """Branches of all kinds that leave TEXTS anywhere."""
  rng = random.Random(seed)
  branches = []
  for i in range(count):
    text = rng.choice(TEXTS)
    position = rng.randint(1, len(text))
    other: dict[str, Any] = {
      rng.choice(["first_id", "excluded_id", "key_path"]): rng.randrange(10)
    }
    other["key_path"] = (i, 1)
    branches.append(Branch(text=text, position=position, **other))
  return branches


def draw_all(engine, branches):
  return {branch.key_path: completion for branch, completion in engine.run(branches)}


def draw_plainly(sampler, branches):
  completions = sampler.sample(
    [branch.prefix_ids for branch in branches],
    [branch.key_path for branch in branches],
    [branch.excluded_id for branch in branches],
  )
  paths = [branch.key_path for branch in branches]
  return dict(zip(paths, completions, strict=True))


def assert_same_draws(first, second, atol=1e-5):
  """Equal tokens; log-probabilities equal up to the rounding of other shapes."""
  assert first.keys() == second.keys()
  for path, completion in first.items():
    assert completion.token_ids == second[path].token_ids
    assert completion.finish == second[path].finish
    np.testing.assert_allclose(
      completion.logprobs, second[path].logprobs, rtol=0, atol=atol
    )


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
  "plain": ({}, {}),
  "tied": ({"tie_word_embeddings": True}, {}),
  "window": ({"sliding_window": 3}, {"top_k": 0}),
  "one_kv_head": ({"num_key_value_heads": 1}, {"top_p": 0.8}),
  "all_kv_heads": ({"num_key_value_heads": 4}, {"temperature": 1.3}),
  "greedy": ({}, {"temperature": 0.0, "top_k": 0}),
}


@pytest.mark.parametrize("name", CASES)
def test_draws_are_those_of_the_plain_sampler(name):
  model, law = CASES[name]
  config = dataclasses.replace(CONFIG, **model)
  law = dataclasses.replace(LAW, **law)
  weights = init_params(config, jax.random.key(1))
  branches = make_branches(40)
  if law.temperature == 0:  # the best token is certain: nothing is left to exclude
    branches = [dataclasses.replace(branch, excluded_id=-1) for branch in branches]
  engine = RolloutEngine(weights, config, law, **SETTINGS, **SHAPES)
  plain = JaxSampler(weights, config, law, **SETTINGS)
  drawn = draw_all(engine, branches)
  assert_same_draws(drawn, draw_plainly(plain, branches))
  finishes = {completion.finish for completion in drawn.values()}
  assert finishes == {"stop", "length"} or law.temperature == 0


@pytest.fixture(scope="module")
def engine(params):
  return RolloutEngine(params, CONFIG, LAW, **SETTINGS, **SHAPES)


def test_order_of_the_queue_changes_nothing_to_the_last_bit(engine):
  branches = make_branches(60, seed=1)
  expected = draw_all(engine, branches)
  for seed in range(3):
    random.Random(seed).shuffle(branches)
    assert draw_all(engine, branches) == expected
  for branch in branches[:3]:
    assert draw_all(engine, [branch]) == {branch.key_path: expected[branch.key_path]}


def test_it_is_both_kinds_of_sampler(engine, params):
  assert all(isinstance(engine, kind) for kind in (Sampler, BranchSampler))
  assert engine.can_exclude and engine.law == LAW
  plain = JaxSampler(params, CONFIG, LAW, **SETTINGS)
  prefixes = [list(text) for text in TEXTS for _ in range(3)]
  paths = [(7, i) for i in range(len(prefixes))]
  excluded = [i % 11 - 1 for i in range(len(prefixes))]
  for rows in (None, excluded):
    drawn = engine.sample(prefixes, paths, rows)
    expected = plain.sample(prefixes, paths, rows)
    assert_same_draws(dict(enumerate(drawn)), dict(enumerate(expected)))


def test_programs_compile_once_and_work_is_counted(params):
  engine = RolloutEngine(params, CONFIG, LAW, **SETTINGS, **SHAPES)
  drawn = draw_all(engine, make_branches(30))
  compilations = engine.num_compilations
  assert 3 <= compilations <= 4  # empty state, prefill, decode, perhaps a copy
  engine.set_params(jax.tree.map(lambda x: x * 0.9, params))
  changed = draw_all(engine, make_branches(30))
  assert changed != drawn and engine.num_compilations <= 4
  counted = engine.throughput
  assert counted.sampled_tokens == sum(
    len(completion.token_ids)
    for part in (drawn, changed)
    for completion in part.values()
  )
  assert counted.prefill_tokens >= 2 * len(set(TEXTS[0] + TEXTS[1]))
  assert counted.row_steps >= counted.sampled_tokens
  assert counted.occupancy == counted.sampled_tokens / counted.row_steps
  assert counted.seconds > 0 and counted.compile_seconds > 0
  assert counted.tokens_per_second == counted.sampled_tokens / counted.seconds


def test_new_weights_forget_what_old_ones_have_read(params):
  engine = RolloutEngine(params, CONFIG, LAW, **SETTINGS, **SHAPES)
  draw_all(engine, make_branches(20))
  other = init_params(CONFIG, jax.random.key(5))
  engine.set_params(other)
  fresh = RolloutEngine(other, CONFIG, LAW, **SETTINGS, **SHAPES)
  branches = make_branches(20)
  assert draw_all(engine, branches) == draw_all(fresh, branches)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "float8_e4m3fn"])
def test_narrow_caches_draw_from_nearly_the_same_law(params, dtype):
  """First tokens differ by the rounding of what was read; the order does not matter."""
  exact = RolloutEngine(params, CONFIG, LAW, **SETTINGS, **SHAPES)
  narrow = RolloutEngine(params, CONFIG, LAW, cache_dtype=dtype, **SETTINGS, **SHAPES)
  branches = make_branches(40, seed=2)
  expected, drawn = draw_all(exact, branches), draw_all(narrow, branches)
  same = [path for path in drawn if drawn[path].token_ids == expected[path].token_ids]
  assert len(same) > 10
  gaps = [
    abs(np.subtract(drawn[path].logprobs, expected[path].logprobs)).max()
    for path in same
  ]
  assert 0 < np.median(gaps) < 0.3
  assert draw_all(narrow, branches[::-1]) == drawn


def test_bfloat16_models_are_drawn_from_in_any_order(params):
  config = dataclasses.replace(CONFIG, compute_dtype="bfloat16")
  engine = RolloutEngine(params, config, LAW, **SETTINGS, **SHAPES)
  branches = make_branches(40, seed=3)
  drawn = draw_all(engine, branches)
  assert draw_all(engine, branches[::-1]) == drawn
  first = [c.logprobs[0] for c in drawn.values() if c.logprobs]
  assert np.all(np.isfinite(first)) and jnp.asarray(first).size > 30
