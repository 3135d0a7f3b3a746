"""Pairs and pivotal tokens in the formats of others, from the files of a finished run.

  dpo       one line a pair: ids before it, the two tokens, counts; and texts
  trl       prompt, chosen and rejected, as texts and as ids, for TRL's DPOTrainer
  codelion  one line a pivotal token, in the flat records that every release of the
            public `pts` package reads (its field names; what it has no name for is kept
            beside them)

`phi4 dpo` needs none of them: it reads the run's folder. Texts are for people and for
programs that take nothing else. A prefix is a list of ids, and its text may be cut into
other ids; `exact` says of each line whether it is cut into these very ids again, names
of special tokens taken for the tokens. TRL cuts texts itself and closes both answers
with the end-of-text token, which no pivotal pair has; to train on the ids as they are,
hand DPOTrainer the columns prompt_ids, chosen_ids and rejected_ids, and let
`_prepare_dataset` return the data set unchanged.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from phi4_jax.common.errors import DataError
from phi4_jax.common.io import read_jsonl
from phi4_jax.data import pivotal_files
from phi4_jax.data.tokenizer import Vocabulary
from phi4_jax.pts.records import PIVOTS, write_jsonl

Format = Literal["dpo", "trl", "codelion"]
FORMATS: tuple[Format, ...] = get_args(Format)
FOLDER = "exports"

# Fields of a pair or a pivot that are of use anywhere.
_EVIDENCE = (
  *("accepted_counts", "rejected_counts", "sign", "delta", "lower", "log_e"),
  *("prob", "law", "seed", "key_paths"),
)


def export_run(
  folder: Path, form: Format, vocabulary: Vocabulary, *, model_id: str
) -> tuple[Path, int, int]:
  """Writes exports/FORM.jsonl in a run's folder.

  Args:
    folder: of a finished search.
    form: one of `FORMATS`.
    vocabulary: that of the run.
    model_id: names the model, for formats that have a field for it.

  Returns:
    The file, its number of lines, and how many of them have texts that are cut into
    other ids than those that were searched.

  Raises:
    DataError: if a file of the run is missing or damaged.
  """
  write: Callable[..., Iterator[dict[str, Any]]] = {
    "dpo": _dpo_records,
    "trl": _trl_records,
    "codelion": _codelion_records,
  }[form]
  texts = Texts(vocabulary)
  records = list(write(folder, texts, model_id))
  path = folder / FOLDER / f"{form}.jsonl"
  write_jsonl(path, records)
  return path, len(records), sum(not record["exact"] for record in records)


class Texts:
  """Texts of ids, special tokens by their names, and whether they give the ids back."""

  def __init__(self, vocabulary: Vocabulary):
    self._vocabulary = vocabulary
    specials = vocabulary.specials
    self._names = {token_id: name for name, token_id in specials.items()}
    self._specials = specials
    # Longest first: one name may begin another.
    names = sorted(specials, key=len, reverse=True)
    self._cut = re.compile(f"({'|'.join(map(re.escape, names))})") if names else None

  def text(self, token_ids: Sequence[int]) -> str:
    """Returns the text of ids; an id beyond the vocabulary becomes U+FFFD."""
    parts: list[str] = []
    plain: list[int] = []

    def flush() -> None:
      if plain:
        parts.append(self._vocabulary.decode(plain))
        plain.clear()

    for token_id in token_ids:
      if token_id in self._names or token_id >= self._vocabulary.size:
        flush()
        parts.append(self._names.get(token_id, "\ufffd"))
      else:
        plain.append(token_id)
    flush()
    return "".join(parts)

  def encode(self, text: str) -> list[int]:
    """Cuts a text as tokenizers do that take names of special tokens for the tokens."""
    ids: list[int] = []
    for part in self._cut.split(text) if self._cut else [text]:
      if part in self._specials:
        ids.append(self._specials[part])
      elif part:
        ids += self._vocabulary.encode(part)
    return ids

  def gives_back(self, prefix_ids: Sequence[int], *endings: Sequence[int]) -> bool:
    """Whether the texts of a prefix, and with each ending, are cut into these ids."""
    prefix = self.text(prefix_ids)
    try:
      if self.encode(prefix) != list(prefix_ids):
        return False
      return all(
        self.encode(prefix + self.text(ending)) == [*prefix_ids, *ending]
        for ending in endings
      )
    except DataError:
      return False  # a character that no token has


def _pairs(folder: Path) -> Iterator[dict[str, Any]]:
  """Yields the pairs with their questions' names, kinds and texts."""
  path = folder / pivotal_files.PAIRS
  questions = _questions(folder)
  if not path.is_file():
    raise DataError(f"{path} does not exist: {folder} holds no finished search.")
  if not path.stat().st_size:
    return
  for _, record in read_jsonl(path):
    question = questions[record["question"]]
    prefix = [*record["prompt_ids"], *record["response_ids"][: record["position"]]]
    yield record | {
      "prefix_ids": prefix,
      "question_text": question["prompt"],
      "reference": question["reference"],
      "category": question.get("category", ""),
    }


def _questions(folder: Path) -> Mapping[int, dict[str, Any]]:
  path = folder / pivotal_files.QUESTIONS
  return {record["question"]: record for _, record in read_jsonl(path)}


def _dpo_records(folder: Path, texts: Texts, model_id: str) -> Iterator[dict[str, Any]]:
  for pair in _pairs(folder):
    accepted, rejected = [pair["accepted_id"]], [pair["rejected_id"]]
    yield {
      "id": pair["id"],
      "category": pair["category"],
      "prompt_ids": pair["prompt_ids"],
      "prefix_ids": pair["prefix_ids"],
      "accepted_id": accepted[0],
      "rejected_id": rejected[0],
      "question": pair["question_text"],
      "prefix": texts.text(pair["prefix_ids"]),
      "accepted": texts.text(accepted),
      "rejected": texts.text(rejected),
      "exact": texts.gives_back(pair["prefix_ids"], accepted, rejected),
      "model_id": model_id,
      **{name: pair[name] for name in _EVIDENCE if name in pair},
    }


def _trl_records(folder: Path, texts: Texts, model_id: str) -> Iterator[dict[str, Any]]:
  del model_id
  for pair in _pairs(folder):
    chosen, rejected = [pair["accepted_id"]], [pair["rejected_id"]]
    yield {
      "prompt": texts.text(pair["prefix_ids"]),
      "chosen": texts.text(chosen),
      "rejected": texts.text(rejected),
      "prompt_ids": pair["prefix_ids"],
      "chosen_ids": chosen,
      "rejected_ids": rejected,
      "exact": texts.gives_back(pair["prefix_ids"], chosen, rejected),
      "id": pair["id"],
      "category": pair["category"],
    }


def _codelion_records(
  folder: Path, texts: Texts, model_id: str
) -> Iterator[dict[str, Any]]:
  path = folder / PIVOTS
  questions = _questions(folder)
  if not path.is_file():
    raise DataError(f"{path} does not exist: {folder} holds no finished search.")
  for _, pivot in read_jsonl(path) if path.stat().st_size else ():
    question = questions[pivot["question"]]
    before, after = _values(pivot)
    prefix, token = pivot["prefix_ids"], [pivot["token_id"]]
    yield {
      "query": question["prompt"],
      "pivot_context": texts.text(prefix),
      "pivot_token": texts.text(token),
      "pivot_token_id": pivot["token_id"],
      "prob_before": before,
      "prob_after": after,
      "prob_delta": pivot["delta"],
      "is_positive": pivot["sign"] == "positive",
      "model_id": model_id,
      "task_type": question.get("category") or "generic",
      "dataset_id": None,
      "dataset_item_id": question["id"],
      "position": len(prefix),
      "prefix_ids": prefix,
      "exact": texts.gives_back(prefix, token),
      **{name: pivot[name] for name in _EVIDENCE if name in pivot},
    }


def _values(pivot: Mapping[str, Any]) -> tuple[float, float]:
  if "value_before" in pivot:
    return pivot["value_before"], pivot["value_after"]
  before, after = (pivot[side] for side in ("before", "after"))
  return tuple(v["successes"] / v["rollouts"] for v in (before, after))
