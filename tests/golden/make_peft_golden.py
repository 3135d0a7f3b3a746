"""Writes peft_lora.npz: adapters of PEFT and of ours, and what PEFT makes of both.

    pip install torch==2.13.0 transformers==5.23.0 peft==0.21.2 numpy
    python -m tests.golden.make_peft_golden        (phi4_jax must be importable)

For ARCHITECTURE phi3 and llama, a tiny model with random weights, rounded to float16:

    ARCHITECTURE/weight/NAME       under Hugging Face names
    ARCHITECTURE/config            JSON: the model's config.json
    ARCHITECTURE/base              logits without an adapter
    ARCHITECTURE/peft/config, peft/weights, peft/logits
        an adapter that PEFT made and saved (the bytes of its files), ranks and scales
        differing from module to module; llama's with the scale alpha / sqrt(rank)
    ARCHITECTURE/ours/config, ours/weights, ours/logits
        `random_adapter` as `save_peft` writes it, loaded by PEFT without a warning
    token_ids [2, 12], about       JSON: seed, settings, versions
"""

import dataclasses
import json
import platform
import tempfile
import warnings
from pathlib import Path

import numpy as np
import peft
import torch
import transformers

from phi4_jax.model.config import ModelConfig
from phi4_jax.model.lora import LoraConfig
from phi4_jax.model.peft_files import CONFIG_FILE, WEIGHTS_FILE, save_peft
from tests.model.adapters import random_adapter

SEED = 7
SIZES = dict(
  vocab_size=32,
  hidden_size=16,
  intermediate_size=24,
  num_hidden_layers=2,
  num_attention_heads=4,
  num_key_value_heads=2,
  max_position_embeddings=32,
)
CLASSES = {
  "phi3": (transformers.Phi3Config, transformers.Phi3ForCausalLM),
  "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
}
PEFT = {
  "phi3": dict(
    r=4,
    lora_alpha=6,
    target_modules=["qkv_proj", "o_proj", "gate_up_proj", "down_proj"],
    rank_pattern={"o_proj": 2, r"layers\.1\.mlp\.gate_up_proj": 3},
    alpha_pattern={"qkv_proj": 5},
  ),
  "llama": dict(
    r=4,
    lora_alpha=3,
    target_modules=["q_proj", "v_proj", "down_proj"],
    use_rslora=True,
  ),
}
OURS = LoraConfig(rank=3, alpha=4.5, targets="self_attn/(q|v|o)_proj|mlp/.*")


def make_base(architecture: str):
  config_class, model_class = CLASSES[architecture]
  config = config_class(
    **SIZES,
    tie_word_embeddings=False,
    pad_token_id=None,
    bos_token_id=1,
    eos_token_id=2,
    attn_implementation="eager",
  )
  model = model_class(config).to(torch.float32).eval()
  rng = np.random.default_rng(SEED)
  weights = {}
  for name, value in sorted(model.state_dict().items()):
    draw = rng.standard_normal(tuple(value.shape))
    weight = 1.0 + 0.3 * draw if "norm" in name else 0.3 * draw
    weights[name] = weight.astype(np.float16)
  state = {name: torch.from_numpy(w.astype(np.float32)) for name, w in weights.items()}
  model.load_state_dict(state, strict=True)
  return model, weights


def logits_of(model, token_ids) -> np.ndarray:
  with torch.no_grad():
    return model(input_ids=torch.from_numpy(token_ids)).logits.numpy()


def read_files(folder: Path) -> dict[str, np.ndarray]:
  return {
    "config": np.array((folder / CONFIG_FILE).read_text()),
    "weights": np.frombuffer((folder / WEIGHTS_FILE).read_bytes(), np.uint8),
  }


def run_peft(architecture: str, token_ids, folder: Path) -> dict[str, np.ndarray]:
  """An adapter made and saved by PEFT; all its matrices are drawn anew."""
  settings = peft.LoraConfig(**PEFT[architecture], task_type="CAUSAL_LM")
  model = peft.get_peft_model(make_base(architecture)[0], settings).eval()
  generator = torch.Generator().manual_seed(SEED)
  for name, value in model.named_parameters():
    if "lora_" in name:
      draw = torch.randn(value.shape, generator=generator)
      value.data = (0.3 * draw).to(torch.float16).to(torch.float32)
  logits = logits_of(model, token_ids)
  model.save_pretrained(str(folder))
  return {"logits": logits, **read_files(folder)}


def run_ours(architecture: str, token_ids, folder: Path) -> dict[str, np.ndarray]:
  """Our adapter, written by us and loaded by PEFT."""
  model = ModelConfig(**SIZES)
  save_peft(folder, model, OURS, random_adapter(model, OURS), architecture)
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    # PEFT reads an attribute that transformers has renamed; no adapter changes that.
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`")
    loaded = peft.PeftModel.from_pretrained(make_base(architecture)[0], str(folder))
  return {"logits": logits_of(loaded.eval(), token_ids), **read_files(folder)}


def main() -> None:
  rng = np.random.default_rng(SEED + 1)
  token_ids = rng.integers(0, SIZES["vocab_size"], (2, 12))
  arrays: dict[str, np.ndarray] = {"token_ids": token_ids.astype(np.int32)}
  for architecture in CLASSES:
    base, weights = make_base(architecture)
    arrays |= {f"{architecture}/weight/{name}": w for name, w in weights.items()}
    arrays[f"{architecture}/config"] = np.array(base.config.to_json_string())
    arrays[f"{architecture}/base"] = logits_of(base, token_ids)
    for name, make in (("peft", run_peft), ("ours", run_ours)):
      with tempfile.TemporaryDirectory() as folder:
        made = make(architecture, token_ids, Path(folder))
      arrays |= {f"{architecture}/{name}/{key}": value for key, value in made.items()}
      change = np.abs(made["logits"] - arrays[f"{architecture}/base"]).max()
      print(f"{architecture} {name}: logits moved by {change:.3f}")
      assert change > 0.1
  about = {
    "sizes": SIZES,
    "seed": SEED,
    "peft_settings": PEFT,
    "ours": dataclasses.asdict(OURS),
    "peft": peft.__version__,
    "torch": torch.__version__,
    "transformers": transformers.__version__,
    "numpy": np.__version__,
    "python": platform.python_version(),
  }
  path = Path(__file__).with_name("peft_lora.npz")
  np.savez_compressed(path, about=np.array(json.dumps(about)), **arrays)
  print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
  main()
