"""What the reference model says of all rows: computed once, kept in one file.

The reference of preference training is the model that the run began with. Its
log-probabilities do not change, so they are columns of the data: this file makes
them before the first step, and a run that continues reads them again.
"""

import io
import json
import logging
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from phi4_jax.common.axes import Params
from phi4_jax.common.errors import CheckpointError
from phi4_jax.common.io import write_atomic
from phi4_jax.common.mesh import batch_sharding, replicated
from phi4_jax.data.preference_rows import Kind
from phi4_jax.model.config import ModelConfig
from phi4_jax.posttrain.logprobs import (
  TopTokens,
  compute_logit_differences,
  score_tokens,
  take_top_tokens,
)
from phi4_jax.training.losses import compute_hidden

_log = logging.getLogger(__name__)

Batch = Mapping[str, Any]
ReferenceFn = Callable[[Params, Batch], dict[str, jax.Array]]
_TOP = ("reference_top_ids", "reference_top_logprobs", "reference_rest_logprobs")


def reference_tokens(batch: Batch) -> TopTokens:
  """Returns the reference's distributions from a batch that holds their columns."""
  return TopTokens(*(batch[name] for name in _TOP))


def make_reference_fn(
  config: ModelConfig, kind: Kind, *, kl_top_k: int | None, num_loss_chunks: int
) -> ReferenceFn:
  """Returns a function from (params, batch) to the reference's columns.

    pivotal    reference_margins [B, P]: log p(accepted) - log p(rejected)
    full       reference_logprobs [B, 2]: of the right and of the wrong response
    rejection  none

  and for an anchor, where `kl_top_k` is a number, `reference_top_ids` and
  `reference_top_logprobs` [B, *S, k] and `reference_rest_logprobs` [B, *S].
  """

  def reference_fn(params, batch):
    shape = batch["token_ids"].shape  # [B, T], or [B, 2, T]
    flat = {
      name: batch[name].reshape(-1, shape[-1])
      for name in ("token_ids", "positions", "segment_ids", "targets", "loss_weights")
      if name in batch
    }
    hidden = compute_hidden(params, config, flat)
    columns = {}
    if kind == "pivotal":
      columns["reference_margins"] = compute_logit_differences(
        params,
        config,
        hidden,
        batch["pair_positions"],
        batch["accepted_ids"],
        batch["rejected_ids"],
      )
    elif kind == "full":
      scores = score_tokens(
        params, config, hidden, flat["targets"], num_chunks=num_loss_chunks
      )
      summed = (scores.logprobs * flat["loss_weights"]).sum(axis=-1)
      columns["reference_logprobs"] = summed.reshape(shape[:2])
    if kl_top_k is not None:
      top = take_top_tokens(
        params, config, hidden, top_k=kl_top_k, num_chunks=num_loss_chunks
      )
      for name, values in zip(_TOP, top, strict=True):
        columns[name] = values.reshape(*shape, *values.shape[2:])
    return columns

  return reference_fn


def compute_reference(
  reference_fn: ReferenceFn,
  params: Params,
  arrays: Mapping[str, np.ndarray],
  *,
  mesh: Mesh,
  rows_per_call: int,
) -> dict[str, np.ndarray]:
  """Runs all rows through the reference and returns its columns, in row order.

  Args:
    reference_fn: from `make_reference_fn`.
    params: the reference's parameters, on the mesh.
    arrays: all rows, the same on every host.
    mesh: where to run.
    rows_per_call: rows at a time; a multiple of what the mesh splits a batch into.
  """
  sharding = batch_sharding(mesh)
  compiled = jax.jit(reference_fn, out_shardings=replicated(mesh))
  num_rows = len(arrays["token_ids"])
  parts = []
  for start in range(0, num_rows, rows_per_call):
    # The last call is filled up with rows from the beginning; they are cut off below.
    index = np.arange(start, start + rows_per_call) % num_rows
    batch = {
      name: jax.make_array_from_callback(
        (rows_per_call, *array.shape[1:]), sharding, array[index].__getitem__
      )
      for name, array in arrays.items()
    }
    with jax.set_mesh(mesh):
      parts.append(jax.device_get(compiled(params, batch)))
  return {
    name: np.concatenate([part[name] for part in parts])[:num_rows] for name in parts[0]
  }


def save_reference(
  path: str | os.PathLike,
  identity: Mapping[str, Any],
  columns: Mapping[str, np.ndarray],
) -> None:
  """Writes the columns and what they are of, whole or not at all."""
  buffer = io.BytesIO()
  text = np.asarray(json.dumps(identity, sort_keys=True))
  np.savez(buffer, **{"identity": text, **columns})  # pyright: ignore
  write_atomic(path, buffer.getvalue())


def load_reference(
  path: str | os.PathLike, identity: Mapping[str, Any]
) -> dict[str, np.ndarray] | None:
  """Reads the columns again, or returns None where there are none of this identity.

  Logs what differs where there are columns of another identity.

  Raises:
    CheckpointError: if the file is damaged.
  """
  path = Path(path)
  if not path.exists():
    return None
  try:
    with np.load(path, allow_pickle=False) as file:
      columns = {name: file[name] for name in file.files}
    found = json.loads(str(columns.pop("identity")))
  except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
    raise CheckpointError(
      f"{path} is damaged ({error}). Remove it: the same command makes it again from "
      "the parent run."
    ) from error
  wanted = json.loads(json.dumps(dict(identity)))
  if found == wanted:
    return columns
  there, now = _flatten(found), _flatten(wanted)
  differing = [
    f"{name} was {there.get(name)!r} and is {now.get(name)!r}"
    for name in sorted(there.keys() | now.keys())
    if there.get(name) != now.get(name)
  ]
  _log.warning("reference computed anew because %s (%s)", "; ".join(differing), path)
  return None


def _flatten(identity: Mapping[str, Any]) -> dict[str, Any]:
  """Names the fields of what is nested, as in `model.hidden_size`."""
  flat: dict[str, Any] = {}
  for name, value in identity.items():
    if isinstance(value, dict):
      flat |= {f"{name}.{field}": inner for field, inner in value.items()}
    else:
      flat[name] = value
  return flat
