"""docs/search_files.md names the fields that a search writes: all, and no others."""

import collections
import json
import re
from pathlib import Path

import numpy as np
import pytest

from phi4_jax.data.tokenizer import ByteVocabulary
from phi4_jax.pts.analytic import AnalyticSampler, make_process
from phi4_jax.pts.exports import FORMATS, export_run
from phi4_jax.pts.find import find_pivotal_tokens
from phi4_jax.pts.search import SearchConfig

_PAGE = Path(__file__).resolve().parents[2] / "docs" / "search_files.md"
_PROCESS = make_process(0, num_steps=16, forks=0.12)
_MODES = ("comb", "paper", "naive")
# Its lines are arrays, which a sentence describes.
_LOG = "draws.jsonl"


class _Guesser:
  """A critic, so that its file is written."""

  def pivot_probs(self, responses):
    return [np.full(len(response), 0.1) for response in responses]


def _tables():
  """Returns by file and mode the fields that the page names."""
  tables = collections.defaultdict(lambda: {mode: set() for mode in _MODES})
  for section in re.split(r"^## `", _PAGE.read_text("utf-8"), flags=re.MULTILINE)[1:]:
    name, _, text = section.partition("`")
    for fields, modes in re.findall(r"^\| (`.*?) \| (.*?) \|", text, re.MULTILINE):
      for mode in _MODES if modes == "all" else modes.split(", "):
        tables[name][mode] |= set(re.findall(r"`(.*?)`", fields))
  return tables


_TABLES = _tables()


def _fields(value, named, path=""):
  """Yields the paths of a JSON value's fields, as deep as the page names them."""
  goes_on = not path or any(n.startswith((f"{path}.", f"{path}[]")) for n in named)
  if isinstance(value, dict) and goes_on:
    for key, inner in value.items():
      yield from _fields(inner, named, f"{path}.{key}" if path else key)
  elif isinstance(value, list) and goes_on:
    for inner in value:
      yield from _fields(inner, named, f"{path}[]")
  else:
    yield path


@pytest.fixture(scope="module", params=_MODES)
def searched(request, tmp_path_factory):
  mode = request.param
  folder = tmp_path_factory.mktemp(mode)
  config = SearchConfig(
    mode=mode, rollouts_per_question=16, confirm_rollouts=24, num_traces=1
  )
  find_pivotal_tokens(
    AnalyticSampler(_PROCESS, 4),
    _PROCESS.questions[:12],
    _PROCESS,
    config,
    out_dir=folder,
    seed=4,
    critic=_Guesser() if mode == "comb" else None,
  )
  for form in FORMATS:
    export_run(folder, form, ByteVocabulary(), model_id="tiny")
  return mode, folder


def test_every_file_has_a_section(searched):
  mode, folder = searched
  written = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
  named = {name for name, modes in _TABLES.items() if modes[mode]}
  assert named | {_LOG} == written


@pytest.mark.parametrize("name", sorted(_TABLES))
def test_every_field_is_named_and_no_other(searched, name):
  mode, folder = searched
  named = _TABLES[name][mode]
  if not named:
    assert not (folder / name).exists()
    return
  text = (folder / name).read_text("utf-8")
  lines = text.splitlines() if name.endswith("l") else [text]
  assert lines, "nothing was found, so that nothing is shown"
  found = {field for line in lines for field in _fields(json.loads(line), named)}
  assert found == named


def test_the_log_is_as_the_sentence_says(searched):
  _, folder = searched
  names = re.search(r"`\[(phase[^\]]*)\]`", _PAGE.read_text("utf-8"))
  assert names is not None
  count = len(re.split(r",\s+", names[1]))
  rows = [json.loads(line) for line in (folder / _LOG).open()]
  assert {len(row) for row in rows if isinstance(row, list)} == {count, count + 1}
  assert {tuple(row) for row in rows if isinstance(row, dict)} == {("seconds",)}
