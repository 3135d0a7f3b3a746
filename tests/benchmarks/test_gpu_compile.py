"""Compiling for a GPU that is not there: what is told to the compiler, what is read."""

import subprocess
import sys

import pytest

from benchmarks import gpu_compile
from benchmarks.arms import ContenderError
from benchmarks.ours import gpu_programs

ASSEMBLY = """\
ptxas info    : Compiling entry function 'phi4_attention_backward_dkv' for 'sm_90a'
    72 bytes stack frame, 148 bytes spill stores, 144 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 72 bytes cumulative stack size
ptxas info    : Compiling entry function 'loop_fusion' for 'sm_90a'
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 12 registers
ptxas info    : Compiling entry function 'phi4_attention_forward' for 'sm_90a'
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 246 registers, used 1 barriers
"""
KERNELS = {
  "phi4_attention_backward_dkv": {"spilled_bytes": 148, "registers": 255},
  "phi4_attention_forward": {"spilled_bytes": 0, "registers": 246},
}


def test_registers_and_spills_are_read_of_our_kernels_alone():
  assert gpu_programs.read_assembly(ASSEMBLY) == KERNELS


def test_the_chip_is_described_in_the_compilers_words():
  text = gpu_programs.describe_chip()
  assert text.count("{") == text.count("}") == 3
  assert "device_memory_size: 85899345920\n" in text
  assert 'device_description_str: "NVIDIA H100 80GB HBM3"' in text


def test_every_case_is_a_program():
  for case in (*gpu_compile.CASES, *gpu_compile.QUICK_CASES):
    assert case["program"] in gpu_programs.PROGRAMS


def test_the_table_shows_what_spills():
  case = {
    "options": gpu_compile.CASES[0],
    "kernels": KERNELS,
    "argument_bytes": 2**30,
    "temporary_bytes": 2**29,
    "compile_seconds": 3.4,
  }
  text = gpu_compile.format_cases([case])
  assert "backward_dkv 255 (spills 148 bytes), forward 246" in text
  assert "1.00 + 0.50" in text


def test_a_program_that_does_not_compile_is_an_error(monkeypatch, tmp_path):
  def fail(*unused, **also_unused):
    return subprocess.CompletedProcess([sys.executable], 1, "", "no such instruction")

  monkeypatch.setattr(gpu_compile.subprocess, "run", fail)
  with pytest.raises(ContenderError, match="exit code 1.*\n.*no such instruction"):
    gpu_compile.compile_case(gpu_compile.CASES[0], tmp_path)
