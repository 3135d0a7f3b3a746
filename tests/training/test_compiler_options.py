"""Compiler options by chip."""

import pytest

from phi4_jax.training.compiler_options import compiler_options

NAME = "xla_tpu_scoped_vmem_limit_kib"


@pytest.mark.parametrize(
  ("platform", "kind", "expected"),
  [
    ("tpu", "TPU v5", {NAME: "32768"}),
    ("tpu", "TPU v6 lite", {NAME: "65536"}),
    ("tpu", "TPU v5 lite", {}),
    ("tpu", "TPU7x", {}),
    ("cpu", "cpu", {}),
    ("gpu", "NVIDIA H200", {}),
  ],
)
def test_by_chip(platform, kind, expected):
  assert compiler_options(platform, kind) == expected


def test_what_is_given_wins():
  given = {NAME: "16384", "other": "1"}
  assert compiler_options("tpu", "TPU v5", given) == given
  assert compiler_options("cpu", "cpu", {"other": "1"}) == {"other": "1"}
