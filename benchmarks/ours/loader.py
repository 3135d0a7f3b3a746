"""Batches from materialized rows as a training host gets them."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python import array_record_module  # pyright: ignore

from benchmarks.contender import Prepared, serve
from phi4_jax.data.chat import EncodedDocument
from phi4_jax.data.data_config import DataConfig
from phi4_jax.data.loader import Loader, make_loader
from phi4_jax.data.materialize import read_manifest, write_dataset
from phi4_jax.data.packing import PackingConfig
from phi4_jax.data.tokenizer import ByteVocabulary

VOCABULARY_SIZE = 100_352
WEIGHTS = {"synthetic": 0.6, "web": 0.25, "code": 0.15}
_READ_EVERY = 50


class _WideVocabulary(ByteVocabulary):
  """Ids of the full model's range; nothing is decoded here."""

  @property
  def size(self) -> int:
    return VOCABULARY_SIZE


def zipf_documents(num_tokens: int, seed: int) -> Iterator[EncodedDocument]:
  """Yields documents of 1 to 4,000 tokens, whose ids follow Zipf's law."""
  rng = np.random.default_rng(seed)
  cumulative = np.cumsum(1 / np.arange(1, VOCABULARY_SIZE + 1))
  cumulative /= cumulative[-1]
  number = 0
  while num_tokens > 0:
    length = int(rng.integers(2, 4000))
    ids = np.searchsorted(cumulative, rng.random(length)).astype(np.int32)
    yield EncodedDocument(f"{number}", ids, np.ones(length, bool))
    num_tokens -= length
    number += 1


def write_data(options: dict[str, Any]) -> Path:
  """Writes the datasets where no contender before has, and returns their folder."""
  folder = Path(options["folder"])
  for number, name in enumerate(WEIGHTS):
    seed = options["seed"] * len(WEIGHTS) + number
    write_dataset(
      zipf_documents(options["rows"] * options["row_length"], seed),
      folder / name,
      task=name,
      source={"zipf": seed, "rows": options["rows"]},
      vocabulary=_WideVocabulary(),
      packing=PackingConfig(row_length=options["row_length"]),
      rows_per_shard=1024,
    )
  return folder


def resident_bytes() -> int:
  """Returns the memory of this process that is in RAM (Linux)."""
  pages = int(Path("/proc/self/statm").read_text().split()[1])
  return pages * os.sysconf("SC_PAGE_SIZE")


def prepare(options: dict[str, Any]) -> Prepared:
  folder = write_data(options)
  batch_tokens = options["batch_size"] * options["row_length"]
  threads = options.get("read_threads", 0)

  def open_loader() -> Loader:
    config = DataConfig(
      datasets=WEIGHTS,
      batch_size=options["batch_size"],
      seed=options["seed"],
      verify="manifest",
      read_threads=threads,
    )
    return make_loader(folder, config)

  def seek() -> dict[str, float]:
    loader = open_loader()
    loader.set_state({**loader.get_state(), "next_batch": options["far_step"]})
    next(loader)
    return {}

  def measure_memory() -> dict[str, float]:
    loader, steps = open_loader(), options["memory_steps"]
    found = []
    for step in range(steps):
      next(loader)
      if step >= steps // 2 and step % _READ_EVERY == 0:
        gc.collect()
        found.append((step, resident_bytes()))
    slope = np.polyfit(*np.asarray(found, float).T, deg=1)[0]
    return {
      "work": steps * batch_tokens,
      "growth_bytes_per_step": float(slope),
      "resident_bytes": float(found[-1][1]),
    }

  def read_in_order() -> dict[str, float]:
    left = options["steps"] * options["batch_size"]
    while left > 0:
      for name in WEIGHTS:
        for shard in read_manifest(folder / name).shards:
          count = min(left, shard.rows)
          if count:
            path = str(folder / name / shard.file)
            reader = array_record_module.ArrayRecordReader(path)
            reader.read(0, count)
            reader.close()
            left -= count
    return {"work": options["steps"] * batch_tokens}

  settings = {"device": "cpu", "precision": "int32", "threads": max(threads, 1)}
  runs = {"seek": seek, "memory": measure_memory, "read": read_in_order}
  if options["task"] == "batches":
    batches = open_loader()

    def take() -> dict[str, float]:
      # What was read ahead while another contender had its turn does not count.
      batches.set_state(batches.get_state())
      for _ in range(options["steps"]):
        next(batches)
      return {"work": options["steps"] * batch_tokens}

    runs["batches"] = take
  return Prepared(run=runs[options["task"]], settings=settings)


if __name__ == "__main__":
  serve(prepare, packages=["grain", "array-record", "numpy"])
