"""Smooth nonlinearities: Erf, Gelu, sines, exponentials, Gaussians.

Notation of the duals: k covariance, v1 and v2 variances, each `cross` returns the new covariance
and its slope in k, which multiplies the NTK.

Source: Williams 1996 (Erf); Tsuchida et al. 2020 (arXiv 2002.08517, Gelu); Gaussian integrals for
the rest; Shankar et al. 2020 (arXiv 2003.02237, ExpNormalized).
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from poster_jax.kernels.stax._carried import safe_sqrt
from poster_jax.kernels.stax._elementwise import (
    determinant,
    elementwise,
    smooth,
    square_distance,
)
from poster_jax.kernels.stax.layer import layer
from poster_jax.kernels.stax.masking import supports_masking

__all__ = [
    "Cos", "Erf", "Exp", "ExpNormalized", "Gabor", "Gaussian", "Gelu", "Rbf", "Sigmoid_like", "Sin",
]  # fmt: skip


@layer
@supports_masking(remask_kernel=True)
def Erf(a: Any = 1.0, b: Any = 1.0, c: Any = 0.0) -> Any:  # noqa: N802
    """a erf(b x) + c.

    For erf(x): covariance (2/pi) arctan2(2k, D) and slope (4/pi) / D with
    D^2 = (1 + 2 v1)(1 + 2 v2) - 4 k^2 = 1 + 2 v1 + 2 v2 + 4 (v1 v2 - k^2) >= 1.

    Args:
      a: output scale.
      b: input scale.
      c: output shift.

    Returns:
      `(init_fn, apply_fn, kernel_fn)`.

    Example:
      >>> _, apply_fn, _ = Erf(c=0.5)
      >>> apply_fn((), jnp.zeros(1)).tolist()
      [0.5]
    """

    def fn(x):
        return a * jax.scipy.special.erf(b * x) + c

    def cross(k, v1, v2, gap):
        excess = b**4 * determinant(k, v1, v2, gap)
        k, v1, v2 = b**2 * k, b**2 * v1, b**2 * v2
        root = jnp.sqrt(1 + 2 * (v1 + v2) + 4 * excess)
        value = 2 / math.pi * jnp.arctan2(2 * k, root)
        return a**2 * value + c**2, a**2 * b**2 * 4 / math.pi / root

    def variance(v):
        v = b**2 * v
        return a**2 * 2 / math.pi * jnp.arctan2(2 * v, jnp.sqrt(1 + 4 * v)) + c**2

    dual = smooth(cross, variance, symmetric=isinstance(c, int | float) and c == 0)
    return elementwise(fn, dual, f"Erf({a}, {b}, {c})")


def Sigmoid_like() -> Any:  # noqa: N802
    """erf(x / 2.4020563531719796) / 2 + 1/2: the erf nearest to the sigmoid on [-5, 5].

    Returns:
      `(init_fn, apply_fn, kernel_fn)`.

    Example:
      >>> _, apply_fn, _ = Sigmoid_like()
      >>> apply_fn((), jnp.zeros(1)).tolist()
      [0.5]
    """
    return Erf(a=0.5, b=1 / 2.4020563531719796, c=0.5)


@layer
@supports_masking(remask_kernel=False)
def Gelu(approximate: bool = False) -> Any:  # noqa: N802
    """x times the Gaussian distribution function of x.

    Args:
      approximate: whether the finite network uses the tanh form; the kernel is of the exact one.

    Returns:
      `(init_fn, apply_fn, kernel_fn)`.

    Example:
      >>> _, apply_fn, _ = Gelu()
      >>> round(float(apply_fn((), jnp.ones(1))[0]), 3)
      0.841
    """

    def fn(x):
        return jax.nn.gelu(x, approximate=approximate)

    def cross(k, v1, v2, gap):
        excess = determinant(k, v1, v2, gap)
        square = 1 + v1 + v2 + excess
        root = jnp.sqrt(square)
        angle = jnp.arctan2(k, root)
        # Quotients first: products of three variances would leave float32.
        shares = (v1 / (1 + v1)) * (v2 / (1 + v2))
        outer = (k / (1 + v1)) * (k / (1 + v2)) / root + shares * root
        value = k / 4 + (k * angle + outer) / (2 * math.pi)
        inner = angle + k / root * (1 / square + 1 / (1 + v1) + 1 / (1 + v2))
        return value, 0.25 + inner / (2 * math.pi)

    def variance(v):
        root = jnp.sqrt(1 + 2 * v)
        return v / 4 + v * (v / ((1 + v) * root) + jnp.arctan2(v, root) / 2) / math.pi

    return elementwise(fn, smooth(cross, variance), "Gelu()")


@layer
@supports_masking(remask_kernel=True)
def Sin(a: Any = 1.0, b: Any = 1.0, c: Any = 0.0) -> Any:  # noqa: N802
    """a sin(b x + c).

    Args:
      a: output scale.
      b: input scale.
      c: phase.

    Returns:
      `(init_fn, apply_fn, kernel_fn)`.

    Example:
      >>> _, apply_fn, _ = Sin(a=2.0)
      >>> apply_fn((), jnp.zeros(1)).tolist()
      [0.0]
    """

    def fn(x):
        return a * jnp.sin(b * x + c)

    def cross(k, v1, v2, gap):
        shift = 2 * b**2 * k
        near = _decay(b**2 / 2 * square_distance(k, v1, v2, gap))
        far = _decay(b**2 / 2 * square_distance(-k, v1, v2, gap))
        # near - cos(2c) far, without their cancellation when k is small
        nearer = jnp.where(k >= 0, near, far)
        difference = jnp.where(k >= 0, -1, 1) * nearer * jnp.expm1(-jnp.abs(shift))
        value = difference + 2 * jnp.sin(c) ** 2 * far
        return a**2 / 2 * value, a**2 * b**2 / 2 * (near + jnp.cos(2 * c) * far)

    def variance(v):
        far = -2 * b**2 * v
        return a**2 / 2 * (2 * jnp.sin(c) ** 2 * jnp.exp(far) - jnp.expm1(far))

    odd_or_even = isinstance(c, int | float) and math.remainder(c, math.pi / 2) == 0
    return elementwise(fn, smooth(cross, variance, symmetric=odd_or_even), f"Sin({a}, {b}, {c})")


def Cos(a: Any = 1.0, b: Any = 1.0, c: Any = 0.0) -> Any:  # noqa: N802
    """a cos(b x + c).

    Args:
      a: output scale.
      b: input scale.
      c: phase.

    Returns:
      `(init_fn, apply_fn, kernel_fn)`.

    Example:
      >>> _, apply_fn, _ = Cos()
      >>> apply_fn((), jnp.zeros(1)).tolist()
      [1.0]
    """
    return Sin(a=a, b=b, c=c + math.pi / 2)


@layer
@supports_masking(remask_kernel=True)
def Rbf(gamma: Any = 1.0) -> Any:  # noqa: N802
    """sqrt(2) sin(sqrt(2 gamma) x + pi/4), whose covariance is exp(-gamma (v1 + v2 - 2k)).

    Args:
      gamma: 1 / (2 length^2) of the radial kernel on inputs whose squares are averaged over
        channels.

    Returns:
      `(init_fn, apply_fn, kernel_fn)`.

    Example:
      >>> _, apply_fn, _ = Rbf()
      >>> round(float(apply_fn((), jnp.zeros(1))[0]), 3)
      1.0
    """

    def fn(x):
        return math.sqrt(2) * jnp.sin(jnp.sqrt(2 * gamma) * x + math.pi / 4)

    def cross(k, v1, v2, gap):
        value = _decay(gamma * square_distance(k, v1, v2, gap))
        return value, 2 * gamma * value

    return elementwise(fn, smooth(cross, jnp.ones_like), f"Rbf({gamma})")


@layer
@supports_masking(remask_kernel=True)
def Exp(a: Any = 1.0, b: Any = 1.0) -> Any:  # noqa: N802
    """a exp(b x).

    Args:
      a: output scale.
      b: input scale.

    Returns:
      `(init_fn, apply_fn, kernel_fn)`.

    Example:
      >>> _, apply_fn, _ = Exp()
      >>> apply_fn((), jnp.zeros(1)).tolist()
      [1.0]
    """

    def fn(x):
        return a * jnp.exp(b * x)

    def cross(k, v1, v2, gap):
        value = a**2 * jnp.exp(b**2 * ((v1 + v2) / 2 + k))
        return value, b**2 * value

    return elementwise(fn, smooth(cross, lambda v: a**2 * jnp.exp(2 * b**2 * v)), f"Exp({a}, {b})")


@layer
@supports_masking(remask_kernel=True)
def Gaussian(a: Any = 1.0, b: Any = -1.0) -> Any:  # noqa: N802
    """a exp(b x^2).

    Covariance a^2 / D and slope 4 a^2 b^2 k / D^3 with D^2 = (1 - 2 b v1)(1 - 2 b v2) - 4 b^2 k^2.

    Args:
      a: output scale.
      b: negative.

    Returns:
      `(init_fn, apply_fn, kernel_fn)`.

    Example:
      >>> _, apply_fn, _ = Gaussian()
      >>> apply_fn((), jnp.zeros(1)).tolist()
      [1.0]
    """

    def fn(x):
        return a * jnp.exp(b * x**2)

    def cross(k, v1, v2, gap):
        root = jnp.sqrt(1 - 2 * b * (v1 + v2) + 4 * b**2 * determinant(k, v1, v2, gap))
        return a**2 / root, 4 * a**2 * b**2 * k / root**3

    dual = smooth(cross, lambda v: a**2 / jnp.sqrt(1 - 4 * b * v), symmetric=True)
    return elementwise(fn, dual, f"Gaussian({a}, {b})")


@layer
@supports_masking(remask_kernel=False)
def Gabor() -> Any:  # noqa: N802
    """exp(-x^2) sin(x).

    With S = v1 + v2 and D^2 = (1 + 2 v1)(1 + 2 v2) - 4 k^2 the covariance is
    exp((1 + S) / 2D^2 - 1/2) sinh(k / D^2) / D.

    Returns:
      `(init_fn, apply_fn, kernel_fn)`.

    Source: this library (E[exp(-u^2 - w^2) cos(u -+ w)] is a Gaussian integral).

    Example:
      >>> _, apply_fn, _ = Gabor()
      >>> apply_fn((), jnp.zeros(1)).tolist()
      [0.0]
    """

    def fn(x):
        return jnp.exp(-(x**2)) * jnp.sin(x)

    def cross(k, v1, v2, gap):
        total = v1 + v2
        square = 1 + 2 * total + 4 * determinant(k, v1, v2, gap)
        envelope = jnp.exp((1 + total) / (2 * square) - 0.5) / jnp.sqrt(square)
        sinh, cosh = jnp.sinh(k / square), jnp.cosh(k / square)
        # d(square)/dk = -8 k moves the envelope and the argument of sinh.
        slope_envelope = 4 * k / square * ((1 + total) / square + 1)
        slope_argument = 1 / square + 8 * k**2 / square**2
        return envelope * sinh, envelope * (slope_envelope * sinh + slope_argument * cosh)

    def variance(v):
        square = 1 + 4 * v
        return -jnp.expm1(-2 * v / square) / (2 * jnp.sqrt(square))

    return elementwise(fn, smooth(cross, variance, symmetric=True), "Gabor()")


@layer
@supports_masking(remask_kernel=True)
def ExpNormalized(gamma: Any = 1.0, shift: Any = -1.0, do_clip: bool = False) -> Any:  # noqa: N802
    """The normalised Gaussian kernel r1 r2 exp(gamma (k / r1 r2 + shift)); no finite network.

    Args:
      gamma: how fast it decays.
      shift: added to the cosine; -1 keeps variances.
      do_clip: whether to clip the cosine to [-1, 1].

    Returns:
      `(init_fn, apply_fn, kernel_fn)`; `apply_fn` raises NotImplementedError. (The original then
      hands out the input's shape as `shape1` of a whole network; here it is the output's.)

    Example:
      >>> from poster_jax.kernels import stax
      >>> _, _, kernel_fn = stax.serial(stax.Dense(1), ExpNormalized())
      >>> float(kernel_fn(jnp.ones((1, 3)), None, "nngp")[0, 0])
      1.0
    """

    def cross(k, v1, v2, gap):
        # The floor keeps masked entries, whose variances are zero, from 0 / 0.
        product = jnp.maximum(safe_sqrt(v1) * safe_sqrt(v2), 1e-15)
        cosine = jnp.clip(k / product, -1, 1) if do_clip else k / product
        value = jnp.exp(gamma * (cosine + shift))
        return product * value, gamma * value

    return elementwise(None, smooth(cross, lambda v: cross(v, v, v, None)[0]), "ExpNormalized()")


def _decay(distance: Any) -> Any:
    """exp(-distance), 1 where rounding made the distance of large outputs clearly negative."""
    return jnp.exp(-jnp.where(distance < -1e-3, 0, distance))
