"""Folders of a pivotal token search, made up without sampling."""

import json
from pathlib import Path

import numpy as np

VOCABULARY = "made-up"


def random_search(
  num_questions=6, *, num_ids=30, rollouts=6, prompt=3, length=8, seed=0
):
  """Returns the records of each file: varied lengths, some questions not kept."""
  rng = np.random.default_rng(seed)

  def draw(size):
    return rng.integers(1, num_ids, size=size).tolist()

  questions, responses, pairs = [], [], []
  for q in range(num_questions):
    ids = draw(prompt + q % 2)
    questions.append(
      {
        "question": q,
        "id": f"q{q}",
        "prompt": "?",
        "reference": "!",
        "prompt_ids": ids,
        "successes": rollouts // 2,
        "rollouts": rollouts,
        "kept": q != 1,
      }
    )
    for j in range(rollouts):
      tokens = draw(int(rng.integers(3, length + 1)))
      responses.append(
        {
          "question": q,
          "rollout": j,
          "token_ids": tokens,
          "logprobs": [-1.0] * len(tokens),
          "finish": "stop",
          "correct": j % 2 == 0,
          "response": "...",
        }
      )
      if q != 1 and j < 2:
        chosen = rng.choice(len(tokens), size=1 + (q + j) % 3, replace=False)
        pairs += [_pair(q, j, ids, tokens, int(p), rng, num_ids) for p in chosen]
  return {"questions": questions, "rollouts": responses, "pairs": pairs}


def _pair(question, response, prompt, tokens, position, rng, num_ids):
  own = tokens[position]
  other = own % (num_ids - 1) + 1
  positive = bool(rng.integers(2))
  return {
    "question": question,
    "id": f"q{question}",
    "response": response,
    "position": position,
    "prompt_ids": prompt,
    "response_ids": tokens,
    "accepted_id": own if positive else other,
    "rejected_id": other if positive else own,
    "sign": "positive" if positive else "negative",
  }


def write_search(folder: Path, records, *, vocabulary=VOCABULARY) -> Path:
  """Writes the files as a finished run leaves them."""
  folder.mkdir(parents=True, exist_ok=True)
  for name, rows in records.items():
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / f"{name}.jsonl").write_text(text)
  result = {"verb": "find_pivotal_tokens", "vocabulary": vocabulary}
  result["fingerprint"] = "search"
  (folder / "result.json").write_text(json.dumps(result))
  return folder
