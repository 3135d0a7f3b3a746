"""The training state: everything that a resumed run needs, as one pytree.

Knows how the state is made and where it lies on a mesh; refuses to know how a step
changes it or how it is stored. Random numbers are not part of it: every draw of a
run is a function of the step or of the data position.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from phi4_jax.common.axes import Params
from phi4_jax.common.mesh import replicated
from phi4_jax.model.quantize import check_trainable
from phi4_jax.model.sharding import param_shardings as model_param_shardings
from phi4_jax.training.guard import GuardConfig, init_guard


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainState:
  """What changes from step to step.

  The leaves are arrays, or stand for them (shapes, shardings).

  Attributes:
    step: int32 scalar, batches consumed so far (refused steps included).
    params: nested dict of float32 arrays.
    opt_state: the optimizer's own tree.
    guard: `GuardState`.
  """

  step: Any
  params: Any
  opt_state: Any
  guard: Any


def init_state(
  params: Params, tx: optax.GradientTransformation, guard: GuardConfig
) -> TrainState:
  """Returns the state before the first step.

  Raises:
    ConfigError: if the weights are int8.
  """
  check_trainable(params)
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt_state=tx.init(params),
    guard=init_guard(guard),
  )


def state_shardings(
  mesh: Mesh,
  abstract_state: TrainState,
  tx: optax.GradientTransformation,
  param_shardings: Any = None,
) -> TrainState:
  """Returns a TrainState of NamedShardings.

  Adam's moments lie where their parameters lie; counters are replicated. (Left to
  itself, `jax.jit(tx.init)` replicates the moments: twice the parameters' memory
  on every device.)

  Args:
    mesh: the device mesh.
    abstract_state: shapes of the state.
    tx: the optimizer that made `opt_state`.
    param_shardings: one NamedSharding a parameter; None takes the model's table.
  """
  if param_shardings is None:
    param_shardings = model_param_shardings(mesh, abstract_state.params)
  whole = replicated(mesh)
  opt_state = optax.tree_map_params(
    tx,
    lambda _, sharding: sharding,
    abstract_state.opt_state,
    param_shardings,
    transform_non_params=lambda _: whole,
  )
  return TrainState(
    step=whole,
    params=param_shardings,
    opt_state=opt_state,
    guard=jax.tree.map(lambda _: whole, abstract_state.guard),
  )


def abstract_state(
  make_params: Callable[..., Params],
  *args: Any,
  tx: optax.GradientTransformation,
  guard: GuardConfig,
  mesh: Mesh,
  param_shardings: Any = None,
) -> TrainState:
  """Returns shapes, dtypes and shardings of `create_state`, making no array.

  It is what `Checkpoints.restore` wants, and what compiling ahead of time wants.
  """
  shapes = jax.eval_shape(lambda *a: init_state(make_params(*a), tx, guard), *args)
  shardings = state_shardings(mesh, shapes, tx, param_shardings)
  return jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=sharding
    ),
    shapes,
    shardings,
  )


def create_state(
  make_params: Callable[..., Params],
  *args: Any,
  tx: optax.GradientTransformation,
  guard: GuardConfig,
  mesh: Mesh,
  param_shardings: Any = None,
) -> TrainState:
  """Makes a state that is sharded from birth: no device ever holds all of it.

  `args` go to `make_params` as traced arguments: pass a key for new parameters, and
  for existing ones `lambda params: params` with the parameters.
  """
  wanted = abstract_state(
    make_params, *args, tx=tx, guard=guard, mesh=mesh, param_shardings=param_shardings
  )
  make = jax.jit(
    lambda *a: init_state(make_params(*a), tx, guard),
    out_shardings=jax.tree.map(lambda leaf: leaf.sharding, wanted),
  )
  with jax.set_mesh(mesh):
    return make(*args)
