"""Folders of finished comb searches, made up, with as many pivots as one likes."""

import collections
import json
import math
from pathlib import Path

import numpy as np

from phi4_jax.pts.costs import tokens_per_pivot
from tests.experiments.made_up_runs import write_jsonl, write_run

# Text that would end a script, a table or a page if it were not kept in.
HOSTILE = (
  "</script><script>alert(1)</script>",
  "<!--",
  "]]>",
  "\"'&amp;",
  "\u2028\u2029",
  "日本語 \U0001f600 e\u0301 \u202eabc\u202c",
  "\x00\x07",
  "</title></style>",
)
_WORDS = (
  " the", " so", " x", " =", " 12", " we", " find", ",", ".\n", " therefore", " sum",
  " of", " 3", "/", " half", " product", " negative", " (", "a", ")", " is", " root",
)  # fmt: skip
_GAP, _GAMMA0, _ALPHA = 0.2, 0.1, 0.05


def write_comb_search(
  folder: Path,
  *,
  num_questions: int = 12,
  responses_per_question: int = 2,
  length: int = 40,
  num_moves: int = 2,
  seed: int = 0,
) -> Path:
  """A finished search in mode comb.

  Every tenth question is too hard, every eleventh too easy, every thirteenth was given
  up; the others have responses with `num_moves` hypotheses each, of which most are
  exported.
  """
  rng = np.random.default_rng(seed)
  names = ("questions", "traces", "hypotheses", "pivotal_tokens", "pairs")
  found: dict[str, list] = {name: [] for name in names}
  for number in range(num_questions):
    _add_question(found, number, rng)
    if found["questions"][-1]["state"] == "searched":
      for response in range(responses_per_question):
        _add_response(found, number, response, length, num_moves, rng)
  questions, pivots = found["questions"], found["pivotal_tokens"]
  hypotheses = found["hypotheses"]
  stages = {}
  for name, share in (
    ("filter", 0.2),
    ("search", 0.35),
    ("confirm", 0.4),
    ("pair", 0.05),
  ):
    rollouts = round(share * 200 * num_questions)
    stages[name] = {"rollouts": rollouts, "sampled_tokens": rollouts * length // 2}
  stages["trace"] = {"rollouts": 0, "sampled_tokens": 0}
  sampled = sum(stage["sampled_tokens"] for stage in stages.values())
  categories = {}
  for question in questions:
    kept = categories.setdefault(
      question["category"], {"rollouts": 0, "sampled_tokens": 0}
    )
    kept["rollouts"] += 200
    kept["sampled_tokens"] += sampled // num_questions
  metrics = {
    "mode": "comb",
    "questions": num_questions,
    "kept": sum(question["kept"] for question in questions),
    "responses": len(found["traces"]),
    "tokens": sum(len(trace["tokens"]) for trace in found["traces"]),
    "possible_tokens": sum(
      prob <= 1 - _GAP for trace in found["traces"] for prob in trace["probs"]
    ),
    "success": 0.5,
    "candidates": len(hypotheses),
    "undecided": sum(h["state"] == "undecided" for h in hypotheses),
    "rejected": sum(h["state"] == "rejected" for h in hypotheses),
    "pivotal_tokens": len(pivots),
    "positive": sum(pivot["sign"] == "positive" for pivot in pivots),
    "negative": sum(pivot["sign"] == "negative" for pivot in pivots),
    "pairs": len(found["pairs"]),
    "pivots_without_pair": {
      "no_alternative": 1,
      "gap_too_small": 2,
      "same_pair_again": 0,
      "not_drawn": 0,
      "over_quota": 0,
    },
    "traces": len(found["traces"]),
    "rounds": 76,
    "screen": {"rounds": 61, "promoted": 0.642, "ended_by": "price"},
    "out_of_budget": False,
    "states": dict(collections.Counter(q["state"] for q in questions)),
    "rollouts": sum(stage["rollouts"] for stage in stages.values()),
    "sampled_tokens": sampled,
    "stages": stages,
    "tokens_per_pivot": tokens_per_pivot(stages, len(pivots)),
    "categories": categories,
  }
  search = {"mode": "comb", "gap": _GAP, "min_success": 0.2, "max_success": 0.8}
  search["comb"] = {"gamma0": _GAMMA0, "alpha": _ALPHA}
  write_run(
    folder,
    "find_pivotal_tokens",
    {"search": search, "seed": seed},
    metrics=metrics,
    perf={
      "tokens_per_second": 1234.5,
      "last_process": {"prefill_tokens": 4321, "held_tokens": 9876},
    },
  )
  law = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "max_length": 256}
  settings = {"law": law, "oracle": "number v1", "sampler_id": "0123abcd seed 0"}
  (folder / "settings.json").write_text(json.dumps(settings))
  for name, lines in found.items():
    write_jsonl(folder / f"{name}.jsonl", lines)
  (folder / "rollouts.jsonl").write_text("")
  return folder


def _add_question(found, number: int, rng) -> None:
  state = "searched"
  if number % 10 == 9:
    state = "too_hard"
  elif number % 11 == 10:
    state = "too_easy"
  elif number % 13 == 12:
    state = "given_up"
  share = {"too_hard": 0.05, "too_easy": 0.95}.get(state, rng.uniform(0.25, 0.75))
  hostile = HOSTILE[number % len(HOSTILE)] if number < 2 * len(HOSTILE) else ""
  reason = f"the oracle raised ValueError: {hostile}" if state == "given_up" else ""
  prompt = (
    f"Question {number}. A train leaves at {number % 12 + 1} o'clock {hostile} and "
    f"goes {number % 70 + 30} km in an hour. Let x be the number of stops; find the "
    "sum of the roots of the equation, and say why it is negative."
  )
  found["questions"].append(
    {
      "question": number,
      "id": f"train-{number}",
      "prompt": prompt,
      "reference": str(number % 17),
      "prompt_ids": list(range(30)),
      "successes": 0 if state == "given_up" else round(16 * share),
      "rollouts": 0 if state == "given_up" else 16,
      "kept": state == "searched",
      "state": state,
      "reason": reason,
      "category": ("algebra", "science", "code")[number % 3],
      "cut": 0,
    }
  )


def _add_response(found, number, response, length, num_moves, rng) -> None:
  length = int(rng.integers(max(num_moves + 1, length // 2), length * 3 // 2))
  ids = [int(i) for i in rng.integers(len(_WORDS), size=length)]
  ids[0] = 100 + response  # so that no two responses begin alike
  tokens = [_WORDS[i] if i < len(_WORDS) else f"<{i}>" for i in ids]
  if number < len(HOSTILE):
    tokens[1] = HOSTILE[number]
    ids[1] = 200 + number
  probs = np.where(rng.random(length) < 0.6, 1 - 1e-4, rng.beta(2, 2, length))
  correct = bool(rng.random() < 0.5)
  places = sorted(rng.choice(length - 1, size=num_moves, replace=False).tolist())
  values, value = [], float(rng.uniform(0.3, 0.7))
  moves = {}
  for i in range(length):
    values.append(value)
    if i in places:
      moves[i] = float(rng.choice([-1, 1]) * rng.uniform(0.22, 0.45))
      if not 0.02 < value + moves[i] < 0.98:
        moves[i] = -moves[i]
      probs[i] = rng.uniform(0.03, 0.7)
    value = float(np.clip(value + moves.get(i, 0.02 * rng.normal()), 0.02, 0.98))
  spans = [
    {"mean": v, "low": max(0.0, v - 0.06), "high": min(1.0, v + 0.06)} for v in values
  ]
  spans.append(dict.fromkeys(("mean", "low", "high"), float(correct)))
  rolls = rng.poisson(3, length)
  off = [[int(rng.binomial(n, v)), int(n)] for n, v in zip(rolls, values, strict=True)]
  place = {"question": number, "id": f"train-{number}", "response": response}
  tested = {}
  for i, move in moves.items():
    record = place | {"position": i, "token_id": ids[i], "token": tokens[i]}
    record |= _test(float(probs[i]), move, values[i], values[i + 1], rng)
    tested[str(i)] = record["alternatives"]
    found["hypotheses"].append(record)
    if record["state"] == "exported":
      _export(found, record, ids)
  found["traces"].append(
    place
    | {
      "prompt": found["questions"][number]["prompt"],
      "correct": correct,
      "token_ids": ids,
      "tokens": tokens,
      "probs": [float(p) for p in probs],
      "values": spans,
      "off": off,
      "alternatives": tested,
    }
  )


def _test(prob: float, move: float, before: float, after: float, rng) -> dict:
  """What is known of a token; some were not drawn, some cannot be left behind."""
  chance = rng.random()
  state = "exported" if chance < 0.7 else "undecided" if chance < 0.9 else "rejected"
  n = int(rng.integers(24, 80))
  arms = {"after": [int(rng.binomial(n, after)), n]}
  arms["off"] = [int(rng.binomial(n, before)), n]
  stay = 0.1
  if rng.random() < 0.1:
    stay, arms["after"] = 1.0, None
  not_drawn = state == "undecided" and rng.random() < 0.3
  if not_drawn:
    arms = {"after": None, "off": None}
  return {
    "sign": "positive" if move > 0 else "negative",
    "state": state,
    "reason": "" if state == "exported" else f"{state} because of the budget",
    "prob": prob,
    "delta": None if not_drawn else move,
    "lower": -1.0 if not_drawn else abs(move) - 0.08,
    "log_e": 0.0 if not_drawn else math.log(400 if state == "exported" else 3),
    "posterior": 0.9,
    **arms,
    "screened": [1, 3],
    "stay": stay,
    "end_value": 1.0,
    "weight": 1.0,
    "alternatives": [
      {
        "token_id": k,
        "token": _WORDS[k],
        "rollouts": n // (k + 2),
        "successes": n // (k + 4),
        "fresh": [n // (k + 5), n // (k + 3)],
      }
      for k in range(3)
    ],
  }


def _export(found, record: dict, ids: list[int]) -> None:
  evidence = {"gamma0": _GAMMA0, "alpha": _ALPHA, "law": {}, "oracle": "number v1"}
  evidence |= {"seed": 0, "key_paths": {}}
  prefix = [*range(30), *ids[: record["position"]]]
  found["pivotal_tokens"].append(
    record
    | {"prefix_ids": prefix, "value_before": 0.4, "value_after": 0.7, "no_pair": None}
    | evidence
  )
  own, other = record, record["alternatives"][0]
  raises = record["sign"] == "positive"
  accepted, rejected = (own, other) if raises else (other, own)
  names = ("question", "id", "response", "position", "sign", "token_id", "prob")
  names += ("delta", "lower", "log_e", "after", "off")
  found["pairs"].append(
    {name: record[name] for name in names}
    | {
      "prompt_ids": list(range(30)),
      "response_ids": ids,
      "accepted_id": accepted["token_id"],
      "rejected_id": rejected["token_id"],
      "accepted": accepted["token"],
      "rejected": rejected["token"],
      "accepted_counts": [13, 16],
      "rejected_counts": [5, 16],
    }
    | evidence
  )
