"""The whole of it: questions in, pivotal tokens and preference pairs out, on disk.

In a run's folder:

  settings.json         what was asked; another run in the same folder is refused
  draws.jsonl           the log: every rollout, as it ended
  rollouts.jsonl        on-policy rollouts of all questions
  questions.jsonl       each question, its success, and what became of it
  pivotal_tokens.jsonl  pivotal tokens, with all that it takes to audit one
  pairs.jsonl           preference pairs of single tokens
  traces.jsonl          responses with p(success) at every token
  hypotheses.jsonl      mode "comb": every token that was tested, and its evidence
  critic_guesses.jsonl  with a critic: what it said of each token, before the screen
  estimates.jsonl       other modes: every estimate of p(success)
  counts.json           what the search returned; there when all others are whole

Only the log is written while the search runs; the others are made of it, whole. So a
run that was killed goes on from the log and ends with the same files (but for the order
of the log's lines, and "seconds" in counts.json). Knows oracles and samplers by their
protocols; the README has an example with a model from a folder.
"""

import collections
import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.common.io import write_json
from phi4_jax.common.sampler import BranchSampler, Sampler, as_branches
from phi4_jax.eval.exchange import check_settings
from phi4_jax.pts import records
from phi4_jax.pts.comb_records import CombWriter
from phi4_jax.pts.comb_search import search_comb
from phi4_jax.pts.comb_types import Critic, NoCombPair
from phi4_jax.pts.costs import name_stages, tokens_per_pivot
from phi4_jax.pts.kept_guesses import KeptGuesses, name_critic
from phi4_jax.pts.mixture import check_quotas, within_quotas
from phi4_jax.pts.oracle import Oracle, Question, fingerprint_questions
from phi4_jax.pts.question_files import UnusableQuestion
from phi4_jax.pts.questions import Filtered, choose_responses, filter_questions
from phi4_jax.pts.responses import Response, Responses
from phi4_jax.pts.rollouts import Budget, ReportProgress, Rollouts
from phi4_jax.pts.search import SearchConfig, can_be_pivotal
from phi4_jax.pts.subdivision import search_by_subdivision

LOG = "draws.jsonl"


class NothingToSearch(DataError):
  """No question can be searched; the message says why, questions.jsonl of each."""


def find_pivotal_tokens(
  sampler: Sampler | BranchSampler,
  questions: Sequence[Question],
  oracle: Oracle,
  config: SearchConfig,
  *,
  out_dir: str | os.PathLike,
  seed: int = 0,
  sampler_id: str | None = None,
  rows_per_call: int = 512,
  budget: Budget | None = None,
  progress: ReportProgress | None = None,
  unusable: Sequence[UnusableQuestion] = (),
  critic: Critic | None = None,
  pairs_per_category: Mapping[str, int] | None = None,
) -> dict[str, Any]:
  """Searches answers to questions for pivotal tokens; returns the counts.

  Args:
    sampler: draws rollouts under the law that all probabilities refer to.
    questions: what is asked.
    oracle: judges the answers.
    config: how to search.
    out_dir: the run's folder; a started run in it goes on where it ended.
    seed: the sampler's, to be written beside the key paths; root of what mode "comb"
      draws itself.
    sampler_id: names the weights; a run started with others is refused. None takes
      the sampler's own `sampler_id`, "" if it has none.
    rows_per_call: rollouts asked of a plain Sampler at a time.
    budget: may be another one when a run goes on.
    progress: called after each rollout; may raise to stop the run.
    unusable: rows of a file of questions that cannot be asked; they are written down
      with the others.
    critic: of mode "comb": guesses where to look. It is asked once, before the screen
      draws; a run with another one (by its attribute `fingerprint`, if it has that,
      else by its class) is refused.
    pairs_per_category: at most so many pairs of questions of a category, and none of
      others; None for all. What is claimed of pivotal tokens is claimed of all that
      are exported, not of the part that gives pairs.

  Returns:
    What was found and what it cost. Everything but "seconds" (wall time of the search,
    earlier processes included) is the same whenever the search is repeated.

  Raises:
    ConfigError: if `out_dir` holds a run with other settings, `rows_per_call` is not
      positive, the mode asks for more than the sampler can do, or has no use for a
      critic.
    NothingToSearch: if no question can be searched.
    DataError: if a file is damaged or cannot be written.
  """
  if sampler_id is None:
    sampler_id = str(getattr(sampler, "sampler_id", ""))
  branches = as_branches(sampler, rows_per_call=rows_per_call)
  check_mode(config, branches)
  if critic is not None and config.mode != "comb":
    raise ConfigError(
      f"SearchConfig.mode {config.mode!r} has no screen that a critic could guide. Use "
      "mode 'comb', or no critic."
    )
  check_quotas(pairs_per_category or {}, questions)
  out_dir = Path(out_dir)
  law = dataclasses.asdict(sampler.law)
  check_settings(
    out_dir,
    {
      "oracle": oracle.fingerprint,
      "questions": fingerprint_questions(questions),
      "num_questions": len(questions),
      "search": dataclasses.asdict(config),
      "seed": seed,
      "sampler_id": sampler_id,
      "law": law,
      "critic": name_critic(critic),
    },
    what="a search",
    log=LOG,
  )
  with Rollouts(
    branches,
    questions,
    oracle,
    log_path=out_dir / LOG,
    budget=budget,
    progress=progress,
  ) as rollouts:
    filtered = filter_questions(
      rollouts, questions, config, max_length=sampler.law.max_length
    )
    run = _Run(
      out_dir,
      questions,
      unusable,
      oracle,
      config,
      rollouts,
      filtered,
      law,
      seed,
      critic,
      pairs_per_category,
    )
    # What is written from here on belongs to other counts.
    (out_dir / records.COUNTS).unlink(missing_ok=True)
    run.write_questions()
    if not run.members:
      raise _no_questions(filtered, config)
    found = run.search() | {"seconds": round(rollouts.seconds, 3)}
    write_json(out_dir / records.COUNTS, found)
    return found


def check_mode(config: SearchConfig, sampler: BranchSampler) -> None:
  """Refuses a mode for which the sampler lacks something.

  Raises:
    ConfigError: names what is missing and the modes that work.
  """
  if config.mode == "comb" and not sampler.can_exclude:
    why = getattr(sampler, "why_not_exclude", "")
    raise ConfigError(
      "SearchConfig.mode 'comb' draws rollouts whose first token is not a given one, "
      "and needs the probabilities of the law really sampled from. "
      f"{type(sampler).__name__} gives neither{f': {why}' if why else ''}. Modes that "
      "work with it: 'paper', 'naive'."
    )


class _Run:
  """What the parts of a run share; writes its files."""

  def __init__(
    self,
    out_dir: Path,
    questions: Sequence[Question],
    unusable: Sequence[UnusableQuestion],
    oracle: Oracle,
    config: SearchConfig,
    rollouts: Rollouts,
    filtered: Sequence[Filtered],
    law: Mapping[str, Any],
    seed: int,
    critic: Critic | None,
    quotas: Mapping[str, int] | None,
  ):
    self._out_dir = out_dir
    self._questions = questions
    self._unusable = unusable
    self._oracle = oracle
    self._config = config
    self._rollouts = rollouts
    self._filtered = list(filtered)
    self._critic = critic
    self._quotas = quotas
    self._origin = records.Origin(law=law, seed=seed, oracle=oracle.fingerprint)
    # The rollouts of the questions that are searched.
    self.members: dict[int, Sequence[Response]] = {
      number: question.rollouts
      for number, question in enumerate(filtered)
      if question.state == "searched"
    }
    self._said = (questions, oracle.token_text)

  def write_questions(self) -> None:
    """Writes questions.jsonl and rollouts.jsonl, as far as is known."""
    for number, reason in self._rollouts.failures.items():
      self._filtered[number] = dataclasses.replace(
        self._filtered[number], state="given_up", reason=reason
      )
    records.write_questions(
      self._out_dir, self._questions, self._filtered, self._unusable
    )
    records.write_rollouts(self._out_dir, self._oracle.response_text, self._filtered)

  def search(self) -> dict[str, Any]:
    """Searches the base responses, writes what was found, and returns the counts."""
    config = self._config
    responses = Responses(
      response
      for members in self.members.values()
      for response in choose_responses(members, config.responses_per_question)
    )
    is_comb = config.mode == "comb"
    found = self._comb(responses) if is_comb else self._subdivide(responses)
    self.write_questions()
    states: list[str] = [question.state for question in self._filtered]
    states += ["given_up"] * len(self._unusable)
    roots = [q.root for q in self._filtered if q.rollouts]
    probs = [prob for response in responses for prob in response.probs]
    stages = name_stages(self._rollouts.cost_by_phase(), config.mode)
    return {
      "questions": len(states),
      "kept": states.count("searched"),
      "success": sum(root.share for root in roots) / len(roots),
      "responses": len(responses),
      "tokens": len(probs),
      "possible_tokens": sum(can_be_pivotal(prob, config.gap) for prob in probs),
      **found,
      "rollouts": self._rollouts.num_rollouts,
      "sampled_tokens": self._rollouts.num_tokens,
      "mode": config.mode,
      "states": {state: states.count(state) for state in sorted(set(states))},
      "stages": stages,
      "tokens_per_pivot": tokens_per_pivot(stages, found["pivotal_tokens"]),
      "categories": self._rollouts.cost_by_category(),
    }

  def _comb(self, responses: Responses) -> dict[str, Any]:
    config = self._config
    critic = None
    if self._critic is not None:
      critic = KeptGuesses(self._critic, self._out_dir)
    result = search_comb(
      responses,
      self.members,
      config.comb,
      self._rollouts,
      gap=config.gap,
      seed=self._origin.seed,
      critic=critic,
    )
    # Of a round that a budget ends nothing is used: the search has seen all failures.
    lost = self._rollouts.failures.keys() & self.members.keys()
    assert lost <= result.dropped.keys(), "a question lost a verdict unseen"
    findings = list(result.findings)
    paired = [i for i, finding in enumerate(findings) if finding.pair is not None]
    kept = self._within_quotas([findings[i].point.question for i in paired])
    for i, keep in zip(paired, kept, strict=True):
      if not keep:
        findings[i] = dataclasses.replace(findings[i], pair=None, no_pair="over_quota")
    writer = CombWriter(
      self._out_dir, *self._said, responses, self._origin, config.comb
    )
    writer.write(result, findings)
    states = collections.Counter(finding.state for finding in findings)
    exported = [finding for finding in findings if finding.state == "exported"]
    num_positive = sum(finding.sign > 0 for finding in exported)
    without = collections.Counter(f.no_pair for f in exported if f.pair is None)
    return {
      "candidates": len(findings),
      "pivotal_tokens": len(exported),
      "positive": num_positive,
      "negative": len(exported) - num_positive,
      "undecided": states["undecided"],
      "rejected": states["rejected"],
      "pairs": sum(finding.pair is not None for finding in exported),
      "pivots_without_pair": {
        reason: without[reason] for reason in get_args(NoCombPair)
      },
      "traces": sum(question not in result.dropped for question, _ in result.screened),
      "rounds": result.rounds,
      "screen": dataclasses.asdict(result.screen),
      "out_of_budget": result.out_of_budget,
    }

  def _within_quotas(self, numbers: Sequence[int]) -> list[bool]:
    if self._quotas is None:
      return [True] * len(numbers)
    seed = self._origin.seed
    return within_quotas(numbers, self._questions, self._quotas, seed)

  def _subdivide(self, responses: Responses) -> dict[str, Any]:
    found = search_by_subdivision(
      responses,
      self.members,
      self._rollouts,
      self._config,
      given_up=self._rollouts.is_given_up,
    )
    kept = self._within_quotas([pair.point.question for pair in found.pairs])
    pairs = [pair for pair, keep in zip(found.pairs, kept, strict=True) if keep]
    without = found.without_pair | {"over_quota": len(found.pairs) - len(pairs)}
    out = self._out_dir
    records.write_jsonl(out / "estimates.jsonl", found.estimates)
    records.write_pivots(out, *self._said, responses, found.pivots, self._origin)
    records.write_pairs(out, *self._said, responses, pairs)
    records.write_traces(out, *self._said, found.traces)
    num_positive = sum(pivot.sign == "positive" for pivot in found.pivots)
    return {
      "candidates": found.num_candidates,
      "pivotal_tokens": len(found.pivots),
      "positive": num_positive,
      "negative": len(found.pivots) - num_positive,
      "pairs": len(pairs),
      "pivots_without_pair": without,
      "traces": len(found.traces),
      "estimates": len(found.estimates),
      "out_of_budget": found.out_of_budget,
    }


def _no_questions(
  filtered: Sequence[Filtered], config: SearchConfig
) -> NothingToSearch:
  """Says why there is nothing to search, with what to do."""
  given_up = [question for question in filtered if question.state == "given_up"]
  not_reached = sum(question.state == "not_reached" for question in filtered)
  roots = [q.root for q in filtered if q.rollouts and q.state != "given_up"]
  parts = []
  if given_up:
    parts.append(
      f"{len(given_up)} of {len(filtered)} questions were given up (the first: "
      f"{given_up[0].reason}); questions.jsonl has all reasons."
    )
  if not_reached:
    parts.append(
      f"The budget ended before {not_reached} of {len(filtered)} questions were "
      "filtered. Raise it."
    )
  no_room = [question for question in filtered if question.state == "no_room"]
  if no_room:
    parts.append(
      f"{len(no_room)} of {len(filtered)} questions have no room for an answer (the "
      f"first: {no_room[0].reason})."
    )
  if roots:
    mean = sum(root.share for root in roots) / len(roots)
    parts.append(
      f"None of {len(roots)} questions has a success between "
      f"SearchConfig.min_success ({config.min_success}) and SearchConfig.max_success "
      f"({config.max_success}); {mean:.1%} of all rollouts were right. The search "
      "needs a model that has learned the task and still fails at times: train the "
      "parent longer, or ask easier or harder questions."
    )
  return NothingToSearch(" ".join(parts) or "There is no question.")
