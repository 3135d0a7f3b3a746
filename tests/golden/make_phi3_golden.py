"""Writes phi3_tiny.npz: a tiny Phi3ForCausalLM of transformers, with its outputs.

    pip install torch==2.13.0 transformers==5.23.0 numpy
    python tests/golden/make_phi3_golden.py

Weights are random and non-trivial everywhere (norm scales too), rounded to float16
so that the file stays small; the model runs in float32. The file holds:

    weight/NAME            weights under their Hugging Face names, float16
    token_ids              [2, 24]
    logits, loss           full attention; loss is the mean over shifted targets
    window_logits, window_loss   the same weights with a sliding window of 7
    about                  JSON: configuration, seed, versions
"""

import json
import platform
from pathlib import Path

import numpy as np
import torch
import transformers

SEED = 20241212
WINDOW = 7
ROPE_THETA = 250_000.0
CONFIG = dict(
  vocab_size=128,
  hidden_size=64,
  intermediate_size=96,
  num_hidden_layers=2,
  num_attention_heads=8,
  num_key_value_heads=2,
  max_position_embeddings=64,
  original_max_position_embeddings=64,
  rms_norm_eps=1e-5,
  tie_word_embeddings=False,
  pad_token_id=None,
  bos_token_id=1,
  eos_token_id=2,
)


def make_model(sliding_window: int | None) -> transformers.Phi3ForCausalLM:
  config = transformers.Phi3Config(
    **CONFIG,
    sliding_window=sliding_window,
    rope_parameters={
      "rope_type": "default",
      "rope_theta": ROPE_THETA,
      "partial_rotary_factor": 1.0,
    },
    attn_implementation="eager",
  )
  model = transformers.Phi3ForCausalLM(config).to(torch.float32).eval()
  width = CONFIG["hidden_size"] // CONFIG["num_attention_heads"]
  expected = ROPE_THETA ** (-torch.arange(0, width, 2) / width)
  # The base must have reached the rotation, or the golden would test nothing.
  torch.testing.assert_close(model.model.rotary_emb.inv_freq, expected)
  return model


def draw_weights(model: torch.nn.Module) -> dict[str, np.ndarray]:
  rng = np.random.default_rng(SEED)
  weights = {}
  for name, value in sorted(model.state_dict().items()):
    draw = rng.standard_normal(tuple(value.shape))
    weight = 1.0 + 0.3 * draw if "norm" in name else 0.15 * draw
    weights[name] = weight.astype(np.float16)
  return weights


def run(sliding_window, weights, token_ids) -> tuple[np.ndarray, np.ndarray]:
  model = make_model(sliding_window)
  state = {name: torch.from_numpy(w.astype(np.float32)) for name, w in weights.items()}
  model.load_state_dict(state, strict=True)
  ids = torch.from_numpy(token_ids)
  with torch.no_grad():
    out = model(input_ids=ids, labels=ids)
  return out.logits.numpy(), out.loss.numpy()


def main() -> None:
  weights = draw_weights(make_model(None))
  rng = np.random.default_rng(SEED + 1)
  token_ids = rng.integers(0, CONFIG["vocab_size"], (2, 24))
  logits, loss = run(None, weights, token_ids)
  window_logits, window_loss = run(WINDOW, weights, token_ids)
  assert np.abs(logits[:, :WINDOW] - window_logits[:, :WINDOW]).max() < 1e-4
  assert np.abs(logits[:, WINDOW:] - window_logits[:, WINDOW:]).max() > 0.1
  about = {
    "config": CONFIG | {"rope_theta": ROPE_THETA},
    "sliding_window": WINDOW,
    "seed": SEED,
    "torch": torch.__version__,
    "transformers": transformers.__version__,
    "numpy": np.__version__,
    "python": platform.python_version(),
  }
  path = Path(__file__).with_name("phi3_tiny.npz")
  np.savez_compressed(
    path,
    about=np.array(json.dumps(about)),
    token_ids=token_ids.astype(np.int32),
    logits=logits,
    loss=loss,
    window_logits=window_logits,
    window_loss=window_loss,
    **{f"weight/{name}": weight for name, weight in weights.items()},
  )
  print(f"{path}: {path.stat().st_size} bytes, losses {loss:.6f} {window_loss:.6f}")


if __name__ == "__main__":
  main()
