"""Nonlinearities of one's own: by their dual, or by quadrature."""

import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import scipy.special

from poster_jax.core.checks import check_count
from poster_jax.kernels.stax._carried import safe_sqrt
from poster_jax.kernels.stax._elementwise import elementwise, smooth
from poster_jax.kernels.stax.layer import layer
from poster_jax.kernels.stax.masking import supports_masking

__all__ = ["Elementwise", "ElementwiseNumerical"]


@layer
@supports_masking(remask_kernel=True)
def Elementwise(  # noqa: N802
    fn: Callable[..., Any] | None = None,
    nngp_fn: Callable[..., Any] | None = None,
    d_nngp_fn: Callable[..., Any] | None = None,
) -> Any:
    """A pointwise `fn` whose dual the user knows.

    Args:
      fn: scalar to scalar; None: the finite network cannot be applied.
      nngp_fn: `(cov12, var1, var2) -> E[fn(u) fn(w)]` on scalars; None: no kernel.
      d_nngp_fn: the same of the derivative of `fn`; None: the derivative of `nngp_fn` in `cov12`,
        which is equal (Price's theorem), by automatic differentiation.

    Returns:
      `(init_fn, apply_fn, kernel_fn)`.

    Raises:
      ValueError: neither `fn` nor `nngp_fn` is given.

    Example:
      >>> from poster_jax.kernels import stax
      >>> layer = stax.Elementwise(jnp.exp, lambda k, v1, v2: jnp.exp((v1 + v2) / 2 + k))
      >>> _, _, kernel_fn = stax.serial(stax.Dense(1), layer)
      >>> round(float(kernel_fn(jnp.ones((1, 3)), None, "ntk")[0, 0]), 2)
      7.39
    """
    if fn is None and nngp_fn is None:
        raise ValueError("fn or nngp_fn must be given, got neither: the layer would do nothing.")
    name = getattr(fn or nngp_fn, "__name__", "Elementwise")
    if nngp_fn is None:
        return elementwise(fn, None, name)
    value_fn = jnp.vectorize(nngp_fn)
    slope_fn = jnp.vectorize(d_nngp_fn or jax.grad(nngp_fn))

    def cross(k, v1, v2, gap):
        return value_fn(k, v1, v2), slope_fn(k, v1, v2)

    return elementwise(fn, smooth(cross, lambda v: value_fn(v, v, v)), name)


@layer
@supports_masking(remask_kernel=True)
def ElementwiseNumerical(  # noqa: N802
    fn: Callable[..., Any], deg: int, df: Callable[..., Any] | None = None
) -> Any:
    """A pointwise `fn` whose dual is integrated by Gauss-Hermite quadrature.

    Args:
      fn: works on arrays.
      deg: points a side; 25 is a start for smooth functions. A kink (a rectifier) converges slowly:
        compare two values of `deg`.
      df: its derivative; None: by automatic differentiation.

    Returns:
      `(init_fn, apply_fn, kernel_fn)`. Time grows as deg^2, memory as deg.

    Source: Han et al. 2022 (arXiv 2209.04121), section 3.

    Example:
      >>> from poster_jax.kernels import stax
      >>> _, _, kernel_fn = stax.serial(stax.Dense(1), stax.ElementwiseNumerical(jnp.tanh, 25))
      >>> round(float(kernel_fn(jnp.ones((1, 3)), None, "nngp")[0, 0]), 3)
      0.394
    """
    deg = check_count("deg", deg)
    nodes, weights = scipy.special.roots_hermite(deg)
    df = jnp.vectorize(jax.grad(fn)) if df is None else df
    if deg < 2:
        warnings.warn(
            "ElementwiseNumerical with one point sees the function at 0 only.", stacklevel=2
        )

    def cross(k, v1, v2, gap):
        # u = sqrt(2 v1) x and w = (its projection on u) + the rest, independent of u.
        positive = v1 > 0
        safe = jnp.where(positive, v1, 1)
        along = jnp.where(positive, k * safe_sqrt(2 / safe), 0)
        across = safe_sqrt(2 * (v2 - jnp.where(positive, k**2 / safe, 0)))
        scale = safe_sqrt(2 * v1)
        x, wx = jnp.asarray(nodes, k.dtype), jnp.asarray(weights, k.dtype)

        def add(sums, node):
            x0, w0 = node

            def inner(sums, other):
                y0, w1 = other
                u, w = scale * x0, along * x0 + across * y0
                return tuple(
                    s + w0 * w1 * f(u) * f(w) for s, f in zip(sums, (fn, df), strict=True)
                ), None

            return jax.lax.scan(inner, sums, (x, wx))[0], None

        zero = jnp.zeros(jnp.broadcast_shapes(k.shape, v1.shape, v2.shape), k.dtype)
        (value, slope), _ = jax.lax.scan(add, (zero, zero), (x, wx))
        return value / jnp.pi, slope / jnp.pi

    def variance(v):
        x = jnp.asarray(nodes, v.dtype).reshape((-1,) + (1,) * v.ndim)
        squares = fn(safe_sqrt(2 * v) * x) ** 2
        return jnp.tensordot(jnp.asarray(weights, v.dtype), squares, 1) / jnp.sqrt(jnp.pi)

    return elementwise(fn, smooth(cross, variance), f"ElementwiseNumerical({fn}, {deg})")
