"""Why a rollout engine does not draw something, in the words of who asked for it."""

from phi4_jax.common.sampler import Branch, Completion, SamplingLaw
from phi4_jax.model.config import ModelConfig
from phi4_jax.sampling.engine_schedule import Job
from phi4_jax.sampling.engine_shapes import EngineShapes


def check_prefix(
  row: int, prefix: tuple[int, ...], law: SamplingLaw, config: ModelConfig
) -> None:
  """Refuses a prefix that nothing can be drawn after.

  Raises:
    ValueError: if it is empty, too long or not of the vocabulary.
  """
  cap, size = law.max_length, config.vocab_size
  if not prefix:
    raise ValueError(f"Prefix {row} is empty; at least one token is required.")
  if len(prefix) > cap:
    raise ValueError(
      f"Prefix {row} has {len(prefix)} tokens, more than SamplingLaw.max_length "
      f"({cap}), which caps prompt and completion together. Raise it to "
      f"{len(prefix) + 1} or more, or shorten the prompt."
    )
  if min(prefix) < 0 or max(prefix) >= size:
    raise ValueError(
      f"Prefix {row} holds token ids from {min(prefix)} to {max(prefix)}; "
      f"ModelConfig.vocab_size ({size}) allows 0 to {size - 1}."
    )


def refuse(
  branch: Branch, law: SamplingLaw, config: ModelConfig, shapes: EngineShapes
) -> str | None:
  """Says why a branch cannot be drawn, None if it can."""
  if not 1 <= branch.position <= len(branch.text):
    return (
      f"The branch leaves its text of {len(branch.text)} tokens at {branch.position}; "
      "at least one token must stand before it."
    )
  cap, size, length = law.max_length, config.vocab_size, branch.prefix_length
  if length > cap:
    return (
      f"The prefix has {length} tokens, more than SamplingLaw.max_length ({cap}), "
      "which caps prompt and completion together."
    )
  prefix = branch.prefix_ids
  if min(prefix) < 0 or max(prefix) >= size:
    return (
      f"The prefix holds token ids from {min(prefix)} to {max(prefix)}; "
      f"ModelConfig.vocab_size ({size}) allows 0 to {size - 1}."
    )
  if length - 1 > shapes.base_capacity:
    return (
      f"The prefix has {length} tokens; base_capacity ({shapes.base_capacity}) allows "
      f"{shapes.base_capacity + 1}."
    )
  if cap - length > shapes.suffix_capacity:
    return (
      f"Up to {cap - length} tokens may follow the prefix of {length} "
      f"(SamplingLaw.max_length is {cap}), more than suffix_capacity "
      f"({shapes.suffix_capacity})."
    )
  return None


def fail(
  job: Job, config: ModelConfig, *, is_prefix_broken: bool = False
) -> Completion:
  """Returns the completion of a branch that has no next token."""
  step, excluded = len(job.tokens), job.branch.excluded_id
  if step == 0 and excluded >= 0 and not is_prefix_broken:
    error = (
      f"Token {excluded} is excluded as first token, but under the law it is the only "
      "one possible (or the logits are not finite): there is no other token to draw. "
      "Exclude only tokens of probability below 1."
    )
  else:
    error = (
      f"The model's logits for new token {step} are not finite. The parameters hold "
      "NaN or infinity, or overflow in ModelConfig.compute_dtype "
      f"({config.compute_dtype!r})."
    )
  return Completion(
    token_ids=tuple(job.tokens),
    logprobs=tuple(job.logprobs),
    finish="length",
    error=error,
  )
