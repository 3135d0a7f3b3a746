"""The layout is a contract: who imports whom, what a file may hold and say."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("kernels", "phi4_jax", "experiments", "benchmarks")
MAX_LINES = 400

# The table of CONTRIBUTING.md, its first column; a test compares the two.
MAY_IMPORT = {
  "kernels": set(),
  "common": set(),
  "model": {"common", "kernels"},
  "data": {"common"},
  "curation": {"common", "data"},
  "sampling": {"common", "data", "model", "kernels"},
  "training": {"common", "data", "model", "kernels"},
  "eval": {"common", "data"},
  "synthetic": {"common", "data", "curation", "eval"},
  "pts": {"common", "data", "eval"},
  "planning": {"common", "model", "training", "sampling", "kernels"},
  "posttrain": {"common", "data", "model", "training", "eval"},
}
# Its second column: outside packages, beside those that every room may import.
EVERYWHERE = {"numpy", "jaxtyping"}
OUTSIDE = {
  "kernels": {"jax", "jaxlib"},
  "common": {"jax", "zstandard"},
  "model": {"jax", "flax", "ml_dtypes", "safetensors", "gguf"},
  "data": {
    "grain", "array_record", "fsspec", "pyarrow", "google.protobuf", "sentencepiece",
    "tokenizers", "jinja2", "seqio", "tensorflow",
  },
  "curation": {
    "zstandard", "scipy", "lxml", "mammoth", "pylatexenc", "pypdfium2", "trafilatura",
    "py3langid", "rensa", "apache_beam",
  },
  "sampling": {"jax", "flax"},
  "training": {
    "jax", "jaxlib", "optax", "orbax", "tensorstore", "tensorboardX",
  },
  "eval": {"scipy"},
  "synthetic": set(),
  "pts": {"scipy"},
  "planning": {"jax"},
  "posttrain": {"jax"},
}  # fmt: skip
# Verbs and measurements stand on top: they import everything, nobody imports them.
ON_TOP = {"experiments", "benchmarks"}

# Outside packages that stay behind one door, and the files that are the door.
# tensorboardX is another package than tensorflow and needs no door.
DOORS = {
  "gin": re.compile(r"experiments/config\w*\.py"),
  "seqio": re.compile(r"phi4_jax/data/seqio_tasks\.py"),
  "tensorflow": re.compile(r"phi4_jax/data/seqio_tasks\.py"),
  "tensorflow_datasets": re.compile(r"phi4_jax/data/seqio_tasks\.py"),
  "tensorflow_text": re.compile(r"phi4_jax/data/seqio_tasks\.py"),
  "jax.experimental.pallas": re.compile(r"kernels/.*"),
  # The peers that benchmarks compare with live in an environment of their own.
  "torch": re.compile(r"benchmarks/peers/.*|tests/golden/.*"),
  "transformers": re.compile(r"benchmarks/peers/.*|tests/golden/.*"),
  "peft": re.compile(r"benchmarks/peers/.*|tests/golden/.*"),
  "tiktoken": re.compile(r"benchmarks/peers/.*|tests/golden/.*"),
  "gguf": re.compile(r"phi4_jax/model/gguf\w*\.py|tests/.*"),
}


def python_files(*folders: str) -> list[Path]:
  return sorted(p for folder in folders for p in (ROOT / folder).rglob("*.py"))


def name_of(path: Path) -> str:
  return path.relative_to(ROOT).as_posix()


def imported_modules(path: str, source: str) -> Iterator[str]:
  """Yields the full name of everything that a file imports, at any depth in it.

  `from a.b import c` gives `a.b.c`: whether c is a module makes no difference to
  any rule here. Relative imports are resolved against the file's package.
  """
  package = path.removesuffix(".py").split("/")[:-1]
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      # One dot is the file's own package, each further dot one package up.
      base = package[: len(package) - node.level + 1] if node.level else []
      module = [*base, *([node.module] if node.module else [])]
      yield from (".".join([*module, alias.name]) for alias in node.names)


def room_of(module: str) -> str | None:
  """Returns the room a dotted name is in; None outside of the project's packages."""
  first, *rest = module.split(".")
  if first not in PACKAGES:
    return None
  return rest[0] if first == "phi4_jax" and rest else first


def is_in(module: str, package: str) -> bool:
  """Whether a dotted name is a package or something in it."""
  return f"{module}.".startswith(f"{package}.")


def import_violations(path: str, source: str) -> list[str]:
  """Returns what a file imports against the rules, one sentence for each."""
  room = room_of(path.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
  found = []
  for module in imported_modules(path, source):
    target = room_of(module)
    allowed = MAY_IMPORT.get(room or "", set()) | {room}
    if target and room and room not in ON_TOP and target not in allowed:
      found.append(f"{path} ({room}) imports {module} ({target})")
    doors = [name for name in DOORS if is_in(module, name)]
    for name in doors:
      if not DOORS[name].fullmatch(path):
        found.append(f"{path} imports {name}; only {DOORS[name].pattern} may")
    is_outside = not target and module.split(".")[0] not in sys.stdlib_module_names
    if is_outside and not doors and room in OUTSIDE:
      known = OUTSIDE[room] | EVERYWHERE
      if not any(is_in(module, name) for name in known):
        found.append(
          f"{path} ({room}) imports {module}, not {', '.join(sorted(known))}"
        )
  return found


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_follow_the_table(package):
  files = python_files(package)
  assert files
  found = [v for p in files for v in import_violations(name_of(p), p.read_text())]
  assert not found, "\n".join(found)


@pytest.mark.parametrize(
  "path, source, complaint",
  [
    ("phi4_jax/model/rope.py", "import phi4_jax.training.loop", "(training)"),
    ("phi4_jax/model/rope.py", "from phi4_jax import data", "(data)"),
    ("phi4_jax/model/rope.py", "from ..data import batch", "(data)"),
    ("phi4_jax/data/__init__.py", "from ..eval import types", "(eval)"),
    ("phi4_jax/data/loader.py", "def f():\n  import tensorflow as tf", "seqio_tasks"),
    ("phi4_jax/pts/search.py", "from experiments import config", "(experiments)"),
    ("phi4_jax/training/step.py", "from gin import configurable", "config"),
    ("experiments/sft.py", "import gin", "config"),
    ("phi4_jax/model/attention.py", "from jax.experimental import pallas", "kernels"),
    ("kernels/attention/chunked.py", "from phi4_jax.common import axes", "(common)"),
    ("kernels/attention/chunked.py", "import flax.linen as nn", "not jax, jaxlib,"),
    ("phi4_jax/common/keys.py", "def f():\n  import scipy.stats", "scipy.stats, not"),
    ("phi4_jax/data/batch.py", "from jax import numpy", "jax.numpy, not array_record"),
    ("phi4_jax/data/rows.py", "from google import genai", "google.genai, not"),
    ("phi4_jax/__init__.py", "from phi4_jax.model import config", "(model)"),
    ("benchmarks/rollouts.py", "import torch", "peers"),
  ],
)
def test_a_forbidden_import_is_seen(path, source, complaint):
  (found,) = import_violations(path, source)
  assert complaint in found


@pytest.mark.parametrize(
  "path, source",
  [
    ("phi4_jax/model/attention.py", "from kernels.attention import attention"),
    ("phi4_jax/model/attention.py", "from . import rope"),
    ("phi4_jax/training/metrics.py", "import tensorboardX"),
    ("phi4_jax/data/seqio_tasks.py", "import seqio, tensorflow as tf"),
    ("phi4_jax/common/compression.py", "import zstandard, zlib"),
    ("phi4_jax/data/example_proto.py", "from google.protobuf import message"),
    ("experiments/config_files.py", "import gin"),
    ("kernels/attention/pallas_tpu.py", "from jax.experimental import pallas as pl"),
    ("benchmarks/rollouts.py", "from phi4_jax.sampling import generate"),
  ],
)
def test_an_allowed_import_is_not_complained_about(path, source):
  assert import_violations(path, source) == []


def test_every_room_is_in_the_table():
  rooms = {p.parent.name for p in (ROOT / "phi4_jax").glob("*/__init__.py")}
  assert rooms <= set(MAY_IMPORT), "a new room needs a row in the table"


def test_contributing_shows_the_same_table():
  text = (ROOT / "CONTRIBUTING.md").read_text()
  rows = re.findall(r"^\| `(\w+)` \| (.+) \| (.*) \|$", text, re.MULTILINE)
  for column, table in ((1, MAY_IMPORT), (2, OUTSIDE)):
    shown = {row[0]: set(re.findall(r"`([\w.]+)`", row[column])) for row in rows}
    assert {room: shown[room] for room in MAY_IMPORT} == table
    assert set(shown) >= ON_TOP


def test_nothing_but_the_seqio_door_loads_tensorflow():
  """Imports every library module in one fresh process and looks what came along."""
  modules = [
    name_of(p).removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    for p in python_files("kernels", "phi4_jax")
    if p.name != "seqio_tasks.py"
  ]
  code = (
    "import importlib, sys\n"
    f"for name in {modules!r}: importlib.import_module(name)\n"
    f"print([n for n in ('tensorflow', 'seqio', 'gin', 'torch') if n in sys.modules])"
  )
  process = subprocess.run(
    [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
  )
  assert process.returncode == 0, process.stderr[-2000:]
  assert process.stdout.strip() == "[]"


def test_every_module_says_what_it_is_for():
  silent = [
    name_of(p)
    for p in python_files(*PACKAGES)
    if not ast.get_docstring(ast.parse(p.read_text()))
  ]
  assert not silent, silent


def test_files_are_short():
  files = [*python_files(*PACKAGES, "tests"), ROOT / "setup.py"]
  lengths = {name_of(p): len(p.read_text().splitlines()) for p in files}
  long = {name: n for name, n in lengths.items() if n > MAX_LINES}
  assert not long, f"more than {MAX_LINES} lines; probably two files: {long}"


def test_no_file_is_a_drawer():
  drawers = re.compile(r"(\w+_)?(utils?|helpers?|misc|v\d+)\.py")
  found = [
    name_of(p)
    for p in python_files(*PACKAGES, "tests")
    if drawers.fullmatch(p.name) or drawers.fullmatch(f"{p.parent.name}.py")
  ]
  assert not found, f"name the file after what is in it: {found}"


def committed_files() -> Iterator[Path]:
  """Yields the files that are, or could be, in a commit."""
  listing = subprocess.run(
    ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
    cwd=ROOT,
    capture_output=True,
    check=True,
  )
  for name in listing.stdout.decode().split("\0"):
    if name and (ROOT / name).is_file():
      yield ROOT / name


def test_nothing_names_a_folder_of_one_machine():
  folders = "work", "root", r"home/\w+"
  # Written so that this file does not match itself.
  machine = re.compile(rf"(?:^|[^\w.~/-])/(?:{'|'.join(folders)})\b|\.\.[/]shared")
  found = []
  for path in committed_files():
    try:
      text = path.read_text("utf-8")
    except UnicodeDecodeError:
      continue  # images, vocabularies
    found += [
      f"{name_of(path)}:{text.count(chr(10), 0, match.start()) + 1}"
      for match in machine.finditer(text)
    ]
  assert not found, found


def test_every_test_asserts_something():
  def checks(node: ast.AST) -> bool:
    if isinstance(node, ast.Assert):
      return True
    if not isinstance(node, ast.Call):
      return False
    name = ast.unparse(node.func).split(".")[-1]
    return name in ("raises", "warns") or name.lstrip("_").startswith(
      ("assert", "check")
    )

  empty = [
    f"{name_of(path)}::{node.name}"
    for path in python_files("tests")
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    if not any(checks(inner) for inner in ast.walk(node))
  ]
  assert not empty, empty


def test_readme_has_no_number_to_be_filled_in():
  lines = (ROOT / "README.md").read_text("utf-8").splitlines()
  found = [f"{i}: {line}" for i, line in enumerate(lines, 1) if "@@" in line]
  assert not found, "\n".join(found)


def test_nothing_is_left_for_later():
  # In two pieces each, so that this file does not match itself.
  words = ["TO" + "DO", "FIX" + "ME", "NotImplemented" + "Error", "pytest" + ".skip"]
  words += ["importor" + "skip", "mark." + "skip", "mark." + "xfail"]
  found = [
    f"{name_of(path)}: {word}"
    for path in python_files(*PACKAGES, "tests")
    for word in words
    if word in path.read_text()
  ]
  assert not found, found
