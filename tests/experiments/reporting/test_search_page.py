"""The page of a search: its numbers are those on disk, and nothing breaks out of it."""

import base64
import hashlib
import json
import re
import shutil
from html import unescape

import numpy as np
import pytest

from experiments.reporting.reading import open_run
from experiments.reporting.search_page import report_search
from phi4_jax.common.errors import DataError
from tests.experiments.made_up_runs import write_chain, write_jsonl
from tests.experiments.made_up_searches import HOSTILE, write_comb_search
from tests.experiments.reporting.page_reader import PageReader, assert_self_contained


def _read(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return write_comb_search(tmp_path_factory.mktemp("runs") / "pts", num_questions=40)


@pytest.fixture(scope="module")
def html(folder):
  return report_search(open_run(folder)).html


@pytest.fixture(scope="module")
def page(html):
  return PageReader(html)


class TestContent:
  def test_every_part_is_there(self, page):
    parts = ["claim", "traces", "pivots", "spread", "pairs", "overlap", "cost"]
    parts += ["open", "questions", "again"]
    assert [name for name in page.ids if name in parts] == parts
    for words in ("Scripts are off here", "find_pivotal_tokens --gin_file="):
      assert words in page.text, words

  def test_the_claim_says_under_what(self, folder, page):
    hypotheses = _read(folder / "hypotheses.jsonl")
    exported = sum(h["state"] == "exported" for h in hypotheses)
    for words in (
      f"Over the {exported} exported tokens, the expected share of those whose true "
      "effect on p(success) is at most 0.1 is at most 5%",
      f"over all {len(hypotheses)} hypotheses that were tested",
      "That a given token is pivotal",
      "256 tokens, prompt and response",
      "number v1",
      "temperature 1.0",
    ):
      assert words in page.text, words

  def test_costs_add_up(self, folder, page):
    metrics = json.loads((folder / "result.json").read_text())["metrics"]
    stages = metrics["stages"].values()
    whole = sum(stage["sampled_tokens"] for stage in stages)
    assert whole == metrics["sampled_tokens"]
    assert f"{metrics['sampled_tokens']:,}" in page.text
    assert f"{whole / metrics['pivotal_tokens']:,.0f}" in page.text
    found = whole - metrics["stages"]["pair"]["sampled_tokens"]
    assert f"{found:,} {found / metrics['pivotal_tokens']:,.0f}" in page.text
    assert "4,321 tokens of prompts and responses were read" in page.text
    assert "9,876 more were held from earlier rounds" in page.text
    for name in ("algebra", "science", "code"):
      tokens = metrics["categories"][name]["sampled_tokens"]
      assert f"{tokens:,}" in page.text

  def test_what_is_open_has_reasons(self, folder, page):
    left = [h for h in _read(folder / "hypotheses.jsonl") if h["state"] != "exported"]
    lost = [q for q in _read(folder / "questions.jsonl") if q["state"] == "given_up"]
    assert f"{len(left)} of" in page.text and "because of the budget" in page.text
    assert "holds 64% of the pivotal tokens that it believes" in page.text
    assert "no rollout was worth CombConfig.most_times of its price." in page.text
    assert lost and f"{len(lost)} of 40 questions were given up" in page.text
    assert "the oracle raised ValueError" in page.text

  def test_overlap_counts_tokens_once(self, folder, page):
    probs, pivots = [], []
    for trace in _read(folder / "traces.jsonl"):
      probs += trace["probs"]
    for hypothesis in _read(folder / "hypotheses.jsonl"):
      if hypothesis["state"] == "exported":
        pivots.append(hypothesis["prob"])
    rare = sum(prob <= 0.1 for prob in pivots)
    assert f"{rare} of {len(pivots)}" in page.text
    assert f"{rare} of {sum(prob <= 0.1 for prob in probs)}" in page.text
    assert f"{len(pivots)} of {len(probs):,}" in page.text


class TestData:
  def test_hypotheses_are_those_of_the_file(self, folder, page):
    index = page.index
    words, columns = index["s"], index["h"]
    wanted = {
      (h["question"], h["response"], h["position"]): h
      for h in _read(folder / "hypotheses.jsonl")
    }
    assert len(columns["q"]) == len(wanted)
    for row, key in enumerate(
      zip(columns["q"], columns["r"], columns["i"], strict=True)
    ):
      h = wanted[key]
      assert words[columns["t"][row]] == h["token"]
      assert words[columns["s"][row]] == h["state"]
      assert columns["a"][row] == (
        [1, 1, 1] if h["stay"] == 1 else h["after"] or [0, 0]
      )
      assert columns["c"][row] == (h["off"] or [0, 0])
      assert columns["p"][row] == pytest.approx(1e4 * h["prob"], abs=0.5)
      assert columns["d"][row] == (
        None if h["delta"] is None else pytest.approx(h["delta"], abs=5e-4)
      )
      assert columns["b"][row] == pytest.approx(h["lower"], abs=5e-4)
      assert columns["e"][row] == pytest.approx(h["log_e"] / np.log(10), abs=5e-3)
      if h["off"] is None:
        assert columns["vb"][row] is columns["va"][row] is None
      else:
        left = 0 if h["after"] is None else h["after"][0] / h["after"][1]
        after = h["stay"] * h["end_value"] + (1 - h["stay"]) * left
        before = h["prob"] * after + (1 - h["prob"]) * h["off"][0] / h["off"][1]
        assert columns["va"][row] == pytest.approx(after, abs=5.01e-4)
        assert columns["vb"][row] == pytest.approx(before, abs=5.01e-4)
      assert columns["y"][row] == pytest.approx(h["stay"], abs=5.01e-4)
      assert columns["v"][row] == h["end_value"]
      other = h["alternatives"][0]
      assert columns["o"][row][1:] == [other["successes"], other["rollouts"]]
      assert columns["g"][row] == (1 if h["sign"] == "positive" else -1)
    exported = [words[state] == "exported" for state in columns["s"]]
    assert exported == sorted(exported, reverse=True)

  def test_questions_are_those_of_the_file(self, folder, page):
    index = page.index
    words, columns = index["s"], index["q"]
    for row, question in enumerate(_read(folder / "questions.jsonl")):
      assert columns["n"][row] == question["question"]
      assert columns["id"][row] == question["id"]
      counted = [columns["k"][row], columns["r"][row]]
      assert counted == [question["successes"], question["rollouts"]]
      assert words[columns["s"][row]] == question["state"].replace("_", " ")
      assert words[columns["w"][row]] == question["reason"]
      assert words[columns["c"][row]] == question["category"]

  def test_pairs_are_those_of_the_file(self, folder, page):
    index = page.index
    words, columns = index["s"], index["pair"]
    pairs = _read(folder / "pairs.jsonl")
    assert len(columns["q"]) == len(pairs)
    for row, pair in enumerate(pairs):
      assert words[columns["a"][row]] == pair["accepted"]
      assert [columns["bk"][row], columns["bn"][row]] == pair["rejected_counts"]

  def test_responses_are_those_of_the_file(self, folder, page):
    questions, index = page.questions(), page.index
    traces = _read(folder / "traces.jsonl")
    assert sum(len(q["r"]) for q in questions.values()) == len(traces)
    for trace in traces:
      question = questions[trace["question"]]
      (found,) = [r for r in question["r"] if r["i"] == trace["response"]]
      words = question["words"]
      assert [words[token] for token in found["t"]] == trace["tokens"]
      np.testing.assert_allclose(found["p"], 1e4 * np.array(trace["probs"]), atol=0.51)
      for name, field in (("m", "mean"), ("l", "low"), ("u", "high")):
        values = [value[field] for value in trace["values"]]
        np.testing.assert_allclose(found[name], 1e3 * np.array(values), atol=0.51)
      left = {i: [k, n] for i, k, n in found["o"]}
      assert left == {i: off for i, off in enumerate(trace["off"]) if off[1]}
      for position, *rows in found.get("h", []):
        for row in rows:
          assert index["h"]["i"][row] == position
          assert index["h"]["q"][row] == trace["question"]

  def test_a_question_has_its_whole_text_and_answer(self, folder, page):
    questions = page.questions()
    for question in _read(folder / "questions.jsonl"):
      found = questions[question["question"]]
      assert (found["p"], found["a"]) == (question["prompt"], question["reference"])
      assert bool(found["r"]) == question["kept"]

  def test_the_index_says_where_a_question_is(self, page):
    columns = page.index["q"]
    for number, chunk in zip(columns["n"], columns["b"], strict=True):
      assert number in page.questions() and f"search-{chunk}" in page.data


class TestSafety:
  def test_page_is_well_formed_and_asks_for_nothing(self, html):
    assert_self_contained(html)

  def test_hostile_text_stays_text(self, folder, html, page):
    assert len(page.scripts) == 1 and "alert(1)" not in page.scripts[0]
    assert "<script>alert" not in html
    prompts = "\n".join(q["prompt"] for q in _read(folder / "questions.jsonl"))
    begins = "\n".join(page.index["q"]["p"])
    for text in HOSTILE:
      assert text in prompts
      assert " ".join(text.split()) in begins or "\x00" in text or "\u2028" in text
    tokens = {w for q in page.questions().values() for w in q["words"]}
    assert set(HOSTILE) <= tokens

  def test_data_cannot_end_its_element(self, page):
    for content in page.data.values():
      assert not re.search(r"[<>&\u2028\u2029\x00-\x08]", content)

  def test_only_this_script_may_run(self, html, page):
    digest = base64.b64encode(hashlib.sha256(page.scripts[0].encode()).digest())
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-"
    assert f"{policy}{digest.decode()}'" in unescape(html)
    assert "</script" not in page.scripts[0] and "<!--" not in page.scripts[0]
    assert "innerHTML" not in page.scripts[0]

  def test_half_a_character_does_not_stop_the_report(self, folder, tmp_path):
    copy = tmp_path / "pts"
    shutil.copytree(folder, copy)
    for name in ("traces", "hypotheses", "questions", "pairs"):
      path = copy / f"{name}.jsonl"
      path.write_text(path.read_text().replace(" therefore", "\\ud83d"))
    found = report_search(open_run(copy)).html
    found.encode("utf-8")
    words = {w for q in PageReader(found).questions().values() for w in q["words"]}
    assert "\ud83d" in words


def test_ten_thousand_pivots_fit(tmp_path):
  folder = write_comb_search(tmp_path / "pts", num_questions=800, num_moves=12)
  found = report_search(open_run(folder))
  assert found.results["pivotal_tokens"] >= 10_000
  page = PageReader(found.html)
  responses = sum(len(q["r"]) for q in page.questions().values())
  assert responses == found.results["responses"] > 1_000
  tokens = found.results["tokens"]
  # What is parsed at once, and what waits: about 13 bytes a token.
  assert len(page.data["search-index"]) < 5e6
  assert len(found.html) < 5e6 + 20 * tokens
  summary = len(found.html) - sum(map(len, page.data.values()))
  assert summary < 400_000


def test_nothing_found(folder, tmp_path):
  copy = tmp_path / "pts"
  shutil.copytree(folder, copy)
  for name in ("hypotheses", "pivotal_tokens", "pairs"):
    (copy / f"{name}.jsonl").write_text("")
  page = PageReader(report_search(open_run(copy)).html)
  assert "no pivotal token to list" in page.text and "No pivot gave a pair" in page.text
  assert "no pivot" in page.text  # instead of a cost
  assert page.index["h"] == {} and page.questions()
  assert "spread" not in page.ids


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
  return write_chain(tmp_path_factory.mktemp("runs") / "demo")


class TestOtherModes:
  def test_search_alone(self, chain):
    found = report_search(open_run(chain / "pts"))
    assert_self_contained(found.html)
    page = PageReader(found.html)
    count = found.results["pivotal_tokens"]
    assert f"{count} pivotal tokens in" in page.text
    # All that was sampled, not what the last process did.
    sampled = found.results["sampled_tokens"]
    last = found.results["perf"]["last_process"]
    assert f"{sampled:,}" in page.text and sampled != last["sampled_tokens"] == 321
    assert f"| pivotal_tokens | {count:5} |" in found.table
    pivot = _read(chain / "pts" / "pivotal_tokens.jsonl")[0]
    counts = f"({pivot['before']['successes']}/{pivot['before']['rollouts']})"
    assert counts in page.text
    assert found.picture is not None

  def test_what_is_known_at_cuts_only_is_said_so(self, chain):
    page = PageReader(report_search(open_run(chain / "pts")).html)
    traced = {
      (t["question"], t["response"]) for t in _read(chain / "pts" / "traces.jsonl")
    }
    cuts = 0
    for number, question in page.questions().items():
      for response in question["r"]:
        if (number, response["i"]) in traced:
          assert -1 not in response["m"]
        else:
          cuts += 1
          # The question, the one estimate (of the first response) and the verdict.
          known = [i for i, value in enumerate(response["m"]) if value >= 0]
          assert known in ([0, len(response["t"])], [0, 1, len(response["t"])])
    assert cuts

  def test_the_claim_of_other_modes_is_none(self, chain, tmp_path):
    words = PageReader(report_search(open_run(chain / "pts")).html).text
    assert "No bound on the share of false ones is claimed" in words
    copy = tmp_path / "pts"
    shutil.copytree(chain / "pts", copy)
    config = json.loads((copy / "config.json").read_text())
    config["config"]["search"] |= {"mode": "naive", "rollouts_per_estimate": 10}
    config["config"]["vocabulary"] = str(chain / "tokenizer")
    (copy / "config.json").write_text(json.dumps(config))
    words = PageReader(report_search(open_run(copy)).html).text
    assert "Nothing was confirmed" in words and "probability of up to 0.5 at" in words
    assert "tokens are claimed: the estimates before and after them" in words
    assert "of the very rollouts that led to the choice" in words
    assert "claimed pivot" in words and "moves as far, not claimed" in words
    # They are named where it is said that there are none, and nowhere else.
    assert words.count("No fresh rollouts were made") == 1
    named = words.count("resh rollouts") - words.count("confirmation: fresh rollouts")
    assert named == 1

  def test_tokens_are_numbers_without_the_vocabulary(self, chain, tmp_path):
    shutil.copytree(chain / "pts", tmp_path / "pts")
    page = PageReader(report_search(open_run(tmp_path / "pts")).html)
    assert any(
      w.startswith("<id ") for q in page.questions().values() for w in q["words"]
    )


def test_files_of_different_searches_are_refused(folder, tmp_path):
  copy = tmp_path / "pts"
  shutil.copytree(folder, copy)
  records = _read(copy / "hypotheses.jsonl")
  records[0]["response"] = 77
  write_jsonl(copy / "hypotheses.jsonl", records)
  with pytest.raises(DataError, match="response 77 .*different searches"):
    report_search(open_run(copy))
