"""A search with a critic, from an earlier search's folder to a restart."""

import dataclasses
import json
import shutil
import zlib

import numpy as np
import pytest

from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.pts.critic import HiddenCritic, fit_critic
from phi4_jax.pts.critic_labels import read_lessons
from phi4_jax.pts.kept_guesses import GUESSES
from phi4_jax.pts.search import SearchConfig
from tests.pts.comb_runs import CONFIG, DiedError, Searches, assert_same_files

SEARCHES = Searches(20, sampler_id="abc seed 4")
PROCESS, find, Shuffled = SEARCHES.process, SEARCHES.find, SEARCHES.sampler


class States:
  """The change of V behind each token among noise; `shake` is added to all."""

  def __init__(self, shake=0.0):
    self.asked = 0
    self._shake = shake

  def hidden_states(self, texts):
    self.asked += len(texts)
    found = []
    for text in texts:
      rng = np.random.default_rng(zlib.crc32(repr(tuple(text)).encode()))
      states = rng.normal(size=(len(text), 4)).astype(np.float32)
      values = [PROCESS.value(text[: n + 1]) for n in range(len(text))]
      states[1:, 0] = np.abs(np.diff(values)) + 0.1 * states[1:, 0]
      found.append(states + np.float32(self._shake))
    return found


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
  folder = tmp_path_factory.mktemp("earlier")
  find(folder)
  return folder


@pytest.fixture(scope="module")
def critic(earlier):
  lessons = read_lessons(earlier, gap=CONFIG.gap, weights="abc")
  return fit_critic(States(), lessons, seed=0, source="earlier")


@pytest.fixture(scope="module")
def guided(critic, tmp_path_factory):
  folder = tmp_path_factory.mktemp("guided")
  sampler = Shuffled()
  return folder, find(folder, sampler, critic=critic), sampler


def test_what_rollouts_said_is_read_back(earlier):
  lessons = read_lessons(earlier, gap=CONFIG.gap)
  posterior = {
    (h["question"], h["response"], h["position"]): h["posterior"]
    for h in map(json.loads, (earlier / "hypotheses.jsonl").open())
    if h["state"] == "exported"
  }
  labels = {
    (x.response.question, x.response.index, position): x.labels[position]
    for x in lessons
    for position in np.flatnonzero(x.used).tolist()
  }
  assert len(posterior) > 10
  for name, belief in posterior.items():
    # A token may also be thought to move V the other way.
    assert labels[name] == pytest.approx(belief, abs=0.15)


def test_what_it_said_is_written_beside_the_search(guided, critic):
  folder, metrics, _ = guided
  assert critic.report.auc.value > 0.75 and critic.report.factor > 1.3
  assert metrics["pivotal_tokens"] > 10
  settings = json.loads((folder / "settings.json").read_text())
  assert settings["critic"] == critic.fingerprint
  guesses = [json.loads(line) for line in (folder / GUESSES).open()]
  traces = [json.loads(line) for line in (folder / "traces.jsonl").open()]
  names = [(g["question"], g["response"], len(g["probs"])) for g in guesses]
  places = [(t["question"], t["response"], len(t["tokens"])) for t in traces]
  assert sorted(names) == sorted(places)


@pytest.mark.parametrize("share", [0.01, 0.7])
def test_a_restart_goes_on_with_the_very_same_guesses(guided, critic, tmp_path, share):
  folder, metrics, straight = guided
  first = Shuffled(1, dies_after=int(share * len(straight.drawn)))
  with pytest.raises(DiedError):
    find(tmp_path, first, critic=critic)
  # Whatever the states are now: what was said is kept, and nobody is asked again.
  other = States(shake=5.0)
  again = HiddenCritic(other, critic._arrays, critic.report)
  asked = (tmp_path / GUESSES).exists()
  assert asked == (share > 0.5)
  if not asked:
    again = critic
  second = Shuffled(2, places=200)
  assert find(tmp_path, second, critic=again) == metrics
  assert not set(first.drawn) & set(second.drawn)
  assert_same_files(tmp_path, folder)
  assert other.asked == 0


def test_last_digits_of_states_do_not_matter(earlier, critic):
  rows = [lesson.response for lesson in read_lessons(earlier, gap=CONFIG.gap)]
  exact, shaken = (
    HiddenCritic(States(shake), critic._arrays, critic.report).pivot_probs(rows)
    for shake in (0.0, 1e-6)
  )
  assert np.mean(np.concatenate(exact) == np.concatenate(shaken)) > 0.99


def test_another_critic_or_none_is_refused_in_a_started_run(guided, tmp_path):
  shutil.copytree(guided[0], tmp_path / "run")
  with pytest.raises(ConfigError, match="critic: '.*' -> None"):
    find(tmp_path / "run")


def test_a_mode_without_a_screen_refuses_it(critic, tmp_path):
  config = dataclasses.replace(CONFIG, mode="paper")
  with pytest.raises(ConfigError, match="'paper' has no screen that a critic"):
    find(tmp_path, config=config, critic=critic)
  assert not list(tmp_path.iterdir())


class Says:
  def __init__(self, answer):
    self.pivot_probs = answer


@pytest.mark.parametrize(
  "answer, said",
  [
    (lambda rows: [], r"Says guesses about 0 of \d+ responses"),
    (lambda rows: [np.ones(3)] * len(rows), r"each of the 16 tokens.*shape \(3,\)"),
    (lambda rows: [np.full(16, np.nan)] * len(rows), "must give a probability"),
    (lambda rows: [np.full(16, 1.5)] * len(rows), "from 1.5 to 1.5"),
  ],
)
def test_nonsense_is_told_of_before_the_screen_draws(tmp_path, answer, said):
  sampler = Shuffled()
  with pytest.raises(ValueError, match=said):
    find(tmp_path, sampler, critic=Says(answer))
  assert {path[0] for path in sampler.drawn} == {0}
  assert not (tmp_path / GUESSES).exists()


def test_guesses_that_were_damaged_are_told_of(guided, critic, tmp_path):
  shutil.copytree(guided[0], tmp_path / "run")
  lines = (tmp_path / "run" / GUESSES).read_text().splitlines()
  (tmp_path / "run" / GUESSES).write_text("\n".join(lines[1:]))
  with pytest.raises(DataError, match=f"{GUESSES} is damaged"):
    find(tmp_path / "run", critic=critic)
  (tmp_path / "run" / GUESSES).write_text("\n".join(lines[::-1]))
  with pytest.raises(DataError, match="guesses about other responses"):
    find(tmp_path / "run", critic=critic)


@pytest.mark.parametrize(
  "damage, said",
  [
    ('{"question": 99, "response": 0, "off": []}\n', "Row 1 of .*does not fit"),
    ('{"question": null}\n', "Row 1 of .*does not fit"),
    ("", "traces.jsonl"),
    (None, "holds no finished search"),
  ],
)
def test_folders_that_teach_nothing_are_refused(earlier, tmp_path, damage, said):
  shutil.copytree(earlier, tmp_path / "run")
  traces = tmp_path / "run" / "traces.jsonl"
  traces.unlink() if damage is None else traces.write_text(damage)
  with pytest.raises(DataError, match=said):
    read_lessons(tmp_path / "run", gap=0.2)


def test_counts_that_cannot_be_are_refused(earlier, tmp_path):
  shutil.copytree(earlier, tmp_path / "run")
  traces = tmp_path / "run" / "traces.jsonl"
  lines = [json.loads(line) for line in traces.open()]
  for off in ([[2, 1]] * 16, [[0, -1]] * 16, [[0.5, 1]] * 16, [[0], [1, 1]], "off"):
    lines[0]["off"] = off
    traces.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(DataError, match="Row 1 of .*does not fit"):
      read_lessons(tmp_path / "run", gap=0.2)


def test_other_models_laws_and_modes_are_refused(earlier, tmp_path):
  with pytest.raises(ConfigError, match=r"other weights \(abc\).*now \(abd\)"):
    read_lessons(earlier, gap=0.2, weights="abd")
  with pytest.raises(ConfigError, match="another sampling law"):
    read_lessons(earlier, gap=0.2, weights="abc", law={"temperature": 0.5})
  config = SearchConfig(mode="naive", rollouts_per_estimate=2)
  find(tmp_path, config=config)
  with pytest.raises(ConfigError, match="mode 'naive'; a critic learns from"):
    read_lessons(tmp_path, gap=0.2)
