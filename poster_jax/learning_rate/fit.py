"""Training under the controller: a scan over epochs of a scan over batches, one pure function."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from poster_jax.core.checks import check_callable, check_choice, check_count, check_positive
from poster_jax.core.training import StatefulLoss, TrainState, init_state
from poster_jax.core.training.batches import BatchStream, order_key
from poster_jax.core.training.state import check_training_loss, lift
from poster_jax.core.training.step import make_step
from poster_jax.core.typing import Array, Batch, Float, Int, LossFn, Params, PRNGKey
from poster_jax.learning_rate.controller import (
    AalrOptions,
    AalrState,
    aalr_best,
    aalr_init,
    aalr_update,
    check_options,
)

__all__ = ["AalrHistory", "FitAalr", "continue_fit_aalr", "fit_aalr"]

OptimizerFn = Callable[[Any], optax.GradientTransformation]


class AalrHistory(NamedTuple):
    """What happened in each epoch.

    Attributes:
      rate: (epochs,); with which the epoch was trained.
      loss: (epochs,); the loss that the controller saw.
      event: int32 (epochs,); what it then did, an index into `EVENTS`.
      phase: int32 (epochs,); 1 or 2, while the epoch was trained.
    """

    rate: Float[Array, "..."]
    loss: Float[Array, "..."]
    event: Int[Array, "..."]
    phase: Int[Array, "..."]


class FitAalr(NamedTuple):
    """A network trained under the controller, and how.

    Attributes:
      state: the TrainState from which the next epoch would go on.
      control: the controller's state.
      history: of the epochs of this call.
      metrics: `metrics_fn(state, rate)` after each epoch, before the controller; () without one.
    """

    state: TrainState
    control: AalrState
    history: AalrHistory
    metrics: Any

    @property
    def best(self) -> tuple[Params, Any, Any]:
        """Parameters, optimiser state and model state of the lowest training loss."""
        return aalr_best(self.control, _carried(self.state))

    @property
    def params(self) -> Params:
        """The parameters of the lowest training loss."""
        return self.best[0]


def fit_aalr(
    loss_fn: LossFn | StatefulLoss,
    params: Params,
    data: Batch,
    key: PRNGKey,
    *,
    optimizer_fn: OptimizerFn,
    num_epochs: int,
    batch_size: int | None = None,
    initial_rate: Any = 0.1,
    loss: str = "epoch_mean",
    initial_loss: Any = None,
    options: AalrOptions | None = None,
    model_state: Any = (),
    batch_key: PRNGKey | None = None,
    metrics_fn: Callable[[TrainState, Any], Any] | None = None,
) -> FitAalr:
    """What a network becomes in `num_epochs` epochs whose learning rate tunes itself.

    Rejected epochs count: the budget is what a fixed schedule would get. A pure function, to be
    jitted and vmapped over seeds and initial rates; the batches are those of `core.training.fit`.
    It is not differentiable (the controller keeps its checkpoint in a while loop); `fit` is.

    Args:
      loss_fn: `loss_fn(params, batch) -> scalar`, or what `stateful` makes.
      params: pytree of floating point arrays, already initialised.
      data: pytree whose leaves share a leading axis of N examples.
      key: the key of the run.
      optimizer_fn: `optimizer_fn(rate) -> optax.GradientTransformation`, such as
        `lambda rate: optax.sgd(rate, momentum=0.9)`; its state must not hold the rate.
      num_epochs: at least 1; each has `steps_per_epoch(N, batch_size)` steps.
      batch_size: as in `core.training.fit`.
      initial_rate: above 0; may be traced.
      loss: what the controller sees: "epoch_mean", the mean of the epoch's batch losses, which
        costs nothing; or "evaluate", the loss of all the data after the epoch, one pass more.
      initial_loss: the loss before training, which the first epoch must not exceed. None measures
        it in the same way as the losses to come, on the batches of the first epoch or on all the
        data: one forward pass. Infinity lets the first epoch set it, and then a fall from an
        explosion passes for success.
      options: the steps that the paper leaves open.
      model_state: where a stateful loss starts.
      batch_key: as in `core.training.fit`.
      metrics_fn: `metrics_fn(state, rate) -> pytree`, called after each epoch.

    Returns:
      A FitAalr. `params` never holds what is not finite, unless it began so.

    Raises:
      ValueError, TypeError: an argument that does not fit, named, before anything is compiled.

    Source: arXiv 1910.11605; see `aalr_update`.

    Example:
      >>> loss_fn = lambda x, batch: jnp.mean(batch) * x**2 / 2
      >>> run = fit_aalr(loss_fn, jnp.ones(()), jnp.ones(1), jax.random.key(0), num_epochs=3,
      ...                optimizer_fn=optax.sgd, initial_rate=3.0, loss="evaluate")
      >>> run.history.rate.tolist(), run.history.loss.tolist()
      ([3.0, 1.5, 1.5], [2.0, 0.125, 0.03125])
    """
    check_callable("optimizer_fn", optimizer_fn)
    check_choice("loss", loss, ["epoch_mean", "evaluate"])
    check_positive("initial_rate", initial_rate)
    state = init_state(params, key, optimizer=optimizer_fn(initial_rate), model_state=model_state)
    stream = BatchStream(data, batch_size, order_key(key) if batch_key is None else batch_key)
    dtype = check_training_loss(loss_fn, state, stream.example)
    if initial_loss is None:
        initial_loss = _loss_before(loss_fn, state, data, stream, whole=loss == "evaluate")
    before = jnp.asarray(initial_loss, dtype)
    run = FitAalr(state, aalr_init(_carried(state), before, initial_rate=initial_rate), *((),) * 2)
    return continue_fit_aalr(
        loss_fn,
        run,
        data,
        optimizer_fn=optimizer_fn,
        num_epochs=num_epochs,
        batch_size=batch_size,
        start=0,
        loss=loss,
        options=options,
        batch_key=batch_key,
        metrics_fn=metrics_fn,
    )


def continue_fit_aalr(
    loss_fn: LossFn | StatefulLoss,
    run: FitAalr,
    data: Batch,
    *,
    optimizer_fn: OptimizerFn,
    num_epochs: int,
    batch_size: int | None = None,
    start: Any = None,
    loss: str = "epoch_mean",
    options: AalrOptions | None = None,
    batch_key: PRNGKey | None = None,
    metrics_fn: Callable[[TrainState, Any], Any] | None = None,
) -> FitAalr:
    """What a run becomes after `num_epochs` more epochs: two halves make the whole, bit for bit.

    Args:
      loss_fn: as in `fit_aalr`, and so all that is not named here.
      run: of `fit_aalr` or `continue_fit_aalr`; its history is not read.
      data: as in `fit_aalr`.
      optimizer_fn: as in `fit_aalr`.
      num_epochs: how many more.
      batch_size: as in `fit_aalr`.
      start: the epoch at which `run` stands; None reads it from `run.state.step`. In a population
        give it as a plain number, so that shared batches are drawn once.
      loss: as in `fit_aalr`.
      options: as in `fit_aalr`.
      batch_key: as in `fit_aalr`.
      metrics_fn: as in `fit_aalr`.

    Returns:
      A FitAalr; history and metrics are of these epochs alone.

    Raises:
      ValueError, TypeError: as in `fit_aalr`.

    Source: arXiv 1910.11605.

    Example:
      `continue_fit_aalr(loss_fn, run, data, optimizer_fn=optax.sgd, num_epochs=10)`
    """
    check_count("num_epochs", num_epochs)
    check_choice("loss", loss, ["epoch_mean", "evaluate"])
    options = check_options(options)
    state = run.state
    stream = BatchStream(data, batch_size, order_key(state.key) if batch_key is None else batch_key)
    check_training_loss(loss_fn, state, stream.example)
    start = state.step // stream.epoch_steps if start is None else start

    def epoch(carry: Any, number: Any) -> Any:
        state, control = carry
        rate, phase = control.rate, control.phase
        step = make_step(loss_fn, optimizer_fn(rate))
        state, losses = jax.lax.scan(
            lambda state, rows: step(state, stream.take(rows)), state, stream.epoch(number)
        )
        seen = losses.mean()
        if loss == "evaluate":
            seen = lift(loss_fn)(state.params, state.model_state, data, state.key)[0]
        metrics = () if metrics_fn is None else metrics_fn(state, rate)
        control, carried = aalr_update(control, seen, _carried(state), options=options)
        state = TrainState(*carried, state.key, state.step)
        return (state, control), (AalrHistory(rate, seen, control.event, phase), metrics)

    numbers = start + jnp.arange(num_epochs, dtype=jnp.int32)
    (state, control), (history, metrics) = jax.lax.scan(epoch, (state, run.control), numbers)
    return FitAalr(state, control, history, metrics)


def _loss_before(
    loss_fn: LossFn | StatefulLoss, state: TrainState, data: Batch, stream: Any, *, whole: bool
) -> Any:
    """The loss at the start, by the batches and the noise of the first epoch or on all the data."""
    fn = lift(loss_fn)
    if whole:
        return fn(state.params, state.model_state, data, state.key)[0]

    def of_batch(now: Any) -> Any:
        step, rows = now
        key = jax.random.fold_in(state.key, step)
        return fn(state.params, state.model_state, stream.take(rows), key)[0]

    steps = jnp.arange(stream.epoch_steps, dtype=jnp.int32)
    return jax.lax.map(of_batch, (steps, stream.epoch(0))).mean()


def _carried(state: TrainState) -> tuple[Params, Any, Any]:
    """What a checkpoint holds: whatever an epoch changes but the count of steps."""
    return state.params, state.opt_state, state.model_state
