"""How well a kernel explains its training data: marginal likelihood, and leaving one out.

Both come from one Cholesky factor, both are differentiable by the kernel and by `diag_reg`, so that
the hyper-parameters of a network (`W_std`, `b_std`, ...) can be learned by gradients.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import jax.scipy.linalg

from poster_jax.core.checks import check_positive, is_traced
from poster_jax.core.precision import full_precision
from poster_jax.core.typing import Array
from poster_jax.kernels._axes import as_matrix, interleave
from poster_jax.kernels.predict.factor import regularise
from poster_jax.kernels.predict.inference import Gaussian
from poster_jax.kernels.predict.layout import Layout, check_kernels, layout_of

__all__ = ["leave_one_out", "log_marginal_likelihood"]


@full_precision
def log_marginal_likelihood(
    k_train_train: Any,
    y_train: Any,
    diag_reg: Any = 0.0,
    diag_reg_absolute_scale: bool = False,
    trace_axes: int | Sequence[int] = (-1,),
) -> Array:
    """The log density of the targets under the Gaussian process of a kernel.

    `-1/2 y^T K^-1 y - 1/2 log det K - n/2 log 2 pi`, summed over the `trace_axes`, along which
    outputs are independent. K contains the noise `diag_reg`.

    Args:
      k_train_train: the kernel on the training data, every axis of `y_train` but the `trace_axes`
        twice, side by side.
      y_train: targets.
      diag_reg: what is added to the diagonal of the kernel, as in `gradient_descent_mse`.
      diag_reg_absolute_scale: as there.
      trace_axes: as there.

    Returns:
      A scalar, in nats.

    Raises:
      ValueError: shapes do not fit, or the kernel is not finite or not positive definite. Under
        `jit` a kernel that is not positive definite answers NaN.

    Source: Rasmussen and Williams 2006, "Gaussian Processes for Machine Learning", equation 2.30.

    Example:
      >>> round(float(log_marginal_likelihood(jnp.eye(2), jnp.array([[1.0], [0.0]]))), 4)
      -2.3379
    """
    layout, factor, targets = _factorised(
        k_train_train, y_train, diag_reg, diag_reg_absolute_scale, trace_axes
    )
    white = jax.scipy.linalg.solve_triangular(factor, targets, lower=True)
    half_log_det = jnp.log(jnp.diagonal(factor)).sum()
    columns = math.prod(layout.trace_shape)
    return -0.5 * (white**2).sum() - columns * (
        half_log_det + 0.5 * factor.shape[0] * math.log(2 * math.pi)
    )


@full_precision
def leave_one_out(
    k_train_train: Any,
    y_train: Any,
    diag_reg: Any = 0.0,
    diag_reg_absolute_scale: bool = False,
    trace_axes: int | Sequence[int] = (-1,),
) -> Gaussian:
    """The prediction of every training example from all others, without solving once for each.

    With the block B_i of `K^-1` that belongs to example i: mean `y_i - B_i^-1 (K^-1 y)_i` and
    covariance `B_i^-1`, of noisy targets where there is noise `diag_reg`.

    Args:
      k_train_train: as in `log_marginal_likelihood`; examples come first.
      y_train: as there.
      diag_reg: as there.
      diag_reg_absolute_scale: as there; a relative `diag_reg` is relative to the kernel of all.
      trace_axes: as there; not the axis of examples.

    Returns:
      A `Gaussian`: `mean` shaped like `y_train`; `covariance` (examples,), and for a kernel that
      keeps further axes of the outputs these axes twice, side by side.

    Raises:
      ValueError: as there, or the examples are among the `trace_axes`.

    Source: Rasmussen and Williams 2006, equations 5.10 to 5.12.

    Example:
      >>> mean, variance = leave_one_out(jnp.array([[2.0, 1.0], [1.0, 2.0]]), jnp.ones((2, 1)))
      >>> [round(float(x), 3) for x in (*mean[:, 0], *variance)]
      [0.5, 0.5, 1.5, 1.5]
    """
    layout, factor, targets = _factorised(
        k_train_train, y_train, diag_reg, diag_reg_absolute_scale, trace_axes
    )
    if -len(layout.shape) in layout.trace_axes:
        raise ValueError("trace_axes must not hold 0, the axis of examples, to leave one out.")
    n, *rest = layout.kept_shape
    size = math.prod(rest)
    inverse = jax.scipy.linalg.cho_solve((factor, True), jnp.eye(n * size, dtype=factor.dtype))
    blocks = jnp.einsum("iaib->iab", inverse.reshape(n, size, n, size))
    covariance = jnp.linalg.inv(blocks)
    pulled = (inverse @ targets).reshape(n, size, -1)
    mean = targets - (covariance @ pulled).reshape(targets.shape)
    covariance = interleave(covariance.reshape(n, *rest, *rest), 1)
    return Gaussian(layout.from_matrix(mean, layout.kept_shape), covariance)


def _factorised(
    k_train_train: Any, y_train: Any, diag_reg: Any, absolute: bool, trace_axes: Any
) -> tuple[Layout, Array, Array]:
    """The layout, the Cholesky factor of the noisy kernel, and the targets as a matrix."""
    layout = layout_of(y_train, trace_axes)
    check_kernels(layout, k_train_train)
    check_positive("diag_reg", diag_reg, zero_allowed=True)
    factor = jnp.linalg.cholesky(regularise(as_matrix(k_train_train), diag_reg, absolute))
    if not is_traced(factor) and not bool(jnp.isfinite(factor).all()):
        raise ValueError(
            "k_train_train must be positive definite for its determinant to exist; a larger "
            "diag_reg would make it so."
        )
    return layout, factor, layout.to_matrix(y_train).astype(factor.dtype)
