"""phi4 train_tokenizer: a SentencePiece vocabulary from the documents of a run."""

import dataclasses
import itertools
import sys
from collections.abc import Sequence
from typing import Any, ClassVar

from experiments.run_directory import RunDirectory
from experiments.stage import StageConfig, run_stage
from phi4_jax.common.errors import ConfigError
from phi4_jax.data.documents import document_texts
from phi4_jax.data.sources import SourceConfig
from phi4_jax.data.tokenizer import VocabularyConfig, train_vocabulary


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainTokenizerConfig(StageConfig):
  """A vocabulary with Phi-4's special tokens.

  Attributes:
    vocabulary: size and rules.
    sources: where the text comes from.
    max_documents: read at most so many documents of each source.
  """

  verb: ClassVar[str] = "train_tokenizer"

  vocabulary: VocabularyConfig
  sources: tuple[SourceConfig, ...]
  max_documents: int = 100_000

  def __post_init__(self):
    if not self.sources:
      raise ConfigError("TrainTokenizerConfig.sources is empty: name a source.")
    if self.max_documents < 1:
      raise ConfigError("TrainTokenizerConfig.max_documents must be 1 or more.")


def run(config: TrainTokenizerConfig, directory: RunDirectory) -> dict[str, Any]:
  texts = (
    text
    for source in config.sources
    for document in itertools.islice(source.documents(), config.max_documents)
    for text in document_texts(document)
  )
  vocabulary = train_vocabulary(texts, config.vocabulary, directory.path / "vocabulary")
  print(f"vocabulary of {vocabulary.size} tokens", flush=True)
  return {
    "metrics": {"vocabulary_size": vocabulary.size},
    "fingerprint": vocabulary.fingerprint,
  }


def main(argv: Sequence[str] | None = None) -> int:
  return run_stage(
    TrainTokenizerConfig,
    run,
    argv,
    description="Trains a SentencePiece vocabulary with Phi-4's special tokens.",
  )


if __name__ == "__main__":
  sys.exit(main())
