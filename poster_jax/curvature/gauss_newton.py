"""Curvatures that never turn negative: Gauss-Newton and the Fisher information.

With outputs f(params, x) and a loss l(outputs, y), the Hessian is `J^T (d2 l) J` plus a term with
the second derivatives of f. Gauss-Newton keeps the first part: positive semi-definite for a convex
l, equal to the Hessian of a linear model, and of any model where the loss gradient vanishes. For
the softmax likelihood it is the Fisher information, whatever the labels.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from poster_jax.core.checks import check_apply, check_batch, check_callable, check_loss
from poster_jax.core.typing import ApplyFn, Batch, Params
from poster_jax.curvature.operator import LinearOperator, make_operator

__all__ = ["fisher_operator", "gauss_newton_operator"]


def gauss_newton_operator(
    apply_fn: ApplyFn,
    output_loss_fn: Callable[[Any, Any], Any],
    params: Params,
    batch: Batch,
    *,
    microbatch: int | None = None,
    mesh: Mesh | None = None,
) -> LinearOperator:
    """The Hessian with the model replaced by its linearisation: `v -> J^T (d2 l) J v`.

    Args:
      apply_fn: `apply_fn(params, x) -> outputs`, in evaluation mode.
      output_loss_fn: `output_loss_fn(outputs, y) -> scalar`, a mean over the examples, convex in
        the outputs if the operator is to be positive semi-definite.
      params: any pytree of floating point arrays.
      batch: the pair `(x, y)`, leading axes of N examples.
      microbatch: examples taken at once (memory); None takes all.
      mesh: spreads the examples over the devices of its axis "data".

    Returns:
      The operator on vectors like `params`.

    Raises:
      ValueError: the model, the loss, params and batch do not fit each other, or are not finite;
        batch is no pair; microbatch below 1.
      TypeError: one of the functions is none or cannot be hashed.

    Source: Schraudolph 2002, "Fast curvature matrix-vector products for second-order gradient
      descent", Neural Computation 14(7).

    Example:
      >>> import jax.numpy as jnp
      >>> half_square = lambda f, y: 0.5 * jnp.mean((f - y) ** 2)
      >>> apply_fn = lambda w, x: (x * w) ** 2
      >>> batch = (jnp.ones(3), jnp.ones(3))
      >>> op = gauss_newton_operator(apply_fn, half_square, jnp.ones(()), batch)
      >>> float(op(jnp.ones(())))
      4.0
    """
    check_callable("output_loss_fn", output_loss_fn)
    x, _ = check_pair(batch)
    check_apply(apply_fn, params, x)
    check_loss(lambda p, b: output_loss_fn(apply_fn(p, b[0]), b[1]), params, batch)
    linearizer = _GaussNewton(output_loss_fn)
    return make_operator(apply_fn, linearizer, params, batch, microbatch=microbatch, mesh=mesh)


def fisher_operator(
    apply_fn: ApplyFn,
    params: Params,
    batch: Batch,
    *,
    microbatch: int | None = None,
    mesh: Mesh | None = None,
) -> LinearOperator:
    """The exact Fisher information of a classifier: how fast its predictive distribution changes.

    F = E_x E_{y ~ p(y|x)} [grad log p(y|x) grad log p(y|x)^T] with p = softmax(outputs); the inner
    mean is exact (`diag(p) - p p^T`), nothing is sampled. For a Gaussian likelihood the Fisher is
    `gauss_newton_operator` with `core.losses.half_squared_error`.

    Args:
      apply_fn: `apply_fn(params, x) -> logits (examples, classes)`, in evaluation mode.
      params: any pytree of floating point arrays.
      batch: the pair `(x, y)`; the labels have no part in it.
      microbatch: examples taken at once (memory); None takes all.
      mesh: spreads the examples over the devices of its axis "data".

    Returns:
      The operator on vectors like `params`; positive semi-definite.

    Raises:
      ValueError: params and batch do not fit, or are not finite; logits of another rank; batch is
        no pair; microbatch below 1.
      TypeError: apply_fn is no function or cannot be hashed.

    Source: Martens 2020, "New insights and perspectives on the natural gradient method", JMLR 21.

    Example:
      >>> import jax.numpy as jnp
      >>> apply_fn = lambda w, x: x @ w
      >>> batch = (jnp.ones((4, 2)), jnp.zeros(4, int))
      >>> fisher_operator(apply_fn, jnp.zeros((2, 3)), batch)(jnp.ones((2, 3))).shape
      (2, 3)
    """
    x, _ = check_pair(batch)
    check_logits(apply_fn, params, x)
    linearizer = _GaussNewton(_mean_log_partition)
    return make_operator(apply_fn, linearizer, params, batch, microbatch=microbatch, mesh=mesh)


def check_logits(apply_fn: ApplyFn, params: Params, x: Any) -> None:
    """ValueError unless the model gives one array of logits (examples, classes)."""
    logits = check_apply(apply_fn, params, x)
    if getattr(logits, "ndim", None) != 2:
        shapes = jax.tree.map(lambda leaf: leaf.shape, logits)
        raise ValueError(f"apply_fn must return logits (examples, classes), got {shapes}.")


def check_pair(batch: Any) -> tuple[Any, Any]:
    """Returns `(x, y)`; ValueError when the batch is no pair."""
    check_batch(batch)
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise ValueError(f"batch must be the pair (x, y), got {type(batch).__name__}.")
    return batch[0], batch[1]


@dataclasses.dataclass(frozen=True)
class _GaussNewton:
    output_loss_fn: Callable[[Any, Any], Any]

    def __call__(
        self, apply_fn: ApplyFn, params: Params, batch: Batch
    ) -> Callable[[Params], Params]:
        x, y = batch
        outputs, push = jax.linearize(lambda p: apply_fn(p, x), params)
        pull = jax.linear_transpose(push, params)
        _, middle = jax.linearize(jax.grad(lambda f: self.output_loss_fn(f, y)), outputs)
        return lambda vector: pull(middle(push(vector)))[0]


def _mean_log_partition(logits: Any, labels: Any) -> Any:
    # Cross-entropy is the log partition minus a linear term; its curvature is the former's.
    del labels
    return jax.scipy.special.logsumexp(logits, axis=-1).mean()
