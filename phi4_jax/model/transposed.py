"""Matrices that lie as [out, in], for decoding on a CPU.

A CPU's product of few rows spends its time on fetching the matrix, and XLA's fetches
one faster whose rows it sums over: a quarter less time in bfloat16, a twelfth in
float32, at 64 rows. Refuses to know which program wants that (sampling/placement.py).
"""

from typing import Any

import jax.numpy as jnp

from phi4_jax.common.axes import Params
from phi4_jax.model.sharding import PARAM_SPECS


def transpose_matrices(params: Params) -> dict[str, Any]:
  """Replaces `weight` [in, out] by `transposed` [out, in] in every projection.

  Adapters beside it stay. So do int8 matrices, whose product widens them first, and
  the embedding, which lies right for a tied head. Layers must be separate.
  """
  converted = {}
  for owner, value in params.items():
    is_matrix = owner != "embed_tokens" and len(PARAM_SPECS.get(owner, ())) == 2
    if not isinstance(value, dict):
      converted[owner] = value
    elif not is_matrix:
      converted[owner] = transpose_matrices(value)
    elif "weight" not in value or value["weight"].dtype == jnp.int8:
      converted[owner] = dict(value)
    else:
      rest = {name: leaf for name, leaf in value.items() if name != "weight"}
      converted[owner] = {**rest, "transposed": value["weight"].T}
  return converted
