"""Writes trl_dpo.npz: losses and gradients of TRL's DPOTrainer on a tiny Phi-3.

    pip install torch==2.13.0 transformers==5.23.0 trl==1.16.0 numpy
    python tests/golden/make_trl_dpo_golden.py

The policy has the weights of phi3_tiny.npz (make_phi3_golden.py); the reference has
them with two changes that `change_reference` names. The file holds, for each pair:

    prompt_ids, chosen_ids, rejected_ids   padded with -1
    loss, accuracy, margin                 as TRL logs them (margins times beta)
    gradient                               of the mean loss by lm_head.weight [V, D]
    about                                  JSON: beta, seed, versions
"""

import json
import platform
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
import trl
from datasets import Dataset
from make_phi3_golden import CONFIG, make_model
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast
from trl.trainer.dpo_trainer import DataCollatorForPreference

SEED = 42
BETA = 0.3
HERE = Path(__file__).parent


def change_reference(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  scales = {"model.norm.weight": 1.25, "model.layers.0.mlp.down_proj.weight": 0.5}
  return {name: value * scales.get(name, 1.0) for name, value in weights.items()}


def load(weights: dict[str, np.ndarray]) -> transformers.Phi3ForCausalLM:
  model = make_model(None)
  state = {name: torch.from_numpy(w.astype(np.float32)) for name, w in weights.items()}
  model.load_state_dict(state, strict=True)
  return model


def draw_pairs() -> list[dict[str, list[int]]]:
  """Responses of unequal lengths; the last two pairs differ in one token only."""
  rng = np.random.default_rng(SEED)

  def ids(size: int) -> list[int]:
    return rng.integers(3, CONFIG["vocab_size"], size).tolist()

  pairs = [
    {"prompt_ids": ids(p), "chosen_ids": ids(c), "rejected_ids": ids(r)}
    for p, c, r in ((3, 5, 7), (6, 4, 2), (2, 9, 9))
  ]
  return pairs + [
    {"prompt_ids": ids(n), "chosen_ids": [7], "rejected_ids": [9]} for n in (5, 8)
  ]


def make_trainer(weights: dict[str, np.ndarray], folder: str) -> trl.DPOTrainer:
  words = {f"w{i}": i for i in range(CONFIG["vocab_size"])}
  tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0")),
    pad_token="w0",
    eos_token="w2",
  )
  # The trainer wants a data set; the batches below do not come from it.
  dataset = Dataset.from_list([{"prompt": "w3", "chosen": "w4", "rejected": "w5"}])
  return trl.DPOTrainer(
    model=load(weights),
    ref_model=load(change_reference(weights)),
    args=trl.DPOConfig(
      output_dir=folder, beta=BETA, loss_type="sigmoid", report_to="none",
      use_cpu=True, bf16=False, gradient_checkpointing=False,
      per_device_train_batch_size=1,
    ),
    train_dataset=dataset,
    processing_class=tokenizer,
  )  # fmt: skip


def main() -> None:
  with np.load(HERE / "phi3_tiny.npz") as file:
    weights = {
      name.removeprefix("weight/"): value.astype(np.float32)
      for name, value in file.items()
      if name.startswith("weight/")
    }
  pairs = draw_pairs()
  collate = DataCollatorForPreference(pad_token_id=0)
  with tempfile.TemporaryDirectory() as folder:
    trainer = make_trainer(weights, folder)
    model = trainer.model.eval()
    found: dict[str, list[float]] = {"loss": [], "accuracy": [], "margin": []}
    for pair in pairs:
      loss = trainer.compute_loss(model, collate([pair]))
      metrics = trainer._metrics["eval"]
      found["loss"].append(loss.item())
      found["accuracy"].append(metrics["rewards/accuracies"][-1])
      found["margin"].append(metrics["rewards/margins"][-1])
    model.zero_grad()
    trainer.compute_loss(model, collate(pairs)).backward()
    gradient = model.lm_head.weight.grad.numpy()

  def padded(name: str) -> np.ndarray:
    longest = max(len(pair[name]) for pair in pairs)
    rows = [pair[name] + [-1] * (longest - len(pair[name])) for pair in pairs]
    return np.asarray(rows, np.int32)

  about = {
    "beta": BETA,
    "seed": SEED,
    "trl": trl.__version__,
    "torch": torch.__version__,
    "transformers": transformers.__version__,
    "numpy": np.__version__,
    "python": platform.python_version(),
  }
  path = HERE / "trl_dpo.npz"
  np.savez_compressed(
    path,
    about=np.array(json.dumps(about)),
    gradient=gradient,
    **{name: padded(name) for name in pairs[0]},
    **{name: np.asarray(values) for name, values in found.items()},
  )
  print(f"{path}: {path.stat().st_size} bytes, losses {found['loss']}")


if __name__ == "__main__":
  main()
