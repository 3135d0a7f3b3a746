"""What a rollout engine has done so far, in numbers."""

import dataclasses


@dataclasses.dataclass(kw_only=True)
class EngineThroughput:
  """What an engine has done so far.

  Attributes:
    prefill_tokens: tokens of texts read; what was copied or held already is not.
    held_tokens: tokens of texts that came from the store (`EngineShapes.held_texts`)
      and would have been read at that moment without it: of a whole text that is
      fetched, the chunks that the rows see for which it is.
    sampled_tokens: new tokens drawn.
    row_steps: decode steps times rows; what is above sampled_tokens was spent on rows
      that stood idle.
    blocks: calls of the decode program.
    seconds: wall time of programs and scheduling, compilation not counted.
    compile_seconds: wall time of compilation.
  """

  prefill_tokens: int = 0
  held_tokens: int = 0
  sampled_tokens: int = 0
  row_steps: int = 0
  blocks: int = 0
  seconds: float = 0.0
  compile_seconds: float = 0.0

  @property
  def tokens_per_second(self) -> float:
    """Sampled tokens a second of wall time; 0 before the first block."""
    return self.sampled_tokens / self.seconds if self.seconds else 0.0

  @property
  def occupancy(self) -> float:
    """Share of the row steps that drew a token; 0 before the first block."""
    return self.sampled_tokens / self.row_steps if self.row_steps else 0.0
