"""datatrove's n-gram decontamination of a training file.

  PEER_PYTHON -m benchmarks.peers.decontamination            # a contender
  PEER_PYTHON -m benchmarks.peers.decontamination TRAIN TESTS > flags.json

Options: train, tests (JSON lines with `text`), words ("spacy", its default, or
"blanks", its fastest).

`NGramsDecontFilter` is used as it is. `NGramsDecontIndexer.run` asks for lighteval and
a network, even where it is given documents: its hashes are made with its own
`compute_hashes` and written as it writes them, and its check for lighteval is left out.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.contender import Prepared, serve

NUM_WORDS = 13


def make_filter(tests: str, words: str) -> Any:
  """Returns datatrove's filter with an index of the tests."""
  import numpy as np
  from datatrove.pipeline.decont.n_grams import (
    NGramsDecontConfig,
    NGramsDecontFilter,
    NGramsDecontIndexer,
  )
  from datatrove.utils.word_tokenizers import WordTokenizer

  class Blanks(WordTokenizer):
    """Cuts at blanks: punctuation is gone already."""

    def word_tokenize(self, text: str) -> list[str]:
      return text.split()

    def sent_tokenize(self, text: str) -> list[str]:
      raise TypeError("words only")

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
      raise TypeError("words only")

  language = Blanks() if words == "blanks" else "eng"
  config = NGramsDecontConfig(n_grams=NUM_WORDS)
  folder = tempfile.mkdtemp()
  NGramsDecontIndexer._requires_dependencies = []
  indexer = NGramsDecontIndexer(folder, config=config, language=language)
  hashes: set[int] = set()
  for line in Path(tests).read_text("utf-8").splitlines():
    hashes.update(indexer.compute_hashes(json.loads(line)["text"]))
  array = np.array(list(hashes), dtype=config.hash_config.np_descr)
  array.tofile(f"{folder}/tests.index.hashes")
  return NGramsDecontFilter(folder, config=config, language=language)


def flag_rows(chosen: Any, train: str) -> list[bool]:
  """Returns which rows the filter would drop."""
  from datatrove.data import Document

  flags = []
  with open(train, "rb") as file:
    for number, line in enumerate(file):
      document = Document(text=json.loads(line)["text"], id=str(number))
      flags.append(chosen.filter(document) is not True)
  return flags


def prepare(options: dict[str, Any]) -> Prepared:
  chosen = make_filter(options["tests"], options["words"])
  train = options["train"]
  megabytes = Path(train).stat().st_size / 1e6

  def run() -> dict[str, float]:
    return {"work": megabytes, "flagged": sum(flag_rows(chosen, train))}

  settings = {
    "device": "cpu", "precision": "64-bit hashes", "threads": 1,
    "words": options["words"], "n_grams": NUM_WORDS,
  }  # fmt: skip
  return Prepared(run=run, settings=settings)


if __name__ == "__main__":
  if len(sys.argv) == 3:
    json.dump(flag_rows(make_filter(sys.argv[2], "blanks"), sys.argv[1]), sys.stdout)
  else:
    serve(prepare, packages=["datatrove", "spacy", "xxhash", "numpy"])
