"""Our check of a training file, or only what it cannot do without.

Options: train, tests (JSON lines with `text`), do ("check" or "read_and_hash").
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.contender import Prepared, serve
from phi4_jax.curation import decontaminate_words as words_lib
from phi4_jax.curation.decontaminate import ContaminationRule, Decontaminator
from phi4_jax.curation.decontaminate_index import LONG, SHORT, BenchmarkIndex
from phi4_jax.curation.decontaminate_items import read_items

_BATCH_CHARACTERS = 1 << 18
_BLOCK_BYTES = 1 << 17


def read_batches(path: str) -> Iterator[list[str]]:
  """Yields the texts of a file, some 256 K characters at a time."""
  batch: list[str] = []
  size = 0
  with open(path, "rb") as file:
    for line in file:
      text = json.loads(line)["text"]
      batch.append(text)
      size += len(text)
      if size > _BATCH_CHARACTERS:
        yield batch
        batch, size = [], 0
  yield batch


def prepare(options: dict[str, Any]) -> Prepared:
  train = options["train"]
  megabytes = Path(train).stat().st_size / 1e6
  settings = {
    "device": "cpu", "precision": "64-bit hashes, words compared", "threads": 1,
    "batch_characters": _BATCH_CHARACTERS,
  }  # fmt: skip
  if options["do"] == "read_and_hash":

    def read_and_hash() -> dict[str, float]:
      """Parses, normalises, and hashes all runs; looks nothing up."""
      count = 0
      for batch in read_batches(train):
        joined = b" ".join(map(words_lib.normalize, batch))
        for at in range(0, len(joined), _BLOCK_BYTES):
          block = words_lib.as_block(joined[at : at + _BLOCK_BYTES])
          starts, ends = words_lib.find_words(block)
          hashes = words_lib.hash_words(block, starts, ends)
          count += words_lib.hash_runs(hashes, SHORT).size
          count += words_lib.hash_runs(hashes, LONG).size
      return {"work": megabytes, "runs": count}

    return Prepared(run=read_and_hash, settings=settings)
  check = Decontaminator(
    BenchmarkIndex(read_items("tests", options["tests"])), ContaminationRule()
  )

  def run() -> dict[str, float]:
    found = [f.flag for batch in read_batches(train) for f in check.check_all(batch)]
    return {"work": megabytes, "flagged": found.count("contaminated")}

  return Prepared(run=run, settings=settings)


if __name__ == "__main__":
  serve(prepare, packages=["numpy"])
