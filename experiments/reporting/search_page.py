"""The report of a search for pivotal tokens: one file that answers to its reader.

All that there is to say of the whole stands in plain HTML. What there can be ten
thousand of (pivots, questions, solutions) is data in the file that a script shows:
tables to search, sort and leaf through, and a page for each question with its solutions
token by token, named by the address (#q=12). Without scripts the largest pivots and
some solutions remain. Nothing is fetched.
"""

from pathlib import Path

from experiments.reporting import charts, findings, layout, provenance, trace
from experiments.reporting import search_sections as parts
from experiments.reporting.markup import Markup, join, tag
from experiments.reporting.reading import Run
from experiments.reporting.report import (
  Report,
  code_of,
  cost_facts,
  cost_of,
  draw_first,
  whole_page,
)
from experiments.reporting.search_claim import claim_section
from experiments.reporting.search_data import Search, read_search
from experiments.reporting.search_survey import Survey, survey
from phi4_jax.common.text import format_table

_SCRIPTS = ("search_data.js", "search_tables.js", "search_figure.js", "search_page.js")
_STYLE = "search_page.css"


def report_search(run: Run) -> Report:
  """Reports a finished search for pivotal tokens, of any mode."""
  search = read_search(run)
  surveyed = survey(search, pack=True)
  metrics = run.metrics
  results = {
    "verb": run.verb,
    **metrics,
    "perf": run.result["perf"],
    **cost_of([run]),
    **code_of(run),
  }
  count = len(search.pivots)
  title = f"{count:,} pivotal tokens in {surveyed.num_responses:,} responses"
  head = join(
    layout.facts(cost_facts(results)),
    tag("noscript", layout.note(
      "This page shows every question and pivot with a script of its own. Scripts are "
      "off here, so what follows is the summary."
    )),
  )  # fmt: skip
  sections = [
    claim_section(search),
    *_found(search, surveyed),
    parts.spread_section(search, surveyed),
    findings.pair_section(search),
    parts.overlap_section(surveyed),
    parts.cost_section(search),
    parts.open_section(search),
    _question_section(search),
    provenance.machine_section(run, [run]),
  ]
  assert surveyed.payload is not None
  shown = ("questions", "kept", "responses", "candidates", "pivotal_tokens", "pairs")
  table = format_table(["found", "count"], [[name, metrics[name]] for name in shown])
  return Report(
    results=results,
    html=whole_page(run, title, head, sections, _program(surveyed)),
    table=table,
    picture=draw_first(surveyed),
  )


def _found(search: Search, surveyed: Survey) -> list[layout.Section]:
  pivots = findings.search_section(search, surveyed)
  table = join(
    _mount("pivot-table", "Pivotal tokens, to search and sort"),
    layout.note(findings.explain_arms(search)) if search.pivots else None,
  )
  return [
    findings.trace_section(surveyed, search),
    pivots._replace(content=join(pivots.content, table)),
  ]


def _question_section(search: Search) -> layout.Section:
  states: dict[str, int] = {}
  for question in search.questions.values():
    states[question.state] = states.get(question.state, 0) + 1
  counted = ", ".join(f"{count:,} {state}" for state, count in states.items())
  content = join(
    layout.paragraph(f"{len(search.questions):,} questions: {counted}."),
    _mount("question-table", "Questions, to search and sort"),
    tag("div", layout.legend(_signs(search)), id="signs", hidden=True),
  )
  return layout.Section("questions", "Questions", content)


def _signs(search: Search) -> list[tuple[Markup, str]]:
  marks = trace.legend_marks(search.found_word)
  if search.mode != "comb":
    dashed = charts.line(2, 11, 28, 5, "path dashed")
    marks.insert(2, (dashed, "between two estimates"))
  return marks


def _mount(name: str, label: str) -> Markup:
  """Where a script puts something; nothing without it."""
  return tag("div", id=name, hidden=True, role="region", aria_label=label)


def _program(surveyed: Survey) -> layout.Program:
  folder = Path(__file__).parent
  script = "\n".join((folder / name).read_text("utf-8") for name in _SCRIPTS)
  payload = surveyed.payload
  assert payload is not None
  return layout.Program(
    script='"use strict";\n(() => {\n' + script + "\n})();\n",
    style=(folder / _STYLE).read_text("utf-8"),
    data=payload.elements(),
  )
