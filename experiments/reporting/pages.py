"""Whole reports: of a chain, of a sweep of chains, of one search.

Each builder returns what the verb writes: numbers, a page, a table, a picture.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.reporting import arm_costs, findings, ladder, layout, provenance, trace
from experiments.reporting.markup import Markup, join, tag
from experiments.reporting.reading import Chain, Run, open_chain, open_chains
from phi4_jax.common.text import format_table
from phi4_jax.eval import comparison


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
  """What a report consists of.

  Attributes:
    results: the content of results.json.
    html: the page.
    table: for the terminal.
    picture: the first traced solution as an SVG file, None if there is none.
  """

  results: dict[str, Any]
  html: str
  table: str
  picture: str | None


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
    **_cost(chain.stages, run),
    **_code(run),
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
  sections = [
    ladder.section(
      found, chain.baseline, repetition="run", links=provenance.links(chain)
    ),
    *_search_sections(chain.search),
    provenance.curve_section([chain], colors),
    provenance.stage_section(chain.stages),
    provenance.machine_section(run, chain.stages),
  ]
  return Report(
    results=results,
    html=_page(
      run,
      ladder.headline(found, chain.baseline),
      _ladder_head(lead, found, chain.baseline, results),
      sections,
    ),
    table=comparison.format_ladder(found, chain.baseline),
    picture=_picture(chain.search),
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
      **_cost(chain.stages),
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
    **_cost(stages),
    **_code(run),
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
  note = f"Of the first chain (seed {seeds[0]})."
  sections = [
    ladder_section,
    layout.Section("chains", "Chain by chain", _chain_table(per_chain, baseline)),
    *_search_sections(first.search, note),
    provenance.curve_section(chains, colors),
    _chain_settings(chains),
    provenance.machine_section(run, first.stages),
  ]
  return Report(
    results=results,
    html=_page(
      run,
      ladder.headline(found, baseline),
      _ladder_head(lead, found, baseline, results),
      sections,
    ),
    table=comparison.format_ladder(found, baseline),
    picture=_picture(first.search),
  )


def report_search(run: Run) -> Report:
  """Reports a finished search for pivotal tokens."""
  metrics = run.metrics
  results = {
    "verb": run.verb,
    **metrics,
    "perf": run.result["perf"],
    **_cost([run]),
    **_code(run),
  }
  title = (
    f"{metrics['pivotal_tokens']} pivotal tokens in {metrics['responses']} responses"
  )
  head = layout.facts(_cost_facts(results))
  sections = [
    *_search_sections(run),
    provenance.machine_section(run, [run]),
  ]
  shown = ("questions", "kept", "responses", "candidates", "pivotal_tokens", "pairs")
  table = format_table(["found", "count"], [[name, metrics[name]] for name in shown])
  return Report(
    results=results,
    html=_page(run, title, head, sections),
    table=table,
    picture=_picture(run),
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


def _cost(stages: Sequence[Run], whole: Run | None = None) -> dict[str, float]:
  """Wall time and memory; `whole` has a clock that also counts what is between."""
  minutes = sum(stage.result["minutes"] for stage in stages)
  if whole is not None:
    minutes = max(minutes, whole.result["minutes"])
  return {
    "minutes": round(minutes, 3),
    "peak_memory_gb": max(stage.result["peak_memory_gb"] for stage in stages),
  }


def _code(run: Run) -> dict[str, str]:
  return {"commit": run.commit, "machine": run.machine}


def _cost_facts(results: Mapping[str, Any]) -> dict[str, str]:
  facts = {
    "minutes": f"{results['minutes']:.1f}",
    "peak memory": f"{results['peak_memory_gb']:.2f} GB",
  }
  for name, words in (
    ("pivotal_tokens", "pivotal tokens"),
    ("pairs", "pairs"),
    ("questions", "questions"),
  ):
    if name in results:
      facts[words] = f"{results[name]:,}"
  return facts


def _ladder_head(lead, found, baseline, results) -> Markup:
  return join(
    layout.paragraph(lead, class_="lead"),
    ladder.verdicts(found, baseline),
    layout.facts(_cost_facts(results)),
  )


def _search_sections(search: Run | None, note: str = "") -> list[layout.Section]:
  if search is None:
    return []
  return [
    findings.trace_section(findings.make_traces(search)),
    findings.search_section(search, note),
    findings.pair_section(search),
  ]


def _picture(search: Run | None) -> str | None:
  traces = findings.make_traces(search) if search is not None else []
  return trace.draw_picture(traces[0]) if traces else None


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


def _page(
  run: Run,
  title: str,
  head: Markup,
  sections: Sequence[layout.Section | None],
) -> str:
  footer = tag(
    "p",
    "Made by ",
    layout.code(f"phi4 report {run.folder}"),
    f"; the same numbers are in results.json. Code {run.commit or 'unknown'}; "
    f"{run.machine}.",
  )
  return layout.page(
    title,
    f"phi4_jax \N{MIDDLE DOT} {run.verb} \N{MIDDLE DOT} {run.name}",
    head,
    [section for section in sections if section is not None],
    footer,
  )
