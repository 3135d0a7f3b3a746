"""What transformers computes with tiny models of every supported family.

  .venv-bench/bin/python -m benchmarks.peers.hf_parity --out DIR --size quick

writes DIR/NAME.npz for each case (see `compute`) and DIR/about.json. Also used by
tests/golden/make_family_golden.py. Weights are random and non-trivial everywhere (norm
scales and rotary factors too) and rounded to float16, so that they take little room;
the models run in float32.
"""

import argparse
import dataclasses
import json
import logging
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

CLASSES = {
  "phi3": (transformers.Phi3Config, transformers.Phi3ForCausalLM),
  "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
  """How large the models and texts are."""

  vocab_size: int
  hidden_size: int
  intermediate_size: int
  num_hidden_layers: int
  num_attention_heads: int
  rows: int
  length: int
  original: int
  window: int


SIZES = {
  "golden": Size(
    vocab_size=48,
    hidden_size=32,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=4,
    rows=2,
    length=36,
    original=24,
    window=9,
  ),
  "quick": Size(
    vocab_size=128,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    rows=2,
    length=64,
    original=40,
    window=19,
  ),
  "full": Size(
    vocab_size=1024,
    hidden_size=256,
    intermediate_size=512,
    num_hidden_layers=4,
    num_attention_heads=8,
    rows=2,
    length=160,
    original=128,
    window=67,
  ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
  """One model and what is asked of it.

  Attributes:
    name: of the case.
    family: key of CLASSES.
    config: fields of its config.json.
    prefill: lengths at which whole texts are read.
    gradients: lengths at which the loss is differentiated.
    prompt: decoding with a cache starts after so many tokens; 0: it is left out.
    weights_of: name of an earlier case with the same weights, if not its own.
  """

  name: str
  family: str
  config: dict[str, Any]
  prefill: tuple[int, ...]
  gradients: tuple[int, ...]
  prompt: int
  weights_of: str | None = None


def make_cases(size: Size, seed: int) -> list[Case]:
  """Returns all cases of a size; the seed is that of the rotary factors."""
  common = {
    "vocab_size": size.vocab_size,
    "hidden_size": size.hidden_size,
    "intermediate_size": size.intermediate_size,
    "num_hidden_layers": size.num_hidden_layers,
    "num_attention_heads": size.num_attention_heads,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4 * size.original,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
  }
  phi3 = common | {"original_max_position_embeddings": 4 * size.original}
  width = size.hidden_size // size.num_attention_heads
  pairs = int(width * 0.75) // 2
  factors = np.random.default_rng([seed, 0])
  long_rope = {
    "type": "longrope",
    "short_factor": factors.uniform(1, 1.5, pairs).round(3).tolist(),
    "long_factor": np.sort(factors.uniform(1, 8, pairs)).round(3).tolist(),
  }
  whole, half, original = size.length, size.length // 2, size.original
  return [
    Case(
      name="phi4",
      family="phi3",
      config=phi3 | {"rope_theta": 250_000.0},
      prefill=(whole,),
      gradients=(whole,),
      prompt=half,
    ),
    Case(
      # phi4 before midtraining: its weights, the old base and the old context.
      name="phi4_before_midtraining",
      family="phi3",
      config=phi3
      | {
        "rope_theta": 10_000.0,
        "max_position_embeddings": original,
        "original_max_position_embeddings": original,
      },
      prefill=(original,),
      gradients=(),
      prompt=original // 2,
      weights_of="phi4",
    ),
    Case(
      name="phi3_medium",
      family="phi3",
      config=phi3 | {"rope_theta": 10_000.0, "sliding_window": size.window},
      prefill=(size.window - 1, size.window, size.window + 1, whole),
      gradients=(whole,),
      prompt=size.window - 2,
    ),
    Case(
      name="phi4_mini",
      family="phi3",
      config=phi3
      | {
        "rope_theta": 10_000.0,
        "original_max_position_embeddings": original,
        "partial_rotary_factor": 0.75,
        "rope_scaling": long_rope,
        "sliding_window": 262_144,
        "tie_word_embeddings": True,
      },
      prefill=(original - 5, original, original + 1, whole),
      gradients=(original, whole),
      prompt=original - 3,
    ),
    Case(
      name="phi4_reasoning",
      family="phi3",
      config=phi3 | {"rope_theta": 500_000.0},
      prefill=(whole,),
      gradients=(whole,),
      prompt=half,
    ),
    Case(
      name="llama_tied",
      family="llama",
      config=common
      | {
        "rope_theta": 100_000.0,
        "head_dim": width + 4,
        "tie_word_embeddings": True,
      },
      prefill=(whole,),
      gradients=(whole,),
      prompt=half,
    ),
    Case(
      name="llama_llama3",
      family="llama",
      config=common
      | {
        "rope_theta": 500_000.0,
        "rope_scaling": {
          "rope_type": "llama3",
          "factor": 8.0,
          "low_freq_factor": 1.0,
          "high_freq_factor": 4.0,
          "original_max_position_embeddings": original,
        },
      },
      prefill=(original, whole),
      gradients=(whole,),
      prompt=half,
    ),
    Case(
      name="llama_linear",
      family="llama",
      config=common
      | {
        "rope_theta": 10_000.0,
        "rope_scaling": {"rope_type": "linear", "factor": 4.0},
      },
      prefill=(whole,),
      gradients=(),
      prompt=half,
      weights_of="llama_llama3",
    ),
  ]


def make_model(case: Case) -> transformers.PreTrainedModel:
  config_class, model_class = CLASSES[case.family]
  # transformers moves fields out of the dicts that it is given.
  config = config_class(**json.loads(json.dumps(case.config)), dtype="float32")
  config._attn_implementation = "eager"
  return model_class(config).to(torch.float32).eval()


def draw_weights(model: torch.nn.Module, seed: list[int]) -> dict[str, np.ndarray]:
  """Draws a float16 number for every parameter, tied ones once."""
  rng = np.random.default_rng(seed)
  weights = {}
  for name, value in sorted(model.named_parameters()):
    draw = rng.standard_normal(tuple(value.shape))
    scale = 0.85 / value.shape[-1] ** 0.5
    weights[name] = (1 + 0.3 * draw if "norm" in name else scale * draw).astype(
      np.float16
    )
  return weights


class _ForcedTokens(transformers.LogitsProcessor):
  """Leaves `generate` no choice but the tokens of a text."""

  def __init__(self, token_ids: torch.Tensor):
    self._token_ids = token_ids

  def __call__(self, input_ids, scores):
    wanted = self._token_ids[:, input_ids.shape[1]][:, None]
    return torch.full_like(scores, -torch.inf).scatter(1, wanted, 0.0)


def decode(model, token_ids: torch.Tensor, prompt: int) -> np.ndarray:
  """Returns logits [B, T - prompt, V] of `generate` with its cache, text forced."""
  steps = token_ids.shape[1] - prompt
  with torch.no_grad():
    out = model.generate(
      input_ids=token_ids[:, :prompt],
      attention_mask=torch.ones_like(token_ids[:, :prompt]),
      max_new_tokens=steps,
      do_sample=False,
      use_cache=True,
      output_logits=True,
      return_dict_in_generate=True,
      logits_processor=transformers.LogitsProcessorList([_ForcedTokens(token_ids)]),
    )
  assert torch.equal(out.sequences, token_ids), "the text was to be forced"
  return torch.stack(out.logits, dim=1).numpy()


def compute(
  case: Case, weights: dict[str, np.ndarray], token_ids: np.ndarray
) -> dict[str, np.ndarray]:
  """Returns everything that transformers says of a case.

  config               the config.json that transformers writes
  prefill/N            logits [B, N, V] of the first N tokens
  decode               logits [B, T - prompt, V] after prompt, prompt + 1, ... tokens
  loss/N, grad/N/NAME  mean loss over the shifted targets of N tokens, its gradient
  """
  model = make_model(case)
  state = {name: torch.from_numpy(w.astype(np.float32)) for name, w in weights.items()}
  missing, unexpected = model.load_state_dict(state, strict=False)
  tied = ["lm_head.weight"] if case.config["tie_word_embeddings"] else []
  assert (missing, unexpected) == (tied, []), (missing, unexpected)
  ids = torch.from_numpy(token_ids).long()
  arrays = {"config": np.array(model.config.to_json_string())}
  for length in case.prefill:
    with torch.no_grad():
      arrays[f"prefill/{length}"] = model(input_ids=ids[:, :length]).logits.numpy()
  if case.prompt:
    arrays["decode"] = decode(model, ids[:, : max(case.prefill)], case.prompt)
  for length in case.gradients:
    model.zero_grad()
    out = model(input_ids=ids[:, :length], labels=ids[:, :length])
    out.loss.backward()
    arrays[f"loss/{length}"] = out.loss.detach().numpy()
    for name, value in model.named_parameters():
      arrays[f"grad/{length}/{name}"] = value.grad.numpy().copy()
  return arrays


def compute_all(
  size_name: str, seed: int
) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
  """Yields each case's name and what `compute` finds, with weights and `token_ids`.

  A case that has the weights of another has `weights_of` in their place.
  """
  size = SIZES[size_name]
  rng = np.random.default_rng([seed, 1])
  token_ids = rng.integers(0, size.vocab_size, (size.rows, size.length))
  weights: dict[str, dict[str, np.ndarray]] = {}
  for number, case in enumerate(make_cases(size, seed)):
    weights[case.name] = (
      weights[case.weights_of]
      if case.weights_of
      else draw_weights(make_model(case), [seed, 2, number])
    )
    arrays = compute(case, weights[case.name], token_ids)
    arrays |= {"token_ids": token_ids.astype(np.int32), "prompt": np.int32(case.prompt)}
    if case.weights_of:
      arrays["weights_of"] = np.array(case.weights_of)
    else:
      arrays |= {f"weight/{name}": w for name, w in weights[case.name].items()}
    yield case.name, arrays


def about(size_name: str, seed: int) -> dict[str, Any]:
  """Returns sizes, seed and versions."""
  return {
    "size": dataclasses.asdict(SIZES[size_name]),
    "seed": seed,
    "torch": torch.__version__,
    "transformers": transformers.__version__,
    "numpy": np.__version__,
    "python": platform.python_version(),
  }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--out", type=Path, required=True)
  parser.add_argument("--size", choices=list(SIZES), required=True)
  parser.add_argument("--seed", type=int, default=0)
  arguments = parser.parse_args()
  logging.disable(logging.WARNING)  # about special tokens that a text has none of
  arguments.out.mkdir(parents=True, exist_ok=True)
  for name, arrays in compute_all(arguments.size, arguments.seed):
    np.savez(arguments.out / f"{name}.npz", **arrays)
    print(f"  transformers: {name}", flush=True)
  text = json.dumps(about(arguments.size, arguments.seed), indent=2)
  (arguments.out / "about.json").write_text(text)


if __name__ == "__main__":
  main()
