"""The rollout engine in odd cases: broken weights, cancelled queues, other shapes."""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from phi4_jax.common.errors import ConfigError
from phi4_jax.common.mesh import MeshConfig, make_mesh
from phi4_jax.common.sampler import Branch, SamplingLaw
from phi4_jax.model.rope_scaling import LongRope
from phi4_jax.model.transformer import init_params
from phi4_jax.sampling.engine import RolloutEngine
from phi4_jax.sampling.generate import JaxSampler
from tests.sampling.test_engine import (
  CONFIG,
  LAW,
  SETTINGS,
  SHAPES,
  STOP,
  assert_same_draws,
  draw_all,
  draw_plainly,
  make_branches,
)

BROKEN = 9  # the token whose embedding is NaN in `broken_params`


@pytest.fixture(scope="module")
def params():
  return init_params(CONFIG, jax.random.key(0))


@pytest.fixture(scope="module")
def broken_params(params):
  table = params["embed_tokens"]["weight"].at[BROKEN].set(jnp.nan)
  return {**params, "embed_tokens": {"weight": table}}


@pytest.fixture(scope="module")
def engine(params):
  return make_engine(params)


def make_engine(params, law=LAW, config=CONFIG, **settings: Any):
  chosen: dict[str, Any] = SETTINGS | SHAPES | settings
  return RolloutEngine(params, config, law, **chosen)


def test_rows_may_stop_at_once(params):
  engine = make_engine(params, stop_ids=tuple(range(11)))
  drawn = draw_all(engine, make_branches(50))
  assert len(drawn) == 50
  assert {(len(c.token_ids), c.finish) for c in drawn.values()} == {(1, "stop")}


def test_a_prefix_as_long_as_the_cap_gets_nothing(engine):
  text = tuple(i % 10 for i in range(LAW.max_length))
  branches = [
    Branch(text=text, position=24, key_path=(0,)),
    Branch(text=text, position=23, first_id=3, key_path=(1,)),
    Branch(text=text, position=23, key_path=(2,)),
    Branch(text=text, position=22, first_id=3, key_path=(3,)),
  ]
  drawn = draw_all(engine, branches)
  for path in ((0,), (1,)):
    assert drawn[path].token_ids == () and drawn[path].finish == "length"
    assert drawn[path].error is None
  assert [len(drawn[path].token_ids) for path in ((2,), (3,))] == [1, 1]
  at_cap, below = engine.sample([text, text[:-1]], [(0,), (1,)])
  assert at_cap.token_ids == () and len(below.token_ids) == 1


def test_what_cannot_be_drawn_comes_back_with_the_reason(params):
  engine = make_engine(params, base_capacity=8, suffix_capacity=16)
  good = Branch(text=(1,) * 9, position=9, key_path=(0,))
  cases = {
    "at least one token must stand": Branch(text=(1,), position=0, key_path=(1,)),
    "leaves its text of 2 tokens at 3": Branch(text=(1, 2), position=3, key_path=(2,)),
    r"25 tokens, more than SamplingLaw.max_length \(24\)": Branch(
      text=(1,) * 25, position=25, key_path=(3,)
    ),
    r"from 1 to 11; ModelConfig.vocab_size \(11\)": Branch(
      text=(1, 11), position=2, key_path=(4,)
    ),
    r"base_capacity \(8\) allows 9": Branch(text=(1,) * 10, position=10, key_path=(5,)),
    r"Up to 17 tokens may follow.*suffix_capacity \(16\)": Branch(
      text=(1,) * 7, position=7, key_path=(6,)
    ),
  }
  drawn = draw_all(engine, [*cases.values(), good])
  assert drawn[0,].error is None and drawn[0,].token_ids
  for reason, branch in cases.items():
    error = drawn[branch.key_path].error
    assert error and drawn[branch.key_path].token_ids == ()
    with pytest.raises(ValueError, match=reason):
      raise ValueError(error)


def test_sample_refuses_like_the_plain_sampler(engine):
  assert engine.sample([], []) == []
  with pytest.raises(ValueError, match="Prefix 0 is empty"):
    engine.sample([[]], [(0,)])
  with pytest.raises(ValueError, match=r"Prefix 1 has 25 tokens.*max_length \(24\)"):
    engine.sample([[1], [1] * 25], [(0,), (1,)])
  with pytest.raises(ValueError, match=r"from 1 to 11.*vocab_size \(11\)"):
    engine.sample([[1, 11]], [(0,)])
  with pytest.raises(ValueError, match="1 prefixes came with 2 key paths"):
    engine.sample([[1]], [(0,), (1,)])


def test_numbers_that_are_not_finite_spoil_their_own_row_only(params, broken_params):
  """Half of the texts and many draws meet the broken token; nobody else notices."""
  clean, broken = make_engine(params), make_engine(broken_params)
  branches = [b for b in make_branches(120, seed=4) if b.first_id != BROKEN]
  expected, drawn = draw_all(clean, branches), draw_all(broken, branches)
  failures = 0
  for branch in branches:
    path = branch.key_path
    ids = expected[path].token_ids
    if BROKEN in branch.prefix_ids:
      error = drawn[path].error or ""
      # A broken last token is noticed as its logits are drawn from.
      assert "new token 0 are not finite" in error or "(or the logits" in error
      assert drawn[path].token_ids == ()
    elif BROKEN in ids[:-1]:  # it is drawn, and read next
      count = ids.index(BROKEN) + 1
      assert drawn[path].token_ids == ids[:count]
      assert f"new token {count} are not finite" in (drawn[path].error or "")
    else:
      assert drawn[path] == expected[path]
      continue
    failures += 1
  assert 30 < failures < 100
  # Rows that were broken have been used again, in any order.
  assert draw_all(broken, branches[::-1]) == drawn
  assert broken.num_compilations <= 5
  with pytest.raises(ValueError, match="Row 1: .* new token 0 are not finite"):
    broken.sample([[1], [BROKEN, 1]], [(0,), (1,)])


def test_excluding_a_certain_token_is_an_error_of_its_branch(params):
  engine = make_engine(params, dataclasses.replace(LAW, temperature=0.0, top_k=0))
  (first,) = engine.sample([[4]], [(0,)])
  best = first.token_ids[0]
  branches = [
    Branch(text=(4,), position=1, excluded_id=best, key_path=(0,)),
    Branch(text=(4,), position=1, key_path=(1,)),
  ]
  drawn = draw_all(engine, branches)
  assert f"Token {best} is excluded" in (drawn[0,].error or "")
  assert drawn[1,] == first


def test_closing_the_iterator_cancels_what_was_not_drawn(engine):
  read = []

  def endless():
    for i in itertools.count():
      read.append(i)
      yield Branch(text=(1, 2, 3), position=2, key_path=(i, 1))

  running: Any = engine.run(endless())
  first = [next(running) for _ in range(3)]
  with pytest.raises(ValueError, match="exhaust or close"):
    next(engine.run([]))
  with pytest.raises(ValueError, match="exhaust or close"):
    engine.set_params({})
  running.close()
  assert len(read) <= 32 * 8 + 128
  # Rows that were being drawn are free again, and nothing of theirs is left.
  branches = make_branches(40, seed=6)
  fresh = draw_all(engine, branches)
  assert draw_all(engine, branches[::-1]) == fresh
  for branch, completion in first:
    assert draw_all(engine, [branch]) == {branch.key_path: completion}
  assert list(engine.run([])) == []


def test_an_error_of_the_queue_or_a_stop_leaves_a_usable_engine(params, monkeypatch):
  engine = make_engine(params)
  branches = make_branches(30)
  expected = draw_all(engine, branches)

  def failing():
    yield from branches[:20]
    raise OSError("the disk is full")

  with pytest.raises(OSError, match="the disk is full"):
    draw_all(engine, failing())
  assert draw_all(engine, branches) == expected

  decode = engine._programs.decode

  def interrupt(*arguments, **options):
    decode(*arguments, **options)  # takes the donated arrays with it
    raise KeyboardInterrupt

  monkeypatch.setattr(engine._programs, "decode", interrupt)
  with pytest.raises(KeyboardInterrupt):
    draw_all(engine, branches)
  monkeypatch.undo()
  assert draw_all(engine, branches) == expected


@pytest.mark.parametrize("slots", [8, 32, 128])
def test_slot_counts_draw_the_same(engine, params, slots):
  """Log-probabilities differ in the last bits: products of other shapes round so."""
  branches = make_branches(150, seed=7)
  other = make_engine(params, batch_size=slots, allowed_idle=None, block_steps=32)
  assert_same_draws(draw_all(other, branches), draw_all(engine, branches))


MESHES = {
  "rows": MeshConfig(data=4, fsdp=2),
  "rows and heads": MeshConfig(data=2, fsdp=2, tensor=2),
  "rows over tensor, too": MeshConfig(data=2, tensor=4),
}


@pytest.mark.parametrize("name", MESHES)
def test_eight_devices_draw_what_one_draws(params, name):
  branches = make_branches(60, seed=8)
  sizes: dict[str, Any] = {"batch_size": 16, "rows_per_group": 2}
  alone = make_engine(params, **sizes)
  spread = make_engine(params, mesh=make_mesh(MESHES[name]), **sizes)
  drawn = draw_all(spread, branches)
  assert_same_draws(drawn, draw_all(alone, branches))
  assert draw_all(spread, branches[::-1]) == drawn
  int8 = make_engine(params, mesh=make_mesh(MESHES[name]), cache_dtype="int8", **sizes)
  assert all(c.error is None for c in draw_all(int8, branches).values())


def test_long_rope_is_drawn_from_within_its_original_context():
  scaling = LongRope(
    short_factor=(1.0, 1.5),
    long_factor=(2.0, 8.0),
    original_max_position_embeddings=24,
  )
  config = dataclasses.replace(CONFIG, rope_scaling=scaling, max_position_embeddings=64)
  weights = init_params(config, jax.random.key(3))
  branches = make_branches(30)
  plain = JaxSampler(weights, config, LAW, **SETTINGS)
  drawn = draw_all(make_engine(weights, config=config), branches)
  assert_same_draws(drawn, draw_plainly(plain, branches), atol=3e-5)
  law = dataclasses.replace(LAW, max_length=25)
  with pytest.raises(ConfigError, match=r"\(25\) exceeds LongRope's original.*\(24\)"):
    make_engine(weights, law, config)


def test_shapes_that_do_not_fit_are_refused(params):
  with pytest.raises(ConfigError, match=r"max_length \(33\).*\(32\)"):
    make_engine(params, SamplingLaw(max_length=33))
  with pytest.raises(ConfigError, match=r"stop id \(11\).*vocab_size \(11\)"):
    make_engine(params, stop_ids=(11,))
  with pytest.raises(ConfigError, match=r"batch_size \(0\)"):
    make_engine(params, batch_size=0)
  with pytest.raises(ConfigError, match=r"rows_per_group \(3\) must divide"):
    make_engine(params, rows_per_group=3)
  for name in ("base_capacity", "suffix_capacity", "block_steps", "prompt_chunk"):
    nothing: dict[str, Any] = {name: 0}
    with pytest.raises(ConfigError, match=rf"{name} \(0\) must be 1 or more"):
      make_engine(params, **nothing)
  with pytest.raises(ConfigError, match=r"allowed_idle \(-1\)"):
    make_engine(params, allowed_idle=-1)
  with pytest.raises(ConfigError, match=r"prefill_lanes \(3\).*at most the groups"):
    make_engine(params, prefill_lanes=3)
  with pytest.raises(ConfigError, match=r"batch_size \(8\).*data \* fsdp \(16\)|\(8\)"):
    make_engine(params, batch_size=12, mesh=make_mesh(MeshConfig(data=8)))
  with pytest.raises(ConfigError, match=r"MeshConfig.context \(2\) must be 1"):
    make_engine(params, mesh=make_mesh(MeshConfig(data=4, context=2)))


def test_progress_counts_the_rows_of_a_call(params):
  calls = []
  engine = make_engine(params, progress=lambda *call: calls.append(call))
  engine.sample([[1]] * 6 + [[2] * 5], [(i,) for i in range(7)])
  assert calls == [(i, 7) for i in range(1, 8)]


@pytest.mark.slow
def test_ten_thousand_blocks_take_no_more_memory(params):
  """After a warm-up nothing grows: arrays on devices, and memory of the process."""
  engine = make_engine(params, block_steps=1, allowed_idle=0)
  num_blocks = 10_000

  def run(first, blocks):
    wanted = engine.throughput.blocks + blocks
    queue = (
      Branch(text=(first, i % 7, i % 10), position=3, key_path=(first, i))
      for i in itertools.count()
    )
    running: Any = engine.run(queue)
    while engine.throughput.blocks < wanted:
      next(running)
    running.close()

  run(0, 500)
  arrays, memory = len(jax.live_arrays()), _resident_bytes()
  run(1, num_blocks)
  assert len(jax.live_arrays()) == arrays
  grown = _resident_bytes() - memory
  assert grown < 8 * 2**20, f"{grown / num_blocks:.0f} bytes a block"


def _resident_bytes() -> int:
  with open("/proc/self/statm", encoding="ascii") as file:
    pages = int(file.read().split()[1])
  return pages * 4096


def test_stop_tokens_are_part_of_what_is_drawn(engine):
  drawn = draw_all(engine, make_branches(80, seed=9))
  for completion in drawn.values():
    assert STOP not in completion.token_ids[:-1]
    assert (completion.token_ids[-1] == STOP) == (completion.finish == "stop")
    assert np.all(np.isfinite(completion.logprobs))
