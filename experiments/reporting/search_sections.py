"""What else there is to say of a search: spreads, overlap, cost, what is left open."""

import collections
import math
from collections.abc import Sequence
from typing import Any

from experiments.reporting import charts, findings, layout
from experiments.reporting.markup import Markup, join, tag
from experiments.reporting.search_data import (
  EXPORTED,
  GIVEN_UP,
  NO_ROOM,
  NOT_REACHED,
  REJECTED,
  SEARCHED,
  UNDECIDED,
  Hypothesis,
  Search,
  Stage,
)
from experiments.reporting.search_survey import BIN_WIDTH, Survey
from experiments.reporting.trace import RARE
from experiments.search_summary import screen_line
from phi4_jax.eval.statistics import wilson_interval
from phi4_jax.pts.costs import FINDING

_STAGE_WORDS = {
  "filter": "filter: is the question worth it",
  "search": "search: where could pivots be",
  "confirm": "confirmation: fresh rollouts",
  "pair": "pairs: both tokens of each",
  "trace": "traces: for pictures only",
}


def spread_section(search: Search, survey: Survey) -> layout.Section | None:
  """How pivots are spread over position, probability and evidence."""
  pivots = search.pivots
  if not pivots:
    return None
  lengths = survey.lengths[: len(pivots)]
  tenths = [i / 10 for i in range(11)]
  places = [p.position / max(n, 1) for p, n in zip(pivots, lengths, strict=True)]
  panels = [
    charts.bar_chart(
      _by_sign(pivots, [p.position for p in pivots], _round_edges(pivots)),
      "Position",
      "token of the response",
    ),
    charts.bar_chart(
      _by_sign(pivots, places, tenths), "Place", "share of the response before it"
    ),
    charts.bar_chart(
      _by_sign(pivots, [p.prob for p in pivots], tenths),
      "Probability of the token",
      "under the sampling law",
    ),
  ]
  if search.mode == "comb":
    panels += _evidence_charts(search)
  caption = "Green bars: tokens that raise p(success); red ones lower it" + (
    "; blue: exported; grey: tested, and not." if search.mode == "comb" else "."
  )
  content = layout.figure(tag("div", panels, class_="panels"), caption)
  return layout.Section("spread", "Where pivots are", content)


def _evidence_charts(search: Search) -> list[Markup]:
  def bars(values, edges, class_, states):
    chosen = [
      min(max(value(h), edges[0]), edges[-1])
      for value in [values]
      for h in search.hypotheses
      if h.state in states and value(h) is not None
    ]
    return charts.make_histogram(chosen, edges, class_)

  def both(value, edges):
    left = bars(value, edges, "neutral", (UNDECIDED, REJECTED))
    return [*bars(value, edges, "kept", (EXPORTED,)), *left]

  def decimal(h: Hypothesis) -> float | None:
    return None if h.log_e is None else h.log_e / math.log(10)

  return [
    charts.bar_chart(
      both(decimal, [i / 2 for i in range(-4, 13)]),
      "Evidence",
      "log10 E, the ends hold what is beyond",
    ),
    charts.bar_chart(
      both(lambda h: h.lower, [i / 20 for i in range(-6, 17)]),
      "Lower bound of the effect",
      "in the direction that was tested",
    ),
  ]


def _by_sign(pivots, values: Sequence[float], edges: Sequence[float]):
  def chosen(sign: int):
    return [v for p, v in zip(pivots, values, strict=True) if p.sign == sign]

  return [
    *charts.make_histogram(chosen(-1), edges, "down"),
    *charts.make_histogram(chosen(1), edges, "up"),
  ]


def _round_edges(pivots: Sequence[Hypothesis]) -> list[float]:
  last = max(pivot.position for pivot in pivots) + 1
  width = max(1, -(-last // 12))
  return [float(i) for i in range(0, last + width, width)]


def overlap_section(survey: Survey) -> layout.Section:
  """Whether pivotal tokens are the improbable ones."""
  overlap = survey.overlap
  all_tokens, pivots = overlap.tokens.tolist(), overlap.pivots.tolist()
  rows = []
  sides = (
    (f"of pivotal tokens, are improbable (probability {RARE:g} or less)",
     overlap.rare_pivots, overlap.num_pivots),
    ("of improbable tokens, are pivotal", overlap.rare_pivots, overlap.rare_tokens),
    ("of all tokens, are improbable", overlap.rare_tokens, overlap.num_tokens),
    ("of all tokens, are pivotal", overlap.num_pivots, overlap.num_tokens),
  )  # fmt: skip
  for words, count, whole in sides:
    shown = "none" if not whole else f"{_percent(count, whole)}"
    rows.append([words, shown, f"{count:,} of {whole:,}"])
  table = layout.table(
    ["", "share [95%]", "tokens"],
    rows,
    caption="Tokens of the searched responses; one that responses share counts once",
    numbers=(1, 2),
  )
  bins = [
    [f"{i * BIN_WIDTH:.1f} to {(i + 1) * BIN_WIDTH:.1f}",
     f"{tokens:,}", f"{found:,}", _percent(found, tokens) if tokens else "none"]
    for i, (tokens, found) in enumerate(
      zip(all_tokens, pivots, strict=True)
    )
  ]  # fmt: skip
  details = layout.table(
    ["probability of the token", "tokens", "pivotal", "share [95%]"],
    bins,
    caption="By sampling probability",
    numbers=(1, 2, 3),
  )
  edges = [i * BIN_WIDTH for i in range(len(all_tokens) + 1)]
  rates = [
    charts.Bar(low, low + BIN_WIDTH, 100 * p / t if t else 0, "kept")
    for low, t, p in zip(edges, all_tokens, pivots, strict=False)
  ]
  picture = tag(
    "div",
    charts.bar_chart(
      rates, "Pivotal, in percent of tokens", "probability of the token"
    ),
    charts.bar_chart(
      [
        charts.Bar(low, low + BIN_WIDTH, count, "neutral")
        for low, count in zip(edges, all_tokens, strict=False)
      ],
      "Tokens",
      "probability of the token",
    ),
    class_="panels",
  )
  words = layout.paragraph(
    "A token can move p(success) by no more than 1 minus its probability, so a pivot "
    "is never a certain one. It need not be a rare one: an improbable token is often "
    "another way to say the same, and a token that decides can be a fair toss. Tokens "
    "that the search did not find count as not pivotal."
  )
  content = join(words, table, layout.figure(picture), layout.details("Bins", details))
  return layout.Section("overlap", "Pivotal is not improbable", content)


def _percent(count: int, whole: int) -> str:
  share, low, high = wilson_interval(count, whole)
  return f"{100 * share:.1f}% [{100 * low:.1f}, {100 * high:.1f}]"


def cost_section(search: Search) -> layout.Section:
  """What a pivot costs, by stage and by category."""
  pivots = len(search.pivots)

  def each(tokens: int) -> str:
    return f"{tokens / pivots:,.0f}" if pivots else "no pivot"

  def row(name: str, stages: Sequence[Stage]) -> list[str]:
    sampled = sum(stage.sampled_tokens for stage in stages)
    rollouts = sum(stage.rollouts for stage in stages)
    return [name, f"{rollouts:,}", f"{sampled:,}", each(sampled)]

  finding = [stage for stage in search.stages if stage.name in FINDING]
  header = ["stage", "rollouts", "tokens sampled", "sampled a pivot"]
  parts = [
    layout.table(
      header,
      [
        *(row(_STAGE_WORDS[stage.name], [stage]) for stage in search.stages),
        row("to find them: the first three", finding),
        row("all", search.stages),
      ],
      caption="Tokens by stage, and divided by the number of pivotal tokens. To "
      "compare modes, take what it took to find them: pairs and traces cost something "
      "in some modes only",
      numbers=range(1, len(header)),
    )
  ]
  work = search.run.result["perf"].get("last_process", {})
  read, held = work.get("prefill_tokens"), work.get("held_tokens")
  if read:
    again = f"; {held:,} more were held from earlier rounds" if held else ""
    parts.append(
      layout.note(
        f"Beside them {read:,} tokens of prompts and responses were read{again} (by "
        "the last process, if the search was continued)."
      )
    )
  categories = _categories(search)
  if len(categories) > 1 or (categories and categories[0][0] != "none"):
    parts.append(
      layout.table(
        [
          "category",
          "questions",
          "searched",
          "pivots",
          "pairs",
          "tokens sampled",
          "sampled a pivot",
        ],
        categories,
        caption="By category of the question",
        numbers=range(1, 7),
      )  # fmt: skip
    )
  return layout.Section("cost", "What a pivot costs", join(parts))


def _categories(search: Search) -> list[list[Any]]:
  asked = collections.Counter(q.category for q in search.questions.values())
  searched = collections.Counter(
    q.category for q in search.questions.values() if q.state == SEARCHED
  )
  pivots = collections.Counter(
    search.questions[p.question].category for p in search.pivots
  )
  pairs = collections.Counter(
    search.questions[p["question"]].category for p in search.pairs
  )
  rows = []
  for name in sorted(asked):
    tokens = search.category_tokens.get(name)
    each = f"{tokens / pivots[name]:,.0f}" if tokens and pivots[name] else "no pivot"
    rows.append(
      [name or "none", f"{asked[name]:,}", f"{searched[name]:,}", f"{pivots[name]:,}",
       f"{pairs[name]:,}", "unknown" if tokens is None else f"{tokens:,}", each]
    )  # fmt: skip
  return rows


def open_section(search: Search) -> layout.Section | None:
  """Hypotheses without a verdict and questions that were given up, with reasons."""
  left = [h for h in search.hypotheses if h.state != EXPORTED]
  lost = [q for q in search.questions.values() if q.state == GIVEN_UP]
  parts = []
  not_reached = sum(q.state == NOT_REACHED for q in search.questions.values())
  if search.run.metrics.get("out_of_budget") or not_reached:
    parts.append(
      layout.paragraph(
        "The budget ended before the search did"
        + (f"; {not_reached:,} questions were not asked." if not_reached else ".")
      )
    )
  no_room = [q for q in search.questions.values() if q.state == NO_ROOM]
  if no_room:
    parts.append(
      layout.paragraph(
        f"{len(no_room):,} of {len(search.questions):,} questions had no room for an "
        f"answer. Of {no_room[0].id}: {no_room[0].reason}."
      )
    )
  screen = screen_line(search.run.metrics)
  if screen:
    parts.append(layout.paragraph(f"{screen[0].upper()}{screen[1:]}."))
  if left:
    reasons = collections.Counter((h.state, h.reason) for h in left)
    parts += [
      layout.paragraph(
        f"{len(left):,} of {len(search.hypotheses):,} tested tokens are not exported. "
        "Undecided is no verdict: more rollouts could have shown an effect or none."
      ),
      _count_table(["state", "reason"], reasons, "Hypotheses that are not exported"),
    ]
  if lost:
    reasons = collections.Counter((q.reason or "no reason given",) for q in lost)
    parts += [
      layout.paragraph(
        f"{len(lost):,} of {len(search.questions):,} questions were given up; nothing "
        "of them is in the files of pivots and pairs."
      ),
      _count_table(["reason"], reasons, "Questions that were given up"),
    ]
    listed = [
      [q.number, q.id, findings.one_line(q.prompt), q.reason] for q in lost[:20]
    ]
    caption = f"{len(listed)} of {len(lost):,} given up"
    header = ["number", "id", "question", "reason"]
    table = layout.table(header, listed, caption=caption, numbers=(0,))
    parts.append(layout.details(caption, table))
  if not parts:
    return None
  return layout.Section("open", "Left open", join(parts))


def _count_table(header, reasons: collections.Counter, caption: str) -> Markup:
  shown = reasons.most_common(findings.SHOWN)
  rows = [[*key, f"{count:,}"] for key, count in shown]
  if len(reasons) > len(shown):
    rest = sum(reasons.values()) - sum(count for _, count in shown)
    rows.append(
      [
        *[f"{len(reasons) - len(shown):,} other reasons"],
        *[""] * (len(header) - 1),
        f"{rest:,}",
      ]
    )
  return layout.table([*header, "number"], rows, caption=caption, numbers=[len(header)])
