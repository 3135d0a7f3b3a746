"""What a server cannot do is found out before a search, and says what to change."""

import dataclasses
import logging
import time

import numpy as np
import pytest

from phi4_jax.common.errors import ConfigError
from phi4_jax.common.sampler import Branch, SamplingLaw
from phi4_jax.pts.analytic import make_process
from phi4_jax.pts.find import find_pivotal_tokens
from phi4_jax.pts.search import SearchConfig
from phi4_jax.sampling.endpoint import Endpoint, EndpointError
from tests.sampling.fake_endpoint import FakeEndpoint, Settings
from tests.sampling.remote_cases import LAW, LOGITS, branches, make_sampler


@pytest.fixture(scope="module")
def running():
  with FakeEndpoint(lambda prefix: LOGITS) as endpoint:
    yield endpoint


@pytest.fixture
def endpoint(running):
  running.settings = Settings()
  return running


class TestConstruction:
  """A server that cannot be used is known before anything is drawn."""

  @pytest.mark.parametrize(
    "settings, complaint",
    [
      ({"gives_ids": "none"}, r"no token ids.*return_token_ids.*vLLM 0\.10\.2"),
      ({"adds_bos": True}, r"read the prompt \[1, 2, 0\] as \[0, 1, 2, 0\]"),
      (
        {"adds_bos": True, "says_what_it_read": False},
        "read 4 tokens where the prompt has 3",
      ),
      ({"honours_seed": False}, "same tokens for 7 seeds.*must be independent"),
      ({"max_model_len": 12}, r"at most 12 tokens.*max_length \(16\)"),
      ({"api_key": "secret-key"}, "refuses a request without key.*api_key_variable"),
      ({"leaves_stop_out": True}, r"none of the stop tokens \[4\]"),
      ({"stops_at": (0,)}, r"none of the stop tokens \[4\].*last token is 0"),
      ({"has_models": False, "max_model_len": 10}, "maximum context length is 10"),
      ({"before": lambda *_: (200, b"<html>welcome")}, "no JSON: <html>welcome"),
      ({"before": lambda *_: (200, {"choices": []})}, "no field 'choices'"),
      ({"before": lambda *_: (200, [1])}, "no field 'choices'"),
      (
        {"before": lambda *_: (422, {"detail": "extra fields not permitted: min_p"})},
        "extra fields not permitted: min_p.*vLLM 0.10.2 and later take them",
      ),
      ({"before": lambda *_: (301, b"")}, "leads elsewhere"),
      ({"before": lambda *_: (405, b"no")}, "HTTP status 405"),
      (
        {"before": lambda *_: (503, b"busy")},
        "failed 3 times; at last: HTTP status 503",
      ),
    ],
  )
  def test_servers_that_cannot_be_used(self, endpoint, settings, complaint):
    endpoint.settings = Settings(**settings)
    with pytest.raises(ConfigError) as raised:
      make_sampler(endpoint)
    assert endpoint.url in str(raised.value)
    assert pytest.raises(ConfigError, make_sampler, endpoint).match(f"(?s){complaint}")

  def test_nothing_listens(self):
    begin = time.monotonic()
    with pytest.raises(EndpointError, match="connection refused.*Start the server"):
      make_sampler(FakeEndpoint(lambda prefix: LOGITS), url="http://127.0.0.1:9/v1")
    assert time.monotonic() - begin < 5

  def test_an_unknown_host(self):
    with pytest.raises(EndpointError, match="cannot be reached: gaierror"):
      Endpoint(
        "http://no-such-host.invalid/v1",
        timeout_seconds=2.0,
        max_retries=0,
      ).request("/models", patient=False)

  def test_a_path_that_does_not_exist(self, endpoint):
    url = endpoint.url.removesuffix("/v1")
    with pytest.raises(EndpointError, match="does not exist.*must end before"):
      make_sampler(endpoint, url=url)

  def test_an_unknown_model(self, endpoint):
    with pytest.raises(ConfigError, match="no model 'other'; it has table"):
      make_sampler(endpoint, model="other")
    endpoint.settings.has_models = False
    with pytest.raises(ConfigError, match="The model other does not exist"):
      make_sampler(endpoint, model="other")

  def test_a_text_for_a_list_of_prompts(self, endpoint):
    def before(number, body):
      return 200, {"choices": [{"text": "a"}] * len(body["prompt"])}

    endpoint.settings.before = before
    with pytest.raises(ConfigError, match="3 completions; one was asked for"):
      make_sampler(endpoint)

  def test_another_vocabulary(self, endpoint):
    endpoint.settings.text = lambda ids: "".join("abcde"[i] for i in ids)
    sampler = make_sampler(
      endpoint, decode=lambda ids: "".join("abcde"[i] for i in ids)
    )
    assert sampler.can_exclude
    # Some tokens may be shown by one side only.
    make_sampler(endpoint, decode=lambda ids: endpoint.settings.text(ids)[:-1])
    make_sampler(endpoint, decode=lambda ids: "")

    def refuse(ids):
      raise ValueError("Token id 3 is outside the vocabulary [0, 3).")

    with pytest.raises(ConfigError, match="nothing .Token id 3 is outside"):
      make_sampler(endpoint, decode=refuse)
    with pytest.raises(ConfigError, match="another vocabulary"):
      make_sampler(endpoint, decode=lambda ids: "".join("vwxyz"[i] for i in ids))

  def test_a_server_that_does_not_repeat_is_used_with_a_warning(self, endpoint, caplog):
    def before(number, body):
      body["seed"] += number

    endpoint.settings.before = before
    sampler = make_sampler(endpoint)
    assert not sampler.repeats
    assert "gave other tokens for the same request" in caplog.text

  def test_ids_may_come_as_names_of_tokens(self, endpoint):
    endpoint.settings.gives_ids = "tokens"
    sampler = make_sampler(endpoint)
    assert sampler.can_exclude
    assert all(c.error is None for _, c in sampler.run(branches(5)))

  def test_settings_out_of_range(self, endpoint):
    for settings, complaint in [
      ({"model": ""}, "model is empty"),
      ({"concurrency": 0}, "concurrency"),
      ({"max_retries": -1}, "max_retries"),
      ({"timeout_seconds": 0.0}, "timeout_seconds"),
      ({"max_redraws": 0}, "max_redraws"),
      ({"url": "localhost:8000"}, "must be an http or https address"),
      ({"url": "http://user:secret@host/v1"}, "neither a user nor a query"),
    ]:
      with pytest.raises(ConfigError, match=complaint):
        make_sampler(endpoint, **settings)
    with pytest.raises(ConfigError, match="probe_ids has 3 tokens"):
      make_sampler(endpoint, SamplingLaw(max_length=3))


class TestKeys:
  def test_a_key_comes_from_the_environment_and_is_never_shown(
    self, endpoint, monkeypatch, caplog, tmp_path
  ):
    caplog.set_level(logging.DEBUG)
    endpoint.settings.api_key = "secret-key"
    monkeypatch.setenv("A_KEY", "secret-key")
    sampler = make_sampler(endpoint, api_key_variable="A_KEY")
    assert all(c.error is None for _, c in sampler.run(branches(3)))
    monkeypatch.setenv("A_KEY", "another-secret")
    with pytest.raises(EndpointError, match="refuses the key in A_KEY") as raised:
      make_sampler(endpoint, api_key_variable="A_KEY")
    assert "Incorrect API key provided: Bearer ***" in str(raised.value)
    for text in (str(raised.value), caplog.text, repr(sampler), sampler.sampler_id):
      assert "secret" not in text

  def test_a_variable_that_is_not_set(self, endpoint, monkeypatch):
    monkeypatch.delenv("A_KEY", raising=False)
    with pytest.raises(ConfigError, match="A_KEY, which is not set"):
      make_sampler(endpoint, api_key_variable="A_KEY")
    monkeypatch.setenv("A_KEY", "two words")
    with pytest.raises(ConfigError, match="The key in A_KEY holds a space") as raised:
      make_sampler(endpoint, api_key_variable="A_KEY")
    assert "two" not in str(raised.value)


class TestExclusion:
  """Probabilities of the law, and a first token that is another: both are verified."""

  @pytest.mark.parametrize(
    "law, settings, exclusion, reason",
    [
      ({}, {}, "logit_bias", ""),
      ({}, {"logprobs_mode": "processed_logprobs"}, "logit_bias", ""),
      ({"temperature": 0.7}, {}, "logit_bias", "not of SamplingLaw.temperature 0.7"),
      (
        {"temperature": 0.7},
        {"logprobs_mode": "processed_logprobs"},
        "logit_bias",
        "",
      ),
      (
        {"temperature": 1.5},
        {"logprobs_mode": "processed_logprobs", "honours_temperature": False},
        "logit_bias",
        "not of SamplingLaw.temperature 1.5",
      ),
      ({"top_k": 3}, {}, "logit_bias", "not of SamplingLaw.top_k 3"),
      ({"top_k": 3}, {"logprobs_mode": "processed_logprobs"}, "logit_bias", ""),
      ({"top_k": 1}, {}, "logit_bias", "leaves no other token"),
      ({"temperature": 0.0}, {}, "redraw", "leaves no other token"),
      ({"top_p": 0.9}, {}, "logit_bias", "exclusion to 'redraw'"),
      ({"top_p": 0.9}, {}, "redraw", "not of SamplingLaw.top_p 0.9"),
      ({"top_p": 0.9}, {"logprobs_mode": "processed_logprobs"}, "redraw", ""),
      ({}, {"honours_bias": False}, "logit_bias", r"\+100 .* does not make it"),
      ({}, {"honours_bias": False}, "redraw", ""),
      ({}, {"bias_sign": -1.0}, "logit_bias", "does not make it"),
      (
        {},
        {"logprobs_mode": "processed_logprobs", "bias_sign": 0.02},
        "logit_bias",
        "does not",
      ),
      (
        {},
        {"before": lambda n, body: (400, b"no bias") if "logit_bias" in body else None},
        "logit_bias",
        "refuses logit_bias.*no bias",
      ),
      ({}, {"gives_ids": "ids only"}, "logit_bias", ""),
    ],
  )
  def test_what_is_found_out(self, endpoint, law, settings, exclusion, reason):
    endpoint.settings = Settings(**settings)
    law = dataclasses.replace(LAW, **law)
    sampler = make_sampler(endpoint, law, exclusion=exclusion)
    assert sampler.can_exclude == (not reason), sampler.why_not_exclude
    if reason:
      assert pytest.raises(ValueError, list, sampler.run(branches(1, excluded_id=0)))
      with pytest.raises(ValueError, match=reason):
        list(sampler.run(branches(1, excluded_id=0)))
    else:
      firsts = [c.token_ids[0] for _, c in sampler.run(branches(8, excluded_id=0))]
      assert 0 not in firsts

  def test_a_bias_that_only_seems_to_work(self, endpoint):
    """Others are not drawn as the law says: the numbers give it away."""

    def before(number, body):
      if -100.0 in body.get("logit_bias", {}).values():
        body["temperature"] = 3.0

    endpoint.settings = Settings(logprobs_mode="processed_logprobs", before=before)
    assert "not the law given another token" in make_sampler(endpoint).why_not_exclude

  def test_mode_comb_says_what_works(self, endpoint, tmp_path):
    process = make_process(0, num_steps=4)
    endpoint.settings.honours_bias = False
    with pytest.raises(ConfigError, match=r"(?s)\+100.*'paper', 'naive'"):
      find_pivotal_tokens(
        make_sampler(endpoint),
        process.questions,
        process,
        SearchConfig(mode="comb"),
        out_dir=tmp_path,
      )

  def test_a_token_that_is_excluded_and_drawn_is_that_rows_error(self):
    sure = np.array([0.0, -900.0, -1e9, -1e9, -1e9])
    likely = np.log([0.6, 0.3, 0.05, 0.03, 0.02])
    with FakeEndpoint(lambda p: sure if p == (1, 2, 0, 3) else likely) as endpoint:
      for settings, reason in [
        ({}, "which logit_bias excludes"),
        ({"exclusion": "redraw", "max_redraws": 5}, "5 draws all gave token 0"),
      ]:
        sampler = make_sampler(endpoint, **settings)
        there = Branch(text=(1, 2, 0, 3), position=4, key_path=(0,), excluded_id=0)
        found = dict(sampler.run([there, *branches(3, excluded_id=0)]))
        assert reason in found.pop(there).error
        assert [completion.error for completion in found.values()] == [None] * 3
