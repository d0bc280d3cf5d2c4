"""What the noise is like while a network trains: statistics at chosen steps, inside the program.

An observer looks at the parameters of one step; `core.training.fit` calls it as its `metrics_fn`,
any other loop through the optimiser that `record_noise` makes. All test vectors of a record are
taken at one theta: noise collected along a trajectory is not a sample of anything.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from poster_jax.core.checks import (
    check_batch,
    check_callable,
    check_count,
    check_fraction,
    check_key,
    num_examples,
)
from poster_jax.core.training import StatefulLoss, TrainState
from poster_jax.core.training.state import check_optimizer
from poster_jax.core.typing import Array, Batch, Float, Int, LossFn, Params, PRNGKey
from poster_jax.gradient_noise.directions import Directions
from poster_jax.gradient_noise.normality import excess_kurtosis, shapiro_wilk
from poster_jax.gradient_noise.planning import ProjectionPlan, plan_projections
from poster_jax.gradient_noise.projections import noise_projections, per_example_projections
from poster_jax.gradient_noise.resampling import check_draws, resample_projections

__all__ = ["NoiseObserver", "NoiseRecord", "RecordState", "noise_observer", "record_noise"]

# Steps fold in 0, 1, 2, ... for masks, and 2^32 - 1 for the order of the examples.
OWN_KEY = 2**32 - 2


class NoiseRecord(NamedTuple):
    """The noise at one step; with `fit` every field has a leading axis of the chosen steps.

    Attributes:
      kurtosis: median over directions of the excess kurtosis of single examples' projections; that
        of a batch of b is a b-th of it.
      trace: estimate of tr Sigma, from the variance along random directions.
      squared_norm: estimate of |gbar|^2, from the mean along them.
      noise_scale: their ratio, the simple noise scale.
      mean_pvalue: (sizes,); Shapiro-Wilk, mean over directions; 0.5 for Gaussian noise.
      rejected_fraction: (sizes,); fraction of directions with a p-value below the level.
      num_degenerate: int (sizes,); directions without variance, which are not tested.
    """

    kurtosis: Float[Array, "..."]
    trace: Float[Array, "..."]
    squared_norm: Float[Array, "..."]
    noise_scale: Float[Array, "..."]
    mean_pvalue: Float[Array, "... sizes"]
    rejected_fraction: Float[Array, "... sizes"]
    num_degenerate: Int[Array, "... sizes"]


@dataclasses.dataclass(frozen=True, eq=False)
class NoiseObserver:
    """Looks at the noise of one network; `observer(state)` for `fit`, `observer.at(params, key)`.

    Made by `noise_observer`.
    """

    loss_fn: LossFn | StatefulLoss
    batch: Batch
    directions: Directions
    batch_sizes: tuple[int, ...]
    num_batches: int
    replacement: bool
    level: float
    microbatch: int | None

    def __call__(self, state: TrainState) -> NoiseRecord:
        """The record of a `TrainState`: a `metrics_fn` of `core.training.fit`."""
        key = jax.random.fold_in(jax.random.fold_in(state.key, OWN_KEY), state.step)
        return self.at(state.params, key, state.model_state)

    def at(self, params: Params, key: PRNGKey, model_state: Any = ()) -> NoiseRecord:
        """The record at these parameters; `key` draws the mini-batches."""
        nothing = jnp.full((), jnp.nan, self.directions.layout.dtype)
        kurtosis = trace = squared_norm = nothing
        options = {"num_batches": self.num_batches, "replacement": self.replacement}
        arguments = (self.loss_fn, params, self.batch, self.directions)
        if isinstance(self.loss_fn, StatefulLoss):
            samples = noise_projections(
                *arguments,
                key,
                batch_sizes=self.batch_sizes,
                model_state=model_state,
                microbatch=self.microbatch,
                **options,
            )
        else:
            single = per_example_projections(*arguments, microbatch=self.microbatch)
            kurtosis = jnp.nanmedian(excess_kurtosis(single))
            # E w w^T = 1 / P for random unit directions; given ones say nothing of all others.
            if self.directions.kind != "given":
                trace = self.directions.dim * single.var(axis=1).mean()
                squared_norm = self.directions.dim * (single.mean(axis=1) ** 2).mean()
            samples = jnp.stack(
                [
                    resample_projections(
                        single, jax.random.fold_in(key, size), batch_size=size, **options
                    )
                    for size in self.batch_sizes
                ]
            )
        pvalues = shapiro_wilk(samples).pvalue
        return NoiseRecord(
            kurtosis,
            trace,
            squared_norm,
            trace / squared_norm,
            jnp.nanmean(pvalues, axis=1),
            jnp.where(jnp.isnan(pvalues), jnp.nan, pvalues < self.level).mean(
                axis=1, where=~jnp.isnan(pvalues)
            ),
            jnp.isnan(pvalues).sum(axis=1),
        )

    def plan(self, params: Params, model_state: Any = ()) -> ProjectionPlan:
        """What one record costs: `plan.flops[plan.mode]`; between records nothing is computed."""
        return plan_projections(
            self.loss_fn,
            params,
            self.batch,
            self.directions,
            batch_sizes=self.batch_sizes if isinstance(self.loss_fn, StatefulLoss) else (),
            num_batches=self.num_batches,
            microbatch=self.microbatch,
            model_state=model_state,
        )


def noise_observer(
    loss_fn: LossFn | StatefulLoss,
    batch: Batch,
    directions: Directions,
    *,
    batch_sizes: Sequence[int],
    num_batches: int = 200,
    replacement: bool = True,
    level: float = 0.05,
    microbatch: int | None = None,
) -> NoiseObserver:
    """How Gaussian and how large the noise is at chosen steps of a training run.

        observer = noise_observer(loss_fn, data, directions, batch_sizes=(32, 256))
        run = fit(loss_fn, ..., metrics_fn=observer, metrics_steps=(0, 30, 300))
        run.metrics.rejected_fraction  # (steps, sizes)

    A record costs `observer.plan(params).flops[...]` operations: one pass of per-example
    projections for all batch sizes together, and M R log M for the tests. `core.training.train`
    wants a dict: `metrics_fn=lambda state: observer(state)._asdict()`.

    Args:
      loss_fn: that of the training run. For a StatefulLoss (batch norm in training mode) the
        gradient of one example has no meaning: each batch gradient is computed, and the fields of
        single examples are NaN.
      batch: the examples from which mini-batches are drawn; it becomes part of the program.
      directions: R of them; random ones, for the noise scale.
      batch_sizes: sizes b at which the noise is tested.
      num_batches: M, noise vectors of each size; 3 to 5,000.
      replacement: as in `draw_batches`.
      level: p-value below which a direction is rejected.
      microbatch: examples (batches) taken at once, as in `plan_projections`.

    Returns:
      NoiseObserver. Its rejected fraction is not calibrated: the directions share the noise
      vectors, so that it scatters more than R independent tests would (see `gaussianity`).

    Raises:
      ValueError: no sizes, counts out of range, a level outside [0, 1], a batch that is empty or
        not finite.
      TypeError: loss_fn is no function, a count no integer.

    Source: Panigrahi et al. 2019 (arXiv 1910.09626) for what is measured when.

    Example:
      >>> from poster_jax.gradient_noise import random_directions
      >>> loss_fn = lambda w, x: jnp.mean((x @ w) ** 2)
      >>> x = jax.random.normal(jax.random.key(0), (50, 3))
      >>> directions = random_directions(jnp.ones(3), jax.random.key(1), num=4)
      >>> observer = noise_observer(loss_fn, x, directions, batch_sizes=(2, 8), num_batches=20)
      >>> observer.at(jnp.ones(3), jax.random.key(2)).mean_pvalue.shape
      (2,)
    """
    if not isinstance(loss_fn, StatefulLoss):
        check_callable("loss_fn", loss_fn)
    check_batch(batch)
    check_fraction("level", level)
    if not batch_sizes:
        raise ValueError("batch_sizes must name at least 1 size, got none.")
    for size in batch_sizes:
        check_draws(num_examples(batch), size, num_batches, replacement)
    check_count("num_batches", num_batches, minimum=3, hint="A test of normality needs 3 numbers.")
    if num_batches > 5000:
        raise ValueError(
            f"num_batches must be at most 5000, got {num_batches}. The p-value of Shapiro and Wilk "
            "is not known beyond."
        )
    batch = jax.tree.map(jnp.asarray, batch)
    return NoiseObserver(
        loss_fn,
        batch,
        directions,
        tuple(batch_sizes),
        num_batches,
        replacement,
        level,
        microbatch,
    )


class RecordState(NamedTuple):
    """The state of an optimiser that `record_noise` made.

    Attributes:
      inner: the state of the optimiser itself.
      count: int32; updates made.
      records: what was observed, each leaf with a leading axis of the chosen steps; NaN (for
        integers 0) where the step has not come yet.
    """

    inner: Any
    count: Int[Array, "..."]
    records: Any


def record_noise(
    optimizer: optax.GradientTransformation,
    observe: Callable[[Params, PRNGKey], Any],
    key: PRNGKey,
    *,
    steps: Sequence[int],
) -> optax.GradientTransformationExtraArgs:
    """An optimiser that makes the same updates, and writes down the noise at chosen steps.

    For loops that are not `core.training.fit`, which takes the observer itself. Change

        optimizer = optax.sgd(0.1)

    to

        optimizer = record_noise(optax.sgd(0.1), observer.at, key, steps=(0, 30, 300))

    pass the parameters to its `update`, and read `opt_state.records`. A chosen step costs what
    `observe` costs, any other a comparison. Under `vmap` that holds as long as all networks move in
    step, which they do when `init` is inside of it or the count is not mapped over; otherwise JAX
    evaluates both branches of a conditional, at every step.

    Args:
      optimizer: any optax transformation.
      observe: `observe(params, key) -> pytree of arrays`: `NoiseObserver.at`, or any function of
        the parameters, such as `lambda params, key: noise_scale(loss_fn, params, batch)`.
      key: PRNG key; step t observes with `fold_in(key, t)`.
      steps: after how many updates, increasing, from 0 (the parameters at the start).

    Returns:
      An optax transformation with the state RecordState.

    Raises:
      ValueError: steps that are empty, negative or not increasing; `update` without params.
      TypeError: optimizer is none, observe no function, key no key.

    Source: this library.

    Example:
      >>> optimizer = record_noise(optax.sgd(0.5), lambda w, key: w**2, jax.random.key(0),
      ...                          steps=(0, 2))
      >>> w = jnp.array(4.0)
      >>> state = optimizer.init(w)
      >>> for _ in range(3):
      ...     updates, state = optimizer.update(w, state, w)
      ...     w = optax.apply_updates(w, updates)
      >>> state.records.tolist()
      [16.0, 1.0]
    """
    check_optimizer(optimizer)
    check_callable("observe", observe)
    check_key("key", key)
    chosen = [check_count("steps", step, minimum=0) for step in steps]
    if not chosen or chosen != sorted(set(chosen)):
        raise ValueError(f"steps must be increasing numbers of updates, got {chosen}.")
    inner = optax.with_extra_args_support(optimizer)
    clocks = np.asarray(chosen, np.int32)

    def init(params: Params) -> RecordState:
        shapes = jax.eval_shape(observe, params, key)
        records = jax.tree.map(lambda s: _not_yet((len(chosen), *s.shape), s.dtype), shapes)
        return RecordState(inner.init(params), jnp.zeros((), jnp.int32), records)

    def update(
        updates: Any, state: RecordState, params: Params | None = None, **extra: Any
    ) -> tuple[Any, RecordState]:
        if params is None:
            raise ValueError("params must be given to update: the noise is observed there.")
        now = state.count == clocks

        def write(records: Any) -> Any:
            found = observe(params, jax.random.fold_in(key, state.count))
            return jax.tree.map(lambda r, f: r.at[now.argmax()].set(f), records, found)

        records = jax.lax.cond(now.any(), write, lambda records: records, state.records)
        updates, inner_state = inner.update(updates, state.inner, params, **extra)
        return updates, RecordState(inner_state, state.count + 1, records)

    return optax.GradientTransformationExtraArgs(init, update)


def _not_yet(shape: tuple[int, ...], dtype: Any) -> Array:
    return jnp.full(shape, jnp.nan if jnp.issubdtype(dtype, jnp.floating) else 0, dtype)
