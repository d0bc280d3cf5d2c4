"""Gradient descent on the mean squared error, solved in closed form."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp

from poster_jax.core.checks import check_positive
from poster_jax.core.precision import full_precision
from poster_jax.kernels._axes import as_matrix, row_shape
from poster_jax.kernels.predict.dynamics import relaxation, transfer
from poster_jax.kernels.predict.factor import regularise, remember, solver, spectrum
from poster_jax.kernels.predict.layout import check_kernels, layout_of

__all__ = ["gradient_descent_mse"]


@full_precision
def gradient_descent_mse(
    k_train_train: Any,
    y_train: Any,
    learning_rate: Any = 1.0,
    diag_reg: Any = 0.0,
    diag_reg_absolute_scale: bool = False,
    trace_axes: int | Sequence[int] = (-1,),
) -> Callable[..., Any]:
    """What gradient descent on `L = mean((f - y)^2) / 2` has learned at any time.

    With N outputs in all and K the kernel, `f(t) = f0 + (exp(-lr K t / N) - 1)(f0 - y)` on the
    training set and `f(t) = f0 + K_test_train K^-1 (exp(-lr K t / N) - 1)(f0 - y)` on a test set.
    The first call decomposes the kernel and keeps the result for later calls.

    Args:
      k_train_train: the kernel on the training data, every axis of `y_train` but the `trace_axes`
        twice, side by side.
      y_train: targets.
      learning_rate: the length of one step; `t` counts steps.
      diag_reg: what is added to the diagonal of the kernel.
      diag_reg_absolute_scale: whether `diag_reg` is in units of the kernel or, by default, of the
        mean of its diagonal.
      trace_axes: axes of the outputs that the kernel lacks, along which it is the identity.

    Returns:
      `predict_fn(t=None, fx_train_0=0., fx_test_0=None, k_test_train=None)`. `t` is an array of
      times of any shape, whose axes lead the result; None is the limit of infinite time. Outputs at
      time 0 are arrays or numbers; `fx_train_0=None` or `fx_test_0=None` leaves a set out. Answers
      the outputs on the training set, on the test set, or the pair.

    Raises:
      ValueError: shapes do not fit; a kernel is not finite; the training kernel is far from
        positive semi-definite (rounding is forgiven, see `Caution`); `predict_fn` is asked for no
        set, or for the test set without its kernel.

    Caution:
      A singular training kernel (equal inputs, or inputs that the network cannot tell apart) is
      used as its pseudo-inverse: eigenvalues below `4 sqrt(n) eps` times the largest count as
      zero. Without `diag_reg` such predictions follow the noise in the other small ones.

    Source: Lee et al. 2019, "Wide Neural Networks of Any Depth Evolve as Linear Models Under
      Gradient Descent" (arXiv 1902.06720), equations 8 to 10; Jacot et al. 2018 (arXiv 1806.07572).

    Example:
      >>> predict_fn = gradient_descent_mse(2 * jnp.eye(2), jnp.array([[1.0], [0.0]]))
      >>> round(float(predict_fn(t=1.0)[0, 0]), 3)  # 1 - exp(-2 / 2)
      0.632
      >>> _, fx_test = predict_fn(t=None, fx_test_0=0.0, k_test_train=jnp.ones((3, 2)))
      >>> fx_test.round(2).tolist()
      [[0.5], [0.5], [0.5]]
    """
    layout = layout_of(y_train, trace_axes)
    check_kernels(layout, k_train_train)
    check_positive("diag_reg", diag_reg, zero_allowed=True)
    k_train_train, y_train = jnp.asarray(k_train_train), jnp.asarray(y_train)
    rows = row_shape(k_train_train)

    def matrix() -> Any:
        return regularise(as_matrix(k_train_train), diag_reg, diag_reg_absolute_scale)

    solve = remember(lambda: solver(matrix()), k_train_train, diag_reg)
    decompose = remember(lambda: spectrum(matrix()), k_train_train, diag_reg)

    def at_infinity(fx_train_0: Any, fx_test_0: Any, k_test_train: Any) -> Any:
        fx_train = y_train.astype(k_train_train.dtype)
        if fx_test_0 is None:
            return fx_train
        start = 0 if fx_train_0 is None else fx_train_0
        change = as_matrix(k_test_train) @ solve()(layout.to_matrix(y_train - start))
        fx_test = fx_test_0 + layout.from_matrix(change, row_shape(k_test_train))
        return fx_test if fx_train_0 is None else (fx_train, fx_test)

    def at_time(t: Any, fx_train_0: Any, fx_test_0: Any, k_test_train: Any) -> Any:
        t = jnp.asarray(t) * learning_rate
        times, column = t.shape, t.reshape(-1, 1)
        eigen = decompose()
        start = 0 if fx_train_0 is None else fx_train_0
        residual = eigen.vectors.T @ layout.to_matrix(start - y_train)
        answers = []
        if fx_train_0 is not None:
            factors = relaxation(eigen, column, layout.size)
            change = eigen.vectors @ (factors[..., None] * residual)
            answers.append(
                _at_start(fx_train_0, len(times)) + layout.from_matrix(change, rows, times)
            )
        if fx_test_0 is not None:
            factors = transfer(eigen, column, layout.size)
            project = as_matrix(k_test_train) @ eigen.vectors
            change = project @ (factors[..., None] * residual)
            change = layout.from_matrix(change, row_shape(k_test_train), times)
            answers.append(_at_start(fx_test_0, len(times)) + change)
        return tuple(answers) if len(answers) > 1 else answers[0]

    @full_precision
    def predict_fn(
        t: Any = None, fx_train_0: Any = 0.0, fx_test_0: Any = None, k_test_train: Any = None
    ) -> Any:
        """Outputs at the times `t` on the training set, the test set, or both."""
        check_request(fx_train_0, fx_test_0, k_test_train)
        if k_test_train is not None:
            k_test_train = jnp.asarray(k_test_train)
            check_kernels(layout, k_train_train, k_test_train)
        if t is None:
            return at_infinity(fx_train_0, fx_test_0, k_test_train)
        return at_time(t, fx_train_0, fx_test_0, k_test_train)

    return predict_fn


def check_request(fx_train_0: Any, fx_test_0: Any, k_test_train: Any) -> None:
    """ValueError when nothing is asked for, or the test set without its kernel."""
    if fx_train_0 is None and fx_test_0 is None:
        raise ValueError("fx_train_0 and fx_test_0 are both None: no set is left to predict.")
    if fx_test_0 is not None and k_test_train is None:
        raise ValueError("k_test_train must be given to predict the test set, got None.")


def _at_start(outputs: Any, num_time_axes: int) -> Any:
    return jnp.expand_dims(outputs, tuple(range(num_time_axes)))
