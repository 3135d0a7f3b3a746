"""Analytic processes, responses and samplers that the tests of the search share."""

import numpy as np

from phi4_jax.pts.analytic import AnalyticProcess, AnalyticSampler, make_process
from phi4_jax.pts.questions import choose_responses
from phi4_jax.pts.responses import Response, Responses


def tiny_process() -> AnalyticProcess:
  """Four steps, three states and three tokens: 81 responses to each question."""
  return make_process(
    3, num_steps=4, num_states=3, num_tokens=3, forks=0.7, certain=0.0
  )


def draw_rollouts(process, question, count, seed=0) -> list[Response]:
  """Draws on-policy responses, as the question filter does."""
  prompt = process.questions[question].prompt_ids
  paths = [(0, question, 0, 0, k) for k in range(count)]
  completions = AnalyticSampler(process, seed).sample([prompt] * count, paths)
  return [
    Response(
      question=question,
      index=k,
      prompt_ids=prompt,
      token_ids=c.token_ids,
      logprobs=c.logprobs,
      finish=c.finish,
      correct=process.judge(process.questions[question], c.token_ids, c.finish),
    )
    for k, c in enumerate(completions)
  ]


def draw_responses(process, questions, count=3, seed=0) -> Responses:
  return Responses(
    response
    for question in questions
    for response in choose_responses(draw_rollouts(process, question, 12, seed), count)
  )


def true_values(process, response) -> np.ndarray:
  """V before each token of a response, and behind the last."""
  return np.array(
    [process.value(response.prefix_ids(p)) for p in range(len(response) + 1)]
  )


def make_response(probs, *, tokens=None, question=0, index=0, correct=True):
  """Makes a response of given probabilities by hand."""
  return Response(
    question=question,
    index=index,
    prompt_ids=(7,),
    token_ids=tuple(tokens if tokens is not None else range(len(probs))),
    logprobs=tuple(float(np.log(p)) for p in probs),
    finish="stop",
    correct=correct,
  )
