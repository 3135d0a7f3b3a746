"""Huge pages: asked for once, where they can be had, and never against the user."""

import subprocess
import sys

import pytest

from experiments import memory


@pytest.fixture
def kernel(tmp_path, monkeypatch):
  """A kernel that gives huge pages on request, under a new glibc."""
  file = tmp_path / "enabled"
  file.write_text("always [madvise] never\n")
  monkeypatch.setattr(memory, "_KERNEL_SETTING", file)
  monkeypatch.setattr(memory.platform, "libc_ver", lambda: ("glibc", "2.36"))
  return file


def test_they_are_asked_for(kernel):
  wanted = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
  assert memory.huge_page_settings({}) == wanted
  assert memory.huge_page_settings(wanted) == {}


def test_other_tunables_stay(kernel):
  found = memory.huge_page_settings({"GLIBC_TUNABLES": "glibc.malloc.check=1"})
  assert found == {"GLIBC_TUNABLES": "glibc.malloc.check=1:glibc.malloc.hugetlb=1"}


def test_what_the_user_has_set_is_left_alone(kernel):
  assert memory.huge_page_settings({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}) == {}


@pytest.mark.parametrize("libc", [("", ""), ("glibc", "2.31"), ("musl", "1.2")])
def test_not_where_the_library_cannot(kernel, monkeypatch, libc):
  monkeypatch.setattr(memory.platform, "libc_ver", lambda: libc)
  assert memory.huge_page_settings({}) == {}


def test_not_where_the_kernel_will_not(kernel):
  kernel.write_text("always madvise [never]\n")
  assert memory.huge_page_settings({}) == {}
  kernel.unlink()
  assert memory.huge_page_settings({}) == {}


def test_a_restarted_program_has_its_arguments_and_does_not_restart_again():
  code = (
    "import os, sys; from experiments import memory\n"
    "memory.huge_page_settings = lambda e: {} if 'ONCE' in e else {'ONCE': 'yes'}\n"
    "memory.restart_with_huge_pages()\n"
    "print(os.environ['ONCE'], sys.argv[1:])"
  )
  done = subprocess.run(
    [sys.executable, "-c", code, "two words", "--flag=1"],
    capture_output=True,
    text=True,
    check=True,
  )
  assert done.stdout.strip() == "yes ['two words', '--flag=1']"
