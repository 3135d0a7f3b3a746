"""The stream against JaxSampler, and a kept cache against a fresh one."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from phi4_jax.common.errors import ConfigError
from phi4_jax.common.sampler import SamplingLaw
from phi4_jax.model.quantize import quantize_params
from phi4_jax.model.rope_scaling import LongRope
from phi4_jax.model.transformer import init_params
from phi4_jax.sampling.generate import JaxSampler
from phi4_jax.sampling.stream import StreamSampler
from phi4_jax.sampling.stream_programs import StreamPrograms
from tests.model.tiny import tiny_config

CONFIG = tiny_config(
  vocab_size=11,
  hidden_size=16,
  intermediate_size=24,
  num_attention_heads=4,
  max_position_embeddings=48,
  initializer_range=0.5,
)
LONG = dataclasses.replace(
  CONFIG,
  rope_scaling=LongRope(
    short_factor=(1.0, 1.5),
    long_factor=(3.0, 7.0),
    original_max_position_embeddings=20,
  ),
)
LAW = SamplingLaw(temperature=0.8, top_k=7, max_length=40)
STOP = 10
PREFIXES = [[4], [1, 2, 3], [2, 2, 2, 2], [5, 6, 7, 8, 9, 0, 1, 3, 3, 4, 1]]


@pytest.fixture(scope="module")
def params():
  return init_params(CONFIG, jax.random.key(0))


def abstract(params):
  return jax.eval_shape(lambda: params)


@functools.cache
def programs_for(config, law):
  """Compiled once for all tests: stop ids, keys and weights are not part of them."""
  shapes = abstract(init_params(config, jax.random.key(0)))
  return StreamPrograms(shapes, config, law, chunks=(4, 8), first_capacity=16)


def make_stream(params, config=CONFIG, law=LAW, stop_ids=(STOP,)):
  return StreamSampler(params, programs_for(config, law), stop_ids=stop_ids, seed=3)


@functools.cache
def sampler_for(config, law, stop_ids):
  params = init_params(config, jax.random.key(0))
  return JaxSampler(
    params, config, law, stop_ids=stop_ids, batch_size=1, seed=3, prompt_chunk=4
  )


def completion(prefix, path, config=CONFIG, law=LAW, stop_ids=(STOP,)):
  return sampler_for(config, law, stop_ids).sample([prefix], [path])[0]


def draw(stream, prefix, path, **kwargs):
  return list(stream.stream(prefix, path, **kwargs))


@pytest.mark.parametrize("prefix", PREFIXES, ids=len)
def test_the_stream_is_the_completion_of_the_batched_sampler(params, prefix):
  """Prefixes below, at and above the chunks; answers beyond the first capacity."""
  stream, seen = make_stream(params), set()
  for path in [(0, 0), (0, 1), (7, 3)]:
    found = draw(stream, prefix, path)
    expected = completion(prefix, path)
    assert tuple(token.token_id for token in found) == expected.token_ids
    logprobs = [token.logprob for token in found]
    np.testing.assert_allclose(logprobs, expected.logprobs, atol=1e-5)
    finishes = [token.finish for token in found]
    assert finishes[:-1] == [None] * (len(found) - 1)
    assert finishes[-1] == expected.finish
    seen.add(expected.token_ids)
  assert len(seen) > 1


def test_without_stop_ids_it_runs_to_the_cap(params):
  for law in (LAW, dataclasses.replace(LAW, temperature=0.0)):
    stream = make_stream(params, law=law, stop_ids=())
    found = draw(stream, [1, 2, 3], (0,))
    expected = completion([1, 2, 3], (0,), law=law, stop_ids=())
    assert tuple(token.token_id for token in found) == expected.token_ids
    assert len(found) == 37 and found[-1].finish == "length"
  # Three capacities (16, 32, 43) with at most three sizes of steps, and the weights.
  assert stream.programs.num_compilations <= 1 + 3 * 3


def test_turns_read_only_what_is_new(params):
  stream = make_stream(params, stop_ids=())
  text = [1, 2, 3, 4, 5]
  for turn in range(3):
    read = stream.num_read
    answer = draw(stream, text, (turn, 0), max_new=4)
    expected = completion(text, (turn, 0), stop_ids=())
    assert tuple(t.token_id for t in answer) == expected.token_ids[:4]
    assert answer[-1].finish == "length"
    # All but the first turn: the last token of the answer, and what is said next.
    assert stream.num_read - read == (5 if turn == 0 else 1 + 3)
    text += [t.token_id for t in answer] + [6, 7, 8]


def test_a_retry_reads_one_token_and_a_reset_what_differs(params):
  stream = make_stream(params, stop_ids=())
  prefix = [1, 2, 3, 4, 5, 6]
  first = draw(stream, prefix, (0, 0), max_new=9)
  read = stream.num_read
  second = draw(stream, prefix, (0, 1), max_new=9)
  assert stream.num_read - read == 1 and first != second
  again = draw(stream, prefix, (0, 0), max_new=9)
  assert [t.token_id for t in again] == [t.token_id for t in first]
  read = stream.num_read
  other = [1, 2, 9]
  found = draw(stream, other, (0, 0))
  assert stream.num_read - read == 1
  expected = completion(other, (0, 0), stop_ids=())
  assert tuple(token.token_id for token in found) == expected.token_ids


@pytest.mark.parametrize("after", [0, 1, 5])
def test_an_answer_that_is_broken_off_leaves_a_good_cache(params, after):
  stream = make_stream(params, stop_ids=())
  text = [1, 2, 3]
  answer = []
  for token in stream.stream(text, (0,)):
    answer.append(token.token_id)
    if len(answer) > after:
      break
  text = text + answer + [5]
  expected = completion(text, (1,), stop_ids=())
  assert tuple(t.token_id for t in draw(stream, text, (1,))) == expected.token_ids


def test_it_stops_when_it_is_asked_to(params):
  stream = make_stream(params, stop_ids=())
  assert draw(stream, [1] * 20, (0,), should_stop=lambda: True) == []
  assert stream.num_read == 0
  answers = iter([False] * 6 + [True])
  assert len(draw(stream, [1] * 20, (0,), should_stop=lambda: next(answers))) == 3


@pytest.mark.slow
def test_int8_weights(params):
  law = dataclasses.replace(LAW, max_length=12)
  small = quantize_params(params)
  stream = StreamSampler(
    small, StreamPrograms(abstract(small), CONFIG, law), stop_ids=(), seed=3
  )
  sampler = JaxSampler(small, CONFIG, law, stop_ids=(), batch_size=1, seed=3)
  (expected,) = sampler.sample([[1, 2, 3]], [(0, 0)])
  found = draw(stream, [1, 2, 3], (0, 0))
  assert tuple(token.token_id for token in found) == expected.token_ids


@pytest.mark.parametrize("prefix_length", [3, 20, 30])
def test_a_text_that_outgrows_the_context_of_long_rope(params, prefix_length):
  stream = make_stream(params, LONG, stop_ids=())
  prefix = [int(i) % 10 for i in np.arange(prefix_length) ** 2]
  found = draw(stream, prefix, (0,))
  expected = completion(prefix, (0,), config=LONG, stop_ids=())
  assert tuple(token.token_id for token in found) == expected.token_ids
  # A short text behind a long one, with the same beginning, and a long one again.
  for text in (prefix[:10], prefix[:3], [*prefix[:9], *range(9), *range(9)]):
    found = draw(stream, text, (1,), max_new=8)
    expected = completion(text, (1,), config=LONG, stop_ids=())
    assert tuple(token.token_id for token in found) == expected.token_ids[:8]


def test_compiling_ahead_leaves_nothing_to_compile(params):
  programs = StreamPrograms(abstract(params), CONFIG, LAW, chunks=(4,))
  programs.compile_ahead()
  assert programs.num_compilations == 3
  stream = StreamSampler(params, programs, stop_ids=(STOP,), seed=3)
  draw(stream, [1, 2, 3], (0,), max_new=5)
  assert programs.num_compilations == 3


def test_refusals(params):
  stream = make_stream(params)
  with pytest.raises(ValueError, match=r"has 40 tokens; 1 to 39 leave room"):
    draw(stream, [1] * 40, (0,))
  with pytest.raises(ValueError, match="has 0 tokens"):
    draw(stream, [], (0,))
  with pytest.raises(ValueError, match=r"from 1 to 11; .*\(11\) allows 0 to 10"):
    draw(stream, [1, 11], (0,))
  with pytest.raises(ValueError, match="max_new .0. must be 1"):
    draw(stream, [1], (0,), max_new=0)
  with pytest.raises(ConfigError, match="stop id .11. must lie below"):
    make_stream(params, stop_ids=(11,))
  with pytest.raises(ConfigError, match=r"max_length \(49\) must be at most .*\(48\)"):
    make_stream(params, law=SamplingLaw(max_length=49))
  with pytest.raises(ConfigError, match="must be 1 or more"):
    StreamPrograms(abstract(params), CONFIG, LAW, chunks=(0,))


def test_logits_that_are_not_finite_are_refused(params):
  broken = jax.tree.map(lambda leaf: leaf, params)
  broken["norm"] = {"weight": params["norm"]["weight"] * np.nan}
  stream = make_stream(broken)
  with pytest.raises(ValueError, match="token 2 are not finite"):
    draw(stream, [1, 2], (0,))
