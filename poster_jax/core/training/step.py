"""One step of training, and keeping the batch on several devices."""

from collections.abc import Callable
from typing import Any

import jax
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from poster_jax.core.devices import DATA_AXIS, check_mesh
from poster_jax.core.training.state import StatefulLoss, TrainState, lift
from poster_jax.core.typing import Batch, LossFn


def make_step(
    loss_fn: LossFn | StatefulLoss, optimizer: optax.GradientTransformation
) -> Callable[[TrainState, Batch], tuple[TrainState, Any]]:
    """`step(state, batch) -> (state, loss before the update)`."""
    grad_fn = jax.value_and_grad(lift(loss_fn), has_aux=True)
    optimizer = optax.with_extra_args_support(optimizer)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Any]:
        # A plain loss draws nothing: XLA drops the folded key.
        key = jax.random.fold_in(state.key, state.step)
        (loss, model_state), grads = grad_fn(state.params, state.model_state, batch, key)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params, value=loss)
        params = optax.apply_updates(state.params, updates)
        return TrainState(params, opt_state, model_state, state.key, state.step + 1), loss

    return step


def spread_batch(mesh: Mesh | None, batch_size: int) -> Callable[[Batch], Batch]:
    """Keeps the examples of a batch along the mesh; everything else follows by propagation.

    The program means what it means on one device (BatchNorm sees the whole batch, dropout draws the
    same mask): the compiler puts the sums over devices where they belong.
    """
    if mesh is None:
        return lambda batch: batch
    check_mesh(mesh)
    if batch_size % mesh.shape[DATA_AXIS]:
        raise ValueError(
            f"batch_size must be a multiple of the {mesh.shape[DATA_AXIS]} devices of the mesh, "
            f"got {batch_size}."
        )
    sharding = NamedSharding(mesh, PartitionSpec(DATA_AXIS))
    return lambda batch: jax.lax.with_sharding_constraint(batch, sharding)
