"""Ids that llama.cpp gives to texts; runs where `llama-cpp-py-sync` is installed.

  PYTHON tests/golden/llama_cpp_tokenize.py FILE.gguf < texts.json > ids.json

Only the vocabulary is loaded. Control tokens are not looked for in the texts, and
nothing is added. Imports nothing of the project.
"""

import json
import sys

import llama_cpp_py_sync  # pyright: ignore[reportMissingImports]
from llama_cpp_py_sync._cffi_bindings import (  # pyright: ignore[reportMissingImports]
  get_ffi,
  get_lib,
)


def main() -> int:
  ffi, lib = get_ffi(), get_lib()

  @ffi.callback("void(enum ggml_log_level, char *, void *)")
  def log(level, text, data):
    del data
    if level > 3:  # errors only
      sys.stderr.write(ffi.string(text).decode("utf-8", "replace"))

  lib.llama_log_set(log, ffi.NULL)
  lib.llama_backend_init()
  params = lib.llama_model_default_params()
  params.vocab_only = True
  model = lib.llama_model_load_from_file(sys.argv[1].encode(), params)
  if model == ffi.NULL:
    raise SystemExit(f"llama.cpp cannot load {sys.argv[1]}")
  vocab = lib.llama_model_get_vocab(model)
  rows = []
  for text in json.load(sys.stdin):
    data = text.encode("utf-8")
    room = 4 * len(data) + 64
    ids = ffi.new(f"llama_token[{room}]")
    count = lib.llama_tokenize(vocab, data, len(data), ids, room, False, False)
    rows.append([ids[i] for i in range(count)])
  version = llama_cpp_py_sync.__llama_cpp_tag__
  json.dump({"llama.cpp": version, "ids": rows}, sys.stdout)
  return 0


if __name__ == "__main__":
  sys.exit(main())
