"""What a report consists of, and what the reports of all kinds of runs share."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.reporting import layout, trace
from experiments.reporting.markup import Markup, tag
from experiments.reporting.reading import Run
from experiments.reporting.search_survey import Survey


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
  """What a report consists of.

  Attributes:
    results: the content of results.json.
    html: the page.
    table: for the terminal.
    picture: the first traced solution as an SVG file, None if there is none.
  """

  results: dict[str, Any]
  html: str
  table: str
  picture: str | None


def cost_of(stages: Sequence[Run], whole: Run | None = None) -> dict[str, float]:
  """Wall time and memory; `whole` has a clock that also counts what is between.

  The memory is left out where no run has noted it.
  """
  minutes = sum(stage.result["minutes"] for stage in stages)
  if whole is not None:
    minutes = max(minutes, whole.result["minutes"])
  peaks = [r["peak_memory_gb"] for s in stages if "peak_memory_gb" in (r := s.result)]
  cost: dict[str, float] = {"minutes": round(minutes, 3)}
  return cost | {"peak_memory_gb": max(peaks)} if peaks else cost


def code_of(run: Run) -> dict[str, str]:
  """What made a run, and on what."""
  return {"commit": run.commit, "machine": run.machine}


def cost_facts(results: Mapping[str, Any]) -> dict[str, str]:
  """Figures for the head of a page."""
  facts = {"minutes": f"{results['minutes']:.1f}"}
  if "peak_memory_gb" in results:
    facts["peak memory"] = f"{results['peak_memory_gb']:.2f} GB"
  for name, words in (
    ("pivotal_tokens", "pivotal tokens"),
    ("pairs", "pairs"),
    ("questions", "questions"),
  ):
    if name in results:
      facts[words] = f"{results[name]:,}"
  return facts


def draw_first(surveyed: Survey) -> str | None:
  """The first traced solution as an SVG file, None if there is none."""
  traces = surveyed.traces
  return trace.draw_picture(traces[0]) if traces else None


def whole_page(
  run: Run,
  title: str,
  head: Markup,
  sections: Sequence[layout.Section | None],
  program: layout.Program | None = None,
) -> str:
  """The page of a run; sections that are None are left out."""
  footer = tag(
    "p",
    "Made by ",
    layout.code(f"phi4 report {run.folder}"),
    f"; the same numbers are in results.json. Code {run.commit or 'unknown'}; "
    f"{run.machine or 'machine unknown'}.",
  )
  return layout.page(
    title,
    f"phi4_jax \N{MIDDLE DOT} {run.verb} \N{MIDDLE DOT} {run.name}",
    head,
    [section for section in sections if section is not None],
    footer,
    program,
  )
