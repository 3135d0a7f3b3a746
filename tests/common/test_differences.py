"""Settings that differ are named by path; nothing else of them is shown."""

import pytest

from phi4_jax.common.differences import list_differences

_DIGESTS = ("0123abcd" * 8, "4567ef01" * 8)


def test_every_leaf_is_named_by_its_path():
  old = {"a": 1, "b": {"c": [1, 2], "same": {"x": 1}}}
  new = {"a": 1, "b": {"c": [1], "same": {"x": 1}}, "d": None, "e": 2}
  assert list_differences(old, new) == ["b.c: [1, 2] -> [1]", "e: None -> 2"]
  assert list_differences(old, old) == []


def test_lists_of_objects_are_compared_one_by_one():
  old = {"stages": [{"class": "A", "n": 1}, {"class": "B", "n": 1}]}
  new = {"stages": [{"class": "A", "n": 1}, {"class": "B", "n": 2}]}
  assert list_differences(old, new) == ["stages[1].n: 1 -> 2"]


@pytest.mark.parametrize(
  "old, new, expected",
  [
    (None, {"class": "A", "n": 1}, "task: None -> A{2 settings}"),
    ({"class": "A", "n": 1}, {"class": "B"}, "task: A{2 settings} -> B{1 settings}"),
    ({"n": 1}, 3, "task: {1 settings} -> 3"),
    ([{"class": "A", "n": 1}], [], "task: [A{2 settings}] -> []"),
    (
      [{"class": "A", "n": 1}],
      [{"class": "A", "n": 2}, {"class": "B", "n": 1, "m": "x"}],
      "task: [A{2 settings}] -> [A{2 settings}, B{3 settings}]",
    ),
    (
      [{"class": "A"}, 1],
      [{"class": "B"}, 1],
      "task: [A{1 settings}, 1] -> [B{1 settings}, 1]",
    ),
  ],
)
def test_whole_objects_are_not_spelled(old, new, expected):
  assert list_differences({"task": old}, {"task": new}) == [expected]


def test_digests_are_cut_to_their_beginning():
  old, new = ({"id": f"{digest} seed 0"} for digest in _DIGESTS)
  assert list_differences(old, new) == [
    "id: '0123abcd... seed 0' -> '4567ef01... seed 0'"
  ]


def test_long_values_are_cut_in_the_middle():
  (line,) = list_differences({"text": "a" * 500}, {"text": "b" * 500})
  assert line.startswith("text: 'aaa") and len(line) < 150


def test_long_values_that_begin_and_end_alike_are_cut_where_they_differ():
  files = [f"data/part-{number:03d}.jsonl" for number in range(10)]
  others = [*files[:5], "data/other.jsonl", *files[6:]]
  (line,) = list_differences({"train": files}, {"train": others})
  old, new = line.removeprefix("train: ").split(" -> ")
  assert "part-005" in old and "other" in new and len(line) < 160
  (line,) = list_differences({"text": "a" * 500}, {"text": "a" * 501})
  old, new = line.removeprefix("text: ").split(" -> ")
  assert old != new


def test_digests_that_begin_alike_are_spelled():
  first, second = "0123abcd" + "0" * 56, "0123abcd" + "1" * 56
  (line,) = list_differences({"id": first}, {"id": second})
  assert "0123abcd000" in line and "0123abcd111" in line
