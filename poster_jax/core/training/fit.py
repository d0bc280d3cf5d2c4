"""`fit`: a given number of steps as one pure function, a scan over steps."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from poster_jax.core.checks import check_count
from poster_jax.core.training.batches import BatchStream, order_key
from poster_jax.core.training.record import Recorder
from poster_jax.core.training.state import (
    StatefulLoss,
    TrainState,
    check_optimizer,
    check_training_loss,
    init_state,
)
from poster_jax.core.training.step import make_step, spread_batch
from poster_jax.core.typing import Array, Batch, Bool, Float, Int, LossFn, Params, PRNGKey

__all__ = ["Fit", "continue_fit", "fit"]


class Fit(NamedTuple):
    """A trained network and how it got there.

    Attributes:
      state: the TrainState after the last step; `fit.params` is short for `fit.state.params`.
      losses: (num_steps,); the loss of each step's batch before the update.
      diverged: whether any of `losses` is NaN or infinite.
      diverged_at: int32; the first such step, counted from 0 over the whole run; -1 when none.
      metrics: `metrics_fn` at `metrics_steps`, stacked along a leading axis; () without one.
    """

    state: TrainState
    losses: Float[Array, "..."]
    diverged: Bool[Array, "..."]
    diverged_at: Int[Array, "..."]
    metrics: Any

    @property
    def params(self) -> Params:
        """The trained parameters."""
        return self.state.params


def fit(
    loss_fn: LossFn | StatefulLoss,
    params: Params,
    data: Batch,
    key: PRNGKey,
    *,
    optimizer: optax.GradientTransformation,
    num_steps: int,
    batch_size: int | None = None,
    model_state: Any = (),
    batch_key: PRNGKey | None = None,
    metrics_fn: Callable[[TrainState], Any] | None = None,
    metrics_steps: Sequence[int] = (),
    mesh: Mesh | None = None,
    unroll: int = 1,
) -> Fit:
    """What a network becomes after `num_steps` steps; a pure function, to be jitted and vmapped.

    A population is `jax.vmap` (or `map_population`) of a function that calls `fit`: whatever
    differs from network to network may be traced, also the optimiser's learning rate
    (`optax.sgd(rate)` takes a tracer) and the labels in `data`. For speed let data and `batch_key`
    be shared where the science allows it: a shared batch is drawn once and its first layer is one
    matrix product for the whole population.

    Args:
      loss_fn: `loss_fn(params, batch) -> scalar`, a mean over the batch; or what `stateful` makes.
      params: pytree of floating point arrays, already initialised.
      data: pytree whose leaves share a leading axis of N examples, usually `(x, y)`.
      key: the key of the run: order of the examples (unless batch_key is given) and, for a
        stateful loss, its noise.
      optimizer: any optax transformation, schedules included.
      num_steps: how many updates.
      batch_size: examples a step, at most N. Every epoch permutes the data anew and is cut into
        `N // batch_size` full batches; its rest is left out (`core.training.batches`). None takes
        all N, unpermuted.
      model_state: where a stateful loss starts.
      batch_key: the key of the order alone; networks with the same one see the same batches.
      metrics_fn: `metrics_fn(state) -> pytree of arrays`, called inside the compiled program. Each
        call costs what the function costs, nothing between; one more pass over `state` is saved by
        asking for scalars.
      metrics_steps: after how many updates it is called: increasing, from 0 to num_steps.
      mesh: spreads each batch over the axis "data" (one run on many devices); batch_size must be a
        multiple of its size. A population is spread by `map_population` instead.
      unroll: steps in one turn of the loop, as in `jax.lax.scan`.

    Returns:
      A Fit. A loss that is not finite is flagged there, with its step; nothing is averaged.

    Raises:
      ValueError, TypeError: an argument that does not fit, named, before anything is compiled.

    Source: this library.

    Example:
      >>> x = jnp.linspace(-1.0, 1.0, 32)
      >>> loss = lambda w, batch: jnp.mean((w * batch[0] - batch[1]) ** 2)
      >>> result = fit(loss, jnp.zeros(()), (x, 3 * x), jax.random.key(0),
      ...              optimizer=optax.sgd(0.3), num_steps=100, batch_size=8)
      >>> round(float(result.params), 2), bool(result.diverged)
      (3.0, False)
    """
    state = init_state(params, key, optimizer=optimizer, model_state=model_state)
    return continue_fit(
        loss_fn,
        state,
        data,
        optimizer=optimizer,
        num_steps=num_steps,
        batch_size=batch_size,
        start=0,
        batch_key=batch_key,
        metrics_fn=metrics_fn,
        metrics_steps=metrics_steps,
        mesh=mesh,
        unroll=unroll,
    )


def continue_fit(
    loss_fn: LossFn | StatefulLoss,
    state: TrainState,
    data: Batch,
    *,
    optimizer: optax.GradientTransformation,
    num_steps: int,
    batch_size: int | None = None,
    start: Int[Array, "..."] | int | None = None,
    batch_key: PRNGKey | None = None,
    metrics_fn: Callable[[TrainState], Any] | None = None,
    metrics_steps: Sequence[int] = (),
    mesh: Mesh | None = None,
    unroll: int = 1,
) -> Fit:
    """What a run becomes after `num_steps` more steps: two halves make the whole, bit for bit.

    Args:
      loss_fn: as in `fit`.
      state: of an earlier `fit`, `continue_fit` or `init_state`.
      data: as in `fit`.
      optimizer: the one that made `state`.
      num_steps: how many more updates.
      batch_size: as in `fit`.
      start: the step at which `state` stands; None reads `state.step`. In a population that moves
        in step give it as a plain number: read from a batched state it would make every network
        draw a permutation at every step.
      batch_key: as in `fit`.
      metrics_fn: as in `fit`.
      metrics_steps: as in `fit`, counted from `start`.
      mesh: as in `fit`.
      unroll: as in `fit`.

    Returns:
      A Fit of these steps alone.

    Raises:
      ValueError, TypeError: as in `fit`.

    Source: this library.

    Example:
      >>> state = init_state(jnp.ones(()), jax.random.key(0), optimizer=optax.sgd(0.5))
      >>> half = lambda w, x: jnp.mean(x) * w**2 / 2
      >>> run = continue_fit(half, state, jnp.ones(4), optimizer=optax.sgd(0.5), num_steps=2)
      >>> float(run.params), int(run.state.step)
      (0.25, 2)
    """
    check_count("num_steps", num_steps)
    check_count("unroll", unroll)
    check_optimizer(optimizer)
    recorder = Recorder(metrics_fn, metrics_steps, num_steps)
    stream = BatchStream(data, batch_size, order_key(state.key) if batch_key is None else batch_key)
    spread = spread_batch(mesh, stream.batch_size)
    check_training_loss(loss_fn, state, stream.example)
    step = make_step(loss_fn, optimizer)
    start = state.step if start is None else start

    def body(carry: Any, now: Any) -> Any:
        state, order, table = carry
        clock, row = now
        order, batch = stream.draw(order, clock)
        state, loss = step(state, spread(batch))
        table = recorder.write(table, row, state)
        return (state, order, table), loss

    clocks = start + jnp.arange(num_steps, dtype=jnp.int32)
    carry = (state, stream.first(clocks[0]), recorder.table(state))
    (state, _, table), losses = jax.lax.scan(
        body, carry, (clocks, jnp.asarray(recorder.rows)), unroll=unroll
    )
    bad = ~jnp.isfinite(losses)
    diverged = bad.any()
    return Fit(state, losses, diverged, jnp.where(diverged, clocks[bad.argmax()], -1), table)
