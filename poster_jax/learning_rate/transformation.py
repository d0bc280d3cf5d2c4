"""The controller as an optax transformation, for a training loop of the user's own."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from poster_jax.core.checks import check_callable, check_count, check_positive
from poster_jax.learning_rate.controller import (
    AalrOptions,
    AalrState,
    aalr_init,
    aalr_update,
    check_options,
)

__all__ = ["AalrTransformationState", "aalr"]


class AalrTransformationState(NamedTuple):
    """What the transformation remembers between steps.

    Attributes:
      control: an AalrState; its checkpoint holds parameters and the inner optimiser's state.
      inner: state of the inner optimiser.
      step: int32; steps of the epoch so far.
      total: sum of the epoch's losses.
      restored: whether the last update went back to the checkpoint.
    """

    control: AalrState
    inner: Any
    step: Any
    total: Any
    restored: Any


def aalr(
    optimizer_fn: Callable[[Any], optax.GradientTransformation],
    *,
    steps_per_epoch: int,
    initial_rate: Any = 0.1,
    initial_loss: Any = float("inf"),
    options: AalrOptions | None = None,
) -> optax.GradientTransformationExtraArgs:
    """An optimiser whose learning rate tunes itself, one decision an epoch.

    Instead of `optax.sgd(0.1, momentum=0.9)` write
    `aalr(lambda rate: optax.sgd(rate, momentum=0.9), steps_per_epoch=n)`, and give the loss of
    each batch: `optimizer.update(grads, state, params, value=loss)`. It does what `fit_aalr` does
    with the mean of an epoch's batch losses. A restore is an update equal to the checkpoint minus
    the parameters, so a plain `optax.apply_updates` performs it, to the rounding of the parameters
    that are left; the step after takes the rounding out. Only where these had grown by a factor
    beyond 1e7 (float32) is the one gradient in between taken at another point than the checkpoint.
    As a sum cannot mend NaN, a step that would make a parameter NaN or infinite is not made, and
    its epoch counts as one whose loss is not finite.

    The state holds the parameters and the optimiser's state twice. The best parameters are
    `state.control.checkpoint[0]` once phase 1 has ended.

    Args:
      optimizer_fn: `optimizer_fn(rate) -> optax.GradientTransformation`; its state must not hold
        the rate.
      steps_per_epoch: calls of `update` an epoch.
      initial_rate: above 0; may be traced.
      initial_loss: the mean loss before training, which the first epoch must not exceed; infinity
        lets the first epoch set it, and then a fall from an explosion passes for success.
      options: the steps that the paper leaves open; a block always ends early.

    Returns:
      An optax transformation whose `update` needs `params` and `value`.

    Raises:
      ValueError, TypeError: an argument that does not fit.

    Source: arXiv 1910.11605; see `aalr_update`.

    Example:
      >>> optimizer = aalr(optax.sgd, steps_per_epoch=1, initial_rate=0.5)
      >>> x = jnp.array(1.0)
      >>> update, state = optimizer.update(x, optimizer.init(x), x, value=x**2 / 2)
      >>> float(update), int(state.control.counter)
      (-0.5, 1)
    """
    check_callable("optimizer_fn", optimizer_fn)
    check_count("steps_per_epoch", steps_per_epoch)
    check_positive("initial_rate", initial_rate)
    options = check_options(options)._replace(stop_block_on_nonfinite=True)

    def init(params: Any) -> AalrTransformationState:
        inner = optimizer_fn(initial_rate).init(params)
        loss = jnp.asarray(initial_loss, jnp.result_type(*jax.tree.leaves(params)))
        control = aalr_init((params, inner), loss, initial_rate=initial_rate)
        no = jnp.zeros((), bool)
        return AalrTransformationState(
            control, inner, jnp.zeros((), jnp.int32), jnp.zeros_like(loss), no
        )

    def update(
        updates: Any,
        state: AalrTransformationState,
        params: Any = None,
        *,
        value: Any = None,
        **_: Any,
    ) -> tuple[Any, AalrTransformationState]:
        if params is None or value is None:
            raise ValueError(
                "aalr needs the parameters and the loss: call "
                "optimizer.update(grads, state, params, value=loss)."
            )
        control = state.control
        step, inner = optimizer_fn(control.rate).update(updates, state.inner, params)
        kept = control.checkpoint[0]
        rounding = jax.tree.map(
            lambda k, p: jnp.where(state.restored, k - p, jnp.zeros_like(p)), kept, params
        )
        step = jax.tree.map(jnp.add, step, rounding)
        moved = optax.apply_updates(params, step)
        fine = _finite((moved, inner))
        step, inner = jax.tree.map(
            lambda new, old: jnp.where(fine, new, old),
            (step, inner),
            (jax.tree.map(jnp.zeros_like, step), state.inner),
        )
        moved = optax.apply_updates(params, step)
        total = state.total + jnp.where(fine, value, jnp.nan).astype(state.total.dtype)
        count = state.step + 1
        ended = count >= steps_per_epoch
        following, (target, after) = aalr_update(
            control, total / steps_per_epoch, (moved, inner), options=options
        )
        went_back = ended & (following.num_restores > control.num_restores)
        step = jax.tree.map(lambda t, p, s: jnp.where(went_back, t - p, s), target, params, step)
        control, inner = jax.tree.map(
            lambda new, old: jnp.where(ended, new, old), (following, after), (control, inner)
        )
        return step, AalrTransformationState(
            control,
            inner,
            jnp.where(ended, 0, count),
            jnp.where(ended, 0, total).astype(total.dtype),
            went_back | (state.restored & ~fine),
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _finite(tree: Any) -> Any:
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]))
