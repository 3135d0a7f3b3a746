"""The lock files hold what setup.py asks for, hashed, and name no machine."""

import ast
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ("requirements.lock", "requirements-bench.lock", "requirements-uv.lock")


def wanted() -> dict[str, list[Requirement]]:
  """Returns the requirements of setup.py: "core" and each extra."""
  constants = {}
  for node in ast.parse((ROOT / "setup.py").read_text()).body:
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
      constants[node.targets[0].id] = ast.literal_eval(node.value)
  lists = {"core": constants["CORE"], **constants["EXTRAS"]}
  return {name: [Requirement(r) for r in rows] for name, rows in lists.items()}


def pinned(lock: str) -> dict[str, set[str]]:
  """Returns the versions of each package of a lock (two where Pythons differ)."""
  pins: dict[str, set[str]] = {}
  for line in (ROOT / lock).read_text().splitlines():
    if match := re.match(r"([\w.-]+)(?:\[[\w,-]+\])?==([^\s;]+)", line):
      pins.setdefault(canonicalize_name(match[1]), set()).add(match[2])
  return pins


@pytest.mark.parametrize(
  "lock, extras",
  [
    ("requirements.lock", ["core", "data", "curate", "beam", "dev"]),
    ("requirements-bench.lock", ["core", "bench"]),
  ],
)
def test_lock_satisfies_setup(lock, extras):
  pins = pinned(lock)
  requirements = [r for extra in extras for r in wanted()[extra] if r.name != "torch"]
  assert len(requirements) > 10
  for requirement in requirements:
    versions = pins.get(canonicalize_name(requirement.name), set())
    fits = [v for v in versions if requirement.specifier.contains(v, prereleases=True)]
    assert versions and len(fits) == len(versions), (
      f"{lock} has {requirement.name} {sorted(versions)}, setup.py wants "
      f"{requirement}: run `make lock`"
    )


@pytest.mark.parametrize("lock", LOCKS)
def test_every_pin_has_a_hash_and_no_address(lock):
  text = (ROOT / lock).read_text()
  assert text.splitlines()[1].strip() == "#    make lock"
  assert not re.search(r"://|--(extra-)?index|--find-links|@ file|/tmp|/dev", text)
  # A pin with its continuation lines, up to the next line that is not indented.
  entries = re.findall(r"^\S[^\n]*==[^\n]*(?:\n[ ]+[^\n]*)*", text, re.MULTILINE)
  assert entries
  bare = [e.split("==")[0] for e in entries if "--hash=sha256:" not in e]
  assert not bare, bare


def test_both_environments_have_the_same_versions():
  ours, peers = pinned("requirements.lock"), pinned("requirements-bench.lock")
  differ = {n: (ours[n], peers[n]) for n in ours.keys() & peers if ours[n] != peers[n]}
  assert len(ours.keys() & peers) > 20
  assert not differ


def test_torch_is_pinned_in_the_makefile_alone():
  """Its builds differ by machine, so no lock may hold it or what it brings."""
  (torch,) = [r for r in wanted()["bench"] if r.name == "torch"]
  makefile = (ROOT / "Makefile").read_text()
  assert re.findall(r"^TORCH \?= (.+)$", makefile, re.MULTILINE) == [str(torch)]
  brought = re.compile(r"torch|triton|(nvidia|cuda)-.+")
  assert not [n for n in pinned("requirements-bench.lock") if brought.fullmatch(n)]
