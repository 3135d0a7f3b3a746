"""A sampler of branches, an oracle and a draw that tests of durability share."""

import random

from phi4_jax.common.sampler import Branch, Completion, SamplingLaw
from phi4_jax.pts.oracle import Question
from phi4_jax.pts.rollouts import Rollouts

QUESTIONS = [
  Question(id=f"q{q}", prompt="?", reference="", prompt_ids=(90 + q, 5))
  for q in range(4)
]
TEXTS = [(*question.prompt_ids, 1, 2, 3) for question in QUESTIONS]


def branch(question, number, position=3, phase=1, **kwargs):
  path = (phase, question, 0, position - 2, number)
  return Branch(text=TEXTS[question], position=position, key_path=path, **kwargs)


class Engine:
  """A BranchSampler that ends branches in an order of its own.

  What it draws is a function of the key path; `seconds` a rollout move the clock.
  """

  law = SamplingLaw(max_length=20)
  can_exclude = True

  def __init__(self, order=0, error_for=(), seconds=0.0, places=5):
    self.drawn = []
    self.now = 0.0
    self.closed = False
    self._order, self._error_for = random.Random(order), error_for
    self._seconds, self._places = seconds, places

  def run(self, branches):
    running, queue = [], iter(branches)
    try:
      while True:
        while len(running) < self._places and (one := next(queue, None)) is not None:
          running.append(one)
        if not running:
          return
        one = running.pop(self._order.randrange(len(running)))
        self.now += self._seconds
        yield one, self._complete(one)
    finally:
      self.closed = True

  def _complete(self, one):
    self.drawn.append(one.key_path)
    seed = random.Random(repr(one.key_path))
    ids = tuple(seed.randrange(10) for _ in range(seed.randrange(1, 9)))
    error = "no numbers" if one.key_path in self._error_for else None
    logs = (-0.5,) * len(ids)
    return Completion(token_ids=ids, logprobs=logs, finish="stop", error=error)


class LastTokenIsEven:
  fingerprint = "even"

  def __init__(self):
    self.judged = []

  def judge(self, question, token_ids, finish):
    self.judged.append((question.id, tuple(token_ids), finish))
    return token_ids[-1] % 2 == 0

  def response_text(self, token_ids, finish):
    return ""

  def token_text(self, token_id):
    return ""


def open_draw(path, engine=None, oracle=None, **kwargs):
  engine = engine or Engine()
  oracle = oracle or LastTokenIsEven()
  return Rollouts(engine, QUESTIONS, oracle, log_path=path / "draws.jsonl", **kwargs)


MANY = [branch(q, k) for q in range(4) for k in range(12)]


def draw_many(path, engine=None, branches=MANY, **kwargs):
  with open_draw(path, engine, **kwargs) as draw:
    return draw(branches, label="many")
