"""The critic of a search: made once, from an earlier search, and kept in the run."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from phi4_jax.common import io
from phi4_jax.common.errors import ConfigError
from phi4_jax.pts.critic import HiddenCritic, fit_critic, load_critic
from phi4_jax.pts.critic_labels import read_lessons


def check_critic(config: Any) -> None:
  """Refuses a critic that a search cannot have.

  Raises:
    ConfigError: says what to set.
  """
  if config.critic is None:
    return
  name = f"FindPivotalTokensConfig.critic ({config.critic!r})"
  if config.endpoint is not None:
    raise ConfigError(
      f"{name} reads hidden states, which an endpoint does not give. Let a checkpoint "
      "answer (FindPivotalTokensConfig.parent), or set critic to None."
    )
  if config.search.mode != "comb":
    raise ConfigError(
      f"{name} guides the screen, which SearchConfig.mode {config.search.mode!r} has "
      "not. Use mode 'comb', or set critic to None."
    )


def make_critic(
  config: Any,
  folder: Path,
  inputs: Mapping[str, Path],
  sampler: Any,
  weights: str,
) -> HiddenCritic | None:
  """Returns the critic that the run's folder holds, or makes it and writes it there.

  So it is fixed before the run draws anything, and the same after a stop.

  Args:
    config: a FindPivotalTokensConfig.
    folder: of the run.
    inputs: folders by name.
    sampler: gives hidden states.
    weights: name of its weights.

  Raises:
    ConfigError: if the earlier search was of another model or law, or not in mode
      "comb", or if the run began without this critic; then nothing is written.
    DataError: if it is too small to learn from, or a file is damaged.
  """
  if config.critic is None:
    return None
  critic = load_critic(folder, sampler)
  if critic is not None:
    return critic
  begun = folder / "settings.json"
  started = io.read_json(begun).get("critic") if begun.exists() else None
  if begun.exists() and started is None:
    raise _other_critic(config, folder, "without a critic")
  law = dataclasses.asdict(config.law)
  lessons = read_lessons(
    inputs["critic"], gap=config.search.gap, weights=weights, law=law
  )
  print(f"critic: learns from {len(lessons)} responses of {config.critic}", flush=True)
  critic = fit_critic(sampler, lessons, seed=config.seed, source=config.critic)
  if started not in (None, critic.fingerprint):
    raise _other_critic(config, folder, f"with another critic ({started})")
  critic.save(folder)
  return critic


def _other_critic(config: Any, folder: Path, how: str) -> ConfigError:
  return ConfigError(
    f"The search in {folder} began {how}, so it cannot go on with "
    f"FindPivotalTokensConfig.critic ({config.critic!r}). Choose another --workdir, or "
    "leave the critic as it was."
  )
