"""Whole reports of a chain, and of a sweep of chains.

Each builder returns what the verb writes: numbers, a page, a table, a picture.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.reporting import arm_costs, findings, ladder, layout, provenance
from experiments.reporting.markup import Markup, join, tag
from experiments.reporting.reading import Chain, Run, open_chain, open_chains
from experiments.reporting.report import (
  Report,
  code_of,
  cost_facts,
  cost_of,
  draw_first,
  whole_page,
)
from experiments.reporting.search_data import Search, read_search
from experiments.reporting.search_survey import Survey, survey
from phi4_jax.eval import comparison


def report_chain(run: Run) -> Report:
  """Reports a finished pipeline that compares arms."""
  chain = open_chain(run)
  found = arm_costs.add_costs(chain.compare.metrics, [chain])
  questions = next(iter(found["arms"].values()))["questions"]
  results = {
    "verb": run.verb,
    "arms": found["arms"],
    "comparisons": found["comparisons"],
    "baseline": chain.baseline,
    "questions": questions,
    **_search_counts([chain]),
    **cost_of(chain.stages, run),
    **code_of(run),
    "stages": {
      stage.name: {
        "verb": stage.verb,
        "minutes": stage.result["minutes"],
        "peak_memory_gb": stage.result["peak_memory_gb"],
        "fingerprint": stage.result["fingerprint"],
      }
      for stage in chain.stages
    },
  }
  lead = f"{_stage_story(chain)} {_answers_story(chain, found['arms'])}"
  colors = ladder.arm_colors(found["arms"], chain.baseline)
  searched = _look_up(chain)
  sections = [
    ladder.section(
      found, chain.baseline, repetition="run", links=provenance.links(chain)
    ),
    *_search_sections(searched),
    provenance.curve_section([chain], colors),
    provenance.stage_section(chain.stages),
    provenance.machine_section(run, chain.stages),
  ]
  return Report(
    results=results,
    html=whole_page(
      run,
      ladder.headline(found, chain.baseline),
      _ladder_head(lead, found, chain.baseline, results),
      sections,
    ),
    table=comparison.format_ladder(found, chain.baseline),
    picture=_picture(searched),
  )


def report_sweep(run: Run) -> Report:
  """Reports a sweep of chains over seeds: the chains are the repetitions."""
  chains = open_chains(run)
  first, seeds = chains[0], run.config["seeds"]
  baseline = first.baseline
  found = arm_costs.add_costs(
    comparison.compare_scores(
      comparison.score_chains([chain.answers for chain in chains]), baseline
    ),
    chains,
  )
  for arm, entry in found["arms"].items():
    runs = [answers for chain in chains for answers in chain.answers[arm]]
    entry |= {"seeds": seeds, "labels": comparison.count_labels(runs)}
  for group in (*found["arms"].values(), *found["comparisons"].values()):
    group["over"] = group["over"].replace("runs", "chains")
  questions = next(iter(found["arms"].values()))["questions"]
  stages = [stage for chain in chains for stage in chain.stages]
  per_chain = [
    {
      "seed": seed,
      "arms": {arm: entry["accuracies"][i] for arm, entry in found["arms"].items()},
      **_search_counts([chain]),
      **cost_of(chain.stages),
    }
    for i, (seed, chain) in enumerate(zip(seeds, chains, strict=True))
  ]
  results = {
    "verb": run.verb,
    "arms": found["arms"],
    "comparisons": found["comparisons"],
    "baseline": baseline,
    "questions": questions,
    **_search_counts(chains),
    **cost_of(stages),
    **code_of(run),
    "chains": per_chain,
  }
  lead = (
    f"{_stage_story(first)} The whole chain ran {len(chains)} times, with the seeds "
    f"{', '.join(map(str, seeds))}; in each, {len(found['arms'])} arms answered the "
    f"same {_asked(first)}. Arms are compared within each chain; 95% intervals are "
    f"over {next(iter(found['arms'].values()))['over']}.{_few(len(chains), 'chains')}"
  )
  colors = ladder.arm_colors(found["arms"], baseline)
  ladder_section = ladder.section(found, baseline, repetition="chain", links={})
  searched = _look_up(first)
  note = f"Of the first chain (seed {seeds[0]})."
  sections = [
    ladder_section,
    layout.Section("chains", "Chain by chain", _chain_table(per_chain, baseline)),
    *_search_sections(searched, note),
    provenance.curve_section(chains, colors),
    _chain_settings(chains),
    provenance.machine_section(run, first.stages),
  ]
  return Report(
    results=results,
    html=whole_page(
      run,
      ladder.headline(found, baseline),
      _ladder_head(lead, found, baseline, results),
      sections,
    ),
    table=comparison.format_ladder(found, baseline),
    picture=_picture(searched),
  )


def _stage_story(chain: Chain) -> str:
  verbs = [stage.verb for stage in chain.stages]
  words = {
    "pretrain": "pretrained from scratch",
    "midtrain": "trained on longer rows",
    "sft": "fine-tuned on chats",
    "find_pivotal_tokens": "searched for tokens that decide whether its answers are "
    "right",
  }
  told = [text for verb, text in words.items() if verb in verbs]
  arms = chain.compare.config["arms"]
  others = [ladder.arm_name(arm) for arm in arms if arm != chain.baseline]
  if others:
    told.append(f"trained further in {len(others)} ways ({', '.join(others)})")
  if not told:
    return ""
  return f"A model was {_list(told)}."


def _answers_story(chain: Chain, arms: Mapping[str, Any]) -> str:
  several = [ladder.arm_name(arm) for arm, found in arms.items() if found["runs"] > 1]
  asked = f"{len(arms)} arms answered the same {_asked(chain)}."
  if not several:
    return (
      f"{asked} Each was trained once, so 95% intervals are over the questions only: "
      "another seed may come out otherwise."
    )
  runs = max(found["runs"] for found in arms.values())
  return (
    f"{asked} {_list(several)} were trained with {runs} seeds each; 95% intervals are "
    "over these runs and the questions jointly, of one chain: another base or other "
    f"data may come out otherwise.{_few(runs, 'runs')}"
  )


def _few(count: int, what: str) -> str:
  """A remark on intervals over few repetitions; see `statistics.crossed_interval`."""
  if not 1 < count < 5:
    return ""
  return (
    f" An interval over so few {what} covers less than 95% where {what} differ (in "
    f"simulations 92% with three {what}, 88% with two)."
  )


def _list(names: Sequence[str]) -> str:
  return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _asked(chain: Chain) -> str:
  config = chain.compare.config
  task, law = config["task"], config["law"]
  split = f" of the split {task['split']}" if task.get("split") else ""
  return (
    f"{config['num_examples']:,} questions{split} at temperature {law['temperature']:g}"
  )


def _search_counts(chains: Sequence[Chain]) -> dict[str, int]:
  searches = [chain.search for chain in chains if chain.search is not None]
  if not searches:
    return {}
  return {
    name: sum(search.metrics[name] for search in searches)
    for name in ("pivotal_tokens", "pairs")
  }


def _ladder_head(lead, found, baseline, results) -> Markup:
  return join(
    layout.paragraph(lead, class_="lead"),
    ladder.verdicts(found, baseline),
    layout.facts(cost_facts(results)),
  )


def _look_up(chain: Chain) -> tuple[Search, Survey] | None:
  """Reads the search of a chain, if it has one."""
  if chain.search is None:
    return None
  search = read_search(chain.search)
  return search, survey(search, pack=False)


def _search_sections(
  found: tuple[Search, Survey] | None, note: str = ""
) -> list[layout.Section]:
  if found is None:
    return []
  search, surveyed = found
  where = layout.note(
    "A page for each question, and what may be claimed: ",
    layout.code(f"phi4 report {search.run.folder}"),
    ".",
  )
  section = findings.search_section(search, surveyed, note)
  return [
    findings.trace_section(surveyed, search),
    section._replace(content=join(section.content, where)),
    findings.pair_section(search),
  ]


def _picture(found: tuple[Search, Survey] | None) -> str | None:
  return draw_first(found[1]) if found is not None else None


def _chain_table(per_chain: Sequence[Mapping[str, Any]], baseline: str) -> Markup:
  arms = list(per_chain[0]["arms"])
  counted = [name for name in ("pivotal_tokens", "pairs") if name in per_chain[0]]
  rows = []
  for entry in per_chain:
    row: list[Any] = [entry["seed"], *(f"{entry['arms'][arm]:.3f}" for arm in arms)]
    row += [entry[name] for name in counted]
    row += [f"{entry['minutes']:.1f}", f"{entry['peak_memory_gb']:.2f}"]
    rows.append(row)
  header = ["seed", *map(ladder.arm_name, arms)]
  header += [name.replace("_", " ") for name in counted] + ["minutes", "peak GB"]
  return layout.table(
    header,
    rows,
    caption="Accuracy of each arm in each chain, what its search found, what it cost",
    numbers=range(len(header)),
  )


def _chain_settings(chains: Sequence[Chain]) -> layout.Section:
  stages = join(map(provenance.run_details, chains[0].stages))
  others = [layout.code(chain.run.command) for chain in chains]
  return layout.Section(
    "stages",
    "Commands and settings",
    join(
      layout.paragraph("Each chain by itself:"),
      tag("ul", [tag("li", command) for command in others]),
      layout.paragraph("The stages of the first one, each with its settings:"),
      stages,
    ),
  )
