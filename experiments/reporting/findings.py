"""What a search for pivotal tokens found: traces, pivots, pairs, as sections."""

import collections
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from experiments.reporting import charts, layout, trace
from experiments.reporting.ladder import MINUS
from experiments.reporting.markup import Markup, join, tag
from experiments.reporting.reading import Run, open_vocabulary, read_records
from phi4_jax.eval.exchange import decode_response

_SHOWN, _LISTED = 12, 200


def make_traces(run: Run) -> list[trace.Trace]:
  """Returns the traced responses of a search."""
  pivots = read_records(run, "pivotal_tokens.jsonl")
  return [
    trace.Trace(
      record=record,
      confirmed=trace.find_positions(pivots, record),
      gap=run.config["search"]["gap"],
    )
    for record in read_records(run, "traces.jsonl")
  ]


def trace_section(traces: Sequence[trace.Trace]) -> layout.Section:
  """Traced solutions, the first ones open."""
  if not traces:
    return layout.Section(
      "traces", "Solutions, token by token", layout.note("This search traced none.")
    )
  rollouts = max(value["rollouts"] for value in traces[0].record["values"])
  parts = [
    layout.paragraph(
      "The line is the probability that an answer continued from there comes out "
      f"right, measured with {rollouts} rollouts at each token; it ends in the verdict "
      f"on the answer itself. A token is pivotal when it moves the line by "
      f"{traces[0].gap:g} or more."
    ),
    layout.legend(trace.legend_marks()),
  ]
  for number, each in enumerate(traces):
    picture = charts.responsive(lambda width, each=each: trace.draw_trace(each, width))
    verdict = "right" if each.record["correct"] else "wrong"
    caption = (
      f"{_one_line(each.record['prompt'])} answered {verdict} (question "
      f"{each.record['question']}, response {each.record['response']})."
    )
    drawn = layout.figure(picture, caption)
    if number < 2:
      parts.append(drawn)
    else:
      parts.append(layout.details(caption, drawn))
  return layout.Section("traces", "Solutions, token by token", join(parts))


def search_section(run: Run, note: str = "") -> layout.Section:
  """What was searched and what was found, and the list of pivots."""
  metrics = run.metrics
  pivots = read_records(run, "pivotal_tokens.jsonl")
  questions = read_records(run, "questions.jsonl")
  settings = run.config["search"]
  parts = [layout.note(note)] if note else []
  parts += [
    layout.paragraph(_story(metrics, settings)),
    layout.facts(
      {
        "questions searched": f"{metrics['kept']} of {metrics['questions']}",
        "responses": metrics["responses"],
        "candidates": metrics["candidates"],
        "pivotal tokens": metrics["pivotal_tokens"],
        "raise / lower p": f"{metrics['positive']} / {metrics['negative']}",
        "tokens sampled": f"{metrics['sampled_tokens']:,}",
      }
    ),
    layout.figure(
      tag(
        "div",
        _question_chart(questions),
        _change_chart(pivots, settings),
        class_="panels",
      ),
      "Left: share of right rollouts of each question, the searched ones in colour. "
      "Right: change of p(success) at confirmed pivots, from fresh rollouts.",
    ),
    _pivot_tables(run, pivots),
  ]
  return layout.Section("pivots", "Pivotal tokens", join(parts))


def _story(metrics: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
  return (
    f"Questions with p(success) between {settings['min_success']:g} and "
    f"{settings['max_success']:g} were searched by halving responses where p changes "
    f"by {settings['gap']:g} or more. Of {metrics['tokens']:,} tokens "
    f"{metrics['possible_tokens']:,} are improbable enough to be pivotal at all. "
    f"{metrics['candidates']} candidates were estimated again with "
    f"{settings['confirm_rollouts']} fresh rollouts on each side; "
    f"{metrics['pivotal_tokens']} of them held."
  )


def _question_chart(questions: Sequence[Mapping[str, Any]]) -> Markup:
  edges = [i / 10 for i in range(11)]

  def bars(kept: bool, class_: str):
    values = [q["successes"] / q["rollouts"] for q in questions if q["kept"] == kept]
    return charts.make_histogram(values, edges, class_)

  return charts.bar_chart(
    [*bars(True, "kept"), *bars(False, "neutral")],
    "Questions",
    "share of right rollouts",
  )


def _change_chart(pivots: Sequence[Mapping[str, Any]], settings) -> Markup:
  edges = [i / 10 for i in range(-10, 11)]
  rises = [p["delta"] for p in pivots if p["delta"] > 0]
  falls = [p["delta"] for p in pivots if p["delta"] <= 0]
  return charts.bar_chart(
    [
      *charts.make_histogram(falls, edges, "down"),
      *charts.make_histogram(rises, edges, "up"),
    ],
    "Pivotal tokens",
    f"change of p(success), {settings['gap']:g} or more either way",
  )


def _pivot_tables(run: Run, pivots: Sequence[Mapping[str, Any]]) -> Markup:
  if not pivots:
    return layout.note("No candidate held, so there is no pivotal token to list.")
  vocabulary = open_vocabulary(run)
  prompts = {q["question"]: q for q in read_records(run, "questions.jsonl")}
  ordered = sorted(pivots, key=lambda pivot: -abs(pivot["delta"]))

  def row(pivot: Mapping[str, Any]) -> list[Any]:
    question = prompts[pivot["question"]]
    before = pivot["prefix_ids"][len(question["prompt_ids"]) :]
    context = decode_response(before, "length", vocabulary)
    low, high = pivot["interval"]
    change = f"{pivot['delta']:+.2f} [{low:+.2f}, {high:+.2f}]".replace("-", MINUS)
    return [
      _one_line(question["prompt"]),
      layout.Cell(
        join(
          layout.code(_tail(context, 28)),
          " ",
          layout.token(trace.show_token(pivot["token"])),
        ),
        "context",
      ),
      f"{pivot['prob']:.2f}",
      _counts(pivot["before"]),
      _counts(pivot["after"]),
      layout.Cell(change, "whole up" if pivot["delta"] > 0 else "whole down"),
      _alternatives(pivot["alternatives"]),
    ]

  header = ["question", "so far, then the token", "prob", "before", "after"]
  header += ["change [95%]", "instead"]

  def table(chosen: Iterable[Mapping[str, Any]], caption: str) -> Markup:
    return layout.table(header, map(row, chosen), caption=caption, numbers=(2, 3, 4))

  first, rest = ordered[:_SHOWN], ordered[_SHOWN:_LISTED]
  parts = [
    table(
      first,
      f"The {len(first)} largest of {len(pivots)} pivots. Before and after: p(success) "
      "and right/all fresh rollouts; instead: other tokens drawn there, right/all "
      "rollouts through them",
    )
  ]
  if rest:
    left = len(pivots) - len(first) - len(rest)
    caption = f"{len(rest)} more pivots"
    if left:
      caption += f" ({left} others are in pivotal_tokens.jsonl only)"
    parts.append(layout.details(caption, table(rest, caption)))
  return join(parts)


def _counts(value: Mapping[str, Any]) -> str:
  if value["exact"]:
    return f"{trace.rate(value):.0f} (verdict)"
  return f"{trace.rate(value):.2f} ({value['successes']}/{value['rollouts']})"


def _alternatives(alternatives: Sequence[Mapping[str, Any]]) -> Markup:
  shown = []
  for each in alternatives[:3]:
    counts = f" {each['successes']}/{each['rollouts']}"
    drawn = layout.token(trace.show_token(each["token"]))
    shown.append(join(tag("span", drawn, counts, class_="whole"), " "))
  return join(shown)


def pair_section(run: Run) -> layout.Section:
  """Statistics of the preference pairs."""
  pairs = read_records(run, "pairs.jsonl")
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
    f"{len(pairs)} pairs of single tokens from {len(responses)} responses: "
    f"{signs['positive']} where the response's own token is accepted, "
    f"{signs['negative']} where it is rejected. The other token comes from rollouts "
    "made at the same prefix."
  )
  reasons = run.metrics["pivots_without_pair"]
  left = ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in reasons.items() if n)
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
    for (accepted, rejected), members in ordered[:_SHOWN]
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
    caption=f"The {len(rows)} most frequent of {len(kinds)} kinds of pairs",
    numbers=(2, 3, 4, 5),
  )


def _share(pair: Mapping[str, Any], side: str) -> float:
  successes, rollouts = pair[f"{side}_counts"]
  return successes / rollouts


def _mean(pairs: Sequence[Mapping[str, Any]], side: str) -> float:
  return sum(_share(pair, side) for pair in pairs) / len(pairs)


def _one_line(text: str) -> str:
  flat = " ".join(text.split())
  return flat if len(flat) <= 90 else flat[:89] + "\N{HORIZONTAL ELLIPSIS}"


def _tail(text: str, length: int) -> str:
  flat = trace.show_token(text) if text else ""
  return flat if len(flat) <= length else "\N{HORIZONTAL ELLIPSIS}" + flat[1 - length :]
