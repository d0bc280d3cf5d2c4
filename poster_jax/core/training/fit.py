"""`fit`: a given number of steps as one pure function, a scan over steps."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from poster_jax.core.checks import check_callable, check_count, check_key
from poster_jax.core.training.batches import check_data, epoch_order, take
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
    losses: Float[Array, "*population num_steps"]
    diverged: Bool[Array, "*population"]
    diverged_at: Int[Array, "*population"]
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
    start: Int[Array, ""] | int | None = None,
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
    epoch_steps, size = check_data(data, batch_size)
    slots = _metric_slots(metrics_fn, metrics_steps, num_steps)
    batch_key = order_key(state.key) if batch_key is None else batch_key
    check_key("batch_key", batch_key)
    start = state.step if start is None else start
    spread = spread_batch(mesh, size)
    data = jax.tree.map(jnp.asarray, data)
    check_training_loss(loss_fn, state, jax.tree.map(lambda a: a[:size], data))
    step = make_step(loss_fn, optimizer)
    num_examples = jax.tree.leaves(data)[0].shape[0]
    whole = size == num_examples

    def draw(clock: Any) -> Any:
        return epoch_order(batch_key, clock // epoch_steps, num_examples)

    def body(carry: Any, now: Any) -> Any:
        state, order, metrics = carry
        clock, slot = now
        if whole:
            batch = data
        else:
            place = clock % epoch_steps
            order = jax.lax.cond(place == 0, draw, lambda _: order, clock)
            rows = jax.lax.dynamic_slice(order, (place * size,), (size,))
            batch = take(data, rows)
        state, loss = step(state, spread(batch))
        if metrics_fn is not None:
            metrics = jax.lax.cond(
                slot >= 0, lambda: _write(metrics, slot, metrics_fn(state)), lambda: metrics
            )
        return (state, order, metrics), loss

    clocks = start + jnp.arange(num_steps, dtype=jnp.int32)
    order = () if whole else draw(jnp.asarray(start, jnp.int32))
    metrics = _metric_table(metrics_fn, state, metrics_steps)
    (state, _, metrics), losses = jax.lax.scan(
        body, (state, order, metrics), (clocks, jnp.asarray(slots)), unroll=unroll
    )
    bad = ~jnp.isfinite(losses)
    diverged = bad.any()
    return Fit(state, losses, diverged, jnp.where(diverged, clocks[bad.argmax()], -1), metrics)


def order_key(key: PRNGKey) -> PRNGKey:
    """The key of the order of the examples that belongs to a run's key."""
    # Steps fold in 0, 1, 2, ...: the largest number is never one of them.
    return jax.random.fold_in(key, 2**32 - 1)


def _metric_slots(metrics_fn: Any, metrics_steps: Sequence[int], num_steps: int) -> np.ndarray:
    """For each step the row of the table that is written after it, or -1."""
    slots = np.full(num_steps, -1, np.int32)
    if metrics_fn is None:
        if len(metrics_steps):
            raise ValueError("metrics_steps needs a metrics_fn, got None.")
        return slots
    check_callable("metrics_fn", metrics_fn)
    steps = [check_count("metrics_steps", step, minimum=0) for step in metrics_steps]
    if not steps or steps != sorted(set(steps)) or steps[-1] > num_steps:
        raise ValueError(
            f"metrics_steps must be increasing steps from 0 to num_steps={num_steps}, got {steps}."
        )
    for row, after in enumerate(steps):
        if after > 0:
            slots[after - 1] = row
    return slots


def _metric_table(metrics_fn: Any, state: TrainState, metrics_steps: Sequence[int]) -> Any:
    """One empty row a chosen step; the first is filled already when step 0 is one of them."""
    if metrics_fn is None:
        return ()
    shapes = jax.eval_shape(metrics_fn, state)
    table = jax.tree.map(lambda s: jnp.zeros((len(metrics_steps), *s.shape), s.dtype), shapes)
    return _write(table, 0, metrics_fn(state)) if metrics_steps[0] == 0 else table


def _write(table: Any, row: Any, values: Any) -> Any:
    return jax.tree.map(lambda t, v: t.at[row].set(v), table, values)
