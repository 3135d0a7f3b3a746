"""Writes gguf_tokenizer.json: what llama.cpp makes of odd texts, cut in each way.

  python3 -m venv FOLDER && FOLDER/bin/pip install llama-cpp-py-sync
  .venv/bin/python -m tests.golden.make_gguf_tokenizer_golden FOLDER/bin/python

The wheel's libraries ask for glibc 2.38. Small vocabularies are trained here, on odd
texts, and written as GGUF files without weights. llama.cpp loads them and encodes other
odd texts. The golden file has the vocabularies, the texts and llama.cpp's ids.
"""

import io
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import gguf
import sentencepiece
import tokenizers

from benchmarks.fuzz_texts import fuzz_texts
from phi4_jax.data.gguf_vocabulary import known_cuts
from phi4_jax.data.sentencepiece_files import BYTE, CONTROL, NORMAL, UNKNOWN

HERE = Path(__file__).parent
CONTROLS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
NUM_TEXTS = 220


def training_texts(count: int) -> list[str]:
  return fuzz_texts(count, seed=1, controls=CONTROLS)


def train_byte_level() -> dict[str, Any]:
  """Trains GPT-2-like tokens; the merges of long runs of spaces and words are kept."""
  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=900,
    special_tokens=list(CONTROLS),
    initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  tokenizer.train_from_iterator(training_texts(1200), trainer)
  model = json.loads(tokenizer.to_str())["model"]
  pieces = sorted(model["vocab"], key=model["vocab"].__getitem__)
  merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
  kinds = [CONTROL if piece in CONTROLS else NORMAL for piece in pieces]
  return {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.tokens": pieces,
    "tokenizer.ggml.token_type": kinds,
    "tokenizer.ggml.merges": merges,
    "tokenizer.ggml.eos_token_id": 0,
  }


def train_sentencepiece() -> dict[str, Any]:
  """Trains Llama-2-like tokens."""
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(
      line for text in training_texts(80) for line in text.split("\n") if line
    ),
    model_writer=model,
    vocab_size=900,
    model_type="bpe",
    byte_fallback=True,
    normalization_rule_name="identity",
    remove_extra_whitespaces=False,
    allow_whitespace_only_pieces=True,
    num_threads=1,
    minloglevel=2,
  )
  processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
  ids = range(processor.vocab_size())

  def kind(i: int) -> int:
    if processor.is_unknown(i) or processor.is_control(i):
      return UNKNOWN if processor.is_unknown(i) else CONTROL
    return BYTE if processor.is_byte(i) else NORMAL

  return {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": [processor.id_to_piece(i) for i in ids],
    "tokenizer.ggml.scores": [processor.get_score(i) for i in ids],
    "tokenizer.ggml.token_type": [kind(i) for i in ids],
    "tokenizer.ggml.bos_token_id": processor.bos_id(),
    "tokenizer.ggml.eos_token_id": processor.eos_id(),
    "tokenizer.ggml.unknown_token_id": processor.unk_id(),
    "tokenizer.ggml.add_space_prefix": True,
  }


def write_gguf(path: Path, metadata: dict[str, Any]) -> None:
  """Writes a GGUF file that has a vocabulary and no weights."""
  writer = gguf.GGUFWriter(path, "llama")
  writer.add_context_length(64)
  writer.add_embedding_length(8)
  writer.add_feed_forward_length(8)
  writer.add_block_count(1)
  writer.add_head_count(1)
  writer.add_layer_norm_rms_eps(1e-5)
  writer.add_vocab_size(len(metadata["tokenizer.ggml.tokens"]))
  for key, value in metadata.items():
    add = {bool: writer.add_bool, int: writer.add_uint32, str: writer.add_string}
    add.get(type(value), writer.add_array)(key, value)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()


def ask_llama_cpp(
  python: str, metadata: dict[str, Any], texts: list[str]
) -> dict[str, Any]:
  """Returns llama.cpp's version and ids."""
  with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "vocabulary.gguf"
    write_gguf(path, metadata)
    process = subprocess.run(
      [python, str(HERE / "llama_cpp_tokenize.py"), str(path)],
      input=json.dumps(texts),
      stdout=subprocess.PIPE,
      text=True,
      check=True,
    )
  return json.loads(process.stdout)


def main() -> None:
  python = sys.argv[1]
  texts = fuzz_texts(NUM_TEXTS, seed=2, controls=CONTROLS)
  byte_level = train_byte_level()
  cases = {name: {**byte_level, "tokenizer.ggml.pre": name} for name in known_cuts()}
  cases["sentencepiece"] = train_sentencepiece()
  ids: dict[str, Any] = {}
  version = ""
  for name, metadata in cases.items():
    answer = ask_llama_cpp(python, metadata, texts)
    version = answer["llama.cpp"]
    # Ways of cutting with the same outcome name the first of them.
    ids[name] = next((n for n, i in ids.items() if i == answer["ids"]), answer["ids"])
  record = {
    "llama.cpp": version,
    "byte_level": byte_level,
    "sentencepiece": cases["sentencepiece"],
    "texts": texts,
    "ids": ids,
  }
  path = HERE / "gguf_tokenizer.json"
  path.write_text(json.dumps(record, ensure_ascii=True, separators=(",", ":")) + "\n")
  print(f"{path.name}: {len(texts)} texts, {len(ids)} tokenizers, llama.cpp {version}")


if __name__ == "__main__":
  main()
