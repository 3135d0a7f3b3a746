import logging
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from phi4_jax.common.errors import CheckpointError, ConfigError
from phi4_jax.common.io import file_sha256
from phi4_jax.training.checkpoint import CheckpointConfig, Checkpoints, load_params
from phi4_jax.training.guard import GuardConfig
from phi4_jax.training.optimizer import OptimizerConfig, make_optimizer
from phi4_jax.training.state import abstract_state, create_state
from tests.training.problems import (
  assert_trees_equal,
  linear_params,
  linear_shardings,
  mesh_of,
)

TX = make_optimizer(OptimizerConfig(peak_lr=0.1, warmup_steps=1), 10)
EVERY = CheckpointConfig(every_steps=10)


def options(mesh, window=4):
  return {
    "tx": TX,
    "guard": GuardConfig(window=window),
    "mesh": mesh,
    "param_shardings": linear_shardings(mesh),
  }


def make_state(mesh, offset=0.0):
  """A state in which no two leaves are alike."""
  state = create_state(lambda p: p, linear_params(), **options(mesh))
  numbers = iter(range(100))
  return jax.tree.map(
    lambda x: jax.device_put((x + next(numbers) + offset).astype(x.dtype), x.sharding),
    state,
  )


def shapes(mesh, params=None, window=4):
  opts = options(mesh, window)
  if params is not None:
    opts["param_shardings"] = jax.tree.map(
      lambda _: linear_shardings(mesh)["norm"]["weight"], params
    )
  return abstract_state(lambda p: p, params or linear_params(), **opts)


def save_steps(directory, *steps, config=EVERY):
  mesh = mesh_of(2, 4)
  with Checkpoints(directory, config) as checkpoints:
    for step in steps:
      state = make_state(mesh, offset=step)
      checkpoints.save(step, state, {"position": step * 7}, {"name": "run"})
  return checkpoints


@pytest.fixture(scope="module")
def three_steps(tmp_path_factory):
  """Steps 10, 20 and 30, saved once; tests work on copies."""
  directory = tmp_path_factory.mktemp("saved")
  save_steps(
    directory, 10, 20, 30, config=CheckpointConfig(every_steps=10, keep_last=3)
  )
  return directory


@pytest.fixture
def directory(three_steps, tmp_path):
  return Path(shutil.copytree(three_steps, tmp_path / "checkpoints"))


@pytest.mark.parametrize("layout", [(1, 1), (4, 2), (8, 1), (2, 4)])
def test_restores_bit_for_bit_onto_any_mesh(directory, layout):
  checkpoints = Checkpoints(directory, EVERY)
  wanted = shapes(mesh_of(*layout))
  restored = checkpoints.restore(wanted)
  assert restored.step == 30 and restored.data_state == {"position": 210}
  assert_trees_equal(restored.state, make_state(mesh_of(1, 1), offset=30))
  placed = jax.tree.map(lambda x: x.sharding, restored.state)
  assert placed == jax.tree.map(lambda x: x.sharding, wanted)


def test_what_stands_beside_the_arrays(tmp_path):
  mesh = mesh_of(1, 1)
  checkpoints = Checkpoints(tmp_path, EVERY)
  lineage = [{"stage": "pretrain", "fingerprint": "ab"}]
  checkpoints.save(10, make_state(mesh), {"i": [1, 2]}, {"x": 1.5}, lineage)
  checkpoints.wait()
  run = checkpoints.read_run(10)
  assert run["step"] == 10 and run["data_state"] == {"i": [1, 2]}
  assert run["config"] == {"x": 1.5} and run["lineage"] == lineage
  assert run["guard"].keys() >= {"num_spikes", "num_nonfinite"}
  assert (tmp_path / "step_00000010" / "run.json").is_file()


def test_empty_directory_has_nothing_to_restore(tmp_path, caplog):
  checkpoints = Checkpoints(tmp_path / "new", EVERY)
  assert checkpoints.latest_step() is None
  assert checkpoints.restore(shapes(mesh_of(1, 1))) is None
  assert caplog.records == []


def largest_file(folder):
  return max(
    (p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size
  )


def truncate(folder):
  path = largest_file(folder)
  path.write_bytes(path.read_bytes()[:-7])


def remove_a_file(folder):
  largest_file(folder).unlink()


def flip_a_bit(folder):
  path = largest_file(folder)
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


def forget_integrity(folder):
  (folder / "integrity.json").unlink()


def become_temporary(folder):
  folder.rename(folder.with_name(folder.name + ".orbax-checkpoint-tmp"))


DAMAGES = {
  truncate: "bytes instead of",
  remove_a_file: "is missing",
  flip_a_bit: "has changed",
  forget_integrity: "not finished",
  become_temporary: "ignored",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda f: f.__name__)
def test_damage_is_named_and_the_checkpoint_before_is_used(directory, damage, caplog):
  folder = directory / "step_00000030"
  damage(folder)
  with caplog.at_level(logging.WARNING):
    restored = Checkpoints(directory, EVERY).restore(shapes(mesh_of(1, 1)))
  assert restored.step == 20 and restored.data_state == {"position": 140}
  assert_trees_equal(restored.state, make_state(mesh_of(1, 1), offset=20))
  warning = "\n".join(
    r.getMessage() for r in caplog.records if r.levelname == "WARNING"
  )
  assert str(folder) in warning and DAMAGES[damage] in warning
  # What a killed save has left goes; what was once whole stays for a person to see.
  torn = damage in (forget_integrity, become_temporary)
  left = {path.name for path in directory.iterdir()}
  assert left == {"step_00000010", "step_00000020"} | (
    set() if torn else {"step_00000030"}
  )


def test_a_damaged_step_is_saved_again(directory):
  flip_a_bit(directory / "step_00000030")
  mesh = mesh_of(1, 1)
  checkpoints = Checkpoints(directory, EVERY)
  assert checkpoints.restore(shapes(mesh)).step == 20
  checkpoints.save(30, make_state(mesh, offset=5), {}, {})
  checkpoints.wait()
  restored = Checkpoints(directory, EVERY).restore(shapes(mesh))
  assert restored.step == 30
  assert_trees_equal(restored.state, make_state(mesh, offset=5))
  assert {path.name for path in directory.iterdir()} == {
    "step_00000020",
    "step_00000030",
  }


def test_torn_saves_alone_are_a_fresh_start_and_go_after_the_first_save(tmp_path):
  save_steps(tmp_path, 10)
  become_temporary(tmp_path / "step_00000010")
  mesh = mesh_of(1, 1)
  checkpoints = Checkpoints(tmp_path, EVERY)
  assert checkpoints.restore(shapes(mesh)) is None
  assert [p.name for p in tmp_path.iterdir()] == ["step_00000010.orbax-checkpoint-tmp"]
  checkpoints.save(10, make_state(mesh), {}, {})
  checkpoints.wait()
  assert [p.name for p in tmp_path.iterdir()] == ["step_00000010"]
  assert Checkpoints(tmp_path, EVERY).latest_step() == 10


def test_when_all_are_damaged_a_person_decides(directory):
  for folder in directory.iterdir():
    flip_a_bit(folder)
  checkpoints = Checkpoints(directory, EVERY)
  with pytest.raises(CheckpointError, match="step_00000010: .*step_00000030: .*Move"):
    checkpoints.restore(shapes(mesh_of(1, 1)))
  assert len(list(directory.iterdir())) == 3


def test_retention(tmp_path):
  config = CheckpointConfig(every_steps=10, keep_last=1, keep_every_steps=20)
  save_steps(tmp_path, 10, 20, 30, 40, 50, config=config)
  names = sorted(path.name for path in tmp_path.iterdir())
  assert names == ["step_00000020", "step_00000040", "step_00000050"]


def test_the_last_whole_one_outlives_a_failed_save(tmp_path, monkeypatch):
  mesh = mesh_of(1, 1)
  config = CheckpointConfig(every_steps=10, keep_last=1)
  checkpoints = Checkpoints(tmp_path, config)
  checkpoints.save(10, make_state(mesh), {}, {})
  checkpoints.wait()

  def full_disk(folder):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr("phi4_jax.training.checkpoint.write_integrity", full_disk)
  checkpoints.save(20, make_state(mesh), {}, {})
  with pytest.raises(CheckpointError, match="No space left"):
    checkpoints.wait()
  assert Checkpoints(tmp_path, config).latest_step() == 10
  monkeypatch.undo()
  checkpoints.save(20, make_state(mesh), {}, {})
  checkpoints.wait()
  assert Checkpoints(tmp_path, config).latest_step() == 20
  assert [path.name for path in tmp_path.iterdir()] == ["step_00000020"]


def test_a_save_is_not_changed_by_the_steps_that_follow(tmp_path):
  mesh = mesh_of(2, 4)
  state = make_state(mesh)
  expected = jax.tree.map(lambda x: np.asarray(x).copy(), state)
  move = jax.jit(
    lambda s: jax.tree.map(lambda x: x * 2 + 1, s),
    donate_argnums=0,
    out_shardings=jax.tree.map(lambda x: x.sharding, state),
  )
  checkpoints = Checkpoints(tmp_path, EVERY)
  checkpoints.save(10, state, {}, {})
  for _ in range(5):
    state = move(state)
  jax.block_until_ready(state)
  restored = checkpoints.restore(shapes(mesh))
  assert_trees_equal(restored.state, expected)


def test_saving_a_step_twice_does_nothing_and_foreign_steps_are_refused(directory):
  mesh = mesh_of(1, 1)
  checkpoints = Checkpoints(directory, EVERY)
  before = file_sha256(directory / "step_00000030" / "integrity.json")
  restored = checkpoints.restore(shapes(mesh))
  checkpoints.save(30, restored.state, {}, {})
  checkpoints.wait()
  assert file_sha256(directory / "step_00000030" / "integrity.json") == before
  with pytest.raises(CheckpointError, match="has not made"):
    checkpoints.save(20, restored.state, {}, {})


def test_what_is_not_json_is_refused_before_anything_is_written(tmp_path):
  checkpoints = Checkpoints(tmp_path, EVERY)
  with pytest.raises(TypeError):
    checkpoints.save(10, make_state(mesh_of(1, 1)), {"bad": object()}, {})
  assert list(tmp_path.iterdir()) == []


class TestMisfits:
  def test_other_sizes_name_model_config(self, directory):
    params = linear_params() | {
      "linear": {"weight": jnp.ones((8, 5))},
      "extra": {"weight": jnp.ones(3)},
    }
    del params["norm"]
    with pytest.raises(CheckpointError) as caught:
      Checkpoints(directory, EVERY).restore(shapes(mesh_of(1, 1), params))
    text = str(caught.value)
    assert "params/linear/weight: [8, 4] in the checkpoint, [8, 5] wanted" in text
    assert "params/extra/weight: not in the checkpoint" in text
    assert "params/norm/weight: in the checkpoint as [4], but not wanted" in text
    assert "ModelConfig" in text and "step_00000030/run.json" in text

  def test_other_window_names_guard_config(self, directory):
    with pytest.raises(CheckpointError, match="GuardConfig.window") as caught:
      Checkpoints(directory, EVERY).restore(shapes(mesh_of(1, 1), window=6))
    assert "guard/losses: [4] in the checkpoint, [6] wanted" in str(caught.value)


class TestLoadParams:
  def test_newest_with_fingerprint(self, directory):
    loaded = load_params(directory, jax.eval_shape(linear_params))
    assert loaded.step == 30
    assert_trees_equal(loaded.params, make_state(mesh_of(1, 1), offset=30).params)
    integrity = directory / "step_00000030" / "integrity.json"
    assert loaded.fingerprint == file_sha256(integrity)

  def test_one_step_by_number_or_by_folder(self, directory):
    wanted = jax.eval_shape(linear_params)
    by_number = load_params(directory, wanted, step=10)
    by_folder = load_params(directory / "step_00000010", wanted)
    assert by_number.step == by_folder.step == 10
    assert by_number.fingerprint == by_folder.fingerprint
    assert_trees_equal(by_number.params, by_folder.params)

  def test_converts_and_shards(self, directory):
    shardings = linear_shardings(mesh_of(1, 8))
    wanted = jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16, sharding=s),
      linear_params(),
      shardings,
    )
    loaded = load_params(directory, wanted).params
    exact = load_params(directory, jax.eval_shape(linear_params)).params
    assert_trees_equal(loaded, jax.tree.map(lambda x: x.astype(jnp.bfloat16), exact))
    assert jax.tree.map(lambda x: x.sharding, loaded) == shardings

  def test_refusals(self, directory, tmp_path):
    wanted = jax.eval_shape(linear_params)
    with pytest.raises(CheckpointError, match="no finished checkpoint"):
      load_params(tmp_path / "nothing", wanted)
    with pytest.raises(CheckpointError, match="finished steps: 10, 20, 30"):
      load_params(directory, wanted, step=15)
    flip_a_bit(directory / "step_00000020")
    with pytest.raises(CheckpointError, match="not usable: file .* has changed"):
      load_params(directory, wanted, step=20)
    with pytest.raises(CheckpointError, match="ModelConfig"):
      load_params(directory, {"linear": {"weight": jnp.ones((9, 4))}})


@pytest.mark.parametrize(
  "bad", [{"every_steps": 0}, {"keep_last": 0}, {"keep_every_steps": 15}]
)
def test_bad_values_are_named(bad):
  with pytest.raises(ConfigError, match=f"CheckpointConfig.{next(iter(bad))} "):
    CheckpointConfig(**({"every_steps": 10} | bad))


def test_is_due():
  checkpoints = Checkpoints("unused", EVERY)
  assert [step for step in range(1, 31) if checkpoints.is_due(step)] == [10, 20, 30]
