import numpy as np
import pytest

from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.data.pivotal_files import count_pairs
from phi4_jax.data.preference_rows import make_rows
from tests.data.search_folders import random_search, write_search


def small_search(folder):
  """One question of three tokens, responses [10 11 12 13] (right) and [20 21]."""
  rollouts = [
    {
      "question": 0,
      "rollout": number,
      "token_ids": ids,
      "logprobs": [-1.0] * len(ids),
      "finish": "stop",
      "correct": number == 0,
    }
    for number, ids in enumerate(([10, 11, 12, 13], [20, 21]))
  ]
  pair = {"question": 0, "response": 0, "prompt_ids": [1, 2, 3]}
  pair["response_ids"] = [10, 11, 12, 13]
  return write_search(
    folder,
    {
      "questions": [{"question": 0, "id": "a", "prompt_ids": [1, 2, 3], "kept": True}],
      "rollouts": rollouts,
      "pairs": [
        pair | {"position": 2, "accepted_id": 12, "rejected_id": 30},
        pair | {"position": 0, "accepted_id": 31, "rejected_id": 10},
      ],
    },
  )


def test_pivotal_row(tmp_path):
  rows = make_rows(small_search(tmp_path), "pivotal", num_pairs=None, seed=0)
  assert rows.num_pairs == 2 and rows.num_questions == 1
  arrays = {name: array.tolist() for name, array in rows.arrays.items()}
  # What stands from the last pair on is no input: nothing follows from it.
  assert arrays == {
    "token_ids": [[1, 2, 3, 10, 11]],
    "segment_ids": [[1, 1, 1, 1, 1]],
    "positions": [[0, 1, 2, 3, 4]],
    "pair_positions": [[2, 4]],
    "accepted_ids": [[31, 12]],
    "rejected_ids": [[10, 30]],
    "pair_weights": [[1.0, 1.0]],
    "context_weights": [[0, 0, 0, 1, 0]],
  }


def test_full_row(tmp_path):
  rows = make_rows(small_search(tmp_path), "full", num_pairs=1, seed=0)
  arrays = {name: array.tolist() for name, array in rows.arrays.items()}
  assert arrays == {
    "token_ids": [[[1, 2, 3, 10, 11, 12], [1, 2, 3, 20, 0, 0]]],
    "segment_ids": [[[1] * 6, [1, 1, 1, 1, 0, 0]]],
    "positions": [[[0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 0, 0]]],
    "targets": [[[2, 3, 10, 11, 12, 13], [2, 3, 20, 21, 0, 0]]],
    "loss_weights": [[[0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 0, 0]]],
  }


def test_rejection_row_and_dtypes(tmp_path):
  rows = make_rows(small_search(tmp_path), "rejection", num_pairs=1, seed=0)
  assert rows.arrays["token_ids"].tolist() == [[1, 2, 3, 10, 11, 12]]
  assert rows.arrays["targets"].tolist() == [[2, 3, 10, 11, 12, 13]]
  assert rows.arrays["loss_weights"].tolist() == [[0, 0, 1, 1, 1, 1]]
  for kind in ("pivotal", "full", "rejection"):
    rows = make_rows(tmp_path, kind, num_pairs=1, seed=0)
    for name, array in rows.arrays.items():
      assert array.dtype == (np.float32 if "weights" in name else np.int32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return write_search(tmp_path_factory.mktemp("search"), random_search())


def test_all_kinds_have_as_many_pairs_as_were_found(folder):
  found = count_pairs(folder)
  for kind in ("pivotal", "full"):
    assert make_rows(folder, kind, num_pairs=None, seed=0).num_pairs == found
  # There are 15 right responses to kept questions, fewer than pairs.
  with pytest.raises(ConfigError, match=f"15 right responses .* the {found} asked"):
    make_rows(folder, "rejection", num_pairs=None, seed=0)


def test_questions_take_turns_and_responses_do_not_repeat(folder):
  rows = make_rows(folder, "full", num_pairs=15, seed=3)
  assert rows.num_questions == 5 and rows.num_repeated == 0
  right, wrong = rows.arrays["token_ids"][:, 0], rows.arrays["token_ids"][:, 1]
  # Three right and three wrong responses a question: each is used exactly once.
  for side in (right, wrong):
    assert len({tuple(row) for row in side.tolist()}) == 15
  few = make_rows(folder, "rejection", num_pairs=5, seed=3)
  assert few.num_questions == 5
  # A row of a question that was not kept never appears.
  dropped = random_search()["questions"][1]["prompt_ids"]
  for row in [*right.tolist(), *few.arrays["token_ids"].tolist()]:
    assert row[: len(dropped)] != dropped


def test_pairs_of_a_response_share_its_row(folder):
  everything = make_rows(folder, "pivotal", num_pairs=None, seed=0)
  some = make_rows(folder, "pivotal", num_pairs=7, seed=1)
  assert len(everything.arrays["token_ids"]) == 10
  assert everything.arrays["pair_weights"].sum() == everything.num_pairs
  assert some.arrays["pair_weights"].sum() == some.num_pairs == 7
  assert some.num_questions == 5
  # A choice of any size and seed has the same shapes: one compiled program.
  for name, array in some.arrays.items():
    assert array.shape[1:] == everything.arrays[name].shape[1:]


def test_the_seed_decides_the_choice(folder):
  def ids(seed):
    return make_rows(folder, "full", num_pairs=6, seed=seed).arrays["token_ids"]

  assert np.array_equal(ids(0), ids(0))
  assert not np.array_equal(ids(0), ids(1))


def test_repeats_come_last_and_are_counted(tmp_path):
  records = random_search(num_questions=3)
  same = [r for r in records["rollouts"] if r["question"] == 0 and r["correct"]]
  for record in same:
    record |= {"token_ids": [5, 6, 7], "logprobs": [-1.0] * 3}
  folder = write_search(tmp_path, records)
  # Question 0 has one right response thrice, question 2 three: 4 are different.
  rows = make_rows(folder, "rejection", num_pairs=4, seed=0)
  assert rows.num_repeated == 0
  assert len({tuple(row) for row in rows.arrays["token_ids"].tolist()}) == 4
  assert make_rows(folder, "rejection", num_pairs=6, seed=0).num_repeated == 2
  with pytest.raises(ConfigError, match="6 right responses .* fewer than the 7"):
    make_rows(folder, "rejection", num_pairs=7, seed=0)


def test_no_kept_question_is_refused(tmp_path):
  records = random_search()
  for question in records["questions"]:
    question["kept"] = False
  with pytest.raises(DataError, match="no rollout of a question that was kept"):
    make_rows(write_search(tmp_path, records), "full", num_pairs=1, seed=0)
