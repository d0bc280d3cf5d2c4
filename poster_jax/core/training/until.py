"""`fit_until`: train until the training loss is low enough, every network for itself."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from poster_jax.core.checks import check_count, check_positive
from poster_jax.core.training.batches import BatchStream, order_key
from poster_jax.core.training.state import (
    StatefulLoss,
    TrainState,
    check_training_loss,
    init_state,
)
from poster_jax.core.training.step import make_step
from poster_jax.core.typing import Array, Batch, Bool, Float, Int, LossFn, Params, PRNGKey

__all__ = ["FitUntil", "fit_until"]


class FitUntil(NamedTuple):
    """A network trained until its loss was low enough, or until its time was up.

    Attributes:
      state: the TrainState at the end; `state.step` is the step at which the network stopped.
      epoch_losses: (max_epochs,); mean of an epoch's batch losses, NaN for epochs not run.
      num_epochs: int32; epochs run.
      reached: whether the last epoch's loss was below the threshold.
      diverged: whether a batch loss was NaN or infinite; such a network stops at once after the
        epoch, and its epoch loss is not finite.
      diverged_at: int32; the first such step, counted from 0; -1 when none.
    """

    state: TrainState
    epoch_losses: Float[Array, "..."]
    num_epochs: Int[Array, "..."]
    reached: Bool[Array, "..."]
    diverged: Bool[Array, "..."]
    diverged_at: Int[Array, "..."]

    @property
    def params(self) -> Params:
        """The trained parameters."""
        return self.state.params


def fit_until(
    loss_fn: LossFn | StatefulLoss,
    params: Params,
    data: Batch,
    key: PRNGKey,
    *,
    optimizer: optax.GradientTransformation,
    loss_below: Float[Array, "..."] | float,
    max_epochs: int,
    batch_size: int | None = None,
    model_state: Any = (),
    batch_key: PRNGKey | None = None,
    unroll: int = 1,
) -> FitUntil:
    """What a network becomes when it trains until an epoch's mean loss is below `loss_below`.

    The loss of an epoch is the mean of its batch losses, each taken before its update: it costs
    nothing, and lags the loss of the final parameters by half an epoch. Stopped after E epochs, the
    network is bit for bit that of `fit` with `num_steps = E * steps_per_epoch`. Under `vmap` every
    network stops for itself, and the program ends with the last one.

    Args:
      loss_fn: as in `fit`.
      params: as in `fit`.
      data: as in `fit`.
      key: as in `fit`.
      optimizer: as in `fit`.
      loss_below: the threshold; may be traced.
      max_epochs: the most epochs a network gets.
      batch_size: as in `fit`; an epoch has `steps_per_epoch(N, batch_size)` steps.
      model_state: as in `fit`.
      batch_key: as in `fit`.
      unroll: as in `fit`.

    Returns:
      A FitUntil. It is not differentiable in reverse mode (a while loop); `fit` is.

    Raises:
      ValueError, TypeError: an argument that does not fit, named, before anything is compiled.

    Source: the criterion of Petzka et al. 2021, arXiv 2001.00939 (epoch loss below 0.1).

    Example:
      >>> x = jnp.linspace(-1.0, 1.0, 32)
      >>> loss = lambda w, batch: jnp.mean((w * batch[0] - batch[1]) ** 2)
      >>> result = fit_until(loss, jnp.zeros(()), (x, 3 * x), jax.random.key(0), batch_size=8,
      ...                    optimizer=optax.sgd(0.3), loss_below=0.01, max_epochs=100)
      >>> bool(result.reached), int(result.state.step) == 4 * int(result.num_epochs)
      (True, True)
    """
    check_count("max_epochs", max_epochs)
    check_count("unroll", unroll)
    check_positive("loss_below", loss_below)
    state = init_state(params, key, optimizer=optimizer, model_state=model_state)
    stream = BatchStream(data, batch_size, order_key(key) if batch_key is None else batch_key)
    dtype = check_training_loss(loss_fn, state, stream.example)
    step = make_step(loss_fn, optimizer)

    def run_epoch(state: TrainState, epoch: Any) -> tuple[TrainState, Any]:
        return jax.lax.scan(
            lambda state, rows: step(state, stream.take(rows)),
            state,
            stream.epoch(epoch),
            unroll=unroll,
        )

    def body(result: FitUntil) -> FitUntil:
        state, losses = run_epoch(result.state, result.num_epochs)
        loss, bad = losses.mean(), ~jnp.isfinite(losses)
        return FitUntil(
            state,
            result.epoch_losses.at[result.num_epochs].set(loss),
            result.num_epochs + 1,
            loss < loss_below,
            bad.any(),
            jnp.where(bad.any(), result.state.step + bad.argmax().astype(jnp.int32), -1),
        )

    def unfinished(result: FitUntil) -> Any:
        return ~result.reached & ~result.diverged & (result.num_epochs < max_epochs)

    no, zero = jnp.zeros((), bool), jnp.zeros((), jnp.int32)
    nothing = jnp.full(max_epochs, jnp.nan, dtype)
    return jax.lax.while_loop(unfinished, body, FitUntil(state, nothing, zero, no, no, zero - 1))
