"""What a run that ended well has lost is said: on the terminal, and on the page."""

import gzip
import json

import pytest

from experiments.reporting.curation_page import curation_page
from phi4_jax.curation.basic_steps import SampleStep
from phi4_jax.curation.pipeline import run_pipeline
from phi4_jax.curation.pipeline_plan import make_shards
from phi4_jax.curation.pipeline_report import format_report
from phi4_jax.curation.pipeline_warnings import find_warnings
from phi4_jax.data.sources import JsonlSource
from tests.curation.corpora import MinWords, Shout


def write_rows(path, rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return str(path)


def curate(sources, steps, folder, **fields):
  report = run_pipeline(make_shards(sources), steps, folder, **fields)
  return report, find_warnings(report)


ROWS = [{"text": f"row {i} of many words"} for i in range(200)]


@pytest.mark.parametrize("samples", [0, 5])
def test_a_file_that_was_cut_off_is_a_warning(tmp_path, samples):
  data = gzip.compress("".join(json.dumps(row) + "\n" for row in ROWS).encode())
  path = tmp_path / "cut.jsonl.gz"
  path.write_bytes(data[: len(data) // 2])
  source = JsonlSource(path=str(path), on_bad_row="drop")
  report, warnings = curate(
    {"web": source}, [], tmp_path / "out", samples_per_reason=samples
  )
  assert 0 < report["documents"]["kept"] < 200
  (warning,) = warnings
  assert warning.startswith("1 file could not be read to the end: an unknown number")
  assert f"{path} cannot be decompressed" in warning
  assert f"\n\nwarning: {warning}" in format_report(report)
  page = curation_page(report, tmp_path)
  assert page.index("an unknown number of rows") < page.index("The sources and 0 steps")


def test_wrong_fields_are_a_warning_that_names_those_that_are_there(tmp_path):
  path = write_rows(tmp_path / "a.jsonl", ROWS)
  good = JsonlSource(path=path)
  bad = JsonlSource(path=path, text_field="body", on_bad_row="drop")
  _, warnings = curate({"good": good, "bad": bad}, [Shout()], tmp_path / "out")
  (warning,) = warnings
  assert warning.startswith(
    "Of 200 documents of source 'bad' none were kept: source: missing_field (200). One "
    "of the most frequent: Row "
  )
  assert warning.endswith("has no 'body' field (found: 'text').")


def test_a_step_that_drops_nearly_all_is_a_warning(tmp_path):
  rows = [*ROWS, {"text": "word " * 50}]
  source = JsonlSource(path=write_rows(tmp_path / "a.jsonl", rows))
  report, warnings = curate({"web": source}, [MinWords(words=40)], tmp_path / "few")
  assert report["documents"]["kept"] == 1
  assert warnings == [
    "Of 201 documents of source 'web' only 1 was kept: MinWords: too_short (200). One "
    "of the most frequent: 5 words, 40 required."
  ]
  # What a sample leaves out is meant to be left out.
  report, warnings = curate(
    {"web": source}, [SampleStep(fraction=0.01)], tmp_path / "sample"
  )
  assert report["documents"]["kept"] <= 10
  assert warnings == []
  report, warnings = curate({"web": source}, [MinWords(words=3)], tmp_path / "most")
  assert report["documents"]["kept"] == 201
  assert warnings == []
