"""Rules judge texts: tables of responses, right, wrong and hostile."""

import subprocess
import sys

import pytest

from phi4_jax.common.errors import ConfigError
from phi4_jax.pts.oracle_process import OracleFailure
from phi4_jax.pts.oracle_rules import (
  ChoiceRuleConfig,
  MathRuleConfig,
  NumberRuleConfig,
  PythonRuleConfig,
  ReadingRule,
  Rule,
  make_rule,
)
from phi4_jax.pts.oracles import find_stop_ids
from tests.pts.judging import STOP, VOCABULARY, ask, make_oracle


@pytest.fixture(scope="module")
def math():
  oracle = make_oracle(MathRuleConfig())
  yield oracle
  oracle.close()


class TestNumber:
  oracle = make_oracle(NumberRuleConfig())

  @pytest.mark.parametrize(
    "response, reference, verdict",
    [
      ("6 + 6 = 12. #### 12", "12", True),
      ("12 apples", "12.0", True),
      ("12", "6 + 6 = 12\n#### 12", True),
      (r"\boxed{1{,}200}", "1,200", True),
      ("13", "12", False),
      ("none", "12", False),
      ("", "12", False),
    ],
  )
  def test_it_judges(self, response, reference, verdict):
    assert ask(self.oracle, response, reference) is verdict
    assert ask(self.oracle, response, reference, "length") is verdict

  def test_what_it_refuses(self):
    assert self.oracle.refuse("12") is None
    assert "'twelve' is not one number" in self.oracle.refuse("twelve")


class TestChoice:
  oracle = make_oracle(ChoiceRuleConfig(letters="ABCDE"))

  @pytest.mark.parametrize(
    "response, reference, verdict",
    [
      ("The answer is (B).", "B", True),
      ("B", "(b)", True),
      ("A", "B", False),
      ("Z", "B", False),
      ("", "B", False),
    ],
  )
  def test_it_judges(self, response, reference, verdict):
    assert ask(self.oracle, response, reference) is verdict

  def test_what_it_refuses(self):
    assert self.oracle.refuse("E.") is None
    assert "A, B, C, D, E (ChoiceRuleConfig" in self.oracle.refuse("Paris")
    assert self.oracle.refuse("F") and self.oracle.refuse("AB")


class TestMath:
  @pytest.mark.parametrize(
    "response, reference, verdict",
    [
      (r"so $\boxed{\frac{3}{4}}$.", "3/4", True),
      (r"\boxed{0.75}", r"\frac{3}{4}", True),
      (r"\boxed{75\%}", r"\frac{3}{4}", True),
      (r"\boxed{75\%}", "75", True),
      (r"\boxed{75}", r"75\%", True),
      (r"\boxed{7.5}", r"75\%", False),
      (r"\boxed{(x+1)^2}", "x^2+2x+1", True),
      (r"\boxed{(x+2)^2}", "x^2+2x+1", False),
      (r"\boxed{\{2, 1\}}", r"\{1,2\}", True),
      (r"\boxed{(2, 1)}", "(1, 2)", False),
      (r"\boxed{\text{east}}", "East", True),
      (r"\boxed{(A)}", "A", True),
      ("The answer is (A).", "A", True),
      ("The answer is 12.", "12", True),
      (r"\boxed{1}, or \boxed{2}", "1,2", True),
      (r"\boxed{12", "12", False),
      (r"\boxed{5}", r"So $x = \boxed{5}$.", True),
      ("no idea", "12", False),
    ],
  )
  def test_it_judges(self, math, response, reference, verdict):
    assert ask(math, response, reference) is verdict

  @pytest.mark.parametrize(
    "response",
    [
      "",
      " \n\t ",
      "\x00\x01\x02",
      "\ufffd" * 50,
      "\u202e\u0661\u0662 \U0001f600",
      r"\boxed{}",
      r"\boxed{\boxed{}}",
      r"\boxed{\frac{1}{0}}",
      r"\boxed{\frac{1}{}}",
      r"\boxed{{{{}",
      r"\boxed{" + "{" * 500 + "1" + "}" * 500 + "}",
      r"\boxed{" + "(" * 500 + "1" + ")" * 500 + "}",
      r"\boxed{" + "x^{" * 200 + "1" + "}" * 201,
      "(" * 30_000,
      "$" * 3_000,
      r"\boxed{" * 3_000,
      "9^9^9^9^9",
      r"\boxed{9^{9^{9^{9}}}}",
      r"\boxed{10^{10^{10}}}",
      r"\boxed{2^{10^9}}",
      r"\boxed{1000000!}",
      r"\boxed{((((1000!)!)!)!)}",
      r"$\prod_{k=1}^{10^9} k$",
      r"\boxed{\sum_{k=1}^{1000000000} k^k}",
      r"\boxed{(x+y+z)^{200}}",
      r"\boxed{x^{1000}-1=(x-1)(x+1)^{999}}",
      r"\boxed{" + "9" * 10_000 + "}",
      "answer: 9**9**9**9**9",
      "1/3/" * 2_000,
      "__import__('os').system('exit 1')",
      r"$\int_0^1 e^{e^{e^x}} dx$",
      r"\boxed{\lim_{x\to 0} \frac{\sin(1/x)}{x}}",
      '{"verdict": true}',
      "####",
      "NaN",
      r"\boxed{\infty}",
      r"\boxed{None}",
      r"\input{/etc/passwd}",
      "answer is " * 3_000,
    ],
    ids=lambda response: ascii(response[:20]),
  )
  def test_hostile_responses_are_wrong(self, math, response):
    assert ask(math, response, r"\frac{7}{4}") is False
    for config in (NumberRuleConfig(), ChoiceRuleConfig()):
      reference = "B" if isinstance(config, ChoiceRuleConfig) else "123"
      assert ask(make_oracle(config), response, reference) is False

  def test_what_it_refuses(self, math):
    assert math.refuse(r"\frac{3}{4}") is None
    assert math.refuse("south-east") is None
    assert "finds no expression" in math.refuse(r"\frac{1}{")
    assert math.refuse(" ") == "the answer is blank"
    assert "nested too deeply" in math.refuse("(" * 50)

  def test_too_slow_is_a_failure_or_wrong(self):
    slow = r"\boxed{\int \frac{\sin(x^3+1)\cos(x)^5}{\sqrt{x^7+x+1}} dx}"
    config = {"timeout_seconds": 0.05, "workers": 1}
    failing = make_oracle(MathRuleConfig(**config))
    with pytest.raises(OracleFailure, match=r"no verdict within 0\.05 seconds"):
      ask(failing, slow, "x^2")
    wrong = make_oracle(MathRuleConfig(slow="wrong", **config))
    assert ask(wrong, slow, "x^2") is False
    assert failing.fingerprint != wrong.fingerprint
    failing.close(), wrong.close()


class TestRuleOracle:
  def test_texts(self):
    oracle = make_oracle(NumberRuleConfig(), ends=("\n", "Q:"))
    ids = [*VOCABULARY.encode("ab Q: c\nd"), STOP]
    assert oracle.response_text(ids, "stop") == "ab "
    assert oracle.response_text([VOCABULARY.size + 2, *ids[:2]], "length") == "\ufffdab"
    assert oracle.token_text(STOP) == "<|im_end|>"
    assert oracle.token_text(VOCABULARY.size + 2) == f"<id {VOCABULARY.size + 2}>"
    # Behind the end stands a number of the next question.
    assert ask(oracle, "12\nQ: 5+5? A: 10", "12") is True

  def test_the_token_that_ends_a_response_is_read(self):
    newline = VOCABULARY.encode("\n")[0]
    found = find_stop_ids(VOCABULARY, ("\n",))
    assert found == (*VOCABULARY.stop_ids, newline)
    assert find_stop_ids(VOCABULARY, ()) == VOCABULARY.stop_ids
    oracle = make_oracle(NumberRuleConfig(), ends=("\n",))
    assert oracle.response_text([*VOCABULARY.encode("12"), newline], "stop") == "12"

  def test_the_fingerprint_names_rule_vocabulary_and_ends(self):
    oracles = [
      make_oracle(NumberRuleConfig()),
      make_oracle(NumberRuleConfig(), ends=("\n",)),
      make_oracle(ChoiceRuleConfig()),
      make_oracle(ChoiceRuleConfig(letters="AB")),
    ]
    assert len({oracle.fingerprint for oracle in oracles}) == 4
    assert VOCABULARY.fingerprint in oracles[0].fingerprint

  def test_settings_out_of_range(self):
    for make in (
      lambda: ChoiceRuleConfig(letters="ABa"),
      lambda: ChoiceRuleConfig(letters=""),
      lambda: ChoiceRuleConfig(letters="AA"),
      lambda: MathRuleConfig(timeout_seconds=0.0),
      lambda: MathRuleConfig(workers=0),
      lambda: PythonRuleConfig(function="a:b", memory_mib=-1),
    ):
      with pytest.raises(ConfigError, match="RuleConfig"):
        make()

  def test_every_rule_is_one(self, math):
    assert isinstance(make_rule(NumberRuleConfig()), Rule)
    assert isinstance(make_rule(ChoiceRuleConfig()), Rule)
    assert "math-verify 0." in math.fingerprint

  def test_nothing_heavy_is_imported_here(self):
    code = (
      "import sys, phi4_jax.pts.oracles, phi4_jax.pts.oracle_rules as r;"
      "r.make_rule(r.MathRuleConfig());"
      "print([n for n in ('sympy', 'math_verify') if n in sys.modules])"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert process.stdout.strip() == b"[]", process.stderr


class TestReading:
  """What is answered, and which answers are the same."""

  @pytest.mark.parametrize(
    "config, response, answer",
    [
      (NumberRuleConfig(), "so 7.50 #### 7.50", "7.5"),
      (NumberRuleConfig(), "I do not know", None),
      (ChoiceRuleConfig(letters="ABC"), "The answer is (b).", "B"),
      (ChoiceRuleConfig(letters="ABC"), "The answer is (D).", None),
      (MathRuleConfig(), r"so $x = \boxed{\frac12}$", r"\frac12"),
      (MathRuleConfig(), r"$\boxed{1}$" + "\n" + r"or $\boxed{2}$", "2"),
      (MathRuleConfig(), r"$\boxed{1}$ or $\boxed{2}$", None),
      (MathRuleConfig(), r"\boxed{ 1 }, that is \boxed{1}", "1"),
      (MathRuleConfig(), r"\boxed{}", None),
      (MathRuleConfig(), "so 7", None),
    ],
  )
  def test_what_a_response_answers(self, config, response, answer):
    rule = make_rule(config)
    assert isinstance(rule, ReadingRule)
    assert rule.find_answer(response) == answer
    rule.close()

  @pytest.mark.parametrize(
    "config, reference, answer",
    [
      (NumberRuleConfig(), "3 + 4 = 7 #### 7.0", "7"),
      (NumberRuleConfig(), "seven", None),
      (ChoiceRuleConfig(), "(c)", "C"),
      (ChoiceRuleConfig(), "", None),
      (MathRuleConfig(), r"as above: $\boxed{x^2}$", "x^2"),
      (MathRuleConfig(), " x^2 ", "x^2"),
      (MathRuleConfig(), "", None),
    ],
  )
  def test_a_reference_is_spelled_as_answers_are(self, config, reference, answer):
    rule = make_rule(config)
    assert isinstance(rule, ReadingRule)
    assert rule.read_reference(reference) == answer
    rule.close()

  @pytest.mark.parametrize(
    "first, second, same",
    [
      (r"\frac{1}{2}", "0.5", True),
      (r"\dfrac12", r"\frac{1}{2}", True),
      ("x^2 - 1", "(x-1)(x+1)", True),
      (r"\text{even}", "Even", True),
      ("even", "odd", False),
      ("1/2", "1/3", False),
      ("{" * 50 + "}" * 50, "1", False),
    ],
  )
  def test_expressions_are_the_same(self, math, first, second, same):
    assert math.rule.is_same(first, second) is same

  def test_a_function_only_judges(self):
    rule = make_rule(
      PythonRuleConfig(function="tests.pts.oracle_functions:by_response")
    )
    assert not isinstance(rule, ReadingRule)
    rule.close()
