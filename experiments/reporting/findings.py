"""What a search for pivotal tokens found: traces, pivots, pairs, as sections.

Without scripts, so that they stand in the pages of chains, too.
"""

import collections
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from experiments.reporting import charts, layout, trace
from experiments.reporting.ladder import MINUS
from experiments.reporting.markup import Markup, join, tag
from experiments.reporting.search_data import (
  SEARCHED,
  Alternative,
  Hypothesis,
  Search,
)
from experiments.reporting.search_survey import Survey
from phi4_jax.pts.counts import Value

SHOWN, _LISTED = 12, 200


def trace_section(survey: Survey, search: Search) -> layout.Section:
  """Traced solutions, the first ones open."""
  traces = survey.traces
  if not traces:
    return layout.Section(
      "traces", "Solutions, token by token", layout.note("This search traced none.")
    )
  parts = [
    layout.paragraph(
      "The line is the probability that an answer continued from there comes out "
      f"right, {_measured(traces[0], search)}; it ends in the verdict on the answer "
      "itself. A token is pivotal when it moves the line by "
      f"{traces[0].gap:g} or more."
    ),
    layout.legend(trace.legend_marks(search.found_word)),
  ]
  for number, each in enumerate(traces):
    picture = charts.responsive(lambda width, each=each: trace.draw_trace(each, width))
    response = each.response
    caption = (
      f"{one_line(each.prompt)} answered {each.verdict} (question "
      f"{response.question}, response {response.index})."
    )
    drawn = layout.figure(
      tag(
        "div", picture, data_question=response.question, data_response=response.index
      ),
      caption,
    )
    if number < 2:
      parts.append(drawn)
    else:
      parts.append(layout.details(caption, drawn))
  return layout.Section("traces", "Solutions, token by token", join(parts))


def _measured(first: trace.Trace, search: Search) -> str:
  if search.mode == "comb":
    return "as all rollouts of the search together say, with a 95% interval"
  rollouts = max((v.rollouts for v in first.response.counts.values()), default=0)
  return f"measured with {rollouts} rollouts at each token"


def search_section(search: Search, survey: Survey, note: str = "") -> layout.Section:
  """What was searched and what was found, and the list of pivots."""
  metrics = search.run.metrics
  pivots = search.pivots
  tested = search.mode == "comb"
  kept = sum(q.state == SEARCHED for q in search.questions.values())
  raised = sum(pivot.sign > 0 for pivot in pivots)
  parts = [layout.note(note)] if note else []
  parts += [
    layout.paragraph(_story(search)),
    layout.facts(
      {
        "questions searched": f"{kept:,} of {len(search.questions):,}",
        "responses": f"{survey.num_responses:,}",
        "tested" if tested else "candidates": f"{metrics['candidates']:,}",
        "pivotal tokens": f"{len(pivots):,}",
        "raise / lower p": f"{raised:,} / {len(pivots) - raised:,}",
        "tokens sampled": f"{metrics['sampled_tokens']:,}",
        **_critic(metrics),
      }
    ),
    layout.figure(
      tag(
        "div",
        _question_chart(search),
        _change_chart(search),
        class_="panels",
      ),
      "Left: share of right rollouts of each question, the searched ones in colour. "
      "Right: change of p(success) at pivotal tokens"
      + ("." if search.mode == "naive" else ", from fresh rollouts."),
    ),
    tag("div", pivot_tables(search, survey), data_static="pivots"),
  ]
  return layout.Section("pivots", "Pivotal tokens", join(parts))


def _critic(metrics: Mapping[str, Any]) -> dict[str, str]:
  """How good the critic of the screen was, if there was one."""
  if not (found := metrics.get("critic")):
    return {}
  auc = found["auc"]
  shown = f"{auc['value']:.2f} ({auc['low']:.2f} to {auc['high']:.2f})"
  return {"critic: held-out AUC": shown}


def _story(search: Search) -> str:
  metrics = search.run.metrics
  asked = (
    f"Questions with p(success) between {search.setting('min_success'):g} and "
    f"{search.setting('max_success'):g} were searched"
  )
  possible = (
    f" Of {metrics['tokens']:,} tokens {metrics['possible_tokens']:,} are improbable "
    "enough to be pivotal at all."
  )
  found = len(search.pivots)
  if search.mode == "comb":
    return (
      f"{asked} for tokens that change it by {search.gap:g} or more.{possible} "
      f"{len(search.hypotheses):,} of them looked it on rollouts that leave the "
      f"response there and were tested with fresh ones; {found:,} are exported."
    )
  halved = (
    f"{asked} by halving responses where p changes by {search.gap:g} or more.{possible}"
  )
  if search.mode == "naive":
    return (
      f"{halved} {found:,} tokens are claimed: the estimates before and after them "
      "differ by as much. No fresh rollouts were made, so that many may be chance."
    )
  return (
    f"{halved} {metrics['candidates']:,} candidates were estimated again with "
    f"{search.setting('confirm_rollouts')} fresh rollouts on each side; {found:,} of "
    "them held."
  )


def _question_chart(search: Search) -> Markup:
  edges = [i / 10 for i in range(11)]
  judged = [q for q in search.questions.values() if q.value is not None]

  def bars(searched: bool, class_: str):
    values = [
      q.value.share for q in judged if q.value and (q.state == SEARCHED) == searched
    ]
    return charts.make_histogram(values, edges, class_)

  return charts.bar_chart(
    [*bars(True, "kept"), *bars(False, "neutral")],
    "Questions",
    "share of right rollouts",
  )


def _change_chart(search: Search) -> Markup:
  edges = [i / 10 for i in range(-10, 11)]
  changes = [p.delta for p in search.pivots if p.delta is not None]
  return charts.bar_chart(
    [
      *charts.make_histogram([d for d in changes if d <= 0], edges, "down"),
      *charts.make_histogram([d for d in changes if d > 0], edges, "up"),
    ],
    "Pivotal tokens",
    f"change of p(success), {search.gap:g} or more either way",
  )


def pivot_tables(search: Search, survey: Survey) -> Markup:
  """The largest pivots; the others in a table that is closed at first."""
  pivots = list(zip(search.hypotheses, survey.contexts, strict=True))
  pivots = pivots[: len(search.pivots)]
  if not pivots:
    return layout.note("No candidate held, so there is no pivotal token to list.")
  tested = search.mode == "comb"
  arms = [name for name, _ in pivots[0][0].arms] or ["before", "after"]
  if tested:
    arms = ["V before", "V after", *arms]
  header = ["question", "so far, then the token", "prob", *arms]
  header += ["change [from]" if tested else "change [95%]", "instead"]

  def row(pivot: Hypothesis, context: str) -> list[Any]:
    change = show_change(pivot)
    return [
      one_line(search.questions[pivot.question].prompt),
      layout.Cell(
        join(
          layout.code(_tail(context, 28)),
          " ",
          layout.token(trace.show_token(pivot.token)),
        ),
        "context",
      ),
      f"{pivot.prob:.2f}",
      *(f"{value:.2f}" for value in (pivot.values or ()) if tested),
      *(show_value(value) for _, value in pivot.arms),
      layout.Cell(change, "whole up" if pivot.sign > 0 else "whole down"),
      _alternatives(pivot.alternatives),
    ]

  def table(chosen: Iterable[tuple[Hypothesis, str]], caption: str) -> Markup:
    rows = [row(*each) for each in chosen]
    return layout.table(header, rows, caption=caption, numbers=range(2, 3 + len(arms)))

  first, rest = pivots[:SHOWN], pivots[SHOWN:_LISTED]
  parts = [
    table(
      first,
      f"The {len(first)} largest of {len(pivots):,} pivots. {explain_arms(search)} "
      "Instead: other tokens drawn there, right/all rollouts through them",
    )
  ]
  if rest:
    left = len(pivots) - len(first) - len(rest)
    caption = f"{len(rest)} more pivots"
    if left:
      caption += f" ({left:,} others are in pivotal_tokens.jsonl only)"
    parts.append(layout.details(caption, table(rest, caption)))
  return join(parts)


def explain_arms(search: Search) -> str:
  """What the counts beside a pivot are."""
  if search.mode == "comb":
    return (
      "V before and after: p(success), estimated from fresh rollouts; the change is "
      "their difference. They are made of two shares: of the rollouts that have the "
      "token and leave the response later, and of those that leave it here, with "
      "another token (each with right/all). With the token's probability p, the "
      "probability w to stay on the response to its end, and its verdict: V after = w "
      "verdict + (1 - w) leave later, V before = p V after + (1 - p) leave here. From: "
      "what the change exceeds; of these bounds of exported tokens a share of at "
      f"most {search.setting('alpha'):.0%} is expected to be wrong."
    )
  if search.mode == "naive":
    return (
      "Before and after: p(success) and right/all of the very rollouts that led to the "
      "choice, so that the changes are too large."
    )
  return "Before and after: p(success) and right/all fresh rollouts."


def show_change(hypothesis: Hypothesis) -> str:
  """A change of p(success) and what bounds it."""
  if hypothesis.delta is None:
    return "unknown"
  shown = f"{hypothesis.delta:+.2f}"
  if hypothesis.interval is not None:
    low, high = hypothesis.interval
    shown += f" [{low:+.2f}, {high:+.2f}]"
  elif hypothesis.lower is not None:
    shown += f" [{hypothesis.sign * hypothesis.lower:+.2f}]"
  return shown.replace("-", MINUS)


def show_value(value: Value) -> str:
  """A share with its counts."""
  if value.exact:
    return f"{value.share:.0f} (verdict)"
  if not value.rollouts:
    return "none"
  return f"{value.share:.2f} ({value.successes}/{value.rollouts})"


def _alternatives(alternatives: Sequence[Alternative]) -> Markup:
  shown = []
  for each in alternatives[:3]:
    counts = f" {each.value.successes}/{each.value.rollouts}"
    drawn = layout.token(trace.show_token(each.token))
    shown.append(join(tag("span", drawn, counts, class_="whole"), " "))
  return join(shown)


def pair_section(search: Search) -> layout.Section:
  """Statistics of the preference pairs."""
  pairs = search.pairs
  if not pairs:
    content = layout.note("No pivot gave a pair.")
    return layout.Section("pairs", "Preference pairs", content)
  signs = collections.Counter(pair["sign"] for pair in pairs)
  gaps = [_share(pair, "accepted") - _share(pair, "rejected") for pair in pairs]
  positions = [pair["position"] for pair in pairs]
  last = max(positions) + 1
  width = max(1, -(-last // 10))
  edges = [float(i) for i in range(0, last + width, width)]
  charts_ = tag(
    "div",
    charts.bar_chart(
      charts.make_histogram(gaps, [i / 10 for i in range(11)], "kept"),
      "Pairs by gap",
      "share right after accepted minus rejected",
    ),
    charts.bar_chart(
      charts.make_histogram([float(p) for p in positions], edges, "kept"),
      "Pairs by position",
      "token of the response",
    ),
    class_="panels",
  )
  responses = {(pair["question"], pair["response"]) for pair in pairs}
  story = (
    f"{len(pairs):,} pairs of single tokens from {len(responses):,} responses: "
    f"{signs['positive']:,} where the response's own token is accepted, "
    f"{signs['negative']:,} where it is rejected. The other token comes from rollouts "
    "made at the same prefix."
  )
  reasons = search.run.metrics["pivots_without_pair"]
  left = ", ".join(
    f"{n:,} {name.replace('_', ' ')}" for name, n in reasons.items() if n
  )
  if left:
    story += f" Pivots that gave no pair: {left}."
  content = join(layout.paragraph(story), layout.figure(charts_), _kind_table(pairs))
  return layout.Section("pairs", "Preference pairs", content)


def _kind_table(pairs: Sequence[Mapping[str, Any]]) -> Markup:
  kinds: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
  for pair in pairs:
    kinds.setdefault((pair["accepted"], pair["rejected"]), []).append(pair)
  ordered = sorted(kinds.items(), key=lambda item: (-len(item[1]), item[0]))
  rows = [
    [
      layout.token(trace.show_token(accepted)),
      layout.token(trace.show_token(rejected)),
      len(members),
      sum(pair["sign"] == "positive" for pair in members),
      f"{_mean(members, 'accepted'):.2f}",
      f"{_mean(members, 'rejected'):.2f}",
    ]
    for (accepted, rejected), members in ordered[:SHOWN]
  ]
  return layout.table(
    [
      "accepted",
      "rejected",
      "pairs",
      "positive",
      "right after accepted",
      "after rejected",
    ],
    rows,
    caption=f"The {len(rows)} most frequent of {len(kinds):,} kinds of pairs",
    numbers=(2, 3, 4, 5),
  )


def _share(pair: Mapping[str, Any], side: str) -> float:
  successes, rollouts = pair[f"{side}_counts"]
  return successes / rollouts


def _mean(pairs: Sequence[Mapping[str, Any]], side: str) -> float:
  return sum(_share(pair, side) for pair in pairs) / len(pairs)


def one_line(text: str) -> str:
  flat = " ".join(text.split())
  return flat if len(flat) <= 90 else flat[:89] + "\N{HORIZONTAL ELLIPSIS}"


def _tail(text: str, length: int) -> str:
  flat = trace.show_token(text) if text else ""
  return flat if len(flat) <= length else "\N{HORIZONTAL ELLIPSIS}" + flat[1 - length :]
