"""Exports read back: ids are those that were searched, and texts say if they are."""

import json

import pytest

from phi4_jax.common.errors import DataError
from phi4_jax.data.tokenizer import ByteVocabulary
from phi4_jax.pts import exports
from phi4_jax.pts.analytic import AnalyticSampler, make_process
from phi4_jax.pts.exports import Texts, export_run
from phi4_jax.pts.find import find_pivotal_tokens
from phi4_jax.pts.search import SearchConfig

VOCABULARY = ByteVocabulary()
TEXTS = Texts(VOCABULARY)
PROCESS = make_process(0, num_steps=16, forks=0.12)
CONFIG = SearchConfig(
  mode="paper", rollouts_per_question=10, confirm_rollouts=24, num_traces=0
)


def read(path):
  return [json.loads(line) for line in path.open()]


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
  folder = tmp_path_factory.mktemp("runs") / "pts"
  sampler = AnalyticSampler(PROCESS, 4)
  found = find_pivotal_tokens(
    sampler, PROCESS.questions, PROCESS, CONFIG, out_dir=folder, seed=4
  )
  return folder, found


def export(folder, form):
  path, count, inexact = export_run(folder, form, VOCABULARY, model_id="tiny")
  records = read(path)
  assert path == folder / "exports" / f"{form}.jsonl" and len(records) == count
  assert inexact == sum(not record["exact"] for record in records)
  return records


def test_dpo_has_the_ids_of_every_pair(searched):
  folder, found = searched
  records, pairs = export(folder, "dpo"), read(folder / "pairs.jsonl")
  assert len(records) == found["pairs"] > 8
  for record, pair in zip(records, pairs, strict=True):
    assert record["id"] == pair["id"]
    prefix = pair["prompt_ids"] + pair["response_ids"][: pair["position"]]
    assert record["prefix_ids"] == prefix
    for side in ("accepted", "rejected"):
      assert record[f"{side}_id"] == pair[f"{side}_id"]
      assert record[f"{side}_counts"] == pair[f"{side}_counts"]
    assert record["exact"] is True
    assert TEXTS.encode(record["prefix"]) == prefix


def test_trl_has_the_columns_of_a_preference_data_set_and_of_its_collator(searched):
  folder, found = searched
  records = export(folder, "trl")
  assert len(records) == found["pairs"]
  for record in records:
    for name in ("prompt", "chosen", "rejected"):
      assert TEXTS.encode(record[name]) == record[f"{name}_ids"]
    assert len(record["chosen_ids"]) == len(record["rejected_ids"]) == 1
    assert record["chosen_ids"] != record["rejected_ids"]


def test_the_public_format_has_its_fields(searched):
  folder, found = searched
  records = export(folder, "codelion")
  pivots = read(folder / "pivotal_tokens.jsonl")
  assert len(records) == found["pivotal_tokens"]
  for record, pivot in zip(records, pivots, strict=True):
    assert record["query"] == PROCESS.questions[pivot["question"]].prompt
    assert TEXTS.encode(record["pivot_context"]) == pivot["prefix_ids"]
    assert TEXTS.encode(record["pivot_token"]) == [pivot["token_id"]]
    assert record["pivot_token_id"] == pivot["token_id"]
    change = record["prob_after"] - record["prob_before"]
    assert change == pytest.approx(record["prob_delta"]) and record["prob_delta"]
    assert record["is_positive"] == (change > 0)
    assert record["model_id"] == "tiny" and record["task_type"] == "generic"
    assert record["dataset_item_id"] == pivot["id"]


def test_special_tokens_have_their_names_and_come_back():
  specials = VOCABULARY.specials
  ids = [specials["<|im_start|>"], *VOCABULARY.encode("user"), specials["<|im_sep|>"]]
  assert TEXTS.text(ids) == "<|im_start|>user<|im_sep|>"
  assert TEXTS.encode(TEXTS.text(ids)) == ids
  assert TEXTS.gives_back(ids, VOCABULARY.encode("a"), [specials["<|im_end|>"]])


@pytest.mark.parametrize(
  "prefix, ending, comes_back",
  [
    (b"<|im_en", b"d", True),
    ("ü".encode()[:1], b"\xbc", False),  # half a character
    (b"a", "ü".encode()[:1], False),
    (b"<|im_end|>", b"a", False),  # a name that a user typed
    (b"<|im_end|", b">", False),
  ],
)
def test_whether_ids_come_back_is_said(prefix, ending, comes_back):
  ids, last = [
    [len(VOCABULARY.specials) + byte for byte in data] for data in (prefix, ending)
  ]
  assert TEXTS.gives_back(ids, last) is comes_back
  assert isinstance(TEXTS.text(ids + last), str)


def test_an_id_beyond_the_vocabulary_is_shown():
  ids = [*VOCABULARY.encode("a"), VOCABULARY.size + 1]
  assert TEXTS.text(ids) == "a\ufffd" and not TEXTS.gives_back(ids)


def test_no_pair_is_an_empty_file_and_no_search_an_error(searched, tmp_path):
  folder, _ = searched
  (tmp_path / "questions.jsonl").write_bytes((folder / "questions.jsonl").read_bytes())
  for name in ("pairs.jsonl", "pivotal_tokens.jsonl"):
    (tmp_path / name).write_text("")
  for form in exports.FORMATS:
    assert export(tmp_path, form) == []
  with pytest.raises(DataError, match="does not exist"):
    export_run(tmp_path / "none", "dpo", VOCABULARY, model_id="")
