"""Do our models compute what transformers computes?

  python -m benchmarks.hf_parity
  python -m benchmarks.hf_parity --quick

Random weights, rounded to float16, with norm scales and rotary factors away from one;
float32 on a CPU on both sides. For every family: logits of whole texts at several
lengths, logits of decoding with a cache (of `generate`, the text forced on it), and
the gradient of the mean next-token loss. transformers runs in .venv-bench
(benchmarks/peers/hf_parity.py). Ours gets the config.json that transformers writes
and its tensors, through `config_from_hf` and the table of `hf_weights`.
"""

import argparse
import datetime
import functools
import importlib.metadata
import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness, machine
from benchmarks.arms import ROOT
from kernels.cross_entropy import cross_entropy_from_hidden
from phi4_jax.common.axes import Array, Float, Int, Params
from phi4_jax.common.io import write_json
from phi4_jax.common.text import format_table
from phi4_jax.model import transformer
from phi4_jax.model.config import ModelConfig
from phi4_jax.model.hf_config import config_from_hf
from phi4_jax.model.hf_weights import check_tensors, find_architecture, read_leaf_shard
from phi4_jax.model.kv_cache import init_cache

# A whole model in float32 (CONTRIBUTING.md); a gradient by its norm, leaf by leaf.
TOLERANCE = 1e-4


class ArrayTensors:
  """A tensor source of arrays by name."""

  def __init__(self, arrays: Mapping[str, np.ndarray]):
    self._arrays = {name: np.asarray(a, np.float32) for name, a in arrays.items()}

  def names(self) -> list[str]:
    return list(self._arrays)

  def shape(self, name: str) -> tuple[int, ...]:
    return self._arrays[name].shape

  def dtype(self, name: str) -> np.dtype:
    return self._arrays[name].dtype

  def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
    return self._arrays[name][index].copy()


def make_params(arrays: Mapping[str, np.ndarray], config: ModelConfig) -> Params:
  """Returns our parameters (or gradients) of tensors with Hugging Face names."""
  source = ArrayTensors(arrays)
  params: dict[str, Any] = {}
  for leaf in check_tensors(
    source, config, find_architecture(source), where="the peer's file"
  ):
    branch = functools.reduce(
      lambda d, key: d.setdefault(key, {}), leaf.path[:-1], params
    )
    whole = tuple(slice(None) for _ in leaf.shape)
    branch[leaf.path[-1]] = jnp.asarray(read_leaf_shard(source, leaf, whole))
  return params


def select(arrays: Mapping[str, Any], prefix: str) -> dict[str, Any]:
  """Returns what stands under `prefix/`, by the rest of its name."""
  return {
    name.removeprefix(f"{prefix}/"): value
    for name, value in arrays.items()
    if name.startswith(f"{prefix}/")
  }


def read_config(arrays: Mapping[str, np.ndarray]) -> ModelConfig:
  """Returns the model of a case, from the config.json of transformers."""
  return config_from_hf(json.loads(str(arrays["config"])))


def _inputs(token_ids: Array, length: Any) -> dict[str, Any]:
  """Positions and segments of texts of `length` tokens, the rest padding."""
  positions = jnp.broadcast_to(jnp.arange(token_ids.shape[1]), token_ids.shape)
  return {
    "positions": positions,
    "segment_ids": (positions < length).astype(jnp.int32),
  }


@functools.partial(jax.jit, static_argnums=1)
def prefill(
  params: Params, config: ModelConfig, token_ids: Int[Array, "B T"], length: Any
) -> Float[Array, "B T V"]:
  """Returns the logits of texts that are the first `length` tokens."""
  inputs = _inputs(token_ids, length)
  hidden, _ = transformer.forward(params, config, token_ids, **inputs)
  return transformer.compute_logits(params, config, hidden)


def decode(
  params: Params, config: ModelConfig, token_ids: Int[Array, "B T"], prompt: int
) -> Float[Array, "B steps V"]:
  """Returns the logits after prompt, prompt + 1, ... T - 1 tokens, with a cache."""
  params = transformer.unstack_layers(params, config)
  b, t = token_ids.shape

  @jax.jit
  def read(params, token_ids, positions, segment_ids, cache):
    hidden, cache = transformer.forward(
      params,
      config,
      token_ids,
      positions=positions,
      segment_ids=segment_ids,
      cache=cache,
    )
    return transformer.compute_logits(params, config, hidden[:, -1]), cache

  def inputs(start, stop):
    part = {name: x[:, start:stop] for name, x in _inputs(token_ids, t).items()}
    return {"token_ids": token_ids[:, start:stop], **part}

  logits, cache = read(params, **inputs(0, prompt), cache=init_cache(config, b, t))
  found = [logits]
  for position in range(prompt, t - 1):
    logits, cache = read(params, **inputs(position, position + 1), cache=cache)
    found.append(logits)
  return jnp.stack(found, axis=1)


@functools.partial(jax.jit, static_argnums=1)
def loss_and_gradient(
  params: Params, config: ModelConfig, token_ids: Int[Array, "B T"], length: Any
) -> tuple[Float[Array, ""], Params]:
  """Returns the mean loss over the shifted targets of `length` tokens, its gradient."""
  inputs = _inputs(token_ids, length)
  # Nothing follows the last token of a text.
  weights = (inputs["positions"] < length - 1).astype(jnp.float32)

  def loss(params):
    hidden, _ = transformer.forward(params, config, token_ids, **inputs)
    head = transformer.output_head(params, config)
    targets = jnp.roll(token_ids, -1, axis=1)
    sums = cross_entropy_from_hidden(hidden, head, targets, weights, num_chunks=1)
    return sums.loss_sum / weights.sum()

  return jax.value_and_grad(loss)(params)


def _distance(ours: Any, theirs: Any) -> float:
  return float(np.abs(np.asarray(ours) - np.asarray(theirs)).max())


def compare(
  arrays: Mapping[str, np.ndarray], config: ModelConfig, params: Params
) -> dict[str, float]:
  """Returns how far ours is from what transformers found in a case.

  Args:
    arrays: of `benchmarks.peers.hf_parity.compute_all`.
    config: of `read_config`, or a changed one.
    params: of `make_params`.
  """
  texts = {int(n): logits for n, logits in select(arrays, "prefill").items()}
  token_ids = jnp.asarray(arrays["token_ids"])[:, : max(texts)]
  found = {
    "max_abs_logit_diff_prefill": max(
      _distance(prefill(params, config, token_ids, n)[:, :n], logits)
      for n, logits in texts.items()
    )
  }
  if "decode" in arrays:
    decoded = decode(params, config, token_ids, int(arrays["prompt"]))
    found["max_abs_logit_diff_decode"] = _distance(decoded, arrays["decode"])
  for n, theirs in select(arrays, "loss").items():
    loss, ours = loss_and_gradient(params, config, token_ids, int(n))
    wanted = make_params(select(arrays, f"grad/{n}"), config)
    relative = jax.tree.map(
      lambda a, b: float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b)), ours, wanted
    )
    for name, value in (
      ("max_abs_loss_diff", _distance(loss, theirs)),
      ("max_rel_grad_diff", max(jax.tree.leaves(relative))),
    ):
      found[name] = max(found.get(name, 0.0), value)
  return found


def run_peer(size: str, seed: int, out: Path) -> dict[str, Any]:
  """Lets transformers compute all cases into `out`; returns what it says of itself."""
  command = harness.peer("benchmarks.peers.hf_parity")
  arguments = ["--out", str(out), "--size", size, "--seed", str(seed)]
  subprocess.run([*command, *arguments], cwd=ROOT, check=True)
  return json.loads((out / "about.json").read_text())


def compare_all(folder: Path) -> dict[str, dict[str, Any]]:
  """Returns the record of every case in a folder of the peer's files."""
  cases = {path.stem: dict(np.load(path)) for path in sorted(folder.glob("*.npz"))}
  records = {}
  for name, arrays in cases.items():
    config = read_config(arrays)
    owner = cases[str(arrays["weights_of"])] if "weights_of" in arrays else arrays
    params = make_params(select(owner, "weight"), config)
    records[name] = compare(arrays, config, params) | {
      "prefill_lengths": sorted(map(int, select(arrays, "prefill"))),
      "gradient_lengths": sorted(map(int, select(arrays, "loss"))),
      "prompt": int(arrays["prompt"]),
      "config": json.loads(str(arrays["config"])),
    }
    print(f"  compared: {name}", flush=True)
  return records


def measured(record: Mapping[str, Any]) -> dict[str, float]:
  """Returns the differences in a record, without the rest."""
  return {name: value for name, value in record.items() if name.startswith("max_")}


def main(argv: Sequence[str] | None = None) -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--quick", action="store_true", help="small models and texts")
  parser.add_argument("--seed", type=int, default=0, help="of weights and texts")
  parser.add_argument("--output", type=Path, help="instead of the usual JSON file")
  arguments = parser.parse_args(argv)
  if harness.is_missing(Path(harness.PEER_PYTHON), "bench-setup"):
    return 0
  with tempfile.TemporaryDirectory() as folder:
    size = "quick" if arguments.quick else "full"
    about = run_peer(size, arguments.seed, Path(folder))
    cases = compare_all(Path(folder))
  worst = max(value for record in cases.values() for value in measured(record).values())
  names = ("jax", "jaxlib", "flax", "numpy")
  result = {
    "name": "hf_parity",
    "question": "do our models compute what transformers computes?",
    "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    "quick": arguments.quick,
    "seed": arguments.seed,
    "git": machine.git_state(ROOT),
    "machine": machine.describe(),
    "versions": {
      "ours": {name: importlib.metadata.version(name) for name in names}
      | {"python": platform.python_version(), "backend": jax.default_backend()},
      "peer": {name: about[name] for name in ("torch", "transformers", "python")},
    },
    "size": about["size"],
    "precision": "float32 on both sides; weights rounded to float16 before",
    "tolerance": TOLERANCE,
    "worst": worst,
    "cases": cases,
  }
  folder = "runs/benchmarks" if arguments.quick else "benchmarks/results"
  path = arguments.output or ROOT / folder / "hf_parity.json"
  write_json(path, result)
  columns = list(
    dict.fromkeys(c for record in cases.values() for c in measured(record))
  )
  rows = [
    [name, *(f"{record[c]:.1e}" if c in record else "-" for c in columns)]
    for name, record in cases.items()
  ]
  print(f"\n{format_table(['case', *columns], rows)}\n\nwritten to {path}")
  if worst > TOLERANCE:
    print(f"error: {worst:.1e} is above the tolerance ({TOLERANCE:.0e}).")
    return 1
  return 0


if __name__ == "__main__":
  sys.exit(main())
