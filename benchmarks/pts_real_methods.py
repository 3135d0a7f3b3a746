"""Two searches of a real model on the clock, in turn, and what is true.

Knows both methods and their order; refuses to know the model and the questions.
"""

import dataclasses
import functools
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from benchmarks import machine
from benchmarks.arms import Arm
from benchmarks.pts_real_summary import judge_pivots
from benchmarks.pts_reference import measure_changes
from phi4_jax.common import io
from phi4_jax.common.axes import Params
from phi4_jax.common.errors import DataError
from phi4_jax.common.sampler import Completion
from phi4_jax.data import pivotal_files
from phi4_jax.eval.exchange import check_settings
from phi4_jax.pts.comb_config import CombConfig
from phi4_jax.pts.find import NothingToSearch, find_pivotal_tokens
from phi4_jax.pts.oracle import Oracle, Question
from phi4_jax.pts.questions import choose_responses
from phi4_jax.pts.records import PIVOTS, load_rollouts
from phi4_jax.pts.responses import Response
from phi4_jax.pts.search import SearchConfig
from phi4_jax.sampling.engine import RolloutEngine

# True is what lies above gamma0; what is shown to do so is named. A search of one to
# three responses asks for few rollouts in a round: for more than by default, since a
# step of 64 rows takes hardly more than twice a step of a few.
SEARCH = SearchConfig(
  responses_per_question=1,
  num_traces=0,
  comb=CombConfig(export=0.0, below_gap=1.0, screen_draws=16, pairs_per_round=32),
)
# Draws of every stage, so that all programs are compiled.
WARM_UP_SEARCH = dataclasses.replace(
  SEARCH, comb=CombConfig(screen_rounds=1, promote=0.01, drop=0.0, max_pairs=4)
)
PEER_SECONDS = 3 * 3600.0  # the most that the public method may take for a response
WARM_UP = "warm_up.json"


class Parts:
  """Files of what has been finished, from which a run that was killed goes on."""

  def __init__(self, folder: Path, settings: dict[str, Any]):
    """Raises:
    ConfigError: if the folder was begun with other settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    check_settings(folder, settings, what="a comparison", log="questions.json")
    self.folder = folder

  def get(self, name: str, make: Callable[[], Any]) -> Any:
    """Returns the part of this name, which is made unless it is there."""
    path = self.folder / f"{name}.json"
    if not path.exists():
      io.write_json(path, make())
    return io.read_json(path)


class Setting(Protocol):
  """Both methods, and what they are asked; each is started when it is needed."""

  @property
  def engine(self) -> RolloutEngine: ...

  @property
  def params(self) -> Params:
    """The weights of the engine, placed as it wants them."""
    ...

  @property
  def oracle(self) -> Oracle: ...

  @property
  def peer(self) -> Arm: ...


def on_the_clock(pid: int, work: Callable[[], Any]) -> tuple[Any, dict[str, Any]]:
  """Returns what `work` returns, and its times and the machine's load.

  `pid` is of the other method, which is no stranger to the machine.
  """
  watch = machine.LoadWatch()
  watch.begin([pid])
  cpu, begin = time.process_time(), time.perf_counter()
  found = work()
  seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
  watch.end([pid])
  load = watch.verdict(seconds)
  return found, {"seconds": seconds, "cpu_seconds": cpu, "load": load}


def search_ours(
  setting: Setting,
  questions: Sequence[Question],
  folder: Path,
  seed: int,
  config: SearchConfig = SEARCH,
) -> dict[str, Any]:
  """Searches all questions at once on the clock, in a folder that is emptied before.

  Prompts and responses are read on the clock: whatever the engine holds of them from
  before is forgotten.

  Returns:
    "cost" (seconds hold those of compiling), which questions the filter "kept" and
    "pivots", by question.

  Raises:
    NothingToSearch: if a question was not asked to its end, and none is left.
  """
  shutil.rmtree(folder, ignore_errors=True)
  engine = setting.engine
  engine.set_params(setting.params)  # forgets all texts
  before = dataclasses.replace(engine.throughput)

  def search() -> bool:
    options = {"out_dir": folder, "seed": seed}
    try:
      find_pivotal_tokens(engine, questions, setting.oracle, config, **options)
    except NothingToSearch:
      states = {q["state"] for _, q in io.read_jsonl(folder / pivotal_files.QUESTIONS)}
      if not states <= {"too_easy", "too_hard", "no_room"}:
        raise
      return False
    return True

  found, cost = on_the_clock(setting.peer.pid, search)
  compiling = engine.throughput.compile_seconds - before.compile_seconds
  cost["compile_seconds"] = compiling
  for name in ("sampled_tokens", "prefill_tokens", "row_steps"):
    cost[name] = getattr(engine.throughput, name) - getattr(before, name)
  path = folder / PIVOTS
  has_pivots = found and path.stat().st_size
  pivots = [record for _, record in io.read_jsonl(path)] if has_pivots else []
  names = ("question", "response", "position", "delta")
  return {
    "cost": cost,
    "kept": sorted(load_rollouts(folder)) if found else [],
    "pivots": [{name: pivot[name] for name in names} for pivot in pivots],
  }


def search_public(
  peer: Arm, question: Question, response: Response, samples: int
) -> dict[str, Any]:
  """Lets the public method search one response; returns "cost" and "pivots"."""

  def search() -> dict[str, Any]:
    return peer.ask(
      PEER_SECONDS,
      "search",
      prompt_ids=list(response.prompt_ids),
      response_ids=list(response.token_ids),
      correct=response.correct,
      answer=question.reference,
      gap=SEARCH.gap,
      num_samples=samples,
    )

  answer, cost = on_the_clock(peer.pid, search)
  pivots = [
    {
      "response": response.index,
      "position": pivot["position"],
      "delta": pivot["after"] - pivot["before"],
    }
    for pivot in answer.pop("pivots")
  ]
  # Its own times: those of a pipe are not its fault.
  return {"cost": {**cost, **answer}, "pivots": pivots}


def measure_response(
  setting: Setting, question: Question, response: Response, rollouts: int
) -> dict[str, Any]:
  """Returns the true "changes" on a response, each of so many rollouts, and "cost"."""
  gamma0 = SEARCH.comb.gamma0

  def judge(_: Response, position: int, completion: Completion) -> bool:
    ids = response.token_ids[:position] + completion.token_ids
    return setting.oracle.judge(question, ids, completion.finish)

  # Whatever can move p(success) by gamma0 is measured, not only by the gap.
  changes, cost = measure_changes(
    setting.engine, response, judge, gap=gamma0, rollouts=rollouts
  )
  return {
    "cost": cost,
    "changes": [
      {
        "response": response.index,
        **change.to_json(),
        "above_gamma0": change.is_above(gamma0),
      }
      for change in changes
    ],
  }


def compare(
  setting: Setting,
  questions: Sequence[Question],
  parts: Parts,
  *,
  samples: int,
  rollouts: int,
  seed: int,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
  """Lets both methods search questions in turn, and measures the truth.

  Ours searches all of them at once, and again before each search of the public method:
  the same search, on the clock once more.

  Returns:
    A record of each question that was searched, and the costs of ours.

  Raises:
    DataError: if no question is worth a search.
  """

  @functools.cache
  def warm_up() -> None:
    folder = parts.folder / "warm_up"
    found = search_ours(setting, questions, folder, seed + 1, WARM_UP_SEARCH)
    compiling = {"compile_seconds": setting.engine.throughput.compile_seconds}
    io.write_json(parts.folder / WARM_UP, {**found, **compiling})

  def search_again() -> dict[str, Any]:
    warm_up()
    search = (setting, questions, parts.folder / "ours", seed)
    found = search_ours(*search)
    if found["cost"]["compile_seconds"]:
      # What compiling takes of the processors' time is not known.
      found = search_ours(*search)
      assert not found["cost"]["compile_seconds"], "the same search has the same shapes"
    return found

  ours = parts.get("ours.0", search_again)
  _say("ours", ours)
  if not ours["kept"]:
    raise DataError(
      f"None of {len(questions)} chosen questions is worth a search. Give another "
      "--seed."
    )
  kept = parts.get("responses", lambda: _choose(parts.folder / "ours"))
  costs, found = [ours["cost"]], []
  for turn, number in enumerate(ours["kept"]):
    question, response = questions[number], _response(kept[str(number)])
    if turn:
      again = parts.get(f"ours.{turn}", search_again)
      _say("ours", again)
      assert again["pivots"] == ours["pivots"], "the same search finds the same"
      costs.append(again["cost"])
    part = (question, response)
    public = parts.get(
      f"public.{turn}", lambda p=part: search_public(setting.peer, *p, samples)
    )
    _say(f"public, {question.id}", public)
    found.append((question, response, public))
  records = []
  for turn, (question, response, public) in enumerate(found):
    truth = parts.get(
      f"reference.{turn}",
      lambda p=(question, response): measure_response(setting, *p, rollouts),
    )
    named = [p for p in ours["pivots"] if p["question"] == response.question]
    say = setting.oracle.token_text
    records.append(
      {
        "id": question.id,
        "prompt": question.prompt,
        "correct": response.correct,
        "tokens": {str(response.index): [say(i) for i in response.token_ids]},
        "reference": truth["changes"],
        "reference_cost": truth["cost"],
        "ours": {"pivots": judge_pivots(named, truth["changes"])},
        "public": {
          **public,
          "pivots": judge_pivots(public["pivots"], truth["changes"]),
        },
      }
    )
  return records, costs


def _choose(folder: Path) -> dict[str, Any]:
  """Returns the base response of each question that was searched, as JSON values."""
  chosen = {}
  for number, members in load_rollouts(folder).items():
    (response,) = choose_responses(members, SEARCH.responses_per_question)
    chosen[str(number)] = dataclasses.asdict(response)
  return chosen


def _response(fields: dict[str, Any]) -> Response:
  lists = ("prompt_ids", "token_ids", "logprobs")
  return Response(**{**fields, **{name: tuple(fields[name]) for name in lists}})


def _say(method: str, found: dict[str, Any]) -> None:
  seconds, named = found["cost"]["seconds"], len(found["pivots"])
  print(f"{method}: {seconds:.1f} s, {named} named", flush=True)
