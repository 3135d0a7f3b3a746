"""Mixtures in tokens: Table 5, caps, and what happens at a source's end."""

import pytest

from phi4_jax.common.errors import ConfigError
from phi4_jax.data.mixture_table import format_mixture, plan_mixture

WEIGHTS = {
  "web": 0.15,
  "web_rewrites": 0.15,
  "synthetic": 0.40,
  "code": 0.20,
  "acquired": 0.10,
}
UNIQUE = {
  "web": 1.3e12,
  "web_rewrites": 290e9,
  "synthetic": 290e9,
  "code": 820e9,
  "acquired": 580e9,
}


def test_table_5_of_the_paper():
  shares = plan_mixture(WEIGHTS, 10e12, unique_tokens=UNIQUE)
  found = {share.name: round(share.epochs, 2) for share in shares}
  assert found == {
    "web": 1.15,
    "web_rewrites": 5.17,
    "synthetic": 13.79,
    "code": 2.44,
    "acquired": 1.72,
  }
  printed = [1.2, 5.2, 13.8, 2.4, 1.7]
  assert [round(share.epochs, 1) for share in shares] == printed
  assert sum(share.tokens for share in shares) == pytest.approx(10e12)
  table = format_mixture(shares)
  assert "| synthetic    | 0.4      | 4T     | 290B          | 13.79  | -   |" in table


def test_a_run_that_exceeds_caps_is_refused_by_name():
  caps = {"synthetic": 10, "web": 2, "web_rewrites": 5.0}
  with pytest.raises(ConfigError) as error:
    plan_mixture(WEIGHTS, 10e12, unique_tokens=UNIQUE, caps=caps)
  text = str(error.value)
  assert "web_rewrites 5.17 epochs (cap 5), synthetic 13.79 epochs (cap 10)" in text
  assert "web 1.15" not in text
  assert (
    "| synthetic    | 0.4      | 4T     | 290B          | 13.79  | 10 (exceeded) |"
    in text
  )
  plan_mixture(WEIGHTS, 7e12, unique_tokens=UNIQUE, caps=caps)
  with pytest.raises(ConfigError, match="limits code, whose size is not known"):
    plan_mixture({"code": 1.0}, 1e12, caps={"code": 1})


def test_repeat_only_says_that_a_cap_is_exceeded():
  shares = plan_mixture(
    WEIGHTS, 10e12, unique_tokens=UNIQUE, caps={"code": 2}, when_exhausted="repeat"
  )
  assert [share.name for share in shares if share.is_over] == ["code"]
  assert "2 (exceeded)" in format_mixture(shares)


def test_stop_ends_with_the_first_source():
  shares = plan_mixture(
    {"a": 0.5, "b": 0.3, "c": 0.2},
    1000,
    unique_tokens={"a": 100, "b": 10},
    caps={"a": 2, "b": 3},
    when_exhausted="stop",
  )
  assert [share.tokens for share in shares] == pytest.approx([50, 30, 20])


def test_renormalize_gives_the_share_to_the_others():
  shares = plan_mixture(
    {"a": 0.5, "b": 0.3, "c": 0.2},
    1000,
    unique_tokens={"a": 100, "b": 10},
    caps={"a": 2, "b": 3},
    when_exhausted="renormalize",
  )
  # b ends after 30; a and c go on 5 : 2 until a has 200; c takes the rest.
  assert [share.tokens for share in shares] == pytest.approx([200, 30, 770])
  table = format_mixture(shares).splitlines()
  assert "| source | fraction | asked for | tokens |" in table[0]
  assert table[3].startswith("| b      | 0.03     | 0.3       | 30     |")
  only = plan_mixture(
    {"a": 1.0},
    100,
    unique_tokens={"a": 10},
    caps={"a": 2},
    when_exhausted="renormalize",
  )
  assert only[0].tokens == pytest.approx(20)


def test_what_is_not_known_is_a_question_mark():
  shares = plan_mixture({"a": 3.0, "b": 1.0}, 4000)
  assert shares[0].epochs is None and not shares[0].is_over
  assert (
    "| a      | 0.75     | 3k     | ?             | ?      | -   |"
    in format_mixture(shares)
  )
