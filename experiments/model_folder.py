"""The model of any run folder: settings, vocabulary, weights.

For verbs that take a folder and nothing else (`chat`, `convert --format=hf`). A
converted model brings its vocabulary; that of a training run lies in the run that
made its data, which is found through lineage.json. Refuses to know what is done with
the model.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

from experiments import adapters
from experiments.run_directory import load_result, resolve_input
from experiments.samplers import abstract_model, load_parent_params
from phi4_jax.common import io
from phi4_jax.common.axes import Params
from phi4_jax.common.errors import CheckpointError, ConfigError, DataError
from phi4_jax.common.mesh import MeshConfig
from phi4_jax.data.tokenizer import Vocabulary, load_vocabulary
from phi4_jax.model.config import ModelConfig
from phi4_jax.model.rope_scaling import LinearRope, Llama3Rope, LongRope
from phi4_jax.training.checkpoint import as_stored, load_params
from phi4_jax.training.step_folders import StepFolders, parse_step

# Inputs of a run through which its vocabulary can be found, in this order.
_LEADS = ("vocabulary", "data", "parent")
# A chain of runs is never so long; a circle of links is.
_MAX_CHAIN = 30


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelFolder:
  """A model on disk.

  Attributes:
    run: the run's folder.
    verb: the verb that made it.
    step: which of its checkpoints.
    is_final: whether this is the checkpoint that result.json names.
    model: the settings it was made with.
    vocabulary_folder: where the vocabulary lies that it was trained with; None of
      weights that were converted alone.
  """

  run: Path
  verb: str
  step: int
  is_final: bool
  model: ModelConfig
  vocabulary_folder: Path | None

  @property
  def checkpoint(self) -> Path:
    """The folder of the checkpoint."""
    return StepFolders(self.run / "checkpoints").path(self.step)

  @functools.cached_property
  def vocabulary(self) -> Vocabulary:
    """The vocabulary it was trained with.

    Raises:
      DataError: if it has none, or another one lies in its place.
    """
    if self.vocabulary_folder is None:
      raise DataError(
        f"{self.run} was converted with --no_tokenizer and can neither read nor write "
        "text. Convert it again from a folder that has tokenizer files."
      )
    vocabulary = load_vocabulary(self.vocabulary_folder)
    result = load_result(self.run)
    if result is not None and result["vocabulary"] != vocabulary.fingerprint:
      raise DataError(
        f"{self.run} was trained with another vocabulary than the one in "
        f"{self.vocabulary_folder} (fingerprints {result['vocabulary']} and "
        f"{vocabulary.fingerprint}). Put the runs that it was made from back."
      )
    return vocabulary

  def load_params(self, mesh: MeshConfig) -> Params:
    """Loads the weights in the dtypes in which they are stored, split over `mesh`.

    Adapters are merged with their base. `experiments.devices.start_jax` must have
    run before.

    Raises:
      CheckpointError: if the checkpoint is damaged, does not fit or is not the one
        that result.json names.
    """
    if self.is_final:
      return load_parent_params(self.model, mesh, self.run, self.vocabulary)[0]
    if adapters.find_lora(self.run) is not None:
      raise CheckpointError(
        f"{self.checkpoint} holds an adapter, and {self.run} "
        + ("has a later one." if load_result(self.run) else "is not complete.")
        + " Only the adapter of a complete run's end can be used: repeat the command "
        f"that began the run until it says done, then give {self.run}."
      )
    wanted = as_stored(self.checkpoint, abstract_model(self.model, mesh))
    return load_params(self.checkpoint, wanted).params


def load_model_folder(
  path: str | Path, *, needs_vocabulary: bool = True
) -> ModelFolder:
  """Finds out what a folder holds; reads no weights.

  Args:
    path: a run's folder (its final checkpoint, or the newest one of a run that is not
      complete; a run of adapters must be complete), the checkpoints folder in it, or
      one step's folder.
    needs_vocabulary: whether weights without a vocabulary are refused.

  Raises:
    ConfigError: if there is no such folder, or it holds no model.
    DataError: if the vocabulary cannot be found or is another one.
    CheckpointError: if there is no finished checkpoint.
  """
  run, wanted = _split(Path(path))
  if run.suffix == ".gguf" and run.is_file():
    raise ConfigError(
      f"{run} is a GGUF file. Convert it first: phi4 convert --from={run} "
      f"--to=ckpt/{run.stem}"
    )
  if not (run / "config.json").is_file():
    state = "has no config.json" if run.is_dir() else "does not exist"
    raise ConfigError(
      f"{run} is not the folder of a run: it {state}. Give the --workdir of a training "
      "run, or the folder that `phi4 convert` has written."
    )
  record = io.read_json(run / "config.json")
  if "model_type" in record and (run.parent / "model.gin").is_file():
    raise ConfigError(
      f"{run} holds what a converted model came with. Give {run.parent}."
    )
  if "model_type" in record and "verb" not in record:
    raise ConfigError(
      f"{run} is a Hugging Face folder. Convert it first: phi4 convert --from={run} "
      f"--to=ckpt/{run.name}"
    )
  if record["config"].get("model") is None or not (run / "checkpoints").is_dir():
    raise ConfigError(
      f"{run} is a {record['verb']} run and holds no model. Give a run that has "
      "checkpoints/."
    )
  result = load_result(run)
  final = parse_step(result["checkpoint"]) if result else None
  finished = StepFolders(run / "checkpoints").finished()
  step = wanted if wanted is not None else final
  step = step if step is not None else max(finished, default=None)
  if step is None or step not in finished:
    found = ", ".join(map(str, finished)) or "none"
    which = "any step" if step is None else f"step {step}"
    raise CheckpointError(
      f"{run / 'checkpoints'} has no finished checkpoint of {which} (finished: "
      f"{found})."
    )
  alone = result is not None and result["vocabulary"] is None
  found = ModelFolder(
    run=run,
    verb=record["verb"],
    step=step,
    is_final=step == final,
    model=model_from_json(record["config"]["model"]),
    vocabulary_folder=None if alone else find_vocabulary(run),
  )
  if needs_vocabulary:
    _ = found.vocabulary
  return found


def _split(path: Path) -> tuple[Path, int | None]:
  """Splits a path into a run's folder and, where it names one, the step."""
  if path.name == "checkpoints":
    return path.parent, None
  step = parse_step(path.name)
  return (path, None) if step is None else (path.parent.parent, step)


def find_vocabulary(run: Path) -> Path:
  """Returns the vocabulary folder of a run, its own or that of what it was made from.

  Raises:
    DataError: if none is found; names the folders that were looked at.
  """
  seen: list[Path] = []
  waiting = [run]
  while waiting and len(seen) < _MAX_CHAIN:
    at = waiting.pop(0)
    seen.append(at)
    if (at / "vocabulary" / "vocabulary.json").is_file():
      return at / "vocabulary"
    lineage = at / "lineage.json"
    inputs = io.read_json(lineage) if lineage.is_file() else {}
    waiting += [
      resolve_input(inputs[lead]["path"], at) for lead in _LEADS if lead in inputs
    ]
  raise DataError(
    f"No vocabulary was found for {run}: none of {', '.join(map(str, seen))} has a "
    "folder vocabulary/. Paths in lineage.json count from the folder in which the run "
    "was started: type the command there."
  )


def model_from_json(values: dict[str, Any]) -> ModelConfig:
  """Builds the model's settings from a config.json; newer fields get their defaults."""
  classes = {c.__name__: c for c in (ModelConfig, LongRope, Llama3Rope, LinearRope)}

  def build(value: Any) -> Any:
    if isinstance(value, dict):
      fields = {name: build(item) for name, item in value.items() if name != "class"}
      return classes[value["class"]](**fields)
    return tuple(map(build, value)) if isinstance(value, list) else value

  return build({"class": "ModelConfig"} | values)
