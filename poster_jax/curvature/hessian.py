"""The Hessian of a loss and its diagonal blocks, through products only.

Forward over reverse: the product with v is the derivative of the gradient along v, about two
gradients' worth of work where reverse over reverse costs four (Pearlmutter 1994).
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from poster_jax.core.checks import check_loss
from poster_jax.core.typing import Batch, LossFn, Params
from poster_jax.curvature.operator import LinearOperator, make_operator

__all__ = ["block_operator", "hessian_operator"]


def hessian_operator(
    loss_fn: LossFn,
    params: Params,
    batch: Batch,
    *,
    microbatch: int | None = None,
    mesh: Mesh | None = None,
) -> LinearOperator:
    """How the gradient of the mean loss changes as the parameters move: `v -> H v`.

    Args:
      loss_fn: `loss_fn(params, batch) -> scalar`, a mean over the examples. Keep one function
        object across calls: programs are compiled once for each. On the CPU a model with the
        convolutions of `jax.lax` is 40 times slower inside the solvers' loops: hand over
        `core.convolution.with_fast_convolutions(loss_fn)`.
      params: any pytree of floating point arrays.
      batch: pytree whose leaves share a leading axis of N examples. Put a model with running
        statistics in evaluation mode: in training mode batch norm couples the examples, and the
        mean over microbatches is another function.
      microbatch: examples taken at once (memory); None takes all.
      mesh: spreads the examples over the devices of its axis "data".

    Returns:
      The operator; H is the Hessian of the mean, not of the sum.

    Raises:
      ValueError: params or batch empty, not finite, or not fitting `loss_fn`; microbatch below 1.
      TypeError: loss_fn is no function or cannot be hashed, params hold other than floats.

    Source: Pearlmutter 1994, "Fast exact multiplication by the Hessian", Neural Computation 6(1).

    Example:
      >>> import jax.numpy as jnp
      >>> def loss_fn(w, batch):
      ...     x, y = batch
      ...     return 0.5 * jnp.mean((x @ w - y) ** 2)
      >>> op = hessian_operator(loss_fn, jnp.ones(2), (2.0 * jnp.eye(2), jnp.zeros(2)))
      >>> op(jnp.array([1.0, 3.0])).tolist()
      [2.0, 6.0]
    """
    check_loss(loss_fn, params, batch)
    return make_operator(
        loss_fn, linearize_gradient, params, batch, microbatch=microbatch, mesh=mesh
    )


def linearize_gradient(loss_fn: LossFn, params: Params, batch: Batch) -> Callable[[Params], Params]:
    """The map v -> H v of the loss on one batch."""
    return jax.linearize(lambda p: jax.grad(loss_fn)(p, batch), params)[1]


def block_operator(
    fn: Callable[..., Any],
    params: Params,
    batch: Batch,
    *,
    path: str,
    operator: Callable[..., LinearOperator] = hessian_operator,
    **options: Any,
) -> LinearOperator:
    """The curvature with respect to one layer or subtree, all other parameters held fixed.

    The same as `operator(fn, params, batch, **options).restrict(path)`, which also serves operators
    of more arguments. Only the block's own derivatives are computed.

    Args:
      fn: what `operator` takes first: a `loss_fn` or an `apply_fn`.
      params: any pytree of floating point arrays.
      batch: as for `operator`.
      path: name of a leaf or subtree, "Dense_2/kernel" or "Dense_2"; see `core.paths.leaf_paths`.
      operator: `hessian_operator`, `fisher_operator`, `empirical_fisher_operator`, ...
      **options: passed on (microbatch, mesh).

    Returns:
      The operator on vectors like `core.paths.get_path(params, path)`.

    Raises:
      ValueError: nothing stands at `path` (the message lists the nearest); what `operator` raises.

    Source: this library.

    Example:
      >>> import jax.numpy as jnp
      >>> loss_fn = lambda p, x: jnp.mean(x) * (p["a"] ** 2 * p["b"])
      >>> params = {"a": jnp.float32(1.0), "b": jnp.float32(3.0)}
      >>> float(block_operator(loss_fn, params, jnp.ones(4), path="a")(jnp.float32(1.0)))
      6.0
    """
    return operator(fn, params, batch, **options).restrict(path)
