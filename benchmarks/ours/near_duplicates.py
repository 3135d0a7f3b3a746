"""Our near-duplicate removal over one file; or the least that reading it takes."""

import hashlib
from pathlib import Path
from typing import Any

from benchmarks import planted_duplicates
from benchmarks.contender import Prepared, serve
from phi4_jax.curation.dedup import DropNearDuplicates
from phi4_jax.data.documents import Document


def prepare(options: dict[str, Any]) -> Prepared:
  folder = Path(options["folder"])
  truth = planted_duplicates.read_truth(folder)
  work = planted_duplicates.megabytes(folder)
  settings = {"device": "cpu", "precision": "uint32", "threads": 1}

  def read() -> dict[str, float]:
    for text in planted_duplicates.read_texts(folder):
      hashlib.blake2b(text.encode(), digest_size=16).digest()
    return {"work": work}

  if options["do"] == "read":
    return Prepared(run=read, settings={**settings, "hash": "blake2b"})
  step = DropNearDuplicates(threshold=options["threshold"])
  make_key = step.make_key()

  def run() -> dict[str, float]:
    texts = enumerate(planted_duplicates.read_texts(folder))
    keys = (make_key(Document(id=str(i), text=text)) for i, text in texts)
    dropped = [i for i, verdict in enumerate(step.judge_keys(keys)) if verdict]
    figures = planted_duplicates.score(truth, dropped, step.threshold)
    return {"work": work, **figures}

  bands = f"{step.bands.count} x {step.bands.rows}"
  settings |= {"permutations": step.num_permutations, "bands": bands, "verified": True}
  return Prepared(run=run, settings=settings)


if __name__ == "__main__":
  serve(prepare, packages=("rensa", "numpy"))
