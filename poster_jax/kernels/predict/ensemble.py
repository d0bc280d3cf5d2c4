"""The distribution of an infinite ensemble of infinitely wide networks while they train."""

from collections import namedtuple
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from poster_jax.core.checks import check_callable, check_positive, is_traced
from poster_jax.core.precision import full_precision
from poster_jax.core.typing import Array
from poster_jax.kernels._axes import as_matrix, interleave, row_shape
from poster_jax.kernels._get import answer, requested
from poster_jax.kernels.predict.dynamics import decay, relaxation, transfer
from poster_jax.kernels.predict.factor import Spectrum, regularise, remember, spectrum
from poster_jax.kernels.predict.inference import Gaussian, gp_inference
from poster_jax.kernels.predict.layout import Layout, check_kernels, field, layout_of

__all__ = ["gradient_descent_mse_ensemble"]

_Kernel = namedtuple("Kernel", ("nngp", "ntk"), defaults=(None, None))


@full_precision
def gradient_descent_mse_ensemble(
    kernel_fn: Callable[..., Any],
    x_train: Any,
    y_train: Any,
    learning_rate: Any = 1.0,
    diag_reg: Any = 0.0,
    diag_reg_absolute_scale: bool = False,
    trace_axes: int | Sequence[int] = (-1,),
    **kernel_fn_train_train_kwargs: Any,
) -> Callable[..., Any]:
    """Mean and covariance over initialisations of networks trained on `mean((f - y)^2) / 2`.

    "ntk": all layers are trained. "nngp": only the last one, which in the limit of infinite time is
    the Bayesian posterior. Kernels are computed at the first call that needs them, and kept.

    Args:
      kernel_fn: `kernel_fn(x1, x2, get, **kwargs)`, answering the kernels named in `get`.
      x_train: training inputs.
      y_train: targets.
      learning_rate: the length of one step; `t` counts steps.
      diag_reg: what is added to the diagonal of the training kernels, as in
        `gradient_descent_mse`.
      diag_reg_absolute_scale: as there.
      trace_axes: as there.
      **kernel_fn_train_train_kwargs: further arguments of `kernel_fn`. A pair of arrays has one
        for each side.

    Returns:
      `predict_fn(t=None, x_test=None, get=None, compute_cov=False, **kwargs)`: for each name in
      `get` (None: "nngp" and "ntk") the mean, or with `compute_cov` a `Gaussian`, at the times `t`
      (an array of any shape, whose axes lead; None is infinity). `x_test=None` answers on the
      training set. `kwargs` replace those above for the test side of `kernel_fn`.

    Raises:
      ValueError: shapes do not fit, a kernel is not finite or not positive semi-definite, a keyword
        differs between the sides and is no array, `get` names something else.

    Source: Lee et al. 2019 (arXiv 1902.06720), equations 13 to 16.

    Example:
      >>> kernel_fn = lambda x1, x2, get: x1 @ (x1 if x2 is None else x2).T
      >>> x, y = jnp.eye(2), jnp.array([[1.0], [0.0]])
      >>> predict_fn = gradient_descent_mse_ensemble(kernel_fn, x, y)
      >>> mean, covariance = predict_fn(2.0, x, get="nngp", compute_cov=True)
      >>> round(float(mean[0, 0]), 3), round(float(covariance[0, 0]), 3)  # 1 - 1/e, 1/e^2
      (0.632, 0.135)
    """
    check_callable("kernel_fn", kernel_fn)
    check_positive("diag_reg", diag_reg, zero_allowed=True)
    layout = layout_of(y_train, trace_axes)
    targets = layout.to_matrix(y_train)
    train_kwargs = kernel_fn_train_train_kwargs
    kernels = _TrainKernels(kernel_fn, x_train, train_kwargs, layout)

    def decomposition(name: str) -> Callable[[], Spectrum]:
        def compute() -> Spectrum:
            matrix = as_matrix(kernels.get((name,))[name])
            return spectrum(regularise(matrix, diag_reg, diag_reg_absolute_scale))

        return remember(compute, x_train, train_kwargs, diag_reg)

    eigen = {name: decomposition(name) for name in ("nngp", "ntk")}

    def test_kernels(
        needed: tuple[str, ...], x_test: Any, compute_cov: bool, test_kwargs: dict[str, Any]
    ) -> tuple[dict[str, Any] | None, Any]:
        if x_test is None:
            return None, None
        cross_kwargs, own_kwargs = _sides(train_kwargs, test_kwargs)
        cross = _fields(kernel_fn, x_test, x_train, needed, cross_kwargs)
        for kernel in cross.values():
            check_kernels(layout, next(iter(kernels.get(needed).values())), kernel)
        prior = kernel_fn(x_test, None, "nngp", **own_kwargs) if compute_cov else None
        return cross, prior

    @full_precision
    def predict_fn(
        t: Any = None,
        x_test: Any = None,
        get: Any = None,
        compute_cov: bool = False,
        **kernel_fn_test_test_kwargs: Any,
    ) -> Any:
        """Mean, or mean and covariance, at the times `t` for each name in `get`."""
        names = requested(get, ("nngp", "ntk"))
        needed = _needed(names, compute_cov)
        train = kernels.get(needed)
        cross, prior = test_kernels(needed, x_test, compute_cov, kernel_fn_test_test_kwargs)
        if t is None:
            posterior = gp_inference(
                _Kernel(**train), y_train, diag_reg, diag_reg_absolute_scale, trace_axes
            )
            cross = None if cross is None else _Kernel(**cross)
            return posterior(
                get or names, cross, prior if x_test is not None else compute_cov or None
            )
        times = jnp.asarray(t) * learning_rate
        values = {}
        for name in names:
            moments = _on_train if cross is None else _on_test
            mean, covariance = moments(
                name, eigen[name](), times.reshape(-1, 1), targets, layout.size, train, cross,
                prior, compute_cov,
            )  # fmt: skip
            rows = row_shape((cross or train)[name])
            mean = layout.from_matrix(mean, rows, times.shape)
            if compute_cov:
                covariance = covariance.reshape(*times.shape, *rows, *rows)
                mean = Gaussian(mean, interleave(covariance, times.ndim))
            values[name] = mean
        return answer("Gaussians", get, values)

    return predict_fn


class _TrainKernels:
    """The train-train kernels, each computed once, both together where both are asked for."""

    def __init__(
        self, kernel_fn: Callable[..., Any], x: Any, kwargs: dict[str, Any], layout: Layout
    ):
        self._kernel_fn, self._x, self._kwargs, self._layout = kernel_fn, x, kwargs, layout
        self._kept: dict[str, Any] = {}

    def get(self, names: tuple[str, ...]) -> dict[str, Any]:
        missing = tuple(name for name in names if name not in self._kept)
        found = dict(self._kept)
        if missing:
            if is_traced((self._x, self._kwargs)):
                new = _fields(self._kernel_fn, self._x, None, missing, self._kwargs)
            else:  # inside `jit` too: what is kept must not be traced
                with jax.ensure_compile_time_eval():
                    new = _fields(self._kernel_fn, self._x, None, missing, self._kwargs)
            for kernel in new.values():
                check_kernels(self._layout, kernel)
            if not is_traced(new):  # a kernel_fn may close over traced hyper-parameters
                self._kept.update(new)
            found.update(new)
        return {name: found[name] for name in names}


def _fields(
    kernel_fn: Callable[..., Any], x1: Any, x2: Any, names: tuple[str, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    kernel = kernel_fn(x1, x2, names[0] if len(names) == 1 else names, **kwargs)
    return {name: jnp.asarray(field(kernel, name, "kernel_fn's answer")) for name in names}


def _needed(names: tuple[str, ...], compute_cov: bool) -> tuple[str, ...]:
    for name in names:
        if name not in ("nngp", "ntk"):
            raise NotImplementedError(f"get must name 'nngp' or 'ntk', got {name!r}.")
    nngp = ("nngp",) if "nngp" in names or compute_cov else ()
    return nngp + (("ntk",) if "ntk" in names else ())


def _sides(train: dict[str, Any], test: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of `kernel_fn` for test with train, and for test with itself."""
    cross, own = dict(train), dict(train)
    for name, ours in test.items():
        if name not in train:
            raise ValueError(f"{name} must be given for the training inputs too, got it for test.")
        theirs = train[name]
        arrays = _all_arrays(ours) and _all_arrays(theirs)
        if arrays and _is_pair(ours) and _is_pair(theirs):
            cross[name] = (ours[0], theirs[0])
        elif arrays or ours == theirs:
            cross[name] = ours
        else:
            raise ValueError(
                f"{name} must be the same for training and test inputs, got {theirs!r} and "
                f"{ours!r}."
            )
        own[name] = ours
    return cross, own


def _all_arrays(value: Any) -> bool:
    leaves = jax.tree.leaves(value)
    return bool(leaves) and all(hasattr(v, "shape") and hasattr(v, "dtype") for v in leaves)


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2


def _on_train(
    name: str, eigen: Spectrum, t: Array, y: Array, size: int, train: dict[str, Any], *unused: Any
) -> tuple[Array, Any]:
    vectors = eigen.vectors
    mean = vectors @ (-relaxation(eigen, t, size)[..., None] * (vectors.T @ y))
    if not unused[-1]:
        return mean, None
    left = decay(eigen, t, size)
    if name == "nngp":
        return mean, (vectors * (eigen.values * left**2)[:, None, :]) @ vectors.T
    propagator = (vectors * left[:, None, :]) @ vectors.T
    return mean, propagator @ as_matrix(train["nngp"]) @ propagator


def _on_test(
    name: str, eigen: Spectrum, t: Array, y: Array, size: int, train: dict[str, Any],
    cross: dict[str, Any], prior: Any, compute_cov: bool,
) -> tuple[Array, Any]:  # fmt: skip
    vectors = eigen.vectors
    project = as_matrix(cross[name]) @ vectors
    gain = -transfer(eigen, t, size)
    mean = project @ (gain[..., None] * (vectors.T @ y))
    if not compute_cov:
        return mean, None
    prior = as_matrix(prior)
    if name == "nngp":
        twice = -transfer(eigen, 2 * t, size)
        return mean, prior - (project * twice[:, None, :]) @ project.T
    weights = (project * gain[:, None, :]) @ vectors.T  # test from train, (times, test, train)
    mixed = weights @ as_matrix(cross["nngp"]).T
    covariance = weights @ as_matrix(train["nngp"]) @ jnp.swapaxes(weights, 1, 2)
    return mean, covariance - mixed - jnp.swapaxes(mixed, 1, 2) + prior
