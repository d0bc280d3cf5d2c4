"""Training on images of several sizes: every size compiled once, whatever the number of steps.

`fit_mixed` is pure, a scan over steps whose body chooses among the sizes' steps with `lax.switch`;
each branch gathers its own batch, so that nothing is padded. `train_mixed` is the host loop around
the same program: progress, rows of metrics, checkpoints, bitwise resume.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from poster_jax.core.checks import check_batch, check_callable, check_count
from poster_jax.core.cost import count_flops
from poster_jax.core.devices import replicate
from poster_jax.core.training import StatefulLoss, Trained, TrainState, init_state, run_chunks
from poster_jax.core.training.batches import order_key
from poster_jax.core.training.identity import digest_arrays, digest_program
from poster_jax.core.training.record import Recorder
from poster_jax.core.typing import Array, Batch, Bool, Float, Int, LossFn, Params, PRNGKey
from poster_jax.mixed_sizes._steps import Augment, size_steps
from poster_jax.mixed_sizes.plan import epoch_plan, epoch_steps
from poster_jax.mixed_sizes.regime import SizeConfig

__all__ = ["MixedFit", "continue_mixed", "fit_mixed", "step_flops", "train_mixed"]


class MixedFit(NamedTuple):
    """A network trained on images of several sizes.

    Attributes:
      state: the TrainState after the last step; `fit.params` is short for `fit.state.params`.
      losses: (num_steps,); the loss of each step's batch before the update.
      sizes: (num_steps,) int32; each step's size, as an index into the regime.
      diverged: whether any of `losses` is NaN or infinite.
      diverged_at: int32; the first such step, counted from 0 over the whole run; -1 when none.
      metrics: `metrics_fn` at `metrics_steps`, stacked along a leading axis; () without one.
    """

    state: TrainState
    losses: Float[Array, "..."]
    sizes: Int[Array, "..."]
    diverged: Bool[Array, "..."]
    diverged_at: Int[Array, "..."]
    metrics: Any

    @property
    def params(self) -> Params:
        """The trained parameters."""
        return self.state.params


def fit_mixed(
    loss_fn: LossFn | StatefulLoss,
    params: Params,
    data: Batch,
    key: PRNGKey,
    *,
    regime: Sequence[SizeConfig],
    optimizer: optax.GradientTransformation,
    num_steps: int,
    augment: Augment | None = None,
    model_state: Any = (),
    batch_key: PRNGKey | None = None,
    size_key: PRNGKey | None = None,
    sampling: str = "examples",
    passes: int = 1,
    metrics_fn: Callable[[TrainState], Any] | None = None,
    metrics_steps: Sequence[int] = (),
    mesh: Mesh | None = None,
) -> MixedFit:
    """What a network becomes after `num_steps` steps at mixed sizes; pure, to be jitted, vmapped.

    With one size, the images' own, and no augmentation it is `core.training.fit`, bit for bit. In a
    population let `size_key` be shared: under `vmap` a step whose size differs from network to
    network is computed at every size.

    Args:
      loss_fn: as in `core.training.fit`; the network must take images of every size, so it ends in
        global pooling.
      params: pytree of floating point arrays, already initialised.
      data: `(x, y)`: images (examples, height, width, channels) as stored, labels (examples,).
      key: of the run: order of examples and sizes, views, the loss's noise.
      regime: of `size_regime`.
      optimizer: any optax transformation; put `smooth_gradients` first for the method's own.
      num_steps: how many updates; `sum(epoch_steps(...))` is an epoch.
      augment: `augment(key, image, size) -> image` (size, size, channels) from one stored image;
        None resizes.
      model_state: where a stateful loss starts.
      batch_key: of the order of the examples; None takes it from key.
      size_key: of the order of the sizes; None takes it from batch_key.
      sampling: as in `epoch_steps`.
      passes: as in `epoch_steps`.
      metrics_fn: as in `core.training.fit`.
      metrics_steps: as in `core.training.fit`.
      mesh: spreads each batch over the axis "data"; batch_size * duplicates must be a multiple of
        the devices at every size.

    Returns:
      A MixedFit.

    Raises:
      ValueError, TypeError: an argument that does not fit, named, before anything is compiled.

    Source: Hoffer et al. 2019, arXiv 1908.08986.

    Example:
      >>> x = jnp.linspace(-1.0, 1.0, 40).reshape(-1, 1, 1, 1) * jnp.ones((40, 8, 8, 1))
      >>> loss = lambda w, batch: jnp.mean((w * batch[0].mean((1, 2, 3)) - batch[1]) ** 2)
      >>> regime = [SizeConfig(8, 0.5, 5, 1), SizeConfig(4, 0.5, 20, 1)]
      >>> run = fit_mixed(loss, jnp.zeros(()), (x, 3 * x[:, 0, 0, 0]), jax.random.key(0),
      ...                 regime=regime, optimizer=optax.sgd(0.3), num_steps=100)
      >>> round(float(run.params), 2), sorted(run.sizes[:5].tolist())
      (3.0, [0, 0, 0, 0, 1])
    """
    state = init_state(params, key, optimizer=optimizer, model_state=model_state)
    return continue_mixed(
        loss_fn,
        state,
        data,
        regime=regime,
        optimizer=optimizer,
        num_steps=num_steps,
        start=0,
        augment=augment,
        batch_key=batch_key,
        size_key=size_key,
        sampling=sampling,
        passes=passes,
        metrics_fn=metrics_fn,
        metrics_steps=metrics_steps,
        mesh=mesh,
    )


def continue_mixed(
    loss_fn: LossFn | StatefulLoss,
    state: TrainState,
    data: Batch,
    *,
    regime: Sequence[SizeConfig],
    optimizer: optax.GradientTransformation,
    num_steps: int,
    start: Int[Array, "..."] | int | None = None,
    augment: Augment | None = None,
    batch_key: PRNGKey | None = None,
    size_key: PRNGKey | None = None,
    sampling: str = "examples",
    passes: int = 1,
    metrics_fn: Callable[[TrainState], Any] | None = None,
    metrics_steps: Sequence[int] = (),
    mesh: Mesh | None = None,
) -> MixedFit:
    """What a run becomes after `num_steps` more steps: two halves make the whole, bit for bit.

    Args:
      loss_fn: as in `fit_mixed`.
      state: of an earlier `fit_mixed`, `continue_mixed` or `core.training.init_state`.
      data: as in `fit_mixed`.
      regime: as in `fit_mixed`.
      optimizer: the one that made `state`.
      num_steps: how many more updates.
      start: the step at which `state` stands; None reads `state.step`. In a population give it as
        a plain number, as in `core.training.continue_fit`.
      augment: as in `fit_mixed`.
      batch_key: as in `fit_mixed`.
      size_key: as in `fit_mixed`.
      sampling: as in `fit_mixed`.
      passes: as in `fit_mixed`.
      metrics_fn: as in `fit_mixed`.
      metrics_steps: as in `fit_mixed`, counted from `start`.
      mesh: as in `fit_mixed`.

    Returns:
      A MixedFit of these steps alone.

    Raises:
      ValueError, TypeError: as in `fit_mixed`.

    Source: this library.

    Example:
      `second = continue_mixed(loss_fn, first.state, data, regime=regime, optimizer=optimizer,
      num_steps=100)`
    """
    check_count("num_steps", num_steps)
    recorder = Recorder(metrics_fn, metrics_steps, num_steps)
    num_examples = check_batch(data, "data")
    data = jax.tree.map(jnp.asarray, data)
    per_epoch = sum(epoch_steps(num_examples, regime, sampling=sampling, passes=passes))
    branches = size_steps(loss_fn, optimizer, state, data, regime, augment, mesh)
    draw = partial(
        epoch_plan,
        order_key(state.key) if batch_key is None else batch_key,
        num_examples,
        regime,
        size_key=size_key,
        sampling=sampling,
        passes=passes,
    )

    clocks = (state.step if start is None else start) + jnp.arange(num_steps, dtype=jnp.int32)

    def body(carry: Any, now: Any) -> Any:
        state, plan, table = carry
        clock, written = now
        place = clock % per_epoch
        # Drawn in one place, also for the first step: sorting is slow to compile.
        due = (place == 0) | (clock == clocks[0])
        renew = lambda epoch: draw(epoch=epoch)  # noqa: E731
        plan = jax.lax.cond(due, renew, lambda _: plan, clock // per_epoch)
        size, row = plan.size_index[place], plan.row[place]
        view_key = jax.random.fold_in(views, clock)
        state, loss = jax.lax.switch(size, branches, state, data, plan.tables, row, view_key)
        return (state, plan, recorder.write(table, written, state)), (loss, size)

    # Steps fold in 0, 1, 2, ..., and the order of examples 2^32 - 1.
    views = jax.random.fold_in(state.key, 2**32 - 2)
    blank = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(draw))
    carry = (state, blank, recorder.table(state))
    (state, _, table), (losses, sizes) = jax.lax.scan(
        body, carry, (clocks, jnp.asarray(recorder.rows))
    )
    bad = ~jnp.isfinite(losses)
    diverged = bad.any()
    at = jnp.where(diverged, clocks[bad.argmax()], -1)
    return MixedFit(state, losses, sizes, diverged, at, table)


def train_mixed(
    loss_fn: LossFn | StatefulLoss,
    params: Params,
    data: Batch,
    key: PRNGKey,
    *,
    regime: Sequence[SizeConfig],
    optimizer: optax.GradientTransformation,
    num_steps: int,
    augment: Augment | None = None,
    model_state: Any = (),
    sampling: str = "examples",
    passes: int = 1,
    workdir: str | Path | None = None,
    chunk_steps: int = 100,
    checkpoint_every: int = 1,
    keep: int = 3,
    metrics_fn: Callable[[TrainState], dict[str, Any]] | None = None,
    mesh: Mesh | None = None,
    description: str = "training",
) -> Trained:
    """What `fit_mixed` makes of a network, with a progress bar, rows of metrics, checkpoints.

    Called again with the same arguments after an interruption, it goes on from the last checkpoint
    in `workdir` and ends in the same bits as an unbroken run.

    Args:
      loss_fn: as in `fit_mixed`.
      params: as in `fit_mixed`.
      data: as in `fit_mixed`.
      key: as in `fit_mixed`.
      regime: as in `fit_mixed`.
      optimizer: as in `fit_mixed`.
      num_steps: as in `fit_mixed`; a multiple of chunk_steps saves the compilation of a last short
        chunk.
      augment: as in `fit_mixed`.
      model_state: as in `fit_mixed`.
      sampling: as in `fit_mixed`.
      passes: as in `fit_mixed`.
      workdir: as in `core.training.train`.
      chunk_steps: as in `core.training.train`.
      checkpoint_every: as in `core.training.train`.
      keep: as in `core.training.train`.
      metrics_fn: `metrics_fn(state) -> dict of arrays`, called once a chunk.
      mesh: as in `fit_mixed`.
      description: stands before the progress bar.

    Returns:
      A Trained; its rows have "loss_by_size", means over the chunk's steps of each size of the
      regime (None where it has none), beside "step", "loss", "diverged_at" and the metrics.

    Raises:
      ValueError, TypeError: as in `fit_mixed`; ValueError also when `workdir` holds another run.

    Source: Hoffer et al. 2019, arXiv 1908.08986.

    Example:
      >>> x = jnp.linspace(-1.0, 1.0, 40).reshape(-1, 1, 1, 1) * jnp.ones((40, 8, 8, 1))
      >>> loss = lambda w, batch: jnp.mean((w * batch[0].mean((1, 2, 3)) - batch[1]) ** 2)
      >>> regime = [SizeConfig(8, 0.5, 5, 1), SizeConfig(4, 0.5, 20, 1)]
      >>> run = train_mixed(loss, jnp.zeros(()), (x, 3 * x[:, 0, 0, 0]), jax.random.key(0),
      ...                   regime=regime, optimizer=optax.sgd(0.3), num_steps=100, chunk_steps=50)
      >>> round(float(run.params), 2), len(run.history[0]["loss_by_size"])
      (3.0, 2)
    """
    # A copy: the chunks give the state's memory back to XLA, and `params` belongs to the caller.
    state = jax.tree.map(
        jnp.copy, init_state(params, key, optimizer=optimizer, model_state=model_state)
    )
    check_batch(data, "data")
    data = jax.tree.map(jnp.asarray, data)
    if metrics_fn is not None:
        check_callable("metrics_fn", metrics_fn)
    if mesh is not None:
        state, data = replicate((state, data), mesh)

    def chunk(state: TrainState, data: Batch, start: Any, steps: int) -> tuple[TrainState, dict]:
        run = continue_mixed(
            loss_fn,
            state,
            data,
            regime=regime,
            optimizer=optimizer,
            num_steps=steps,
            start=start,
            augment=augment,
            sampling=sampling,
            passes=passes,
            mesh=mesh,
        )
        mine = run.sizes == jnp.arange(len(regime))[:, None]
        return run.state, {
            "loss": run.losses.mean(),
            "diverged_at": run.diverged_at,
            "loss_by_size": jnp.where(mine, run.losses, 0).sum(1) / mine.sum(1),
            **({} if metrics_fn is None else metrics_fn(run.state)),
        }

    identity = {}
    if workdir is not None:
        first = partial(chunk, steps=min(chunk_steps, num_steps))
        identity = {
            "data": digest_arrays(data),
            "params, model_state or key": digest_arrays(
                (state.params, state.model_state, state.key)
            ),
            "optimizer": digest_arrays(state.opt_state),
            "regime": repr(tuple(regime)),
            "program": digest_program(first, state, data, jnp.zeros((), jnp.int32)),
        }
    compiled = jax.jit(chunk, static_argnums=3, donate_argnums=0)
    return run_chunks(
        lambda state, start, steps: compiled(state, data, jnp.asarray(start, jnp.int32), steps),
        state,
        num_steps=num_steps,
        chunk_steps=chunk_steps,
        workdir=workdir,
        identity=identity,
        checkpoint_every=checkpoint_every,
        keep=keep,
        description=description,
    )


def step_flops(
    loss_fn: LossFn | StatefulLoss,
    state: TrainState,
    data: Batch,
    *,
    regime: Sequence[SizeConfig],
    optimizer: optax.GradientTransformation,
    augment: Augment | None = None,
) -> tuple[float, ...]:
    """Floating point operations of one step at each size, views and optimiser included.

    Args:
      loss_fn: as in `fit_mixed`.
      state: of `core.training.init_state`; only shapes matter.
      data: as in `fit_mixed`; only shapes matter.
      regime: as in `fit_mixed`.
      optimizer: as in `fit_mixed`.
      augment: as in `fit_mixed`.

    Returns:
      One number for each size, as `core.cost.count_flops` counts.

    Raises:
      ValueError, TypeError: as in `fit_mixed`.

    Source: this library.

    Example:
      >>> x, loss = jnp.ones((8, 4, 4, 1)), lambda w, batch: jnp.mean(w * batch[0])
      >>> state = init_state(jnp.ones(()), jax.random.key(0), optimizer=optax.sgd(0.1))
      >>> regime = [SizeConfig(4, 0.5, 2, 1), SizeConfig(2, 0.5, 8, 1)]
      >>> len(step_flops(loss, state, (x, x), regime=regime, optimizer=optax.sgd(0.1)))
      2
    """
    row = jax.ShapeDtypeStruct((), jnp.int32)
    tables = tuple(jax.ShapeDtypeStruct((1, c.batch_size), jnp.int32) for c in regime)
    branches = size_steps(loss_fn, optimizer, state, data, regime, augment, None)
    return tuple(count_flops(branch, state, data, tables, row, state.key) for branch in branches)
