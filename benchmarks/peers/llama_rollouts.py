"""Rollouts from one shared prompt by llama.cpp's batched decoding.

The prompt is decoded once and its cells are given to all sequences; then each step
decodes one token of every sequence, and a token is drawn from each row of logits, by
numpy or by llama.cpp's own sampler, whichever is faster.
"""

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llama_cpp as lib  # pyright: ignore[reportMissingImports]
import numpy as np

from benchmarks.contender import Prepared, serve
from benchmarks.peers import tuning

# What a file is rewritten as (llama_ftype); None: as it is.
_FILE_TYPES = {"as stored": None, "Q8_0": 7, "BF16": 32}
_CELLS_MULTIPLE = 256


@lib.llama_log_callback
def _log(level: int, text: bytes, data: Any) -> None:
  del data
  if level == 4:  # errors
    print(text.decode("utf-8", "replace"), end="", flush=True)


def rewrite(path: Path, kind: str, folder: Path) -> Path:
  """Returns a file with the same weights stored otherwise; makes it if need be."""
  file_type = _FILE_TYPES[kind]
  if file_type is None:
    return path
  found = folder / f"{path.stem}.{kind}.gguf"
  if not found.exists():
    params = lib.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize = file_type, True
    unfinished = found.with_suffix(".unfinished")
    error = lib.llama_model_quantize(
      str(path).encode(), str(unfinished).encode(), ctypes.byref(params)
    )
    assert not error, f"llama.cpp could not write {found}"
    unfinished.rename(found)
  return found


def load_model(path: Path, *, repacked: bool) -> Any:
  """Loads a file; repacked: into the layouts of this processor's matrix units."""
  params = lib.llama_model_default_params()
  params.use_extra_bufts = repacked
  model = lib.llama_model_load_from_file(str(path).encode(), params)
  assert model, f"llama.cpp could not load {path}"
  return model


class Decoder:
  """A model and a context for so many sequences."""

  def __init__(self, model: Any, rows: int, tokens: int, *, unified: bool):
    """Args:
    model: from llama_model_load_from_file.
    rows: sequences.
    tokens: of the longest sequence.
    unified: whether all sequences share one buffer of cells (`kv_unified`).
    """
    params = lib.llama_context_default_params()
    params.n_ctx = -(-rows * tokens // _CELLS_MULTIPLE) * _CELLS_MULTIPLE
    if not unified:
      params.n_ctx = rows * -(-tokens // _CELLS_MULTIPLE) * _CELLS_MULTIPLE
    params.n_seq_max, params.kv_unified = rows, unified
    params.n_batch = params.n_ubatch = 512
    params.flash_attn_type = 1
    params.no_perf = True
    self.context = lib.llama_init_from_model(model, params)
    assert self.context, "llama.cpp could not make a context"
    self._model = model
    self._memory = lib.llama_get_memory(self.context)
    self._rows = rows
    self._batch = lib.llama_batch_init(params.n_batch, 0, 1)
    view = np.ctypeslib.as_array
    self._tokens = view(self._batch.token, (params.n_batch,))
    self._positions = view(self._batch.pos, (params.n_batch,))
    self._outputs = view(self._batch.logits, (params.n_batch,))
    vocab = lib.llama_model_get_vocab(model)
    self._vocab_size = lib.llama_vocab_n_tokens(vocab)
    for i in range(params.n_batch):
      self._batch.n_seq_id[i] = 1

  def free(self) -> None:
    lib.llama_batch_free(self._batch)
    lib.llama_free(self.context)
    lib.llama_model_free(self._model)

  def set_threads(self, threads: int) -> None:
    lib.llama_set_n_threads(self.context, threads, threads)

  def _decode(self, tokens: Any, positions: Any) -> None:
    count = len(tokens)
    self._batch.n_tokens = count
    self._tokens[:count], self._positions[:count] = tokens, positions
    error = lib.llama_decode(self.context, self._batch)
    assert not error, f"llama_decode returned {error}"

  def _logits(self, rows: int) -> np.ndarray:
    pointer = lib.llama_get_logits(self.context)
    return np.ctypeslib.as_array(pointer, (rows, self._vocab_size))

  def read_prompt(self, prompt: list[int]) -> np.ndarray:
    """Reads the prompt once for all sequences; returns [rows, V] logits."""
    lib.llama_memory_clear(self._memory, True)
    for i in range(len(prompt)):
      self._batch.seq_id[i][0] = 0
    self._outputs[: len(prompt)] = 0
    self._outputs[len(prompt) - 1] = 1
    self._decode(prompt, np.arange(len(prompt)))
    for row in range(1, self._rows):
      lib.llama_memory_seq_cp(self._memory, 0, row, -1, -1)
    for row in range(self._rows):
      self._batch.seq_id[row][0] = row
    self._outputs[: self._rows] = 1
    return np.broadcast_to(self._logits(1), (self._rows, self._vocab_size))

  def step(self, tokens: Any, position: int) -> np.ndarray:
    """Reads one token of every sequence; returns [rows, V] logits."""
    self._decode(tokens, np.full(self._rows, position))
    return self._logits(self._rows)


def draw_by_numpy(random: np.random.Generator, logits: np.ndarray) -> np.ndarray:
  """Draws from softmax(logits) by inverse CDF, one row after the other."""
  tokens = np.empty(len(logits), np.int32)
  for row, uniform in enumerate(random.random(len(logits))):
    weights = logits[row] - logits[row].max()
    np.exp(weights, out=weights)
    np.cumsum(weights, out=weights)
    tokens[row] = np.searchsorted(weights, uniform * weights[-1], side="right")
  return np.minimum(tokens, logits.shape[1] - 1)


def make_drawing(
  kind: str, context: Any, rows: int, seed: int
) -> Callable[[np.ndarray, bool], np.ndarray]:
  """Returns a function of logits, and of whether they are one row for all.

  Its samplers are a few bytes each, and stay.
  """
  if kind == "numpy":
    random = np.random.default_rng(seed)
    return lambda logits, shared: draw_by_numpy(random, logits)
  samplers = []
  for row in range(rows):
    chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
    lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_dist(seed + row))
    samplers.append(chain)

  def draw(logits: np.ndarray, shared: bool) -> np.ndarray:
    del logits
    tokens = [
      lib.llama_sampler_sample(sampler, context, -1 if shared else row)
      for row, sampler in enumerate(samplers)
    ]
    return np.array(tokens, np.int32)

  return draw


def prepare(options: dict[str, Any]) -> Prepared:
  rows, prompt, new = options["rows"], options["prompt"], options["new"]
  lib.llama_log_set(_log, ctypes.c_void_p(0))
  lib.llama_backend_init()
  folder = Path(options["folder"])
  folder.mkdir(parents=True, exist_ok=True)

  loaded: dict[tuple[str, bool], Decoder] = {}

  def load(weights: str, repacked: bool) -> Decoder:
    if (weights, repacked) not in loaded:
      for decoder in loaded.values():
        decoder.free()
      loaded.clear()
      path = rewrite(Path(options["gguf"]), weights, folder)
      loaded[weights, repacked] = Decoder(
        load_model(path, repacked=repacked),
        rows,
        len(prompt) + new,
        unified=options["kv_unified"],
      )
    return loaded[weights, repacked]

  def make_run(*, threads: int, weights: str, repacked: bool, drawing: str, new: int):
    def run() -> dict[str, float]:
      decoder = load(weights, repacked)
      decoder.set_threads(threads)
      draw = make_drawing(drawing, decoder.context, rows, options["seed"])
      drawn = [draw(decoder.read_prompt(prompt), True)]
      for step in range(new - 1):
        drawn.append(draw(decoder.step(drawn[-1], len(prompt) + step), False))
      return {"work": float(np.size(drawn))}

    return run

  best = tuning.tune(
    {
      "threads": tuning.thread_counts()[::-1],
      "weights": list(_FILE_TYPES),
      "repacked": [True, False],
      "drawing": ["numpy", "llama.cpp"],
    },
    functools.partial(make_run, new=options["tuning_new"]),
  )
  return Prepared(
    run=make_run(**best, new=new),
    settings={
      "device": "cpu",
      "precision": f"{Path(options['gguf']).stem.split('.')[-1]}, {best['weights']}",
      **best,
      "kv_unified": int(options["kv_unified"]),
      "flash attention": 1,
      "instructions": lib.llama_print_system_info().decode(),
    },
  )


if __name__ == "__main__":
  serve(prepare, packages=["llama_cpp_python", "numpy"])
