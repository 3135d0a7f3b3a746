"""What a search cost, split alike in every mode, and what a pivotal token cost.

  stage    mode "comb"                             modes "paper" and "naive"
  filter   on-policy rollouts of all questions     the same
  search   the screen: rollouts that leave         estimates at cuts
  confirm  fresh rollouts on both sides            the same ("naive" makes none)
  pair     rollouts of the two tokens of a pair    none: pairs take what was drawn
  trace    none: curves take what was drawn        estimates at each token of some

Pairs and traces are not needed to find a token and cost something in some modes only.
So tokens per pivotal token are those of the first three. Knows counts; refuses to know
how anything was drawn.
"""

from collections.abc import Mapping

# Rollouts and sampled tokens.
Cost = dict[str, int]
STAGES = ("filter", "search", "confirm", "pair", "trace")
# Those that find tokens.
FINDING = ("filter", "search", "confirm")
# Phases of random keys in mode "comb" whose names are not those of the stage.
_COMB_STAGES = {"screen": "search", "leave": "confirm", "confirm": "pair"}


def name_stages(costs: Mapping[str, Cost], mode: str) -> dict[str, Cost]:
  """Returns the cost of every stage, from costs by phase (`estimates.PHASES`)."""
  names = _COMB_STAGES if mode == "comb" else {}
  stages = {stage: {"rollouts": 0, "sampled_tokens": 0} for stage in STAGES}
  for phase, cost in costs.items():
    total = stages[names.get(phase, phase)]
    for what, count in cost.items():
      total[what] += count
  return stages


def tokens_per_pivot(stages: Mapping[str, Cost], num_pivots: int) -> float | None:
  """Returns sampled tokens of filter, search and confirmation for each pivotal token.

  Pairs and traces are left out; all questions are counted, those that gave none too.
  None if there is no pivotal token.
  """
  tokens = sum(stages[name]["sampled_tokens"] for name in FINDING)
  return tokens / num_pivots if num_pivots else None
