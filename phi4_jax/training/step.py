"""The compiled train step: accumulate, divide once, clip, update, guard.

Every stage trains with this step and its own loss function. Knows pytrees, meshes
and sums; refuses to know what the batch means.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from phi4_jax.common.axes import Params
from phi4_jax.common.errors import ConfigError
from phi4_jax.common.mesh import (
  BATCH_AXES,
  batch_readers,
  batch_sharding,
  num_batch_shards,
  replicated,
)
from phi4_jax.training.compiler_options import mesh_compiler_options
from phi4_jax.training.guard import GuardConfig, guard_metrics, judge_step
from phi4_jax.training.losses import LossFn
from phi4_jax.training.optimizer import Schedule, is_matrix
from phi4_jax.training.state import TrainState

Metrics = dict[str, jax.Array]


def split_microbatches(batch: Any, num_microbatches: int, num_shards: int) -> Any:
  """Cuts [B, ...] leaves into [A, B/A, ...] without moving a row between devices.

  Each of the `num_shards` devices holds B / num_shards neighbouring rows and must
  give some of them to every microbatch. With 8 rows, 2 devices and A = 2 the first
  device holds rows 0-3, and the microbatches are
    rows 0 1 | 4 5   and   rows 2 3 | 6 7.
  """

  def split(x):
    rows = x.shape[0] // (num_microbatches * num_shards)
    x = x.reshape(num_shards, num_microbatches, rows, *x.shape[1:])
    x = jnp.swapaxes(x, 0, 1)  # [A, shards, rows, ...]
    return x.reshape(num_microbatches, num_shards * rows, *x.shape[3:])

  return jax.tree.map(split, batch)


def _is_product(path, leaf) -> bool:
  """Tells matrices that activations are multiplied by."""
  return is_matrix(path, leaf) and "embed_tokens" not in jax.tree_util.keystr(path)


def _accumulate(
  loss_fn: LossFn, params, batch, num_microbatches, mesh, shardings, gradient_dtype
):
  """Returns float32 sums: (loss, weight, metrics) and gradients of the loss sum.

  Devices add up one microbatch's gradients in `gradient_dtype`.
  """
  # Of a matrix in low precision the gradient is of low precision, and so is its sum
  # over devices. Vectors (norms) are small and stay float32, and so does the
  # embedding: its gradient adds up one token's many occurrences on a device.
  params = jax.tree_util.tree_map_with_path(
    lambda path, p: p.astype(gradient_dtype) if _is_product(path, p) else p, params
  )

  def total(params, microbatch):
    loss_sum, weight_sum, metric_sums = loss_fn(params, microbatch)
    return loss_sum, (weight_sum, metric_sums)

  def sums_and_grads(microbatch):
    (loss_sum, (weight_sum, metric_sums)), grads = jax.value_and_grad(
      total, has_aux=True
    )(params, microbatch)
    grads = jax.tree.map(lambda g: g.astype(jnp.float32), grads)
    # Gradients and their running sum lie where the parameters lie.
    grads = jax.lax.with_sharding_constraint(grads, shardings)
    return (loss_sum, weight_sum, metric_sums), grads

  if num_microbatches == 1:
    return sums_and_grads(batch)
  parts = split_microbatches(batch, num_microbatches, num_batch_shards(mesh))
  parts = jax.lax.with_sharding_constraint(
    parts, NamedSharding(mesh, PartitionSpec(None, BATCH_AXES))
  )

  def body(total_grads, microbatch):
    sums, grads = sums_and_grads(microbatch)
    return jax.tree.map(jnp.add, total_grads, grads), sums

  zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)
  zeros = jax.lax.with_sharding_constraint(zeros, shardings)
  grads, sums = jax.lax.scan(body, zeros, parts)
  return jax.tree.map(lambda x: x.sum(axis=0), sums), grads


class TrainStep:
  """A compiled (state, batch) -> (state, metrics).

  The state is donated: the one passed in is gone after the call. The batch is a
  dict of host arrays (each process passes its own rows) or of global arrays.
  Metrics are replicated float32 or int32 scalars that stay on the device until
  read: `loss/total` (mean over the loss weights), the loss function's metrics,
  `train/tokens` (sum of the loss weights), `optimizer/grad_norm` (before
  clipping), `optimizer/param_norm` (before the update), `optimizer/learning_rate`
  (when the schedule is given), `guard/accepted` (1 or 0) and the guard's counters.
  """

  def __init__(
    self,
    step,
    *,
    mesh: Mesh,
    shardings: TrainState,
    num_microbatches: int,
    frozen: tuple[Params, ...] = (),
    combine: Callable[[Params, Params], Params] | None = None,
    xla_options: Mapping[str, str] | None = None,
  ):
    self.mesh = mesh
    # Also for whoever compiles what `lower` returns.
    self.xla_options = mesh_compiler_options(mesh, xla_options)
    # Arguments of every call, so that they are no constants of the program.
    self._frozen = frozen
    self._combine = combine
    self._rows_multiple = num_batch_shards(mesh) * num_microbatches
    self._num_microbatches = num_microbatches
    self._batch_sharding = batch_sharding(mesh)
    self.jitted = jax.jit(
      step,
      in_shardings=(
        shardings,
        self._batch_sharding,
        *jax.tree.map(lambda leaf: leaf.sharding, frozen),
      ),
      # Unpinned, a donated sharded state comes back laid out otherwise and the
      # second call compiles again.
      out_shardings=(shardings, replicated(mesh)),
      donate_argnums=0,
      compiler_options=self.xla_options or None,
    )

  def __call__(
    self, state: TrainState, batch: Mapping[str, Any]
  ) -> tuple[TrainState, Metrics]:
    with jax.set_mesh(self.mesh):
      return self.jitted(state, self.put_batch(batch), *self._frozen)

  def lower(
    self,
    state: TrainState,
    batch: Mapping[str, Any],
    platforms: tuple[str, ...] | None = None,
  ):
    """Lowers for (abstract) arguments, for compiling ahead of time.

    `platforms` names others than that of this process, such as ("tpu",).
    """
    self._check(batch, 1)
    with jax.set_mesh(self.mesh):
      traced = self.jitted.trace(state, batch, *self._frozen)
      return traced.lower(lowering_platforms=platforms)

  def model_params(self, trained: Params) -> Params:
    """Returns what the loss function takes: with the frozen parameters, if any."""
    return self._combine(self._frozen[0], trained) if self._combine else trained

  def num_compilations(self) -> int:
    """Returns how many programs were compiled so far; 1 in a healthy run."""
    return self.jitted._cache_size()  # pyright: ignore[reportAttributeAccessIssue]

  def put_batch(self, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Places host rows on the devices; global arrays pass through.

    Raises:
      ConfigError: if the rows do not divide over devices and microbatches.
    """
    on_host = any(not isinstance(x, jax.Array) for x in batch.values())
    self._check(batch, batch_readers(self.mesh)[1] if on_host else 1)
    return {
      name: x
      if isinstance(x, jax.Array)
      else jax.make_array_from_process_local_data(self._batch_sharding, np.asarray(x))
      for name, x in batch.items()
    }

  def _check(self, batch: Mapping[str, Any], num_readers: int) -> None:
    for name, x in batch.items():
      rows = x.shape[0] * num_readers
      if rows % self._rows_multiple or not rows:
        shards = self._rows_multiple // self._num_microbatches
        raise ConfigError(
          f"A batch of {rows} rows ({name!r}) must be a multiple of "
          f"{self._rows_multiple} = {shards} (devices along MeshConfig.data and fsdp) "
          f"* {self._num_microbatches} (microbatches). Change the batch size, the "
          "mesh or the number of microbatches."
        )


def make_train_step(
  loss_fn: LossFn,
  tx: optax.GradientTransformation,
  *,
  mesh: Mesh,
  state_shardings: TrainState,
  num_microbatches: int = 1,
  guard: GuardConfig,
  schedule: Schedule | None = None,
  gradient_dtype: str = "float32",
  xla_options: Mapping[str, str] | None = None,
  frozen: Params | None = None,
  combine: Callable[[Params, Params], Params] | None = None,
) -> TrainStep:
  """Returns the compiled step of a run.

  Loss and gradient are sum / max(weight, 1) over the whole batch, so they do not
  depend on the number of microbatches or devices (but for float32 rounding). A
  step that the guard refuses leaves parameters and optimizer state as they were;
  the step number advances all the same, because the data has.

  Args:
    loss_fn: sums over a (micro)batch.
    tx: the optimizer; receives the run's step as the extra argument `step`.
    mesh: the device mesh; entered for the call, so constraints in the model see it.
    state_shardings: where the state lies, before and after.
    num_microbatches: A, parts whose gradients are summed one after the other.
    guard: when a step is refused.
    schedule: learning rate by step, reported as `optimizer/learning_rate`.
    gradient_dtype: in which devices add up one microbatch's gradients of matrices,
      but for the embedding's; microbatches are added up in float32 in any case.
      "bfloat16" halves the bytes on the wire, and is for products in bfloat16 only:
      the matrices are rounded to it first.
    xla_options: of the compiler, besides those of compiler_options.py.
    frozen: parameters that take part and are not trained (the base of an adapter), on
      the mesh, of any dtype; None where all are trained. They are neither donated nor
      copied, and have neither gradients nor moments.
    combine: from (frozen, trained parameters) to those of the loss function.

  Raises:
    ConfigError: if num_microbatches is not positive.
  """
  if num_microbatches < 1:
    raise ConfigError(
      f"The number of microbatches ({num_microbatches}) must be 1 or more."
    )
  tx = optax.with_extra_args_support(tx)

  def train_step(state: TrainState, batch, *frozen):
    def total_loss(params, part):
      return loss_fn(params if combine is None else combine(frozen[0], params), part)

    (loss_sum, weight_sum, metric_sums), grads = _accumulate(
      total_loss,
      state.params,
      batch,
      num_microbatches,
      mesh,
      state_shardings.params,
      gradient_dtype,
    )
    divisor = jnp.maximum(weight_sum, 1.0)
    loss = loss_sum / divisor
    grads = jax.tree.map(lambda g: g / divisor, grads)
    grad_norm = optax.tree.norm(grads)
    accept, guard_state = judge_step(guard, state.guard, loss, grad_norm)

    updates, opt_state = tx.update(
      grads, state.opt_state, state.params, step=state.step
    )
    params = optax.apply_updates(state.params, updates)

    def keep(new, old):
      return jnp.where(accept, new, old)

    new_state = TrainState(
      step=state.step + 1,
      params=jax.tree.map(keep, params, state.params),
      opt_state=jax.tree.map(keep, opt_state, state.opt_state),
      guard=guard_state,
    )
    metrics = {
      "loss/total": loss,
      **{name: value / divisor for name, value in metric_sums.items()},
      "train/tokens": weight_sum,
      "optimizer/grad_norm": grad_norm,
      "optimizer/param_norm": optax.tree.norm(state.params),
      "guard/accepted": accept.astype(jnp.int32),
      **guard_metrics(guard_state),
    }
    if schedule is not None:
      metrics["optimizer/learning_rate"] = schedule(state.step)
    return new_state, metrics

  return TrainStep(
    train_step,
    mesh=mesh,
    shardings=state_shardings,
    num_microbatches=num_microbatches,
    frozen=() if frozen is None else (frozen,),
    combine=combine,
    xla_options=xla_options,
  )
