"""What a model makes of each token of known texts: its states after the final norm.

Texts are read in chunks of the engine's shapes, one lane each, into bases that are not
those that branches leave: so nothing that is held is lost. Refuses to know what the
states are good for.
"""

from collections.abc import Sequence

import numpy as np

from phi4_jax.common.axes import Float, Params
from phi4_jax.sampling.engine_checks import check_prefix
from phi4_jax.sampling.engine_programs import EnginePrograms


def read_hidden_states(
  programs: EnginePrograms, params: Params, texts: Sequence[tuple[int, ...]]
) -> list[Float[np.ndarray, "T D"]]:
  """Returns the hidden states of every token of every text, in order.

  Long texts begin first, and a lane takes the next text when it has read its own. The
  states of a text do not depend on its lane or on its neighbours.

  Args:
    programs: of an engine.
    params: placed as the engine's.
    texts: of 1 to SamplingLaw.max_length tokens of the vocabulary.

  Raises:
    ValueError: if a text cannot be read, or its states are not finite.
  """
  for row, text in enumerate(texts):
    check_prefix(row, text, programs.law, programs.config)
  found = _read(programs, params, texts)
  for row, states in enumerate(found):
    if not np.isfinite(states).all():
      raise ValueError(
        f"The model's hidden states of text {row} are not finite. The parameters hold "
        "NaN or infinity, or overflow in ModelConfig.compute_dtype "
        f"({programs.config.compute_dtype!r})."
      )
  return found


def _read(
  programs: EnginePrograms, params: Params, texts: Sequence[tuple[int, ...]]
) -> list[Float[np.ndarray, "T D"]]:
  shapes = programs.shapes
  num_lanes, length = shapes.prefill_lanes, shapes.prompt_chunk
  waiting = sorted(range(len(texts)), key=lambda n: (len(texts[n]), -n))
  found: list[list[np.ndarray]] = [[] for _ in texts]
  lanes: list[int | None] = [None] * num_lanes
  starts = np.zeros(num_lanes, np.int32)
  bases = programs.init_lanes() if texts else None
  while True:
    ids = np.zeros((num_lanes, length), np.int32)
    counts = np.zeros(num_lanes, np.int32)
    for lane in range(num_lanes):
      text = lanes[lane]
      if text is None or starts[lane] == len(texts[text]):
        lanes[lane] = text = waiting.pop() if waiting else None
        starts[lane] = 0
      if text is not None:
        part = texts[text][starts[lane] : starts[lane] + length]
        ids[lane, : len(part)], counts[lane] = part, len(part)
    if not counts.any():
      return [np.concatenate(parts) for parts in found]
    bases, hidden = programs.read_lanes(params, bases, ids, starts, counts)
    for lane, text in enumerate(lanes):
      if text is not None:
        found[text].append(hidden[lane, : counts[lane]])
    starts += counts
