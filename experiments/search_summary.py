"""What a search has come to, in a few lines for the terminal.

Reads metrics and the file of pivotal tokens; refuses to know how they came about.
"""

import collections
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from phi4_jax.common import io
from phi4_jax.common.text import format_duration, format_table
from phi4_jax.pts.costs import FINDING
from phi4_jax.pts.records import PIVOTS
from phi4_jax.pts.search import SearchConfig

# How a person reads the states of questions.
_STATES = {
  "searched": "searched",
  "too_hard": "too hard",
  "too_easy": "too easy",
  "no_room": "without room for an answer (raise SamplingLaw.max_length)",
  "given_up": "given up (questions.jsonl says why)",
  "not_reached": "not reached by the budget",
}


# How a person reads why the screen ended.
_SCREEN_ENDS = {
  "recall": "it ended because that is CombConfig.recall",
  "price": "it ended because no rollout was worth CombConfig.most_times of its price",
  "rounds": "CombConfig.screen_rounds ended it",
  "budget": "the budget ended it",
}


def summarise(folder: Path, metrics: Mapping[str, Any], config: SearchConfig) -> str:
  """Returns questions, cost, pivotal tokens, and what may be claimed of them."""
  parts = [
    _questions(metrics),
    _costs(metrics),
    critic_line(metrics),
    screen_line(metrics),
    _tokens(folder, metrics),
    claim(metrics, config),
  ]
  return "\n".join(part for part in parts if part)


def _questions(metrics: Mapping[str, Any]) -> str:
  states = metrics["states"]
  counts = [f"{states[s]} {text}" for s, text in _STATES.items() if states.get(s)]
  return (
    f"{sum(states.values())} questions: {', '.join(counts)}\n"
    f"{metrics['responses']} responses with {metrics['tokens']} tokens, of which "
    f"{metrics['possible_tokens']} can be pivotal"
  )


def _costs(metrics: Mapping[str, Any]) -> str:
  stages = metrics["stages"]
  rows = [
    [name, cost["rollouts"], cost["sampled_tokens"]] for name, cost in stages.items()
  ]
  rows.append(["all", metrics["rollouts"], metrics["sampled_tokens"]])
  table = format_table(["part", "rollouts", "sampled tokens"], rows)
  pivots, seconds = metrics["pivotal_tokens"], metrics.get("seconds")
  if not pivots:
    return table
  line = (
    f"{metrics['tokens_per_pivot']:,.0f} sampled tokens for each pivotal token "
    f"({', '.join(FINDING)}: the same parts in every mode), "
    f"{metrics['sampled_tokens'] / pivots:,.0f} with all parts"
  )
  if seconds is not None:
    line += f"; {seconds / pivots:.1f} seconds ({format_duration(seconds)} in all)"
  return f"{table}\n{line}"


def critic_line(metrics: Mapping[str, Any]) -> str:
  """Says how good the critic was on questions it had not seen; "" without one."""
  found = metrics.get("critic")
  if found is None:
    return ""
  auc = found["auc"]
  line = (
    f"critic: held-out AUC {auc['value']:.2f} ({auc['low']:.2f} to {auc['high']:.2f}) "
    f"on {found['questions']} questions of {found['source']}"
  )
  if not found["slope"]:
    return f"{line}; it tells nothing of new questions, and is not heeded"
  return f"{line}; a standard deviation of its score is a factor {found['factor']:.2f}"


def screen_line(metrics: Mapping[str, Any]) -> str:
  """Says what the screen has found, as it believes, and why it ended; "" of others."""
  found = metrics.get("screen")
  if found is None:
    return ""
  return (
    f"screen: {found['rounds']} rounds; what it promoted holds {found['promoted']:.0%} "
    "of the pivotal tokens that it believes to be there; "
    f"{_SCREEN_ENDS[found['ended_by']]}"
  )


def _tokens(folder: Path, metrics: Mapping[str, Any]) -> str:
  """Counts, and the most frequent pivotal tokens."""
  word = "exported" if metrics["mode"] == "comb" else "confirmed"
  if metrics["mode"] == "naive":
    word = "claimed"
  tested = metrics.get("undecided")
  rest = ""
  if tested is not None:
    rest = f", {tested} undecided, {metrics['rejected']} rejected"
  lines = [
    f"{metrics['candidates']} candidates, {metrics['pivotal_tokens']} {word} "
    f"({metrics['positive']} raise p(success), {metrics['negative']} lower it){rest}; "
    f"{metrics['pairs']} pairs"
  ]
  if metrics["out_of_budget"]:
    lines.append("The budget ended the search: raise it to go on where it stopped.")
  deltas: dict[tuple[str, str], list[float]] = collections.defaultdict(list)
  if metrics["pivotal_tokens"]:
    for _, pivot in io.read_jsonl(folder / PIVOTS):
      deltas[pivot["token"], pivot["sign"]].append(pivot["delta"])
  ordered = sorted(deltas.items(), key=lambda item: (-len(item[1]), item[0]))
  rows = [
    [repr(token), sign, len(found), round(sum(found) / len(found), 3)]
    for (token, sign), found in ordered[:10]
  ]
  if rows:
    lines.append(format_table(["token", "sign", "pivots", "mean change"], rows))
  return "\n".join(lines)


def claim(metrics: Mapping[str, Any], config: SearchConfig) -> str:
  """Says what may be claimed of the pivotal tokens, and what may not."""
  if config.mode == "paper":
    return (
      "Mode 'paper' bounds no share of false tokens: each was seen twice, the second "
      "time by fresh rollouts."
    )
  if config.mode == "naive":
    return (
      "Mode 'naive' promises nothing: a token counts as soon as two estimates of "
      f"{config.rollouts_per_estimate} rollouts differ by {config.gap}, and many do by "
      "chance."
    )
  if not metrics["pivotal_tokens"]:
    return "Nothing is claimed: no token had enough evidence."
  comb = config.comb
  return (
    f"Of the {metrics['pivotal_tokens']} exported tokens, the expected share whose "
    f"true effect is at most {comb.gamma0} is at most {comb.alpha:.0%}, under this "
    "frozen model, sampling law, length cap and oracle. It is not claimed that each "
    "token is pivotal, that all were found, or anything of the model once it was "
    "trained on them."
  )
