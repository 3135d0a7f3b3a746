"""What goes wrong while a search runs: one row's error, a retry, or the end."""

import math
import time

import pytest

from phi4_jax.common.sampler import Branch, SamplingLaw
from phi4_jax.sampling.endpoint import EndpointError
from tests.sampling.fake_endpoint import FakeEndpoint, Settings, slow
from tests.sampling.remote_cases import LOGITS, PROBE, branches, make_sampler


@pytest.fixture(scope="module")
def running():
  with FakeEndpoint(lambda prefix: LOGITS) as endpoint:
    yield endpoint


@pytest.fixture
def endpoint(running):
  running.settings = Settings()
  return running


class TestOnTheWay:
  """Failures while a search runs."""

  def test_passing_failures_are_waited_for(self, endpoint):
    sampler = make_sampler(endpoint)
    expected = {b.key_path: c for b, c in sampler.run(branches(12))}
    seen = set()

    def before(number, body):
      if body["seed"] not in seen:
        seen.add(body["seed"])
        status = (429, 500, 502, 503, 504, 408)[len(seen) % 6]
        return status, {"error": {"message": "come back"}}
      return None

    endpoint.settings.before = before
    assert {b.key_path: c for b, c in sampler.run(branches(12))} == expected
    assert len(seen) == 12

  def test_connections_that_the_server_closes(self, endpoint):
    sampler = make_sampler(endpoint)
    expected = {b.key_path: c for b, c in sampler.run(branches(12))}
    endpoint.settings.closes = True
    for _ in range(2):
      assert {b.key_path: c for b, c in sampler.run(branches(12))} == expected

  def test_a_server_that_has_gone_ends_the_run_with_what_had_arrived(self):
    with FakeEndpoint(lambda prefix: LOGITS) as endpoint:
      sampler = make_sampler(endpoint)
      endpoint.settings.closes = True
      first = len(endpoint.requests)
      endpoint.settings.before = lambda number, body: (
        (503, b"gone") if number - first >= 6 else None
      )
      arrived = []
      with pytest.raises(EndpointError, match="goes on from where it is"):
        for branch, completion in sampler.run(branches(40)):
          arrived.append((branch, completion))
      assert 1 <= len(arrived) <= 6
      assert all(completion.error is None for _, completion in arrived)

  def test_a_key_that_expires_ends_the_run(self, endpoint):
    sampler = make_sampler(endpoint)
    endpoint.settings.api_key = "new"
    with pytest.raises(EndpointError, match="HTTP status 401"):
      list(sampler.run(branches(4)))

  def test_one_request_that_is_refused_is_that_rows_error(self, endpoint):
    sampler = make_sampler(endpoint)
    endpoint.settings.before = lambda number, body: (
      (400, {"message": "maximum context length is 8"})
      if len(body["prompt"]) > 3
      else None
    )
    long = Branch(text=(*PROBE, 1), position=4, key_path=(99,))
    found = dict(sampler.run([*branches(3), long]))
    assert "maximum context length is 8" in found.pop(long).error
    assert all(completion.error is None for completion in found.values())
    with pytest.raises(ValueError, match="Row 1: .*maximum context length"):
      sampler.sample([PROBE, (*PROBE, 1)], [(0,), (1,)])

  @pytest.mark.parametrize(
    "change, reason",
    [
      ({"token_ids": None, "logprobs": None}, "no token ids"),
      ({"token_ids": [1, "2"]}, "no list of numbers"),
      ({"logprobs": {"token_logprobs": [-1.0]}}, "1 log-probabilities for 13 tokens"),
      ({"logprobs": {"token_logprobs": [math.nan] * 13}}, "a log-probability is nan"),
      ({"logprobs": {"token_logprobs": [None] * 13}}, "a log-probability is None"),
      ({"logprobs": {"token_logprobs": [-9999.0] * 13}}, "log-probability is -9999"),
      ({"logprobs": {"token_logprobs": [3.0] * 13}}, "a log-probability is 3"),
      ({"finish_reason": "abort"}, "finish_reason is 'abort'"),
      ({"finish_reason": None}, "finish_reason is None"),
      ({"finish_reason": "stop"}, "none of the stop tokens"),
      ({"token_ids": [1] * 5, "logprobs": {"token_logprobs": [-1.0] * 5}}, "5 tokens"),
    ],
  )
  def test_answers_that_cannot_be_used_are_that_rows_error(
    self, endpoint, change, reason
  ):
    sampler = make_sampler(endpoint, stop_ids=())
    good = {
      "text": "",
      "token_ids": [1] * 13,
      "logprobs": {"token_logprobs": [-1.0] * 13},
      "finish_reason": "length",
    }
    endpoint.settings.before = lambda *_: (200, {"choices": [good]})
    ((_, completion),) = sampler.run(branches(1))
    assert completion.error is None and completion.token_ids == (1,) * 13
    endpoint.settings.before = lambda *_: (200, {"choices": [good | change]})
    ((_, completion),) = sampler.run(branches(1))
    assert reason in completion.error
    assert "cannot be used" in completion.error

  def test_an_answer_that_never_comes(self, endpoint):
    sampler = make_sampler(endpoint, timeout_seconds=0.5, max_retries=1)
    endpoint.settings.before = slow(30)
    begin = time.monotonic()
    with pytest.raises(EndpointError, match="no answer within 0.5 seconds"):
      list(sampler.run(branches(1)))
    assert time.monotonic() - begin < 10

  def test_closing_breaks_off_what_is_under_way(self):
    with FakeEndpoint(lambda prefix: LOGITS) as endpoint:
      sampler = make_sampler(endpoint)
      before = len(endpoint.requests)
      endpoint.settings.before = lambda number, body: (
        time.sleep(20) if number >= before + 3 else None
      )
      running = sampler.run(branches(100))
      next(running)
      begin = time.monotonic()
      running.close()
      sampler._pool.shutdown(wait=True)
      assert time.monotonic() - begin < 10
      assert len(endpoint.requests) - before < 12

  def test_no_more_than_allowed_are_under_way(self):
    read = []

    def queue():
      for branch in branches(40):
        read.append(branch)
        yield branch

    with FakeEndpoint(lambda prefix: LOGITS) as endpoint:
      sampler = make_sampler(endpoint, concurrency=3)
      endpoint.settings.before = slow(0.01)
      running = sampler.run(queue())
      next(running)
      assert len(read) <= 5
      assert len(list(running)) == 39
      assert endpoint.most_at_once == 3

  def test_greedy_tokens_are_certain(self, endpoint):
    sampler = make_sampler(endpoint, SamplingLaw(temperature=0.0, max_length=8))
    ((_, completion),) = sampler.run(branches(1))
    assert completion.token_ids == (0,) * 5
    assert completion.logprobs == (0.0,) * 5
