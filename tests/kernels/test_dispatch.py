"""choose: preference, requests by name, and every reason when nothing fits."""

import pytest

from kernels.dispatch import Implementation, choose


def _implementation(name, refusal=None, yielding=None):
  return Implementation(
    name=name,
    run=lambda: name,
    refuses=lambda problem: refusal,
    yields=lambda problem: yielding,
  )


def test_auto_takes_the_first_that_neither_refuses_nor_yields():
  fast = _implementation("fast", refusal="needs a TPU")
  small = _implementation("small", yielding="1000 keys exceed 10")
  any_size = _implementation("any_size")
  assert choose("op", (fast, small, any_size), "auto", None) is any_size


def test_a_name_asked_for_runs_even_where_auto_would_prefer_another():
  small = _implementation("small", yielding="1000 keys exceed 10")
  other = _implementation("other")
  assert choose("op", (small, other), "small", None) is small


def test_a_name_that_cannot_run_is_refused_with_its_reason_not_replaced():
  fast = _implementation("fast", refusal="needs a TPU")
  with pytest.raises(ValueError, match=r"op can run this \(fast: needs a TPU\)"):
    choose("op", (fast, _implementation("slow")), "fast", None)


def test_every_reason_is_collected_when_none_fits():
  fast = _implementation("fast", refusal="needs a TPU")
  other = _implementation("other", refusal="head width 80")
  with pytest.raises(ValueError, match="fast: needs a TPU; other: head width 80"):
    choose("op", (fast, other), "auto", None)


def test_unknown_name_lists_the_known_ones():
  with pytest.raises(ValueError, match="'quick'. Known: auto, fast, slow"):
    choose("op", (_implementation("fast"), _implementation("slow")), "quick", None)
