"""Texts that an engine holds from run to run: what is read again, and what is drawn."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from phi4_jax.common.errors import ConfigError
from phi4_jax.common.mesh import MeshConfig, make_mesh
from phi4_jax.common.sampler import Branch
from phi4_jax.model.branch_cache import count_base_bytes
from phi4_jax.model.config import ModelConfig
from phi4_jax.model.transformer import init_params
from phi4_jax.sampling.engine import RolloutEngine
from phi4_jax.sampling.engine_shapes import EngineShapes, fit_held_texts
from phi4_jax.sampling.engine_throughput import EngineThroughput
from tests.sampling.test_engine import (
  CONFIG,
  LAW,
  SETTINGS,
  SHAPES,
  draw_all,
  make_branches,
)
from tests.sampling.test_engine_cases import BROKEN, MESHES

# Two groups of four rows, and more texts than they and most stores hold.
NUM_TEXTS = 8
TEXTS = [
  (number, *((number * i + i * i) % 10 for i in range(1, 12)))
  for number in range(NUM_TEXTS)
]
LENGTH = 11  # what a branch at the end sees of a text


@pytest.fixture(scope="module")
def params():
  return init_params(CONFIG, jax.random.key(0))


def make_engine(params, held_texts=0, config=CONFIG, **settings: Any):
  chosen: dict[str, Any] = SETTINGS | SHAPES | settings
  return RolloutEngine(params, config, LAW, held_texts=held_texts, **chosen)


def make_round(number, texts=TEXTS, position=LENGTH + 1):
  """Four rollouts of each text, in order."""
  return [
    Branch(text=text, position=position, key_path=(number, t, k))
    for t, text in enumerate(texts)
    for k in range(4)
  ]


def count_round(engine, branches) -> tuple[Any, int, int]:
  """Draws; returns what was drawn, and tokens read and fetched."""
  before = dataclasses.replace(engine.throughput)
  drawn = draw_all(engine, branches)
  after: EngineThroughput = engine.throughput
  read = after.prefill_tokens - before.prefill_tokens
  return drawn, read, after.held_tokens - before.held_tokens


def test_texts_are_read_once_when_all_of_them_are_held(params):
  plain, engine = make_engine(params), make_engine(params, NUM_TEXTS)
  for number in range(4):
    branches = make_round(number)
    expected, all_read, none_held = count_round(plain, branches)
    drawn, read, held = count_round(engine, branches)
    assert drawn == expected  # to the last bit
    # What is still in a group is neither read nor fetched; texts share no chunks.
    assert none_held == 0 and all_read >= (NUM_TEXTS - 2) * LENGTH
    if number == 0:
      assert (read, held) == (NUM_TEXTS * 12, 0)
    else:
      assert read == 0
      assert (NUM_TEXTS - 2) * 12 <= held <= NUM_TEXTS * 12
  # Empty state, empty store, prefill, decode, save and fetch, perhaps a copy.
  assert 6 <= engine.num_compilations <= 7
  assert plain.throughput.held_tokens == 0


def test_what_is_spared_is_what_would_have_been_read(params):
  """Rows that leave early see a part of their texts, though all is fetched."""
  plain, engine = make_engine(params), make_engine(params, NUM_TEXTS)
  for number, position in enumerate((LENGTH + 1, 3, 3, 7)):
    branches = make_round(number, position=position)
    expected, all_read, _ = count_round(plain, branches)
    drawn, read, held = count_round(engine, branches)
    assert drawn == expected
    if number:
      # What groups hold from the round before is neither read nor fetched; it is
      # whole with the store, and may be a part without it.
      assert read == 0 and 0 < held <= all_read


def test_too_few_places_serve_their_share_of_texts_that_are_asked_in_turn(params):
  """A cache that drops what was used longest ago would find nothing here."""
  places = 4
  engine = make_engine(params, places)
  count_round(engine, make_round(0))
  for number in range(1, 5):
    _, read, held = count_round(engine, make_round(number))
    assert held >= places * 12 - 2 * 12  # two of them may be in groups
    assert read <= (NUM_TEXTS - places) * 12


def test_order_and_store_change_nothing_to_the_last_bit(params):
  """All kinds of branches, texts that share beginnings, other cuts in each round."""
  plain = make_engine(params)
  engines = [make_engine(params, held) for held in (1, 3, 16)]
  for seed in range(5):
    branches = make_branches(50, seed=seed)
    expected = draw_all(plain, branches)
    for engine in engines:
      assert draw_all(engine, branches[:: 1 - 2 * (seed % 2)]) == expected
  assert all(engine.throughput.held_tokens > 0 for engine in engines)
  read = [engine.throughput.prefill_tokens for engine in (*engines[::-1], plain)]
  assert read == sorted(read) and read[0] < read[-1] / 2


def test_texts_that_are_not_asked_for_any_more_make_room(params):
  engine = make_engine(params, 4)
  old, new = TEXTS[:4], TEXTS[4:]
  for number in range(2):
    count_round(engine, make_round(number, old))
  for number in range(2, 5):
    count_round(engine, make_round(number, new))
  _, read, held = count_round(engine, make_round(5, new))
  assert read == 0 and held >= 2 * 12


def test_a_text_is_read_on_from_where_it_was_held(params):
  """What a longer cut reads is kept in the place of the shorter one."""
  plain, engine = make_engine(params), make_engine(params, 6)
  reads = []
  for number, position in enumerate((4, 8, 12, 12)):
    branches = make_round(number, TEXTS[:6], position)
    drawn, read, held = count_round(engine, branches)
    assert drawn == draw_all(plain, branches)
    assert held > 0 or number == 0
    reads.append(read)
  assert reads == [6 * 4, 6 * 4, 6 * 4, 0]  # a chunk of four tokens in each round


def test_new_weights_and_failures_forget_what_is_held(params, monkeypatch):
  engine = make_engine(params, NUM_TEXTS)
  for number in range(2):
    drawn, _, held = count_round(engine, make_round(number))
  assert held > 0
  engine.set_params(init_params(CONFIG, jax.random.key(5)))
  changed, read, held = count_round(engine, make_round(1))
  assert changed != drawn and (read, held) == (NUM_TEXTS * 12, 0)

  for name in ("fetch", "save"):
    engine.set_params(params)
    count_round(engine, make_round(0))
    move = getattr(engine._programs, name)

    def interrupt(*arguments, move=move):
      move(*arguments)  # takes the donated arrays with it
      raise KeyboardInterrupt

    monkeypatch.setattr(engine._programs, name, interrupt)
    texts = TEXTS if name == "fetch" else [text[::-1] for text in TEXTS]
    with pytest.raises(KeyboardInterrupt):
      draw_all(engine, make_round(1, texts))
    monkeypatch.undo()
    again, read, held = count_round(engine, make_round(1))
    assert again == drawn and (read, held) == (NUM_TEXTS * 12, 0)
  assert engine.num_compilations <= 8


def test_a_text_with_broken_numbers_is_broken_when_it_is_fetched(params):
  table = params["embed_tokens"]["weight"].at[BROKEN].set(jnp.nan)
  broken = {**params, "embed_tokens": {"weight": table}}
  texts = [(number, 1, 2, 3, 4, BROKEN, 6, 7, 8, 1) for number in range(6)]
  plain, engine = make_engine(broken), make_engine(broken, 6)
  fetched = 0
  for number in range(3):
    # Half of the branches leave the text before the broken token.
    branches = [
      dataclasses.replace(branch, position=3 if branch.key_path[2] % 2 else 10)
      for branch in make_round(number, texts)
    ]
    drawn, _, held = count_round(engine, branches)
    assert drawn == draw_all(plain, branches)
    fetched += held
    for branch in branches:
      is_drawn = drawn[branch.key_path].token_ids != ()
      assert is_drawn == (branch.position == 3)
      if not is_drawn:
        assert "not finite" in (drawn[branch.key_path].error or "")
  assert fetched > 0


@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "float8_e4m3fn"])
def test_narrow_caches_are_held_as_they_are(params, dtype):
  plain = make_engine(params, cache_dtype=dtype)
  engine = make_engine(params, NUM_TEXTS, cache_dtype=dtype)
  for number in range(2):
    branches = make_round(number)
    assert draw_all(engine, branches) == draw_all(plain, branches)
  assert engine.throughput.held_tokens > 0


@pytest.mark.parametrize("name", MESHES)
def test_eight_devices_hold_their_own_texts(params, name):
  mesh = make_mesh(MESHES[name])
  sizes: dict[str, Any] = {"batch_size": 16, "rows_per_group": 2, "mesh": mesh}
  plain, engine = make_engine(params, **sizes), make_engine(params, 16, **sizes)
  texts = [*TEXTS, *(text[::-1] for text in TEXTS)]
  rounds = []
  for number in range(3):
    branches = make_round(number, texts)
    drawn, read, held = count_round(engine, branches)
    assert drawn == draw_all(plain, branches)
    rounds.append((read, held))
  assert rounds[-1][0] < rounds[0][0] / 2  # of two parts of the mesh, mostly the same
  assert rounds[-1][1] > 0
  assert engine.num_compilations <= 8


def test_a_group_takes_texts_that_its_own_part_of_the_mesh_holds(params):
  """A round in the same order finds texts where they were; so does one in another."""
  mesh = make_mesh(MeshConfig(data=8))
  sizes: dict[str, Any] = {"batch_size": 8, "rows_per_group": 1, "mesh": mesh}
  engine = make_engine(params, 16, **sizes)
  texts = [*TEXTS, *(text[::-1] for text in TEXTS)]
  branches = [
    [Branch(text=text, position=12, key_path=(n, t)) for t, text in enumerate(texts)]
    for n in range(3)
  ]
  _, all_read, _ = count_round(engine, branches[0])
  assert all_read == len(texts) * 12
  for part in (branches[1], branches[2][::-1]):
    _, read, held = count_round(engine, part)
    assert held > 0 and read <= all_read / 2


PHI_4 = ModelConfig(
  vocab_size=100352,
  hidden_size=5120,
  intermediate_size=17920,
  num_hidden_layers=40,
  num_attention_heads=40,
  num_key_value_heads=10,
  max_position_embeddings=16384,
)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_memory_is_what_is_said(params, dtype):
  engine = make_engine(params, 6, cache_dtype=dtype)
  draw_all(engine, make_round(0))
  store = engine._texts._store
  held = sum(leaf.nbytes for leaf in jax.tree.leaves(store))
  capacity = engine.shapes.base_capacity
  assert held == 6 * count_base_bytes(CONFIG, capacity, dtype)
  # Numbers of L = 2 layers, K = 2 heads and H = 4, and int8 scales in float32.
  numbers = 2 * 2 * 2 * capacity
  each = np.dtype(jnp.dtype(dtype)).itemsize * 4 + (4 if dtype == "int8" else 0)
  assert held == 6 * numbers * each


def test_a_budget_holds_as_many_texts_as_fit():
  law = dataclasses.replace(LAW, max_length=1025)
  settings: dict[str, Any] = {"cache_dtype": "bfloat16", "most": 1000}
  size = count_base_bytes(PHI_4, 1024, "bfloat16")
  assert size == 1024 * 200 * 2**10  # 200 KiB a token
  for gib in (0.0, 1.0, 2.5):
    count = fit_held_texts(PHI_4, law, gib=gib, **settings)
    assert count * size <= gib * 2**30 < (count + 1) * size
  assert fit_held_texts(PHI_4, law, gib=2.0, cache_dtype="bfloat16", most=7) == 7
  # Devices: rows over all eight of them, as 8 does not divide 10 heads; or 2 parts.
  for mesh, shards in ((MeshConfig(data=1, tensor=8), 8), (MeshConfig(data=8), 8)):
    count = fit_held_texts(PHI_4, law, gib=1.0, mesh=make_mesh(mesh), **settings)
    assert count == 8 * (2**30 // size) and count % shards == 0
  few = fit_held_texts(
    PHI_4, law, gib=1.0, mesh=make_mesh(MeshConfig(data=8)), most=9, cache_dtype="int8"
  )
  assert few == 16  # two on each part
  with pytest.raises(ConfigError, match=r"\(-1.0 GiB\) must be 0 or more"):
    fit_held_texts(PHI_4, law, gib=-1.0, **settings)


def test_stores_that_do_not_fit_are_refused(params):
  with pytest.raises(ConfigError, match=r"held_texts \(-1\) must be 0 or a positive"):
    make_engine(params, -1)
  with pytest.raises(ConfigError, match=r"held_texts \(12\).*mesh's parts \(8\)"):
    make_engine(params, 12, batch_size=32, mesh=make_mesh(MeshConfig(data=8)))
  shapes: EngineShapes = make_engine(params).shapes
  assert shapes.held_texts == 0
