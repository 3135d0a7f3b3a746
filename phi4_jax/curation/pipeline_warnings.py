"""What a person must know of a run of curation that ended well: what it has lost.

Knows reports (pipeline_report.py); refuses to know where warnings are shown.
"""

from collections.abc import Mapping
from typing import Any

from phi4_jax.curation.pipeline_plan import SOURCE, step_name
from phi4_jax.data.source_files import DAMAGED_FILE

# A source of which less is kept is most often read or filtered wrongly.
_FEW = 0.02
_SHOWN_REASONS = 3
_SHOWN_FILES = 3
# Documents that a sample leaves out are not lost.
_ON_PURPOSE = "SampleStep"


def find_warnings(report: Mapping[str, Any]) -> list[str]:
  """Returns a sentence or more for each thing that is most likely not meant.

  Files that end early, of which nobody knows how many rows are missing; and sources of
  which nothing, or nearly nothing, is kept, with their commonest reasons.
  """
  warnings = _damaged_files(report)
  groups = {shard["name"]: shard["group"] for shard in report["shards"]}
  for name, found in report["sources"].items():
    sampled_out = sum(
      count
      for reason, count in found["reasons"].items()
      if reason.startswith(_ON_PURPOSE)
    )
    seen = found["in"] - sampled_out
    if found["kept"] >= _FEW * seen and (found["kept"] or not seen):
      continue
    kept = f"only {found['kept']:,}" if found["kept"] else "none"
    was = "was" if found["kept"] == 1 else "were"
    most = [
      (reason, count)
      for reason, count in found["reasons"].items()
      if not reason.startswith(_ON_PURPOSE)
    ][:_SHOWN_REASONS]
    reasons = ", ".join(f"{reason} ({count:,})" for reason, count in most)
    said = f"Of {seen:,} documents of source {name!r} {kept} {was} kept: {reasons}."
    detail = _detail(report, groups, name, most[0][0]) if most else ""
    if detail:
      said += f" One of the most frequent: {detail}"
    warnings.append(said)
  return warnings


def _damaged_files(report: Mapping[str, Any]) -> list[str]:
  found = _reasons(report, step_name((), SOURCE)).get(DAMAGED_FILE)
  if found is None:
    return []
  count, samples = found["count"], found["samples"]
  shown = " ".join(sample["detail"] for sample in samples[:_SHOWN_FILES])
  more = count - min(len(samples), _SHOWN_FILES)
  files = "1 file" if count == 1 else f"{count:,} files"
  return [
    f"{files} could not be read to the end: an unknown number of rows behind the "
    f"damage is missing, and is in no count. {shown}"
    + (f" And {more:,} more." if more else "")
  ]


def _reasons(report: Mapping[str, Any], step: str) -> Mapping[str, Any]:
  return next((s["reasons"] for s in report["steps"] if s["name"] == step), {})


def _detail(
  report: Mapping[str, Any], groups: Mapping[str, str], source: str, named: str
) -> str:
  """Returns what was said of a document of this source and "Step: reason"."""
  step, _, reason = named.partition(": ")
  found = _reasons(report, step).get(reason, {"samples": []})
  for sample in found["samples"]:
    if groups.get(sample["shard"]) == source and sample["detail"]:
      return sample["detail"].rstrip(".") + "."
  return ""
