"""What tests of oracles share: make one, ask it about a text."""

from phi4_jax.data.tokenizer import ByteVocabulary
from phi4_jax.pts.oracle import Question
from phi4_jax.pts.oracle_rules import make_rule
from phi4_jax.pts.oracles import RuleOracle

VOCABULARY = ByteVocabulary()
STOP = VOCABULARY.im_end_id


def make_oracle(config, **kwargs):
  return RuleOracle(make_rule(config), VOCABULARY, **kwargs)


def ask(oracle, response, reference, finish="stop", prompt="?"):
  ids = VOCABULARY.encode(response) + ([STOP] if finish == "stop" else [])
  question = Question(id="q", prompt=prompt, reference=reference, prompt_ids=(9,))
  return oracle.judge(question, ids, finish)
