"""The line of a search, on a terminal and in a file."""

import io

import pytest

from experiments.search_progress import SearchProgress


class Throughput:
  tokens_per_second = 1234.0
  occupancy = 0.954


class Terminal(io.StringIO):
  def isatty(self):
    return True


def say(stream, calls, throughput=Throughput):
  now = [0.0]
  with SearchProgress(throughput, stream=stream, clock=lambda: now[0]) as show:
    for seconds, *call in calls:
      now[0] = seconds
      show(*call)
  return stream.getvalue()


CALLS = [
  (0.0, "filter", 1, 40),
  (1.0, "filter", 2, 40),
  (45.0, "filter", 11, 40),
  (50.0, "filter", 40, 40),
  (51.0, "screen", 5, 9),
  (52.0, "screen", 9, 9),
  (53.0, "screen", 1, 9),
  (54.0, "confirm: 3 found", 4, 8),
  (90.0, "confirm: 5 found", 8, 8),
]


def test_a_file_has_a_line_for_parts_and_for_every_half_minute():
  rest = "  1.2k tokens/s  95% busy"
  assert say(io.StringIO(), CALLS).splitlines() == [
    f"filter  1/40 rollouts{rest}",
    f"filter  11/40 rollouts{rest}  2m10s left",
    f"filter  40/40 rollouts{rest}",
    f"screen  5/9 rollouts{rest}",
    f"screen  round 2  1/9 rollouts{rest}",
    f"confirm: 3 found  4/8 rollouts{rest}",
    f"confirm: 5 found  8/8 rollouts{rest}",
  ]


def test_a_terminal_has_one_line_for_each_part():
  text = say(Terminal(), CALLS)
  assert [line.count("\r") for line in text.split("\n")] == [4, 3, 2, 0]
  assert text.endswith("\n")


@pytest.mark.parametrize("made", [io.StringIO, Terminal])
def test_nothing_is_said_of_nothing(made):
  assert say(made(), []) == ""


def test_what_a_sampler_does_not_know_is_left_out():
  class Quiet:
    tokens_per_second = 0.0

  assert say(io.StringIO(), CALLS[:1], Quiet) == "filter  1/40 rollouts\n"
