"""Folders of finished runs, made up: what a report reads, without any training."""

import collections
import json
import random
from pathlib import Path

import numpy as np

from experiments.compare import answers_folder, load_arms
from phi4_jax.data import toy
from phi4_jax.data.tokenizer import VocabularyConfig, train_vocabulary
from phi4_jax.eval import comparison
from phi4_jax.eval.statistics import wilson_interval
from phi4_jax.pts.costs import name_stages, tokens_per_pivot

_VOCABULARY = VocabularyConfig(
  size=100,
  byte_fallback=False,
  split_by_script=False,
  symbols=("system", "user", "assistant", "steps:", "jumps:"),
)
_QUESTIONS = {"split": "train", "min_ops": 3, "max_ops": 6, "max_digit": 5}
COMMIT = "0123456789abcdef0123456789abcdef01234567"
# Accuracy that each arm is made to have, and what it is trained on.
EFFECTS = {"sft": 0.54, "pts_dpo": 0.66, "full_dpo": 0.57, "rejection_sampling": 0.76}
_KINDS = {"pts_dpo": "pivotal", "full_dpo": "full", "rejection_sampling": "rejection"}
PAIRS_SEEN = 640


_FILES = ("questions", "rollouts", "estimates", "pivotal_tokens", "pairs")


def write_run(folder: Path, verb: str, config: dict, **result) -> Path:
  """Writes what every finished run has."""
  folder.mkdir(parents=True, exist_ok=True)
  described = {"verb": verb, "config": {"class": "ToyConfig", **config}}
  (folder / "config.json").write_text(json.dumps(described))
  (folder / "config.gin").write_text(
    f"# <all> settings of {folder.name}\nToy.seed = 0\n"
  )
  (folder / "git.txt").write_text(f"commit {COMMIT}\nclean\n")
  (folder / "versions.txt").write_text(
    "python 3.11.7\nplatform Toy-Linux\njax 0.10.2\n"
  )
  whole = {"verb": verb, "metrics": {}, "fingerprint": f"of {folder.name}"}
  whole |= {"minutes": 0.5, "peak_memory_gb": 0.7, **result}
  (folder / "result.json").write_text(json.dumps(whole))
  return folder


def write_jsonl(path: Path, records) -> None:
  path.write_text("".join(json.dumps(record) + "\n" for record in records))


def write_curves(folder: Path, metrics, steps: int = 40, seed: int = 0) -> None:
  """`metrics`: name -> (first value, last value)."""
  rng = np.random.default_rng(seed)
  lines = []
  for i in range(steps):
    share = 1 - np.exp(-4 * i / steps)
    noise = 1 + 0.03 * rng.normal()
    values = {n: (a + (b - a) * share) * noise for n, (a, b) in metrics.items()}
    lines.append({"step": 10 * (i + 1), "time/unix_seconds": 1.0, **values})
  write_jsonl(folder / "metrics.jsonl", lines)


def write_answers(folder: Path, correct: np.ndarray, seed: int = 0, **settings) -> None:
  """An evaluation's folder; `correct` is [samples, questions]."""
  rng = np.random.default_rng(seed)
  folder.mkdir(parents=True)
  asked = {"task": "arithmetic", "num_examples": correct.shape[1]}
  asked |= {"samples_per_example": len(correct), "examples_sha256": "questions"}
  asked |= {"law": {"temperature": 1.0}, **settings}
  (folder / "settings.json").write_text(json.dumps(asked))
  records = []
  for sample, row in enumerate(correct):
    for example, right in enumerate(row):
      steps = rng.random() < (0.8 if right else 0.3)
      labels = {"method": "steps" if steps else "jumps"}
      record = {"example": example, "sample": sample, "correct": bool(right)}
      records.append(record | {"labels": labels})
  write_jsonl(folder / "samples.jsonl", records)


def write_search(folder: Path, vocabulary_folder: str, vocabulary, **sizes) -> Path:
  """A finished search for pivotal tokens."""
  records = make_search(vocabulary, **sizes)
  pivots = records["pivotal_tokens"]
  lengths = [len(rollout["token_ids"]) for rollout in records["rollouts"]]
  estimates = records["estimates"]
  stages = _costs(records)
  metrics = {  # all that find_pivotal_tokens returns; a test compares the names
    "questions": len(records["questions"]),
    "kept": sum(question["kept"] for question in records["questions"]),
    "success": 0.5,
    "responses": 2 * sum(question["kept"] for question in records["questions"]),
    "tokens": 4000,
    "possible_tokens": 900,
    "candidates": len(pivots) + 9,
    "pivotal_tokens": len(pivots),
    "pairs": len(records["pairs"]),
    "positive": sum(pivot["sign"] == "positive" for pivot in pivots),
    "negative": sum(pivot["sign"] == "negative" for pivot in pivots),
    "pivots_without_pair": {
      "no_frequent_alternative": 0,
      "gap_too_small": 3,
      "same_pair_again": 2,
      "over_quota": 0,
    },
    "traces": len(records["traces"]),
    "estimates": len(estimates),
    "rollouts": len(lengths) + sum(estimate["rollouts"] for estimate in estimates),
    "sampled_tokens": sum(lengths) + sum(estimate["tokens"] for estimate in estimates),
    "out_of_budget": False,
    "mode": "paper",
    "states": dict(collections.Counter(q["state"] for q in records["questions"])),
    "stages": stages,
    "tokens_per_pivot": tokens_per_pivot(stages, len(pivots)),
    "categories": {},
  }
  search = {"mode": "paper", "gap": 0.2, "min_success": 0.2, "max_success": 0.8}
  search |= {"responses_per_question": 2, "confirm_rollouts": 48}
  write_run(
    folder,
    "find_pivotal_tokens",
    {"search": search, "vocabulary": vocabulary_folder, "seed": 0},
    metrics=metrics,
    # Of the last process: this search was once continued.
    perf={"tokens_per_second": 12345.6, "last_process": {"sampled_tokens": 321}},
  )
  for name, lines in records.items():
    write_jsonl(folder / f"{name}.jsonl", lines)
  return folder


def _costs(records: dict) -> dict:
  """Rollouts and tokens by part of the search, as the search counts them."""
  costs: dict[str, dict[str, int]] = {}
  parts = [("filter", 1, len(r["token_ids"])) for r in records["rollouts"]]
  parts += [(e["phase"], e["rollouts"], e["tokens"]) for e in records["estimates"]]
  for phase, rollouts, tokens in parts:
    cost = costs.setdefault(phase, {"rollouts": 0, "sampled_tokens": 0})
    cost["rollouts"] += rollouts
    cost["sampled_tokens"] += tokens
  return name_stages(costs, "paper")


def make_search(vocabulary, *, num_questions=12, num_traces=3, seed=0) -> dict:
  """The records of a search: each response drifts, and moves at its method word."""
  rng, draw = np.random.default_rng(seed), random.Random(seed)
  found = {name: [] for name in (*_FILES, "traces")}
  asked = toy.questions(seed, num_questions, "train", min_ops=5, max_ops=6, max_digit=5)
  for number, question in enumerate(asked):
    share = float(rng.beta(2, 2))
    successes, kept = round(12 * share), 0.2 <= round(12 * share) / 12 <= 0.8
    prompt_ids = vocabulary.encode(question.text)
    found["questions"].append(
      {
        "question": number,
        "id": question.expression,
        "prompt": question.text,
        "reference": str(question.answer),
        "prompt_ids": prompt_ids,
        "successes": successes,
        "rollouts": 12,
        "kept": kept,
        "state": "searched" if kept else "too_hard" if share < 0.5 else "too_easy",
        "reason": "",
        "category": "",
        "cut": 0,
      }
    )
    rollouts = []
    for k in range(12):
      method = "steps" if k < successes else "jumps"
      ids = vocabulary.encode(toy.write_trace(draw, question.expression, method))
      record = {"question": number, "rollout": k, "token_ids": ids}
      record |= {"logprobs": [-0.1] * len(ids), "finish": "stop"}
      rollouts.append(record | {"correct": k < successes})
    found["rollouts"] += rollouts
    if not kept:
      continue
    for phase, count, tokens in (("search", 12, 300), ("trace", 64, 1500)):
      record = {"phase": phase, "question": number, "response": 0, "position": 1}
      record |= {"successes": count // 2, "rollouts": count, "tokens": tokens}
      record["first_tokens"] = {"1": [count - 3, 2], "2": [3, 1]}
      found["estimates"].append(record)
    for rollout in (rollouts[0], rollouts[successes]):  # the first right, wrong one
      _add_response(found, vocabulary, question, rollout, share, rng)
  found["traces"] = found["traces"][:num_traces]
  return found


def _add_response(found, vocabulary, question, rollout, share, rng):
  ids, correct = rollout["token_ids"], rollout["correct"]
  number, response = rollout["question"], rollout["rollout"]
  prompt_ids = found["questions"][number]["prompt_ids"]
  moves = {0: 0.25 if correct else -0.3, len(ids) // 2: -0.3 if correct else 0.22}
  values, value = [share], share
  for i in range(len(ids)):
    value = float(np.clip(value + moves.get(i, 0.04 * rng.normal()), 0.03, 0.97))
    values.append(value)
  counts = [
    {"successes": int(rng.binomial(64, v)), "rollouts": 64, "exact": False}
    for v in values[:-1]
  ]
  counts.append({"successes": int(correct), "rollouts": 1, "exact": True})
  tokens = [vocabulary.decode([token_id]) for token_id in ids]
  probs = [float(p) for p in rng.beta(6, 1, len(ids))]
  for position in moves:
    probs[position] = float(rng.uniform(0.05, 0.6))
  place = {"question": number, "id": question.expression, "response": response}
  found["traces"].append(
    place
    | {
      "prompt": question.text,
      "correct": correct,
      "token_ids": ids,
      "tokens": tokens,
      "probs": probs,
      "values": counts,
    }
  )
  for position, move in moves.items():
    before, after = values[position], values[position + 1]
    sides = [
      {"successes": int(rng.binomial(48, v)), "rollouts": 48, "exact": False}
      for v in (before, after)
    ]
    delta = (sides[1]["successes"] - sides[0]["successes"]) / 48
    if abs(delta) < 0.2:
      continue
    sign = "positive" if delta > 0 else "negative"
    other = (ids[position] + 1) % vocabulary.size
    width = wilson_interval(24, 48).high - 0.5
    found["pivotal_tokens"].append(
      place
      | {
        "position": position,
        "prefix_ids": [*prompt_ids, *ids[:position]],
        "token_id": ids[position],
        "token": tokens[position],
        "prob": probs[position],
        "sign": sign,
        "before": sides[0],
        "after": sides[1],
        "delta": delta,
        "interval": [delta - width, delta + width],
        "search": {"before": [6, 12], "after": [9, 12]},
        "alternatives": [
          {
            "token_id": other,
            "token": vocabulary.decode([other]),
            "rollouts": 20,
            "successes": 5,
          }
        ],
      }
    )
    low, high = [5, 20], [30, 48]
    own, alternative = tokens[position], vocabulary.decode([other])
    raises = move > 0
    found["pairs"].append(
      place
      | {
        "position": position,
        "accepted": own if raises else alternative,
        "rejected": alternative if raises else own,
        "accepted_counts": high,
        "rejected_counts": low,
        "sign": sign,
      }
    )


def write_chain(
  folder: Path,
  *,
  num_questions=60,
  num_runs=3,
  seed=0,
  effects=None,
  search=True,
  **sizes,
) -> Path:
  """A finished pipeline whose arms have the accuracies of `effects`."""
  rng = np.random.default_rng(seed)
  effects = EFFECTS if effects is None else effects
  vocabulary = None
  stages = ["tokenizer", "pretrain", "sft"]
  write_run(
    folder / "tokenizer", "train_tokenizer", {}, metrics={"vocabulary_size": 100}
  )
  if search:
    draw = random.Random(0)
    texts = [
      toy.draw_chat(draw, toy.draw_question(draw, **_QUESTIONS)) for _ in range(300)
    ]
    vocabulary = train_vocabulary(
      (text for pair in texts for text in pair),
      _VOCABULARY,
      folder / "tokenizer" / "vocabulary",
    )
  for name, losses in (("pretrain", (3.0, 0.8)), ("sft", (0.9, 0.15))):
    speed = {"tokens_per_second": 15_000.0}
    metrics = {"loss": losses[1]}
    write_run(folder / name, name, {"seed": seed}, metrics=metrics, perf=speed)
    write_curves(folder / name, {"loss/total": losses}, 60, seed)
  if search:
    stages.append("pts")
    write_search(folder / "pts", "stage:tokenizer", vocabulary, seed=seed, **sizes)
  arms = {}
  for arm in effects:
    runs = ["sft"] if arm == "sft" else [f"{arm}_{i}" for i in range(num_runs)]
    arms[arm] = [f"stage:{name}" for name in runs]
    for i, name in enumerate(runs):
      if arm != "sft":
        config = {"data": "stage:pts", "pairs": {"kind": _KINDS[arm], "seed": i}}
        found = {"loss": 0.5, "pairs_seen": PAIRS_SEEN + i}
        write_run(folder / name, "dpo", config, metrics=found)
        curves = {"loss/total": (0.69, 0.5)}
        if "dpo" in arm:
          curves |= {"dpo/pair_accuracy": (0.5, 0.9), "dpo/margin_nats": (0.01, 2.0)}
        write_curves(folder / name, curves, 12, i)
        stages.append(name)
  difficulty = rng.normal(0, 0.25, num_questions)
  for arm, effect in effects.items():
    for i in range(len(arms[arm])):
      samples = num_runs if arm == "sft" else 1
      shape = (samples, num_questions)
      chances = effect + difficulty + 0.015 * rng.normal()
      where = answers_folder(folder / "compare", arm, i)
      write_answers(where, rng.random(shape) < chances, seed=i)
  metrics = comparison.compare(load_arms(folder / "compare", arms), "sft")
  for arm, runs in arms.items():
    metrics["arms"][arm]["seeds"] = list(range(len(runs)))
  task = {"class": "ArithmeticTaskConfig", "split": "evaluation"}
  config = {"arms": arms, "baseline": "sft", "task": task, "law": {"temperature": 1.0}}
  config |= {"num_examples": num_questions}
  write_run(folder / "compare", "compare", config, metrics=metrics)
  stages.append("compare")
  results = {n: json.loads((folder / n / "result.json").read_text()) for n in stages}
  return write_run(
    folder,
    "pipeline",
    {"stages": dict.fromkeys(stages, {})},
    stages=results,
    minutes=9.25,  # the stages, and what lies between them
  )


def write_sweep(folder: Path, *, seeds=(1, 2, 3), axes=None, **chain) -> Path:
  """A finished sweep of chains over seeds."""
  points = {}
  for seed in seeds:
    name = f"seed={seed}"
    write_chain(folder / "runs" / name, seed=seed, num_runs=1, **chain)
    points[name] = "fingerprint"
  config = {"run": "pipeline", "axes": axes or {}, "seeds": list(seeds)}
  return write_run(folder, "sweep", config, points=points)
