"""The largest learning rate at which gradient descent on the squared error still converges."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import scipy.linalg

from poster_jax.core.checks import check_count, check_finite, check_positive, is_traced
from poster_jax.core.precision import full_precision
from poster_jax.kernels._axes import as_matrix, column_shape, row_shape

__all__ = ["max_learning_rate"]


@full_precision
def max_learning_rate(
    ntk_train_train: Any,
    y_train_size: int | None = None,
    momentum: Any = 0.0,
    eps: float = 1e-12,
) -> Any:
    """The largest stable step of discrete gradient descent, `2 (1 + momentum) N / l_max`.

    For the loss `1/(2N) ||f - y||^2` over N outputs; l_max is the largest eigenvalue of the NTK.

    Args:
      ntk_train_train: the NTK of the training inputs with themselves.
      y_train_size: N, the number of entries of `y_train`; None takes the number of rows of the
        kernel, right when it has no `trace_axes`.
      momentum: of the optimiser, in [0, 1).
      eps: added to the eigenvalue, so that a kernel of zeros answers a finite rate.

    Returns:
      A float; a traced scalar under `jit`.

    Raises:
      ValueError: the kernel is not square or not finite, or N is below 1.

    Source: Lee et al. 2019 (arXiv 1902.06720), section 2.4; Goh 2017, "Why Momentum Really Works".

    Example:
      >>> round(max_learning_rate(jnp.diag(jnp.array([1.0, 4.0])), y_train_size=2), 6)
      1.0
    """
    if len(ntk_train_train.shape) % 2 or row_shape(ntk_train_train) != column_shape(
        ntk_train_train
    ):
        raise ValueError(
            "ntk_train_train must have every axis twice, side by side, got the shape "
            f"{tuple(ntk_train_train.shape)}."
        )
    check_finite("ntk_train_train", ntk_train_train)
    check_positive("eps", eps, zero_allowed=True)
    matrix = as_matrix(jnp.asarray(ntk_train_train))
    size = matrix.shape[0]
    if y_train_size is not None:
        size = check_count("y_train_size", y_train_size)
    if is_traced((matrix, momentum)):
        largest = jnp.linalg.eigvalsh(matrix)[-1]
    else:
        top = (matrix.shape[0] - 1,) * 2
        largest = float(scipy.linalg.eigvalsh(np.asarray(matrix), subset_by_index=top)[0])
    return 2 * (1 + momentum) * size / (largest + eps)
