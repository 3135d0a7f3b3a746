import pytest

from phi4_jax.common.errors import DataError
from phi4_jax.data.pivotal_files import read_pairs, read_questions, read_rollouts
from tests.data.search_folders import random_search, write_search


def test_what_was_written_is_read(tmp_path):
  records = random_search()
  folder = write_search(tmp_path, records)
  questions = read_questions(folder)
  assert [questions[q].kept for q in range(6)] == [True, False, True, True, True, True]
  assert list(questions[3].prompt_ids) == records["questions"][3]["prompt_ids"]
  rollouts = read_rollouts(folder, questions)
  assert len(rollouts) == 36 and sum(r.correct for r in rollouts) == 18
  assert [r.index for r in rollouts] == 6 * list(range(6))
  assert {r.finish for r in rollouts} == {"stop"}
  assert all(len(r.logprobs) == len(r.token_ids) for r in rollouts)
  pairs = read_pairs(folder)
  assert len(pairs) == len(records["pairs"])
  for pair, record in zip(pairs, records["pairs"], strict=True):
    assert list(pair.response_ids) == record["response_ids"]
    assert (pair.accepted_id, pair.rejected_id, pair.position) == (
      record["accepted_id"],
      record["rejected_id"],
      record["position"],
    )


def _read_all(folder):
  read_rollouts(folder, read_questions(folder))
  read_pairs(folder)


@pytest.mark.parametrize(
  "file, field, value, complaint",
  [
    ("questions", "kept", 1, "'kept' is 1; true or false"),
    ("questions", "question", 0, "'question' is 0 again"),
    ("questions", "prompt_ids", [], "'prompt_ids' is \\[\\]; a list of one or more"),
    ("rollouts", "token_ids", [3, -1], "'token_ids' is \\[3, -1\\]; a list"),
    ("rollouts", "rollout", -1, "'rollout' is -1; an integer of 0 or more"),
    ("rollouts", "logprobs", [-1.0], "'logprobs' must be a list of . numbers, one for"),
    ("rollouts", "finish", "done", "'finish' is 'done'; 'stop' or 'length'"),
    ("rollouts", "correct", "yes", "'correct' is 'yes'; true or false"),
    ("rollouts", "question", 99, "'question' is 99, which questions.jsonl does not"),
    ("pairs", "position", 50, "'position' is 50, beyond the"),
    ("pairs", "position", 1.5, "'position' is 1.5; an integer of 0 or more"),
    ("pairs", "position", True, "'position' is True; an integer"),
    ("pairs", "accepted_id", None, "'accepted_id' is None; an integer"),
    ("pairs", "response_ids", [1, 2, 3, 4, 5, 6, 7, 8, 9], "'response_ids' or"),
  ],
)
def test_a_bad_field_is_named_with_file_and_row(
  tmp_path, file, field, value, complaint
):
  records = random_search()
  row = 4 if file != "pairs" else _second_of_a_response(records["pairs"])
  records[file][row][field] = value
  if field == "response_ids":  # a fine pair in itself, but of another response
    records[file][row] |= {"position": 0, "accepted_id": 1, "rejected_id": 2}
  folder = write_search(tmp_path, records)
  with pytest.raises(DataError, match=f"Row {row + 1} of .*{file}.jsonl: .*"):
    _read_all(folder)
  with pytest.raises(DataError, match=complaint):
    _read_all(folder)


def _second_of_a_response(pairs):
  for i in range(1, len(pairs)):
    if pairs[i]["response_ids"] == pairs[i - 1]["response_ids"]:
      return i
  raise AssertionError("no response has two pairs")


def test_a_pair_of_other_tokens_than_the_response_has(tmp_path):
  records = random_search()
  pair = records["pairs"][0]
  own = pair["response_ids"][pair["position"]]
  pair["accepted_id"], pair["rejected_id"] = own + 1, own + 2
  folder = write_search(tmp_path, records)
  with pytest.raises(DataError, match=f"Row 1 of .*points at token {own} of the resp"):
    read_pairs(folder)
  pair["accepted_id"] = pair["rejected_id"] = own
  write_search(tmp_path, records)
  with pytest.raises(DataError, match=f"'rejected_id' is {own}, the accepted token"):
    read_pairs(folder)


def test_a_missing_field_or_file_is_named(tmp_path):
  records = random_search()
  del records["pairs"][2]["prompt_ids"]
  folder = write_search(tmp_path, records)
  with pytest.raises(DataError, match="Row 3 of .*pairs.jsonl has no 'prompt_ids'"):
    read_pairs(folder)
  (folder / "pairs.jsonl").unlink()
  with pytest.raises(DataError, match="pairs.jsonl does not exist"):
    read_pairs(folder)


def test_a_search_without_pairs_says_what_to_change(tmp_path):
  folder = write_search(tmp_path, random_search() | {"pairs": []})
  with pytest.raises(DataError, match="holds no pair.*num_questions.*SearchConfig.gap"):
    read_pairs(folder)
