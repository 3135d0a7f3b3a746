"""The question filter: on-policy rollouts, and the base responses among them.

Questions that nearly always or nearly never succeed hold few pivotal tokens. The
rollouts that tell so are kept: they are the base responses, the value at the bare
question, and the first tallies of first tokens.

Source: arXiv:2412.08905 section 4.3 (questions with 0.2 <= p(success) <= 0.8).
Differs: the paper gives neither the number of rollouts nor which responses are
searched. Here: the first right and the first wrong rollout, then further ones in
order; a rollout equal to an earlier one is passed over, it would show nothing new.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

from phi4_jax.common.sampler import Branch
from phi4_jax.pts.counts import Value, reaches
from phi4_jax.pts.draws import OutOfBudget
from phi4_jax.pts.estimates import PHASES
from phi4_jax.pts.evidence import excludes_range
from phi4_jax.pts.oracle import Question
from phi4_jax.pts.responses import Response
from phi4_jax.pts.rollouts import Rollouts
from phi4_jax.pts.search import SearchConfig

# What became of a question. Not too hard but without room are those whose prompt takes
# more than half of the cap, which most of their rollouts met. Given up are those that
# cannot be asked (no prompt, or one that leaves no room at all) or judged; not reached
# those that came behind the budget.
State = Literal[
  "searched", "too_easy", "too_hard", "no_room", "given_up", "not_reached"
]
# Questions of one round: enough to keep a sampler busy, few enough that a budget that
# ends in the filter leaves some to search.
_CHUNK = 256
# After the first rollouts of a question that is filtered in steps.
_STEP = 4
# Risk at which a question is left before it had all its rollouts: 8 of one kind do. One
# at the very edge is lost half of the time whatever is done, which costs a question and
# no truth: what is searched is tested anew.
_FILTER_ALPHA = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Filtered:
  """A question after the filter.

  Attributes:
    rollouts: from the bare question, judged.
    reason: why it is given up or has no room; "" otherwise.
  """

  state: State
  rollouts: tuple[Response, ...] = ()
  reason: str = ""

  @property
  def root(self) -> Value:
    """Successes and rollouts at the bare question."""
    return success_of(self.rollouts)


def filter_questions(
  rollouts: Rollouts,
  questions: Sequence[Question],
  config: SearchConfig,
  *,
  max_length: int,
) -> list[Filtered]:
  """Returns what became of each question, in order.

  Args:
    rollouts: draws. A budget that ends here leaves the later questions out.
    questions: what is asked.
    config: how many rollouts, and which questions are searched.
    max_length: of prompt and response together.
  """
  found: list[Filtered | None] = [_refuse(q, max_length) for q in questions]
  asked = [number for number, state in enumerate(found) if state is None]
  for start in range(0, len(asked), _CHUNK):
    chunk = asked[start : start + _CHUNK]
    label = "filter"
    if len(asked) > _CHUNK:
      label += f": questions {start + 1} to {start + len(chunk)} of {len(asked)}"
    now = _sample(rollouts, questions, chunk, config, label)
    for number, members in now.items():
      length = len(questions[number].prompt_ids)
      found[number] = _sort(members, config, length, max_length)
  for number, reason in rollouts.failures.items():
    members = found[number]
    kept = members.rollouts if members else ()
    found[number] = Filtered(state="given_up", rollouts=kept, reason=reason)
  return [state or Filtered(state="not_reached") for state in found]


def _refuse(question: Question, max_length: int) -> Filtered | None:
  length = len(question.prompt_ids)
  texts = [str(message["content"]).strip() for message in question.messages]
  if not length or (texts and not any(texts)):
    return Filtered(state="given_up", reason="the question is empty")
  if length >= max_length:
    return Filtered(
      state="given_up",
      reason=f"the prompt has {length} tokens, which leaves no room for a response "
      f"under SamplingLaw.max_length ({max_length}; prompt and response together)",
    )
  return None


def _sample(
  rollouts: Rollouts,
  questions: Sequence[Question],
  numbers: Sequence[int],
  config: SearchConfig,
  label: str,
) -> dict[int, list[Response]]:
  """Returns the judged rollouts of questions that had at least the first of them."""
  found: dict[int, list[Response]] = {}
  total = config.rollouts_per_question
  first = min(config.first_rollouts, total) if config.mode == "comb" else total
  wanted = 0
  while wanted < total:
    before, wanted = wanted, min(total, wanted + _STEP) if wanted else first
    running = [q for q in numbers if not before or _is_open(found[q], config)]
    names = [(q, k) for q in running for k in range(before, wanted)]
    branches = [
      Branch(
        text=questions[q].prompt_ids,
        position=len(questions[q].prompt_ids),
        key_path=(PHASES["filter"], q, 0, 0, k),
      )
      for q, k in names
    ]
    try:
      drawn = rollouts.draw_responses(branches, label=label) if branches else []
    except OutOfBudget:
      break
    for q in running:
      found.setdefault(q, [])
    for (q, _), response in zip(names, drawn, strict=True):
      if response is not None:
        found[q].append(response)
  return found


def _is_open(members: Sequence[Response], config: SearchConfig) -> bool:
  """Whether further rollouts may still show that a question is worth a search."""
  successes, trials = success_of(members)[:2]
  low, high = config.min_success, config.max_success
  return not excludes_range(successes, trials, low, high, _FILTER_ALPHA)


def _sort(
  members: Sequence[Response], config: SearchConfig, prompt_length: int, max_length: int
) -> Filtered:
  root = success_of(members)
  if not members:
    return Filtered(state="given_up", reason="no rollout has a verdict")
  state: State = "searched"
  reason = ""
  if not is_kept(root, config):
    state = "too_hard" if root.share < config.min_success else "too_easy"
  room = max_length - prompt_length
  num_cut = sum(member.finish == "length" for member in members)
  if state == "too_hard" and room < prompt_length and num_cut > len(members) / 2:
    state = "no_room"
    reason = (
      f"its prompt has {prompt_length} tokens and leaves {room} for a response, which "
      f"{num_cut} of {len(members)} rollouts outgrew: raise SamplingLaw.max_length "
      f"({max_length}; prompt and response together)"
    )
  return Filtered(state=state, rollouts=tuple(members), reason=reason)


def is_kept(root: Value, config: SearchConfig) -> bool:
  """Whether a question's success is neither too low nor too high to search."""
  fails = 1 - root.share
  return reaches(root.share, config.min_success) and reaches(
    fails, 1 - config.max_success
  )


def success_of(rollouts: Sequence[Response]) -> Value:
  """Returns the value at the bare question."""
  return Value(sum(rollout.correct for rollout in rollouts), len(rollouts))


def choose_responses(rollouts: Sequence[Response], count: int) -> list[Response]:
  """Returns up to `count` distinct rollouts: first right, first wrong, then on.

  One without a token, which leaves nothing to search, is passed over.
  """
  firsts = []
  for verdict in (True, False):
    firsts += [rollout for rollout in rollouts if rollout.correct == verdict][:1]
  chosen: dict[tuple[int, ...], Response] = {}
  for rollout in [*firsts, *rollouts]:
    if len(rollout):
      chosen.setdefault(rollout.token_ids, rollout)
  return list(chosen.values())[:count]
