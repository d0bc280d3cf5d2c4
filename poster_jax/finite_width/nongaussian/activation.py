"""Activations with what is known of their Gaussian expectations.

An `Activation` is its function and, where there is one, the closed form of its dual
`A(k, v1, v2) = E[phi(u) phi(w)]`, u and w Gaussian with variances v1, v2 and covariance k, taken
from `poster_jax.kernels.stax`. What has no closed form is integrated by quadrature.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from poster_jax.core.checks import check_callable, check_choice
from poster_jax.kernels import Kernel, stax

__all__ = [
    "NAMES",
    "Activation",
    "activation",
    "activation_of_layer",
    "kernel_between",
    "polynomial",
    "rectified",
]


@dataclasses.dataclass(frozen=True)
class Activation:
    """A pointwise nonlinearity.

    Attributes:
      fn: works on arrays.
      name: for messages and pictures.
      dual: `(k (n, m), v1 (n,), v2 (m,)) -> (n, m)`, twice differentiable inside; or None.
      variance: `v -> E[phi(u)^2]`, elementwise and twice differentiable; or None.
      fourth: `(Q, 4, 4) -> (Q,)`, E of the product of four; or None.
      degree: of a polynomial, else None: quadrature is exact for it.
      homogeneous: whether phi(c z) = c phi(z) for every c > 0.
      kinked: whether phi has a kink or a jump at 0; elsewhere it must be smooth.
    """

    fn: Callable[..., Any]
    name: str = "activation"
    dual: Callable[..., Any] | None = None
    variance: Callable[..., Any] | None = None
    fourth: Callable[..., Any] | None = None
    degree: int | None = None
    homogeneous: bool = False
    kinked: bool = False


def activation(phi: str | Callable[..., Any] | Activation) -> Activation:
    """An activation by name, from a function, or as it is.

    Args:
      phi: one of `NAMES`; a function that works on arrays and is four times differentiable, as
        `jnp.tanh` (its expectations are then integrated); or an `Activation`.

    Returns:
      Activation.

    Raises:
      ValueError: an unknown name.
      TypeError: something that cannot be called.

    Source: this library; duals of `poster_jax.kernels.stax`.

    Example:
      >>> activation("relu").homogeneous, activation(jnp.tanh).dual is None
      (True, True)
    """
    if isinstance(phi, Activation):
        return phi
    if isinstance(phi, str):
        check_choice("activation", phi, NAMES)
        return _named(phi)
    check_callable("activation", phi)
    return Activation(phi, getattr(phi, "__name__", "activation"))


def activation_of_layer(layer: tuple[Any, Any, Any], name: str = "layer") -> Activation:
    """The activation that a pointwise layer of `kernels.stax` applies, with its dual.

    Args:
      layer: `(init_fn, apply_fn, kernel_fn)`, such as `stax.Erf()`.
      name: for messages and pictures.

    Returns:
      Activation. Layers that are linear on both sides of 0 are found out by their values and get
      the form of `rectified`.

    Raises:
      ValueError: the layer has parameters or does not act on each entry alone.

    Source: this library.

    Example:
      >>> activation_of_layer(stax.Relu()).homogeneous
      True
    """
    init_fn, apply_fn, _ = layer
    probes = np.array([[-3.0, -0.5, 0.0, 0.7, 2.0]])
    shape, params = init_fn(jax.random.key(0), probes.shape)
    if jax.tree.leaves(params) or tuple(shape) != probes.shape:
        raise ValueError(f"layer must be pointwise and without parameters, got {name!r}.")
    values = np.asarray(apply_fn((), jnp.asarray(probes)))
    alone = [np.asarray(apply_fn((), jnp.full((1, 1), z)))[0, 0] for z in probes[0]]
    if not np.allclose(values[0], alone, rtol=1e-5, atol=1e-6):
        raise ValueError(f"layer must act on each entry alone, got {name!r}.")
    slopes = values[0, [0, 1, 3, 4]] / probes[0, [0, 1, 3, 4]]
    if values[0, 2] == 0 and np.ptp(slopes[:2]) < 1e-6 and np.ptp(slopes[2:]) < 1e-6:
        return rectified(float(np.round(slopes[0], 6)), float(np.round(slopes[-1], 6)))
    return _from_layer(layer, name)


def rectified(left: float, right: float) -> Activation:
    """`left min(z, 0) + right max(z, 0)`: ReLU is (0, 1), leaky ReLU (0.1, 1), |z| (-1, 1).

    Args:
      left: slope below 0.
      right: slope above 0.

    Returns:
      Activation. Its dual is `left right k + (right - left)^2 R`, R the arc-cosine kernel of degree
      1 (`stax.Relu`).

    Source: Cho & Saul 2009, "Kernel methods for deep learning"; this library.

    Example:
      >>> rectified(0.0, 1.0).fn(jnp.array([-1.0, 2.0])).tolist()
      [0.0, 2.0]
    """
    return _rectified(float(left), float(right))


def polynomial(coefficients: Sequence[float]) -> Activation:
    """`coefficients[0] + coefficients[1] z + coefficients[2] z^2 + ...`; all of it is exact.

    Args:
      coefficients: lowest first.

    Returns:
      Activation.

    Raises:
      ValueError: no coefficients.

    Source: Isserlis 1918; Gauss-Hermite quadrature is exact for polynomials.

    Example:
      >>> polynomial([0.0, 0.0, 1.0]).degree
      2
    """
    coefficients = tuple(float(c) for c in np.atleast_1d(np.asarray(coefficients, float)))
    if not coefficients:
        raise ValueError("coefficients must hold at least one number, got none.")
    return _polynomial(coefficients)


def _from_layer(layer: Any, name: str) -> Activation:
    _, apply_fn, kernel_fn = layer

    def variance(v):
        flat = jnp.ravel(v)
        own = kernel_fn(kernel_between(flat[:, None], flat, jnp.ones_like(flat[:1]))).cov1
        return own.reshape(jnp.shape(v))

    return Activation(lambda z: apply_fn((), z), name, _dual_of(layer), variance)


def _dual_of(layer: Any) -> Callable[..., Any]:
    return lambda k, v1, v2: layer[2](kernel_between(k, v1, v2)).nngp


@functools.cache
def _rectified(left: float, right: float) -> Activation:
    arc_cosine = _dual_of(stax.Relu())

    def fn(z):
        return left * jnp.minimum(z, 0) + right * jnp.maximum(z, 0)

    def dual(k, v1, v2):
        return left * right * k + (right - left) ** 2 * arc_cosine(k, v1, v2)

    def variance(v):
        return (left**2 + right**2) / 2 * v

    name = {(0.0, 1.0): "relu", (1.0, 1.0): "linear", (-1.0, 1.0): "abs"}.get((left, right))
    if left == right:
        return dataclasses.replace(_polynomial((0.0, right)), name=name or f"{right} z")
    name = name or f"rectified({left}, {right})"
    return Activation(fn, name, dual, variance, homogeneous=True, kinked=True)


@functools.cache
def _polynomial(coefficients: tuple[float, ...]) -> Activation:
    known = _from_layer(stax.Polynomial(coefficients), f"polynomial{coefficients}")
    degree = len(coefficients) - 1
    if coefficients == (0.0,) * degree + coefficients[-1:] and degree == 1:
        scale = coefficients[1] ** 4
        return dataclasses.replace(
            known, name="linear", fourth=lambda cov: scale * _isserlis(cov), degree=1
        )
    return dataclasses.replace(known, degree=degree)


def _isserlis(cov: Any) -> Any:
    return (
        cov[..., 0, 1] * cov[..., 2, 3]
        + cov[..., 0, 2] * cov[..., 1, 3]
        + cov[..., 0, 3] * cov[..., 1, 2]
    )


@functools.cache
def _named(name: str) -> Activation:
    from_layers = {"erf": stax.Erf, "gelu": stax.Gelu}
    if name in from_layers:
        return _from_layer(from_layers[name](), name)
    functions = {
        "tanh": jnp.tanh,
        "silu": jax.nn.silu,
        "sigmoid": jax.nn.sigmoid,
        "softplus": jax.nn.softplus,
    }
    if name in functions:
        return Activation(functions[name], name)
    others = {
        "linear": lambda: polynomial([0.0, 1.0]),
        "quadratic": lambda: dataclasses.replace(polynomial([0.0, 0.0, 1.0]), name="quadratic"),
        "relu": lambda: rectified(0.0, 1.0),
        "abs": lambda: rectified(-1.0, 1.0),
        "exp": _exponential,
        "sin": lambda: _wave(0.0, "sin"),
        "cos": lambda: _wave(math.pi / 2, "cos"),
    }
    return others[name]()


def _exponential() -> Activation:
    known = _from_layer(stax.Exp(), "exp")
    return dataclasses.replace(known, fourth=lambda cov: jnp.exp(cov.sum((-1, -2)) / 2))


def _wave(shift: float, name: str) -> Activation:
    """sin(z + shift), by E[exp(i s.z)] = exp(-s' K s / 2) over signs s.

    Not from `stax.Sin`, whose form guards float32 by |k|, which has no derivative at k = 0.
    """
    signs = np.array(list(itertools.product((1, -1), repeat=4)))
    # sin(x) = (exp(ix) - exp(-ix)) / 2i, four times: the factors i leave real weights.
    weights = signs.prod(-1) * np.cos(shift * signs.sum(-1)) / 16

    def dual(k, v1, v2):
        total = v1[:, None] + v2
        near, far = jnp.exp(k - total / 2), jnp.exp(-k - total / 2)
        return (near - math.cos(2 * shift) * far) / 2

    def variance(v):
        return (1 - math.cos(2 * shift) * jnp.exp(-2 * v)) / 2

    def fourth(cov):
        exponents = jnp.einsum("si,...ij,sj->...s", signs, cov, signs)
        return jnp.exp(-exponents / 2) @ jnp.asarray(weights, cov.dtype)

    return Activation(lambda z: jnp.sin(z + shift), name, dual, variance, fourth)


def kernel_between(k: Any, v1: Any, v2: Any) -> Kernel:
    """The kernel between two batches whose outputs have these covariances."""
    return Kernel(
        nngp=k, ntk=None, cov1=v1, cov2=v2, x1_is_x2=False, is_gaussian=True, is_reversed=False,
        is_input=False, diagonal_batch=True, diagonal_spatial=False, shape1=(k.shape[0], 1),
        shape2=(k.shape[1], 1), batch_axis=0, channel_axis=1,
    )  # fmt: skip


NAMES = (
    "linear", "quadratic", "relu", "abs", "erf", "gelu", "tanh", "silu", "sigmoid", "softplus",
    "exp", "sin", "cos",
)  # fmt: skip
"""Activations that `activation` knows by name."""
