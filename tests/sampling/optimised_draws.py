"""Prints how far the engine's log-probabilities lie from the plain sampler's, as JSON.

A program of its own: XLA's optimisation level is that of the process
(test_engine_optimised.py).
"""

import json
from typing import Any

import jax
import numpy as np

from phi4_jax.model.transformer import init_params
from phi4_jax.sampling.generate import JaxSampler
from tests.sampling.test_engine import SETTINGS, draw_all, draw_plainly
from tests.sampling.test_engine_buckets import (
  BUCKETS,
  LONG,
  LONG_CONFIG,
  make_engine,
  make_long,
)


def main() -> None:
  params = init_params(LONG_CONFIG, jax.random.key(0))
  branches = make_long(40)
  settings: dict[str, Any] = SETTINGS | {"stop_ids": ()}
  plain = draw_plainly(JaxSampler(params, LONG_CONFIG, LONG, **settings), branches)
  found = []
  for buckets in (BUCKETS[-1:], BUCKETS):
    drawn = draw_all(make_engine(params, buckets), branches)
    assert drawn.keys() == plain.keys()
    same = [key for key in drawn if drawn[key].token_ids == plain[key].token_ids]
    pairs = [(drawn[key].logprobs, plain[key].logprobs) for key in same]
    largest = max(float(np.abs(np.subtract(*pair)).max()) for pair in pairs)
    found.append({"branches": len(drawn), "same": len(same), "largest": largest})
  print(json.dumps(found))


if __name__ == "__main__":
  main()
