"""Decode blocks read only as much of the suffixes as their rows have written."""

import dataclasses
from typing import Any

import jax
import pytest

from phi4_jax.common.errors import ConfigError
from phi4_jax.common.mesh import MeshConfig, make_mesh
from phi4_jax.common.sampler import Branch, SamplingLaw
from phi4_jax.model.transformer import init_params
from phi4_jax.sampling.engine import RolloutEngine
from phi4_jax.sampling.engine_shapes import derive_shapes
from phi4_jax.sampling.generate import JaxSampler
from tests.sampling.test_engine import (
  CONFIG,
  LAW,
  SETTINGS,
  SHAPES,
  assert_same_draws,
  draw_all,
  draw_plainly,
  make_branches,
)

BUCKETS = (8, 16, 32)
# Nothing stops before 32 tokens, so that all buckets are used.
LONG_CONFIG = dataclasses.replace(CONFIG, max_position_embeddings=64)
LONG = SamplingLaw(temperature=0.8, top_k=7, max_length=33)


@pytest.fixture(scope="module")
def params():
  return init_params(LONG_CONFIG, jax.random.key(0))


def make_engine(params, buckets, **settings: Any):
  chosen: dict[str, Any] = SETTINGS | SHAPES | {"stop_ids": (), "batch_size": 8}
  chosen |= {"suffix_capacity": 32, "suffix_buckets": buckets} | settings
  return RolloutEngine(params, LONG_CONFIG, LONG, **chosen)


def used_slots(engine, monkeypatch):
  """Records the bucket of each call."""
  seen, decode = [], engine._programs.decode

  def record(*arguments, slots, **options):
    seen.append(slots)
    return decode(*arguments, slots=slots, **options)

  monkeypatch.setattr(engine._programs, "decode", record)
  return seen


def make_long(count):
  """Branches that draw from 9 to 32 tokens, in an order that mixes them."""
  return [
    Branch(
      text=tuple((i + j) % 10 for j in range(24)),
      position=1 + (7 * i) % 24,
      key_path=(i,),
    )
    for i in range(count)
  ]


def test_draws_are_those_of_the_plain_sampler(params):
  branches = make_long(40)
  engine = make_engine(params, BUCKETS)
  settings: dict[str, Any] = SETTINGS | {"stop_ids": ()}
  plain = JaxSampler(params, LONG_CONFIG, LONG, **settings)
  assert_same_draws(draw_all(engine, branches), draw_plainly(plain, branches))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_buckets_change_nothing_to_the_last_bit(params, dtype, monkeypatch):
  """A row that is drawn alone is in small buckets where its neighbours kept it out."""
  engine = make_engine(params, BUCKETS, cache_dtype=dtype)
  seen = used_slots(engine, monkeypatch)
  branches = make_long(40)
  drawn = draw_all(engine, branches)
  assert set(seen) == set(BUCKETS)
  assert draw_all(engine, branches[::-1]) == drawn
  for branch in branches[:6]:
    seen.clear()
    assert draw_all(engine, [branch]) == {branch.key_path: drawn[branch.key_path]}
    assert seen == sorted(seen) and seen[0] == 8
  # Empty state, prefill, three of decode, perhaps a copy.
  assert 5 <= engine.num_compilations <= 6


def test_always_reading_everything_draws_the_same_to_the_last_bit(params, monkeypatch):
  engine, whole = make_engine(params, BUCKETS), make_engine(params, BUCKETS)
  monkeypatch.setattr(type(engine.shapes), "choose_slots", lambda shapes, longest: 32)
  branches = make_long(40)
  expected = draw_all(whole, branches)
  monkeypatch.undo()
  seen = used_slots(engine, monkeypatch)
  assert draw_all(engine, branches) == expected and set(seen) == set(BUCKETS)


def test_rows_that_were_cut_short_leave_nothing_behind(params):
  """Idle rows and rows of a closed iterator may have been longer than a bucket."""
  engine = make_engine(params, BUCKETS)
  branches = make_long(24)
  drawn = draw_all(engine, branches)
  running: Any = engine.run(make_long(40))
  for _ in range(10):
    next(running)
  running.close()
  short = [branch for branch in branches if len(drawn[branch.key_path].token_ids) < 16]
  assert 0 < len(short) < len(branches)
  again = draw_all(engine, short)
  assert again == {branch.key_path: drawn[branch.key_path] for branch in short}


def test_eight_devices_read_buckets_too(params):
  mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
  sizes: dict[str, Any] = {"batch_size": 16, "rows_per_group": 2}
  alone = make_engine(params, BUCKETS, **sizes)
  spread = make_engine(params, BUCKETS, mesh=mesh, **sizes)
  branches = make_long(40)
  drawn = draw_all(spread, branches)
  # Each of up to 32 tokens adds the rounding of products that are split over devices.
  assert_same_draws(drawn, draw_all(alone, branches), atol=3e-5)
  assert draw_all(spread, branches[::-1]) == drawn


def test_buckets_are_derived_and_checked(params):
  config = dataclasses.replace(CONFIG, max_position_embeddings=1024)
  for length, buckets in ((1024, (256, 512, 1024)), (300, (76, 152, 304))):
    shapes = derive_shapes(config, SamplingLaw(max_length=length), batch_size=8)
    assert shapes.suffix_buckets == buckets and shapes.suffix_piece == buckets[0]
    assert shapes.choose_slots(0) == buckets[0]
    assert shapes.choose_slots(buckets[0] - shapes.block_steps) == buckets[0]
    assert shapes.choose_slots(buckets[0] - shapes.block_steps + 1) == buckets[1]
    assert shapes.choose_slots(length - 2) == buckets[2]
  small = derive_shapes(CONFIG, LAW, batch_size=8)
  assert small.suffix_buckets == (24,) and small.suffix_piece is None
  for wrong in ((), (8, 16), (32, 16), (12, 32), (0, 32)):
    with pytest.raises(ConfigError, match="must rise to suffix_capacity"):
      make_engine(params, wrong)
  assert draw_all(make_engine(params, (32,)), make_branches(4))
