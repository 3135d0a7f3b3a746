"""phi4 materialize: documents -> SeqIO task -> packed rows on disk, once.

The only verb that imports TensorFlow (through SeqIO). What it writes is read by
Grain alone:

  vocabulary/            the vocabulary that made the ids
  NAME/manifest.json     one folder for each dataset
  NAME/rows-*.arrayrecord
"""

import dataclasses
import importlib
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from experiments import cli, materialize_flags
from experiments.run_directory import RunDirectory
from experiments.stage import StageConfig, run_stage
from phi4_jax.common import io
from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.common.text import count_of, format_table
from phi4_jax.data.documents import document_texts
from phi4_jax.data.fill_in_middle import FillInMiddleConfig
from phi4_jax.data.materialize import Manifest, Progress, describe_counts
from phi4_jax.data.packing import PackingConfig
from phi4_jax.data.source_files import DAMAGED_FILE
from phi4_jax.data.sources import SourceConfig
from phi4_jax.data.tokenizer import (
  Vocabulary,
  VocabularyConfig,
  load_vocabulary,
  train_vocabulary,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetConfig:
  """One dataset: where its documents come from and how they become rows.

  Attributes:
    source: documents made or read by phi4_jax; or
    task: the name of a registered SeqIO task (see MaterializeConfig.modules).
    split: of the SeqIO task; None means "train".
    packing: how documents are laid into rows.
    fill_in_middle: for texts: which of them are cut, and their middle moved to the
      end; None leaves all as they are.
  """

  source: SourceConfig | None = None
  task: str | None = None
  split: str | None = None
  packing: PackingConfig
  fill_in_middle: FillInMiddleConfig | None = None

  def __post_init__(self):
    if (self.source is None) == (self.task is None):
      raise ConfigError(
        "DatasetConfig needs either a source or the name of a SeqIO task, got "
        f"source={self.source!r} and task={self.task!r}."
      )
    if self.source is not None and self.split is not None:
      raise ConfigError(
        f"DatasetConfig.split ({self.split!r}) has no effect with a source. Remove it."
      )
    form = getattr(self.source, "form", None)
    if self.fill_in_middle is not None and form in ("chat", "messages"):
      raise ConfigError(
        "DatasetConfig.fill_in_middle cuts texts, and "
        f"{type(self.source).__name__}.form ({form!r}) makes conversations. Remove one."
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaterializeConfig(StageConfig):
  """Datasets that share a vocabulary.

  Attributes:
    datasets: name -> dataset; each is written to a folder of its name.
    vocabulary: folder of a run that holds one (`train_tokenizer`, `materialize`,
      `convert`).
    train_vocabulary: settings of a vocabulary to train on the datasets' own
      sources, when `vocabulary` is None.
    modules: Python modules to import first: those that register SeqIO tasks.
  """

  verb: ClassVar[str] = "materialize"
  results: ClassVar[tuple[str, ...] | None] = ("*/manifest.json",)

  datasets: dict[str, DatasetConfig]
  vocabulary: str | None = None
  train_vocabulary: VocabularyConfig | None = None
  modules: tuple[str, ...] = ()

  def __post_init__(self):
    if not self.datasets:
      raise ConfigError("MaterializeConfig.datasets is empty: name a dataset.")
    if (self.vocabulary is None) == (self.train_vocabulary is None):
      raise ConfigError(
        "MaterializeConfig needs either vocabulary (a folder) or train_vocabulary "
        "(settings), and not both."
      )
    tasks = [name for name, d in self.datasets.items() if d.source is None]
    if self.train_vocabulary is not None and tasks:
      raise ConfigError(
        f"MaterializeConfig.train_vocabulary reads sources only, but {tasks} are SeqIO "
        "tasks. Train the vocabulary first (phi4 train_tokenizer) and name its folder."
      )
    if "vocabulary" in self.datasets:
      raise ConfigError("MaterializeConfig.datasets: 'vocabulary' is a taken name.")

  def inputs(self) -> dict[str, str]:
    return {} if self.vocabulary is None else {"vocabulary": self.vocabulary}


def run(config: MaterializeConfig, directory: RunDirectory) -> dict[str, Any]:
  inputs = directory.link_inputs(config.inputs())
  vocabulary = _provide_vocabulary(config, directory, inputs)
  print("importing SeqIO and TensorFlow ...", flush=True)
  from phi4_jax.data import seqio_tasks

  for module in config.modules:
    importlib.import_module(module)
  manifests: dict[str, Manifest] = {}
  for name, dataset in config.datasets.items():

    def report(progress: Progress, name: str = name) -> None:
      print(
        f"{name}: {count_of(progress.documents, 'document')}, "
        f"{count_of(progress.rows, 'row')}, "
        f"{progress.documents_per_second:,.0f} documents/s",
        flush=True,
      )

    task = dataset.task
    if dataset.source is not None:
      task = seqio_tasks.make_task(
        name, dataset.source, vocabulary, fill_in_middle=dataset.fill_in_middle
      )
    assert task is not None, "DatasetConfig has a source or a task"
    manifests[name] = seqio_tasks.materialize_task(
      task,
      directory.path / name,
      vocabulary=vocabulary,
      packing=dataset.packing,
      split=dataset.split or "train",
      fill_in_middle=dataset.fill_in_middle,
      on_progress=report,
    )
  print(format_datasets(manifests), flush=True)
  return {
    "metrics": {f"{name}_tokens": m.tokens for name, m in manifests.items()},
    "vocabulary": {"size": vocabulary.size, "fingerprint": vocabulary.fingerprint},
    "fingerprint": io.text_sha256(
      "\n".join(
        [vocabulary.fingerprint]
        + [
          f"{name} {shard.file} {shard.sha256}"
          for name, m in manifests.items()
          for shard in m.shards
        ]
      )
    ),
  }


def format_datasets(manifests: Mapping[str, Manifest]) -> str:
  """Returns a table of datasets: documents in = kept + dropped, and what is in rows.

  Below it, a warning of each dataset whose files were not read to their ends.
  """
  rows = []
  for name, m in manifests.items():
    lost = m.truncated_tokens if m.truncated else 0
    lost = "not counted" if lost is None else lost
    rows.append(
      [name, m.documents, m.documents - m.num_dropped, m.num_dropped, m.tokens]
      + [m.rows, round(m.fill, 3), m.truncated, lost, describe_counts(m.dropped)]
    )
  header = ["dataset", "documents in", "kept", "dropped", "tokens", "rows", "fill"]
  header += ["truncated", "tokens cut off", "left out"]
  warnings = [
    f"warning: {name}: {count_of(m.dropped[DAMAGED_FILE], 'file')} could not be read "
    "to the end: an unknown number of rows behind the damage is missing, and is in no "
    "count."
    for name, m in manifests.items()
    if m.dropped.get(DAMAGED_FILE)
  ]
  return "\n".join([format_table(header, rows), *warnings])


def _provide_vocabulary(
  config: MaterializeConfig, directory: RunDirectory, inputs: dict[str, Path]
) -> Vocabulary:
  """Trains the vocabulary or copies it, so that the data folder is complete."""
  folder = directory.path / "vocabulary"
  if config.train_vocabulary is not None:
    texts = (
      text
      for dataset in config.datasets.values()
      if dataset.source is not None
      for document in dataset.source.documents()
      for text in document_texts(document)
    )
    return train_vocabulary(texts, config.train_vocabulary, folder)
  given = inputs["vocabulary"] / "vocabulary"
  if not given.is_dir():
    raise DataError(
      f"MaterializeConfig.vocabulary ({config.vocabulary!r}): {given} does not exist. "
      "Name the folder of a train_tokenizer, materialize or convert run."
    )
  copied = folder.with_name(".vocabulary.tmp")
  shutil.rmtree(copied, ignore_errors=True)
  shutil.copytree(given, copied)
  shutil.rmtree(folder, ignore_errors=True)  # of settings that came to nothing
  copied.rename(folder)
  return load_vocabulary(folder)


def main(argv: Sequence[str] | None = None) -> int:
  arguments = list(sys.argv[1:] if argv is None else argv)
  if "--list" in arguments and not {"-h", "--help"} & set(arguments):
    return cli.run_verb(lambda: materialize_flags.print_list(arguments))
  return run_stage(
    MaterializeConfig,
    run,
    arguments,
    description="Turns documents into packed rows on disk, once, for all trainings.",
    flags=materialize_flags.make_flags(),
  )


if __name__ == "__main__":
  sys.exit(main())
