"""A sampler on an endpoint: what it draws, and the same search as in process."""

import dataclasses
import json

import numpy as np
import pytest
from scipy import stats

from phi4_jax.common.errors import ConfigError
from phi4_jax.common.sampler import (
  Branch,
  BranchSampler,
  Completion,
  Sampler,
  SamplingLaw,
)
from phi4_jax.pts.analytic import AnalyticProcess, make_process
from phi4_jax.pts.find import find_pivotal_tokens
from phi4_jax.pts.search import SearchConfig
from phi4_jax.sampling.remote import RemoteSampler, RemoteSamplerConfig
from phi4_jax.sampling.remote_requests import make_seed
from tests.sampling.fake_endpoint import MODEL, FakeEndpoint, invert, uniform

SEED = 3
STEPS = 12
_MADE = make_process(1, num_steps=STEPS, num_states=8, forks=0.25, certain=0.4)
PROCESS = AnalyticProcess(
  _MADE.probs, _MADE.next_states, _MADE.rewards, num_questions=8
)
LAW = SamplingLaw(max_length=STEPS + 1)


def next_probs(prefix):
  step, state = len(prefix) - 1, PROCESS.state_after(prefix)
  return PROCESS.probs[step, state]


def next_logits(prefix):
  logits = np.full(PROCESS.num_tokens + 8, -np.inf)
  with np.errstate(divide="ignore"):
    logits[: PROCESS.num_tokens] = np.log(next_probs(prefix))
  return logits


# The question whose first token is least certain.
PROBE = min(
  (q.prompt_ids for q in PROCESS.questions), key=lambda p: next_probs(p).max()
)


@pytest.fixture(scope="module")
def endpoint():
  with FakeEndpoint(next_logits) as running:
    yield running


def make_sampler(endpoint, law=LAW, stop_ids=(), **kwargs):
  config = {"url": endpoint.url, "model": MODEL, "concurrency": 8} | kwargs
  return RemoteSampler(
    RemoteSamplerConfig(**config), law, stop_ids=stop_ids, seed=SEED, probe_ids=PROBE
  )


class InProcess:
  """Draws what the endpoint draws, from the process itself."""

  law = LAW
  can_exclude = True

  def run(self, branches):
    for branch in branches:
      yield branch, self.draw(branch)

  def draw(self, branch):
    prefix, part = branch.prefix_ids, 0
    ids, logprobs = [], []

    def add(probs, seed, position):
      token = invert(probs, uniform(seed, position))
      ids.append(token)
      logprobs.append(float(np.log(next_probs((*prefix, *ids[:-1]))[token])))

    if branch.excluded_id >= 0:
      probs = next_probs(prefix).copy()
      probs[branch.excluded_id] = 0
      add(probs, make_seed(SEED, branch.key_path, 0), 0)
      part = 1
    seed = make_seed(SEED, branch.key_path, part)
    for position in range(LAW.max_length - len(prefix) - len(ids)):
      add(next_probs((*prefix, *ids)), seed, position)
    return Completion(token_ids=tuple(ids), logprobs=tuple(logprobs), finish="length")


def branches_at_once(count, **kwargs):
  return [
    Branch(text=PROBE, position=1, key_path=(0, k), **kwargs) for k in range(count)
  ]


def drawn(sampler, branches):
  return {branch.key_path: completion for branch, completion in sampler.run(branches)}


def assert_same(found, expected):
  assert found.keys() == expected.keys()
  for path, completion in found.items():
    assert completion.error is None
    assert completion.token_ids == expected[path].token_ids
    assert completion.finish == expected[path].finish
    assert completion.logprobs == pytest.approx(expected[path].logprobs, abs=1e-9)


class TestDraws:
  def test_it_is_a_sampler(self, endpoint):
    sampler = make_sampler(endpoint)
    assert isinstance(sampler, BranchSampler) and isinstance(sampler, Sampler)
    assert sampler.can_exclude and sampler.why_not_exclude == ""
    assert sampler.repeats and sampler.law == LAW
    model = f"remote {MODEL} tables/one at {endpoint.url}"
    assert sampler.model_id == model and sampler.sampler_id == f"{model} seed {SEED}"

  def test_it_draws_what_the_process_draws(self, endpoint):
    sampler = make_sampler(endpoint)
    branches = branches_at_once(40)
    assert_same(drawn(sampler, branches), drawn(InProcess(), branches))
    # One by one, in another order: the same.
    one = make_sampler(endpoint, concurrency=1)
    assert_same(drawn(one, branches[::-1]), drawn(InProcess(), branches))
    assert sampler.throughput.sampled_tokens == 40 * STEPS
    assert sampler.throughput.prompt_tokens == 40
    assert sampler.throughput.tokens_per_second > 0

  def test_branches_from_within_a_text(self, endpoint):
    sampler = make_sampler(endpoint)
    (base,) = drawn(InProcess(), branches_at_once(1)).values()
    text = (*PROBE, *base.token_ids)
    branches = []
    for position in range(1, len(text) + 1):
      branches.append(Branch(text=text, position=position, key_path=(position, 0)))
      if position == len(text):
        continue
      for other in np.flatnonzero(next_probs(text[:position])).tolist():
        path = (position, 1 + other)
        branches.append(
          Branch(text=text, position=position, key_path=path, first_id=other)
        )
    expected = drawn(InProcess(), branches)
    assert expected[(13, 0)].token_ids == ()
    assert_same(drawn(sampler, branches), expected)

  @pytest.mark.parametrize("mode", ["raw_logprobs", "processed_logprobs"])
  def test_a_first_token_is_excluded(self, endpoint, mode):
    endpoint.settings.logprobs_mode = mode
    sampler = make_sampler(endpoint)
    likely = int(next_probs(PROBE).argmax())
    branches = branches_at_once(60, excluded_id=likely)
    found = drawn(sampler, branches)
    expected = drawn(InProcess(), branches)
    for path, completion in found.items():
      assert completion.token_ids == expected[path].token_ids
      assert completion.token_ids[0] != likely
      assert completion.logprobs[1:] == pytest.approx(expected[path].logprobs[1:])
    endpoint.settings.logprobs_mode = "raw_logprobs"

  def test_first_tokens_follow_the_law_given_another(self, endpoint):
    """Chi-square, by bias and by redrawing, at a temperature and with top_k."""
    endpoint.settings.logprobs_mode = "processed_logprobs"
    law = dataclasses.replace(LAW, temperature=0.7, top_k=4, max_length=2)
    probs = next_probs(PROBE) ** (1 / 0.7)
    probs[np.argsort(-probs)[4:]] = 0
    likely = int(probs.argmax())
    probs[likely] = 0
    kept = np.flatnonzero(probs)
    for exclusion in ("logit_bias", "redraw"):
      sampler = make_sampler(endpoint, law, exclusion=exclusion)
      found = drawn(sampler, branches_at_once(400, excluded_id=likely))
      firsts = [completion.token_ids[0] for completion in found.values()]
      counts = np.bincount(firsts, minlength=len(probs))
      assert counts[kept].sum() == 400
      expected = 400 * probs[kept] / probs[kept].sum()
      assert stats.chisquare(counts[kept], expected).pvalue > 1e-3
    endpoint.settings.logprobs_mode = "raw_logprobs"

  def test_success_is_as_probable_as_it_is(self, endpoint):
    sampler = make_sampler(endpoint)
    question = next(q for q in PROCESS.questions if q.prompt_ids == PROBE)
    found = drawn(sampler, branches_at_once(600))
    wins = sum(
      PROCESS.judge(question, completion.token_ids, completion.finish)
      for completion in found.values()
    )
    truth = PROCESS.value(PROBE)
    assert abs(wins / 600 - truth) < 4 * (truth * (1 - truth) / 600) ** 0.5

  def test_sample_gives_rows_in_order(self, endpoint):
    sampler = make_sampler(endpoint)
    branches = branches_at_once(10)
    rows = sampler.sample([PROBE] * 10, [branch.key_path for branch in branches])
    expected = drawn(InProcess(), branches)
    assert_same(
      {branch.key_path: row for branch, row in zip(branches, rows, strict=True)},
      expected,
    )
    (row,) = sampler.sample([PROBE], [(0, 0)], [int(next_probs(PROBE).argmax())])
    assert row.token_ids[0] != next_probs(PROBE).argmax()

  def test_seeds_depend_on_all_that_names_a_draw(self):
    seeds = {
      make_seed(seed, path, part)
      for seed in range(3)
      for path in [(0, 1), (1, 0), (0, 0, 1), (10,), (1, 0, 0)]
      for part in range(3)
    }
    assert len(seeds) == 45 and max(seeds) < 2**53


class TestSearch:
  """A search through HTTP finds what the same search in process finds."""

  @pytest.mark.parametrize("mode", ["comb", "paper", "naive"])
  def test_same_files(self, endpoint, tmp_path, mode):
    config = SearchConfig(
      mode=mode,
      rollouts_per_question=8,
      rollouts_per_estimate=6,
      confirm_rollouts=12,
      num_traces=1,
      trace_rollouts=4,
    )
    metrics = {}
    for name, sampler in [
      ("remote", make_sampler(endpoint)),
      ("here", InProcess()),
    ]:
      metrics[name] = find_pivotal_tokens(
        sampler,
        PROCESS.questions[:4],
        PROCESS,
        config,
        out_dir=tmp_path / name,
        sampler_id="table",
      )
      del metrics[name]["seconds"]
    assert metrics["remote"] == metrics["here"]
    assert metrics["here"]["candidates"] > 0
    for path in (tmp_path / "here").glob("*.jsonl"):
      ours = [_rounded(line) for line in path.read_text().splitlines()]
      theirs = (tmp_path / "remote" / path.name).read_text().splitlines()
      if path.name == "draws.jsonl":  # in the order in which draws ended
        continue
      assert [_rounded(line) for line in theirs] == ours, path.name

  def test_another_model_is_refused_in_a_started_run(self, tmp_path):
    config = SearchConfig(mode="naive", rollouts_per_question=4, num_traces=0)
    search = (PROCESS.questions[:4], PROCESS, config)
    with FakeEndpoint(next_logits) as endpoint:
      found = find_pivotal_tokens(make_sampler(endpoint), *search, out_dir=tmp_path)
      # The same model again is no other one.
      again = find_pivotal_tokens(make_sampler(endpoint), *search, out_dir=tmp_path)
      assert again["rollouts"] == found["rollouts"] > 0
      endpoint.settings.root = "tables/two"
      with pytest.raises(ConfigError, match="sampler_id: .*tables/one.*tables/two"):
        find_pivotal_tokens(make_sampler(endpoint), *search, out_dir=tmp_path)


def _rounded(line):
  return json.loads(line, parse_float=lambda text: round(float(text), 9))


class TestStops:
  """A model whose tokens are 0 to 3, and 3 ends a response."""

  def test_a_stop_token_ends_a_completion_and_is_part_of_it(self):
    logits = np.log([0.4, 0.3, 0.1, 0.2])
    with FakeEndpoint(lambda prefix: logits) as endpoint:
      sampler = RemoteSampler(
        RemoteSamplerConfig(url=endpoint.url, model=MODEL),
        SamplingLaw(max_length=30),
        stop_ids=(3,),
        seed=0,
        probe_ids=(0, 1),
      )
      found = drawn(
        sampler, [Branch(text=(0, 1), position=2, key_path=(k,)) for k in range(50)]
      )
      stopped = [c for c in found.values() if c.finish == "stop"]
      assert len(stopped) > 40
      assert all(c.token_ids[-1] == 3 and 3 not in c.token_ids[:-1] for c in stopped)
      only_stop = Branch(text=(0, 1), position=2, key_path=(0,), first_id=2)
      (completion,) = drawn(sampler, [only_stop]).values()
      assert completion.error is None
      # A first token that is another one may be the stop token: no second request.
      before = len(endpoint.requests)
      branches = [
        Branch(text=(0, 1), position=2, key_path=(k,), excluded_id=0) for k in range(30)
      ]
      ended = [c for c in drawn(sampler, branches).values() if len(c.token_ids) == 1]
      assert ended and all(c.finish == "stop" for c in ended)
      assert len(endpoint.requests) - before == 60 - len(ended)
