"""What may be claimed of the tokens that a search exported, and what may not."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from scipy import special

from experiments.reporting import layout
from experiments.reporting.markup import Markup, join, tag
from experiments.reporting.search_data import Search


def claim_section(search: Search) -> layout.Section:
  """What may be said of what was found, and what may not."""
  parts = {"comb": _tested_claim, "paper": _repeated_claim}.get(
    search.mode, _single_claim
  )(search)
  content = join(*parts, _conditions(search))
  return layout.Section("claim", "What may be claimed", content)


def _tested_claim(search: Search) -> list[Markup]:
  gamma0, alpha = search.setting("gamma0"), search.setting("alpha")
  count = len(search.pivots)
  may = (
    f"Over the {count:,} exported tokens, the expected share of those whose true "
    f"effect on p(success) is at most {gamma0:g} is at most {alpha:.0%}: about "
    f"{alpha * count:,.0f} of them or fewer. This holds though rollouts were placed "
    "where they looked useful, each test was stopped when it had seen enough, and "
    "tokens of one response share rollouts (e-values, selected by closed e-BH over all "
    f"{len(search.hypotheses):,} hypotheses that were tested)."
  )
  return [
    tag("ul", tag("li", may, class_="better"), class_="verdicts"),
    tag("h3", "What may not be claimed"),
    _list(
      [
        "That a given token is pivotal: the bound is on a share of the set.",
        f"That an effect is {search.gap:g} or more: tokens are searched for with that "
        f"gap and tested against the smaller {gamma0:g}, which costs far less.",
        "That these are all: what was not tested, or is undecided, got no verdict.",
        "Anything about the model once it is trained on the pairs, another sampling "
        "law, or another cap on the length.",
        "Anything beyond the oracle: one that is wrong with rate e moves p(success) by "
        "up to e.",
        "That the other token of a pair was tested as the pivot was: its counts stand "
        "beside it.",
      ]
    ),
  ]


def _repeated_claim(search: Search) -> list[Markup]:
  rollouts, gap = search.setting("confirm_rollouts"), search.gap
  chance = null_pass_prob(rollouts, gap)
  return [
    _list(
      [
        f"Each pivot moved p(success) by {gap:g} or more twice: when it was found, and "
        f"again between two sets of {rollouts} fresh rollouts. A candidate without any "
        f"effect passes the second with a probability of up to {chance:.2g}.",
        "No bound on the share of false ones is claimed (the mode comb gives one). The "
        "change that is shown is from the fresh rollouts; it is a little too large on "
        "average, because smaller ones were left out.",
        "Halving misses pivots whose moves cancel inside a segment, however many "
        "rollouts are made.",
        "Nothing follows for the model after training, another sampling law, another "
        "cap on the length, or what the oracle gets wrong.",
      ]
    )
  ]


def _single_claim(search: Search) -> list[Markup]:
  rollouts, gap = search.setting("rollouts_per_estimate"), search.gap
  chance = null_pass_prob(rollouts, gap)
  words = (
    f"Nothing was confirmed. Two estimates of {rollouts} rollouts each differ by "
    f"{gap:g} or more with a probability of up to {chance:.2g} at a token that has no "
    "effect at all, and the changes that are shown are those that led to the choice: "
    "they are too large. This mode is here to be compared with."
  )
  return [tag("ul", tag("li", words, class_="worse"), class_="verdicts")]


def null_pass_prob(rollouts: int, gap: float, share: float = 0.5) -> float:
  """P(two shares of so many rollouts differ by the gap) if the truth is one share.

  >>> round(null_pass_prob(50, 0.2), 3)
  0.057
  """
  right = np.arange(rollouts + 1)
  probs = (
    special.binom(rollouts, right) * share**right * (1 - share) ** (rollouts - right)
  )
  differences = np.convolve(probs, probs[::-1])
  moves = np.abs(np.arange(-rollouts, rollouts + 1)) / rollouts
  return float(differences[moves >= gap - 1e-9].sum())


def _conditions(search: Search) -> Markup:
  law, asked = search.law, search.asked
  temperature = f"temperature {law.get('temperature', 'unknown')}"
  kept = [f"top-k {law['top_k']}"] if law.get("top_k") else []
  kept += [f"top-p {law['top_p']:g}"] if law.get("top_p", 1) < 1 else []
  task = search.run.config.get("task") or {}
  rows: list[list[Any]] = [
    ["mode", search.mode],
    ["model", layout.code(str(asked.get("sampler_id") or "see the settings below"))],
    ["sampling law", ", ".join([temperature, *kept])],
    ["horizon", _horizon(search)],
    ["oracle", layout.code(str(asked.get("oracle") or task.get("class") or "unknown"))],
    ["gap", f"{search.gap:g}"],
  ]
  if search.mode == "comb":
    rows += [
      ["gamma0, alpha", f"{search.setting('gamma0'):g}, {search.setting('alpha'):g}"],
      ["hypotheses", f"{len(search.hypotheses):,}"],
    ]
  return layout.table(["what it rests on", ""], rows, caption="All of this is fixed")


def _horizon(search: Search) -> str:
  words = f"{search.law.get('max_length', 'unknown')} tokens, prompt and response"
  cut = sum(question.cut for question in search.questions.values())
  drawn = sum(q.value.rollouts for q in search.questions.values() if q.value)
  return f"{words}; {cut / drawn:.1%} of the filter's rollouts met it" if cut else words


def _list(items: Iterable[str]) -> Markup:
  return tag("ul", [tag("li", item) for item in items], class_="plain")
