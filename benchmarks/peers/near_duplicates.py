"""Near-duplicate removal by datatrove, datasketch or rensa's own index, over one file.

Words are parted at blanks for all of them (datatrove's English tokenizer is spaCy's,
which would take most of the time), 5 to a shingle, 128 permutations. Bands are each
one's own choice; datatrove's are its default of 14 bands of 8.
"""

import shutil
import struct
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import planted_duplicates
from benchmarks.contender import Prepared, serve

PERMUTATIONS = 128


def shingle_texts(text: str) -> list[str]:
  words = text.split()
  size = planted_duplicates.SHINGLE_SIZE
  return [" ".join(words[i : i + size]) for i in range(len(words) - size + 1)]


def datasketch_dropped(folder: Path, threshold: float) -> list[int]:
  from datasketch import MinHash, MinHashLSH

  index = MinHashLSH(threshold=threshold, num_perm=PERMUTATIONS)
  dropped, kept = [], {}
  for number, text in enumerate(planted_duplicates.read_texts(folder)):
    sketch = MinHash(num_perm=PERMUTATIONS)
    sketch.update_batch([shingle.encode() for shingle in shingle_texts(text)])
    if any(sketch.jaccard(kept[key]) >= threshold for key in index.query(sketch)):
      dropped.append(number)
    else:
      index.insert(number, sketch)
      kept[number] = sketch
  return dropped


def rensa_dropped(folder: Path, threshold: float) -> list[int]:
  from rensa import RMinHash, RMinHashDeduplicator

  index = RMinHashDeduplicator(
    threshold=threshold, num_perm=PERMUTATIONS, use_lsh=True, num_bands=16, seed=0
  )
  dropped = []
  for number, text in enumerate(planted_duplicates.read_texts(folder)):
    sketch = RMinHash(PERMUTATIONS, 0)
    sketch.update(shingle_texts(text))
    if not index.add(str(number), sketch):
      dropped.append(number)
  return dropped


def datatrove_dropped(folder: Path, threshold: float) -> list[int]:
  from datatrove.data import Document
  from datatrove.pipeline.dedup import minhash
  from datatrove.utils.word_tokenizers import WordTokenizer

  class Blanks(WordTokenizer):
    def word_tokenize(self, text: str) -> list[str]:
      return text.split()

    def sent_tokenize(self, text: str) -> list[str]:
      return [text]

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
      return [(0, len(text))]

  config = minhash.MinhashConfig(n_grams=planted_duplicates.SHINGLE_SIZE)
  place = Path(tempfile.mkdtemp())
  try:
    signatures, buckets, removed = (str(place / n) for n in ("sig", "dup", "rm"))
    texts = enumerate(planted_duplicates.read_texts(folder))
    minhash.MinhashDedupSignature(signatures, config, language=Blanks()).run(
      (Document(text=text, id=str(i)) for i, text in texts), 0, 1
    )
    for rank in range(config.num_buckets):
      minhash.MinhashDedupBuckets(signatures, buckets, config=config).run(
        None, rank, config.num_buckets
      )
    minhash.MinhashDedupCluster(buckets, removed, config=config).run(None, 0, 1)
    content = (Path(removed) / "000000.remove").read_bytes()
    return [number for (number,) in struct.iter_unpack("<I", content)]
  finally:
    shutil.rmtree(place)


DROPPED = {
  "datasketch": datasketch_dropped,
  "rensa": rensa_dropped,
  "datatrove": datatrove_dropped,
}


def prepare(options: dict[str, Any]) -> Prepared:
  folder = Path(options["folder"])
  truth = planted_duplicates.read_truth(folder)
  work = planted_duplicates.megabytes(folder)
  find, threshold = DROPPED[options["peer"]], options["threshold"]

  def run() -> dict[str, float]:
    return {
      "work": work,
      **planted_duplicates.score(truth, find(folder, threshold), threshold),
    }

  settings = {
    "device": "cpu",
    "precision": "as the package has it",
    "threads": 1,
    "verified": options["peer"] != "datatrove",
  }
  return Prepared(run=run, settings=settings)


if __name__ == "__main__":
  serve(prepare, packages=("datatrove", "datasketch", "rensa", "numpy"))
