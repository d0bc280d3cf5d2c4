"""Whether a loss is a mean over examples, without which the gradient of one has no meaning."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from poster_jax.core.checks import check_loss, is_traced, num_examples
from poster_jax.core.training import StatefulLoss
from poster_jax.core.typing import Batch, LossFn, Params

# Enough that no batch of equal examples hides a coupling, few enough to cost nothing.
FEW = 4


def check_separable(loss_fn: LossFn | StatefulLoss, params: Params, batch: Batch) -> None:
    """ValueError unless `loss_fn` is the mean of a loss of each example alone.

    It is tried on a few examples. Under `jit` and `vmap` there are no values to try it on.
    """
    if isinstance(loss_fn, StatefulLoss):
        raise ValueError(
            "loss_fn must be a mean over independent examples, so that each has a gradient of its "
            "own, got a StatefulLoss: batch norm in training mode couples the examples of a batch. "
            "Take minibatch_projections, or evaluation mode: "
            "losses.cross_entropy(model.freeze(model_state))."
        )
    dtype = check_loss(loss_fn, params, batch)
    if is_traced((params, batch)) or num_examples(batch) == 1:
        return
    places = np.linspace(0, num_examples(batch) - 1, FEW).astype(int)
    few = jax.tree.map(lambda a: a[places], batch)
    whole, single = (np.asarray(a, np.float64) for a in _both_ways(loss_fn, params, few))
    # The two differ in rounding alone; a loss near zero is a difference of numbers of order 1.
    slack = np.sqrt(float(jnp.finfo(dtype).eps)) * (np.abs(single).max() + 1)
    if np.isfinite(whole) and abs(whole - single.mean()) > slack:
        raise ValueError(
            f"loss_fn must be the mean over a batch of a loss of each example: {FEW} examples "
            f"together gave {whole:.6g}, one by one they have the mean {single.mean():.6g}. Batch "
            "norm in training mode couples examples (take minibatch_projections, or evaluation "
            "mode: losses.cross_entropy(model.freeze(model_state))); a sum must be divided by the "
            "number of examples."
        )


@partial(jax.jit, static_argnums=0)
def _both_ways(loss_fn: LossFn, params: Params, batch: Batch) -> tuple[Any, Any]:
    return loss_fn(params, batch), losses_of(loss_fn, params, batch)


def losses_of(loss_fn: LossFn, params: Params, batch: Batch) -> Any:
    """The loss of each example, (N,): `loss_fn` on batches of one."""
    return jax.vmap(lambda one: loss_fn(params, jax.tree.map(lambda a: a[None], one)))(batch)
