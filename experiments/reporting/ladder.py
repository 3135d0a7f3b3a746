"""The accuracy ladder in words, pictures and tables, whichever arm wins."""

from collections.abc import Mapping
from typing import Any

from experiments.reporting import arm_costs, charts, layout
from experiments.reporting.charts import IntervalRow
from experiments.reporting.markup import Markup, join, tag
from phi4_jax.eval.comparison import format_difference
from phi4_jax.eval.statistics import Interval

_NAMES = {
  "sft": "SFT",
  "pts_dpo": "PTS-DPO",
  "full_dpo": "full-response DPO",
  "rejection_sampling": "rejection sampling",
}
MINUS = "\N{MINUS SIGN}"


def arm_name(arm: str) -> str:
  """An arm as a reader would say it."""
  return _NAMES.get(arm, arm.replace("_", " "))


def arm_colors(arms: Mapping[str, Any], baseline: str) -> dict[str, int]:
  """A colour for each arm, the same in all pictures; grey is the baseline's."""
  others = [arm for arm in arms if arm != baseline]
  return {baseline: 0} | {arm: 1 + i % 5 for i, arm in enumerate(others)}


def verdict(comparison: Mapping[str, Any]) -> str:
  """ "better", "worse" or "open", as the interval says."""
  low, high = comparison["interval"]
  return "better" if low > 0 else "worse" if high < 0 else "open"


def headline(ladder: Mapping[str, Any], baseline: str) -> str:
  """One sentence: what became of the first arm that is compared with the baseline.

  Pivotal-token DPO goes first where there is one, since it is what a chain is for.
  """
  names = [arm for arm in ladder["arms"] if arm != baseline]
  if not names:
    arm = ladder["arms"][baseline]
    return f"{arm_name(baseline)} answers {arm['accuracy']:.1%} of the questions right"
  first = "pts_dpo" if "pts_dpo" in names else names[0]
  found = verdict(ladder["comparisons"][f"{first}_minus_{baseline}"])
  before = ladder["arms"][baseline]["accuracy"]
  after = ladder["arms"][first]["accuracy"]
  if found == "open":
    return (
      f"{arm_name(first)} and {arm_name(baseline)}: no difference that these data show "
      f"({after:.3f} and {before:.3f})"
    )
  verb = "raises" if found == "better" else "lowers"
  return f"{arm_name(first)} {verb} accuracy from {before:.3f} to {after:.3f}"


def verdicts(ladder: Mapping[str, Any], baseline: str) -> Markup:
  """Every comparison as a sentence with its interval."""
  items = []
  ordered = sorted(
    ladder["comparisons"].items(),
    key=lambda item: not item[0].endswith(f"_minus_{baseline}"),
  )
  for name, comparison in ordered:
    first, _, second = name.partition("_minus_")
    found = verdict(comparison)
    words = {"better": "is above", "worse": "is below"}.get(
      found, "cannot be told apart from"
    )
    shown = format_difference(comparison).replace("-", MINUS)
    told = f"{arm_name(first)} {words} {arm_name(second)}: "
    items.append(
      tag(
        "li",
        tag("strong", told[0].upper() + told[1:]),
        shown,
        class_=found,
      )
    )
  best = max(ladder["arms"], key=lambda arm: ladder["arms"][arm]["accuracy"])
  sentence = (
    f"The highest accuracy is {ladder['arms'][best]['accuracy']:.3f}, by "
    f"{arm_name(best)}."
  )
  return join(tag("ul", items, class_="verdicts"), layout.paragraph(sentence))


def section(
  ladder: Mapping[str, Any],
  baseline: str,
  *,
  repetition: str,
  links: Mapping[str, Markup],
) -> layout.Section:
  """The ladder: two pictures, a table, and how the arms answer.

  Args:
    ladder: `arms` (with `arm_costs.add_costs`) and `comparisons`.
    baseline: the arm that others are compared with.
    repetition: what one small circle is, "run" or "chain".
    links: arm -> where its runs are described.
  """
  colors = arm_colors(ladder["arms"], baseline)
  arms = [
    IntervalRow(
      arm_name(arm),
      found["accuracy"],
      *found["interval"],
      runs=found["accuracies"] if len(found["accuracies"]) > 1 else (),
      color=colors[arm],
    )
    for arm, found in ladder["arms"].items()
  ]
  differences = [
    IntervalRow(arm_name(arm), found["mean"], *found["interval"], color=colors[arm])
    for arm in ladder["arms"]
    if (found := ladder["comparisons"].get(f"{arm}_minus_{baseline}"))
  ]
  parts = [
    layout.figure(
      charts.responsive(lambda w: charts.interval_chart(arms, "Accuracy by arm", w)),
      f"Accuracy. Dot: mean; bar: 95% interval; small circles: single {repetition}s.",
    )
  ]
  if differences:
    label = f"Accuracy minus that of {arm_name(baseline)}"
    parts.append(
      layout.figure(
        charts.responsive(
          lambda w: charts.interval_chart(differences, label, w, zero=True)
        ),
        f"{label}, on the same questions, with its 95% interval. One that holds "
        "zero tells no difference.",
      )
    )
  parts += [_table(ladder, baseline, repetition, links), _label_tables(ladder)]
  return layout.Section("ladder", "Accuracy ladder", join(parts))


def _table(ladder, baseline, repetition, links) -> Markup:
  rows = []
  for arm, found in ladder["arms"].items():
    versus = ladder["comparisons"].get(f"{arm}_minus_{baseline}")
    direction = {"better": "up", "worse": "down"}.get(verdict(versus) if versus else "")
    shown = format_difference(versus).replace("-", MINUS) if versus else ""
    rows.append(
      [
        layout.Cell(arm_name(arm), "whole"),
        found["runs"],
        layout.Cell(str(Interval(found["accuracy"], *found["interval"])), "whole"),
        layout.Cell(shown, f"whole {direction or ''}".strip()),
        found["over"],
        arm_costs.show(found["pairs_seen"]),
        arm_costs.show(found["sampled_tokens"]),
        *([links.get(arm, "")] if links else []),
      ]
    )
  questions = next(iter(ladder["arms"].values()))["questions"]
  return layout.table(
    [
      "arm",
      f"{repetition}s",
      "accuracy [95%]",
      f"minus {arm_name(baseline)} [95%]",
      "interval over",
      "pairs seen in training",
      "tokens sampled to make the pairs",
      *(["made by"] if links else []),
    ],
    rows,
    caption=f"The ladder on {questions:,} questions, which every run answered. "
    f"{_answers_each(ladder['arms'])} Pairs: of a mean run, counted as often as they "
    "came in its batches (for rejection sampling: responses). Tokens: drawn from the "
    "parent by the search for pairs of this kind, without those for traced solutions.",
    numbers=(1, 5, 6),
  )


def _answers_each(arms: Mapping[str, Any]) -> str:
  several = [
    f"{arm_name(arm)} {found['samples']} times"
    for arm, found in arms.items()
    if found["samples"] > 1
  ]
  return f"Answers to each question: one, but {', '.join(several)}." if several else ""


def _label_tables(ladder: Mapping[str, Any]) -> Markup:
  """How each arm answers, where answers have labels."""
  parts = []
  arms = ladder["arms"]
  names = dict.fromkeys(name for arm in arms.values() for name in arm.get("labels", {}))
  for name in names:
    values = dict.fromkeys(
      v for arm in arms.values() for v in arm["labels"].get(name, {})
    )
    rows = []
    for arm, found in arms.items():
      row: list[Any] = [arm_name(arm)]
      for value in values:
        entry = found["labels"].get(name, {}).get(value)
        row.append(f"{entry['share']:.3f}" if entry else "0")
        row.append(f"{entry['accuracy']:.3f}" if entry else "")
      rows.append(row)
    header = ["arm"]
    for value in values:
      header += [f"{value or '(none)'}: share", "accuracy"]
    parts.append(
      layout.table(
        header,
        rows,
        caption=f"Share of answers by {name}, and accuracy within it",
        numbers=range(1, len(header)),
      )
    )
  return join(parts)
