"""A token process whose p(success) is known exactly at every prefix.

A layered automaton: at step t it is in a state, draws a token, and the token decides
the next state; after the last step the state decides success. So V, the probability
of success, follows by backward dynamic programming, and everything that the search
estimates can be compared with the truth. Layers and states are of three kinds, as in
real responses: nearly certain tokens, tokens of style (several, all with the same next
state), and forks (each token leads elsewhere).

Tokens are 0 to num_tokens - 1; question q is the single prompt token num_tokens + q
and starts in state q. Nothing here needs a model, a vocabulary or an accelerator.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

from phi4_jax.common.axes import Bool, Float, Int
from phi4_jax.common.sampler import Completion, SamplingLaw
from phi4_jax.pts.oracle import Finish, Question


class AnalyticProcess:
  """States, transitions and rewards; implements the Oracle protocol.

  Attributes:
    probs: of each token, by step and state.
    next_states: where each token leads, by step and state.
    rewards: whether a final state is a success.
    values: V by step and state; `values[num_steps]` are the rewards.
    questions: one for each state to begin in, or the first of them.
  """

  def __init__(
    self,
    probs: Float[np.ndarray, "T S K"],
    next_states: Int[np.ndarray, "T S K"],
    rewards: Bool[np.ndarray, "S"],
    *,
    num_questions: int | None = None,
  ):
    """Question q starts in state q; by default there is one for each state."""
    num_steps, num_states, num_tokens = probs.shape
    assert np.allclose(probs.sum(-1), 1, atol=1e-12)
    self.probs = probs
    self.next_states = next_states
    self.rewards = rewards
    self.num_steps = num_steps
    self.num_tokens = num_tokens
    self.values = np.empty((num_steps + 1, num_states))
    self.values[-1] = rewards
    for step in reversed(range(num_steps)):
      later = self.values[step + 1][next_states[step]]  # [S, K]
      self.values[step] = (probs[step] * later).sum(-1)
    self.questions = tuple(
      Question(
        id=f"state {q}",
        prompt=f"state {q}",
        reference="success",
        prompt_ids=(num_tokens + q,),
      )
      for q in range(num_states if num_questions is None else num_questions)
    )
    content = b"".join(a.tobytes() for a in (probs, next_states, rewards))
    self.fingerprint = hashlib.sha256(content).hexdigest()

  def state_after(self, prefix: Sequence[int]) -> int:
    """Returns the state behind a prompt and tokens."""
    state = prefix[0] - self.num_tokens
    for step, token_id in enumerate(prefix[1:]):
      state = int(self.next_states[step, state, token_id])
    return state

  def value(self, prefix: Sequence[int]) -> float:
    """Returns p(success) given a prefix."""
    return float(self.values[len(prefix) - 1, self.state_after(prefix)])

  def value_without(self, prefix: Sequence[int], token_id: int) -> float:
    """Returns p(success) given a prefix and that its next token is another one.

    Raises:
      ZeroDivisionError: if the token has probability 1.
    """
    step, state = len(prefix) - 1, self.state_after(prefix)
    probs = self.probs[step, state]
    later = self.values[step + 1][self.next_states[step, state]]
    total = sum(
      float(probs[other] * later[other])
      for other in range(self.num_tokens)
      if other != token_id
    )
    return total / float(1 - probs[token_id])

  def expected_squares(self) -> Float[np.ndarray, "S"]:
    """Returns E sum of squared changes of V along a response, by first state."""
    total = np.zeros_like(self.values[0])
    for step in reversed(range(self.num_steps)):
      later = self.next_states[step]
      change = self.values[step + 1][later] - self.values[step][:, None]
      total = (self.probs[step] * (change**2 + total[later])).sum(-1)
    return total

  def judge(self, question: Question, token_ids: Sequence[int], finish: Finish) -> bool:
    del finish
    return bool(self.rewards[self.state_after((*question.prompt_ids, *token_ids))])

  def response_text(self, token_ids: Sequence[int], finish: Finish) -> str:
    del finish
    return " ".join(map(str, token_ids))

  def token_text(self, token_id: int) -> str:
    return str(token_id)


def make_process(
  seed: int,
  *,
  num_steps: int = 32,
  num_states: int = 24,
  num_tokens: int = 6,
  certain: float = 0.65,
  forks: float = 0.06,
  rewarded: float = 0.5,
  reach: int | None = None,
) -> AnalyticProcess:
  """Draws a process.

  Args:
    seed: of everything.
    num_steps: tokens of every response.
    num_states: in each layer.
    num_tokens: that can be drawn.
    certain: share of states with one nearly certain token, half of them quite.
    forks: share of states in which each token leads to a state of its own; the rest
      are states of style.
    rewarded: share of final states that are a success.
    reach: if given, states lie on a line whose one end succeeds, and a fork leads to
      states at most so far away. So V wanders, and moves cancel each other, as in a
      response that errs and recovers. Without it a fork leads anywhere.
  """
  rng = np.random.default_rng(seed)
  shape = (num_steps, num_states, num_tokens)
  probs = rng.dirichlet(np.full(num_tokens, 0.8), shape[:2])
  kind = rng.random(shape[:2])
  is_certain = kind < certain
  slack = np.where(rng.random(shape[:2]) < 0.5, 0.0, rng.uniform(0, 0.05, shape[:2]))
  first = np.zeros(num_tokens)
  first[0] = 1
  nearly = (1 - slack)[..., None] * first + slack[..., None] / (num_tokens - 1) * (
    1 - first
  )
  probs = np.where(is_certain[..., None], nearly, probs)
  # Each layer permutes the states, so that what was decided stays decided.
  same = np.stack([rng.permutation(num_states) for _ in range(num_steps)])
  anywhere = rng.integers(0, num_states, shape)
  is_fork = kind >= 1 - forks
  next_states = np.where(is_fork[..., None], anywhere, same[..., None])
  rewards = rng.permutation(num_states) < round(rewarded * num_states)
  if reach is not None:
    line = np.arange(num_states)
    anywhere = line[:, None] + rng.integers(-reach, reach + 1, shape)
    anywhere = np.where(anywhere < 0, -1 - anywhere, anywhere)
    beyond = anywhere >= num_states
    anywhere = np.where(beyond, 2 * num_states - 1 - anywhere, anywhere)
    next_states = np.where(is_fork[..., None], anywhere, line[:, None])
    rewards = line < round(rewarded * num_states)
  return AnalyticProcess(probs / probs.sum(-1, keepdims=True), next_states, rewards)


class AnalyticSampler:
  """Draws from a process; implements the Sampler protocol.

  The randomness of a row is Philox with a hash of seed and key path for its key, and
  of a token the entry of its position: as with a model, nothing else matters.
  """

  def __init__(self, process: AnalyticProcess, seed: int):
    self._process = process
    self._seed = seed
    self._law = SamplingLaw(max_length=process.num_steps + 1)
    self._cumulative = np.cumsum(process.probs, axis=-1)

  @property
  def law(self) -> SamplingLaw:
    return self._law

  def sample(
    self,
    prefixes: Sequence[Sequence[int]],
    key_paths: Sequence[Sequence[int]],
    excluded_ids: Sequence[int] | None = None,
  ) -> list[Completion]:
    """Returns one completion for each prefix; all end by length.

    `excluded_ids`, if given, names for each row a token that the first one must not
    be (-1: any may be), as in sampling/generate.py.

    Raises:
      ValueError: if an excluded token is the only possible one.
    """
    process, num_rows = self._process, len(prefixes)
    if not num_rows:
      return []
    begins = np.array([len(prefix) - 1 for prefix in prefixes])
    states = np.array([process.state_after(prefix) for prefix in prefixes])
    uniforms = np.stack([self._uniforms(path) for path in key_paths])
    excluded = np.full(num_rows, -1) if excluded_ids is None else excluded_ids
    excluded = np.asarray(excluded, int)
    tokens = np.zeros((num_rows, process.num_steps), int)
    logprobs = np.zeros((num_rows, process.num_steps))
    for step in range(int(begins.min()), process.num_steps):
      drawn = self._draw(step, states, uniforms[:, step])
      probs = process.probs[step, states, drawn]
      first = np.flatnonzero((begins == step) & (excluded >= 0))
      if first.size:
        law = process.probs[step, states[first]]
        law[np.arange(first.size), excluded[first]] = 0
        if not law.any(axis=-1).all():
          raise ValueError("An excluded token is the only one possible.")
        law /= law.sum(axis=-1, keepdims=True)
        drawn[first] = invert(law, uniforms[first, step])
        probs[first] = law[np.arange(first.size), drawn[first]]
      running = begins <= step
      # What rows that begin later would draw is thrown away, and may be impossible.
      tokens[running, step] = drawn[running]
      logprobs[running, step] = np.log(probs[running])
      states = np.where(running, process.next_states[step, states, drawn], states)
    return [
      Completion(
        token_ids=tuple(tokens[row, begin:].tolist()),
        logprobs=tuple(logprobs[row, begin:].tolist()),
        finish="length",
      )
      for row, begin in enumerate(begins)
    ]

  def _uniforms(self, path: Sequence[int]) -> np.ndarray:
    name = repr((self._seed, *map(int, path))).encode()
    key = int.from_bytes(hashlib.blake2b(name, digest_size=16).digest(), "little")
    generator = np.random.Generator(np.random.Philox(key=key))
    return generator.random(self._process.num_steps)

  def _draw(
    self, step: int, states: Int[np.ndarray, "B"], uniforms: Float[np.ndarray, "B"]
  ) -> Int[np.ndarray, "B"]:
    """Inverts the cumulative distribution."""
    return invert(
      self._process.probs[step, states], uniforms, self._cumulative[step, states]
    )


def invert(
  probs: Float[np.ndarray, "B K"],
  uniforms: Float[np.ndarray, "B"],
  cumulative: Float[np.ndarray, "B K"] | None = None,
) -> Int[np.ndarray, "B"]:
  """Returns a token for each row; never one of probability 0.

  Args:
    probs: the law of each row, of any sum.
    uniforms: in [0, 1).
    cumulative: sums of `probs`, if they are known.
  """
  if cumulative is None:
    cumulative = np.cumsum(probs, axis=-1)
  target = uniforms[:, None] * cumulative[:, -1:]
  return np.argmax((cumulative > target) & (probs > 0), axis=-1)
