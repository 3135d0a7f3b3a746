"""Where the numbers come from: curves, commands, settings, code, machine, cost."""

import re
from collections.abc import Mapping, Sequence

from experiments.report_tables import stage_headline
from experiments.reporting import charts, layout
from experiments.reporting.markup import Markup, join, tag
from experiments.reporting.reading import Chain, Run, read_curves, walk_stages

# Panels of a training stage: what is measured, and metrics with their style.
_PANELS: tuple[tuple[str, dict[str, str]], ...] = (
  ("loss", {"loss/total": "", "validation/loss": "dashed"}),
  ("share of pairs ranked right", {"dpo/pair_accuracy": ""}),
  ("margin of a pair, nats", {"dpo/margin_nats": ""}),
  ("KL to the reference, nats", {"anchor/kl_nats": ""}),
)


def curve_section(
  chains: Sequence[Chain], colors: Mapping[str, int]
) -> layout.Section | None:
  """Learning curves: panels for each kind of stage, with all its runs in them."""
  groups: dict[str, list[tuple[str, int, dict]]] = {}
  for chain, stage in walk_stages(list(chains)):
    curves = read_curves(stage)
    if curves:
      arm = chain.arm_of(stage.name)
      group = arm or re.sub(r"_\d+$", "", stage.name)
      name = f"{chain.run.name}/{stage.name}" if len(chains) > 1 else stage.name
      groups.setdefault(group, []).append((name, colors.get(arm or "", 1), curves))
  if not groups:
    return None
  parts = [
    layout.note(
      "All runs of a stage in one picture; a dashed line is the loss on held-out rows."
    )
  ]
  panels = []
  for group, members in groups.items():
    title = f"{group} ({len(members)} runs)" if members[1:] else group
    panels += [d for panel in _PANELS if (d := _panel(title, *panel, members))]
  parts.append(layout.figure(tag("div", panels, class_="panels")))
  return layout.Section("curves", "Learning curves", join(parts))


def _panel(title, measure, wanted, members) -> Markup | None:
  drawn = [
    charts.Curve(
      f"{name} {metric}",
      curve.steps,
      curve.values,
      color,
      style if len(members) == 1 else f"{style} thin".strip(),
    )
    for name, color, curves in members
    for metric, style in wanted.items()
    if (curve := curves.get(metric)) and any(curve.values)
  ]
  return charts.curve_chart(drawn, title, measure) if drawn else None


def stage_section(stages: Sequence[Run]) -> layout.Section:
  """Each stage with its result, cost, command and settings."""
  rows = [
    [
      tag("a", stage.name, href=f"#{anchor(stage)}"),
      stage.verb,
      stage_headline(stage.result),
      f"{stage.result['minutes']:.2f}",
      f"{stage.result['peak_memory_gb']:.2f}",
    ]
    for stage in stages
  ]
  return layout.Section(
    "stages",
    "Stages, commands and settings",
    join(
      layout.table(
        ["stage", "verb", "result", "minutes", "peak GB"],
        rows,
        caption="Every stage with what it came to and what it cost",
        numbers=(3, 4),
      ),
      map(run_details, stages),
    ),
  )


def run_details(run: Run) -> Markup:
  """A run's command, and its settings behind a click."""
  return layout.details(
    join(tag("strong", run.name), " ", layout.code(run.command)),
    layout.listing(run.settings),
    id=anchor(run),
  )


def anchor(run: Run) -> str:
  return f"run-{run.name}"


def machine_section(run: Run, stages: Sequence[Run]) -> layout.Section:
  """How to make it all again; code, libraries, machine."""
  commands = [run.command, f"phi4 report {run.folder}"]
  rows = [
    ["code", run.commit or "not a git checkout"],
    ["machine", run.machine or "unknown"],
  ]
  peaks = [peak for stage in stages if (peak := stage.peak)]
  if peaks:
    rows.append(["devices", peaks[0]])
  speeds = {
    f"{stage.name}: {stage.result['perf']['tokens_per_second']:,.0f} tokens/s"
    for stage in stages
    if stage.result.get("perf", {}).get("tokens_per_second")
  }
  if speeds:
    rows.append(["speed", "; ".join(sorted(speeds))])
  return layout.Section(
    "again",
    "Making it again",
    join(
      layout.paragraph(
        "These find what is there and make what is missing; with another folder they "
        "run anew, from the same settings:"
      ),
      layout.listing("\n".join(commands)),
      layout.table(["what", "which"], rows, caption="Code and machine"),
      layout.details("Versions of the libraries", layout.listing(run.versions)),
      layout.details("All settings of the run", layout.listing(run.settings)),
    ),
  )


def links(chain: Chain) -> dict[str, Markup]:
  """arm -> links to the stages that made its runs."""
  by_name = {f"stage:{stage.name}": stage for stage in chain.stages}
  found = {}
  for arm, paths in chain.compare.config["arms"].items():
    linked = [
      tag("a", by_name[path].name, href=f"#{anchor(by_name[path])}")
      if path in by_name
      else path
      for path in paths
    ]
    found[arm] = join([join(link, " ") for link in linked])
  return found
