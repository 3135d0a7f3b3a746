"""Does transformers see the same model after `phi4 convert`, there and back?

  .venv-bench/bin/python -m benchmarks.peers.hf_roundtrip --python=.venv/bin/python

Makes random models with transformers (phi3 and llama, tied and not, partial rotation
and LongRoPE, float32 and bfloat16, several files each), converts each to a run folder
and back with `phi4 convert`, and loads both with transformers: logits, weights and
configuration must be equal, nothing may be missing, left over or warned about.
"""

import argparse
import logging
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers

ROOT = Path(__file__).resolve().parents[2]
SIZES: dict[str, Any] = dict(
  vocab_size=512,
  hidden_size=64,
  intermediate_size=96,
  num_hidden_layers=3,
  num_attention_heads=8,
  num_key_value_heads=2,
  max_position_embeddings=64,
  pad_token_id=None,
  bos_token_id=1,
  eos_token_id=2,
)
LONG_ROPE = {
  "rope_type": "longrope",
  "rope_theta": 10_000.0,
  "partial_rotary_factor": 0.75,
  "short_factor": [1.0, 1.1, 1.2],
  "long_factor": [2.0, 2.5, 3.0],
}


def make_models() -> dict[str, Any]:
  phi3, llama = transformers.Phi3ForCausalLM, transformers.LlamaForCausalLM
  configs = {
    "phi3": (phi3, dict(original_max_position_embeddings=64)),
    "phi3, tied, LongRoPE": (
      phi3,
      dict(
        tie_word_embeddings=True,
        original_max_position_embeddings=32,
        rope_parameters=LONG_ROPE,
      ),
    ),
    "llama": (llama, {}),
    "llama, tied, wide heads": (llama, dict(tie_word_embeddings=True, head_dim=12)),
  }
  models = {}
  for name, (cls, changes) in configs.items():
    for dtype in (torch.float32, torch.bfloat16):
      torch.manual_seed(0)
      model = cls(cls.config_class(**SIZES, **changes))
      for parameter in model.parameters():
        if parameter.ndim == 1:  # the scales of norms, which begin at one
          parameter.data += 0.3 * torch.randn_like(parameter)
      models[f"{name}, {str(dtype).removeprefix('torch.')}"] = model.to(dtype)
  return models


def convert(python: str, source: Path, out: Path) -> None:
  command = [python, "-m", "experiments.cli", "convert"]
  flags = [f"--from={source}", f"--to={out}", "--no_tokenizer"]
  subprocess.run([*command, *flags], cwd=ROOT, check=True, capture_output=True)


def load(folder: Path) -> tuple[Any, list[str]]:
  """Returns the model, and all that the loader complained of or logged."""
  logged: list[str] = []
  handler = logging.Handler(logging.WARNING)
  handler.emit = lambda record: logged.append(record.getMessage())
  logger = transformers.utils.logging.get_logger("transformers")
  logger.addHandler(handler)
  try:
    with warnings.catch_warnings(record=True) as caught:
      warnings.simplefilter("always")
      model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True
      )
  finally:
    logger.removeHandler(handler)
  complaints = [*logged, *(str(warning.message) for warning in caught)]
  return model, complaints + [f"{key}: {value}" for key, value in info.items() if value]


def differences(before: Any, after: Any) -> list[str]:
  found = []
  ids = torch.arange(48).reshape(2, 24) * 7 % SIZES["vocab_size"]
  with torch.no_grad():
    if not torch.equal(before(ids).logits, after(ids).logits):
      found.append("logits")
  old, new = before.state_dict(), after.state_dict()
  if old.keys() != new.keys():
    found.append("names")
  found += [name for name in old if not torch.equal(old[name], new[name])]
  old, new = before.config.to_dict(), after.config.to_dict()
  fields = (old.keys() | new.keys()) - {"_name_or_path"}
  return found + [f"config {f}" for f in fields if old.get(f) != new.get(f)]


def main() -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--python", required=True, help="interpreter that has phi4_jax")
  python = str(Path(parser.parse_args().python).absolute())
  failed = 0
  with tempfile.TemporaryDirectory() as temporary:
    for number, (name, model) in enumerate(make_models().items()):
      folder = Path(temporary) / str(number)
      model.save_pretrained(folder / "source", max_shard_size="60KB")
      convert(python, folder / "source", folder / "run")
      convert(python, folder / "run", folder / "back")
      before, known = load(folder / "source")
      after, complaints = load(folder / "back")
      wrong = differences(before, after) + [c for c in complaints if c not in known]
      failed += bool(wrong)
      print(f"{name}: {'equal' if not wrong else ', '.join(wrong)}", flush=True)
  return 1 if failed else 0


if __name__ == "__main__":
  sys.exit(main())
