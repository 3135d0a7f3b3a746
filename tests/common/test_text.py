"""Durations and tables, as they are shown."""

import pytest

from phi4_jax.common.text import format_duration, format_table


@pytest.mark.parametrize(
  "seconds, shown",
  [
    (-1.0, "0s"),
    (0.4, "0s"),
    (42.0, "42s"),
    (59.6, "1m00s"),
    (185.0, "3m05s"),
    (3599.7, "1h00m"),
    (7620.0, "2h07m"),
    (100 * 3600.0, "100h00m"),
  ],
)
def test_format_duration(seconds, shown):
  assert format_duration(seconds) == shown


def test_format_table_aligns_text_left_and_numbers_right():
  table = format_table(["arm", "n", "accuracy"], [["sft", 3, 0.5], ["dpo+", 128, 0.75]])
  assert table.splitlines() == [
    "| arm  |   n | accuracy |",
    "|------|----:|---------:|",
    "| sft  |   3 |      0.5 |",
    "| dpo+ | 128 |     0.75 |",
  ]


def test_format_table_without_rows_is_a_header():
  assert format_table(["a", "name"], []).splitlines() == [
    "| a  | name |",
    "|----|------|",
  ]
