"""The exact Gaussian posterior of infinitely wide networks, Bayesian or trained for ever."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from poster_jax.core.checks import check_positive
from poster_jax.core.precision import full_precision
from poster_jax.core.typing import Array
from poster_jax.kernels._axes import as_matrix, interleave, row_shape
from poster_jax.kernels._get import answer, requested
from poster_jax.kernels.predict.factor import regularise, remember, solver
from poster_jax.kernels.predict.layout import check_kernels, field, layout_of

__all__ = ["Gaussian", "gp_inference"]

_KERNEL_OF = {"nngp": "nngp", "ntk": "ntk", "ntkgp": "ntk"}


class Gaussian(NamedTuple):
    """A normal distribution of outputs.

    Attributes:
      mean: shaped like the outputs.
      covariance: shaped like the kernel of the outputs with themselves.
    """

    mean: Any
    covariance: Any


@full_precision
def gp_inference(
    k_train_train: Any,
    y_train: Any,
    diag_reg: Any = 0.0,
    diag_reg_absolute_scale: bool = False,
    trace_axes: int | Sequence[int] = (-1,),
) -> Callable[..., Any]:
    """Mean and covariance of a Gaussian process given training data.

    "nngp": the posterior of an infinitely wide Bayesian network. "ntk": the distribution over
    initialisations of infinitely wide networks trained for ever by gradient flow on the squared
    error. "ntkgp": the posterior of a Gaussian process whose covariance is the NTK.

    Args:
      k_train_train: an array, or anything with the attributes `nngp` and `ntk` that are asked for
        (a namedtuple, a `Kernel`). The covariance of "ntk" needs both.
      y_train: targets.
      diag_reg: what is added to the diagonal of the training kernel, in units as for
        `gradient_descent_mse`.
      diag_reg_absolute_scale: as there.
      trace_axes: as there.

    Returns:
      `predict_fn(get=None, k_test_train=None, k_test_test=None)`: for each name in `get` (None:
      "nngp" and "ntk") the mean, or with `k_test_test` a `Gaussian`. Without `k_test_train` it
      answers for the training set, where the mean is `y_train` and any `k_test_test` but None asks
      for the covariance, zero.

    Raises:
      ValueError: shapes do not fit, a kernel is missing, not finite or not positive semi-definite.

    Source: Lee et al. 2018 (arXiv 1711.00165), equations 8 and 9; Lee et al. 2019 (arXiv
      1902.06720), corollary 1; He et al. 2020 (arXiv 2007.05864) for "ntkgp".

    Example:
      >>> predict_fn = gp_inference(jnp.eye(2), jnp.array([[1.0], [0.0]]))
      >>> mean, covariance = predict_fn("nngp", jnp.full((1, 2), 0.5), jnp.ones((1, 1)))
      >>> mean.tolist(), covariance.tolist()
      ([[0.5]], [[0.5]])
    """
    layout = layout_of(y_train, trace_axes)
    check_positive("diag_reg", diag_reg, zero_allowed=True)
    y_train = jnp.asarray(y_train)

    def train_matrix(name: str) -> Array:
        kernel = jnp.asarray(field(k_train_train, name, "k_train_train"))
        check_kernels(layout, kernel)
        return as_matrix(kernel)

    def solver_for(name: str) -> Callable[[], Callable[[Array], Array]]:
        return remember(
            lambda: solver(regularise(train_matrix(name), diag_reg, diag_reg_absolute_scale)),
            k_train_train,
            diag_reg,
        )

    solvers = {name: solver_for(name) for name in ("nngp", "ntk")}

    def on_train(name: str, with_covariance: bool) -> Any:
        kernel = field(k_train_train, _KERNEL_OF[name], "k_train_train")
        mean = y_train.astype(kernel.dtype)
        return Gaussian(mean, jnp.zeros_like(kernel)) if with_covariance else mean

    def on_test(name: str, k_test_train: Any, k_test_test: Any) -> Any:
        kind = _KERNEL_OF[name]
        kernel = jnp.asarray(field(k_test_train, kind, "k_test_train"))
        check_kernels(layout, field(k_train_train, kind, "k_train_train"), kernel)
        rows, cross, solve = row_shape(kernel), as_matrix(kernel), solvers[kind]()
        mean = layout.from_matrix(cross @ solve(layout.to_matrix(y_train)), rows)
        if k_test_test is None:
            return mean
        prior = jnp.asarray(field(k_test_test, "ntk" if name == "ntkgp" else "nngp", "k_test_test"))
        if name == "ntk":
            _check_both(k_train_train, k_test_train)
            nngp_cross = as_matrix(field(k_test_train, "nngp", "k_test_train"))
            weights = solve(cross.T)
            mixed = cross @ solve(nngp_cross.T)
            change = weights.T @ train_matrix("nngp") @ weights - mixed - mixed.T
        else:
            change = -cross @ solve(cross.T)
        return Gaussian(mean, prior + interleave(change.reshape(*rows, *rows)))

    @full_precision
    def predict_fn(get: Any = None, k_test_train: Any = None, k_test_test: Any = None) -> Any:
        """Mean, or mean and covariance, for each name in `get`."""
        values = {}
        for name in requested(get, ("nngp", "ntk")):
            if name not in _KERNEL_OF:
                raise ValueError(f"get must name 'nngp', 'ntk' or 'ntkgp', got {name!r}.")
            if k_test_train is None:
                values[name] = on_train(name, k_test_test is not None)
            else:
                values[name] = on_test(name, k_test_train, k_test_test)
        return answer("Gaussians", get, values)

    return predict_fn


def _check_both(k_train_train: Any, k_test_train: Any) -> None:
    for argument, kernel in (("k_train_train", k_train_train), ("k_test_train", k_test_train)):
        if getattr(kernel, "nngp", None) is None:
            raise ValueError(
                f"{argument} must hold nngp beside ntk (a namedtuple or a Kernel) when the "
                "covariance of 'ntk' is asked for: initial outputs vary by the nngp kernel."
            )
