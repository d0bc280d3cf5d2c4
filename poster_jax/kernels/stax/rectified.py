"""Piecewise linear nonlinearities, Sign and rectified monomials: duals in the angle of two outputs.

Source: Cho & Saul 2009, "Kernel methods for deep learning"; Tsuchida et al. 2018
(arXiv 1711.09090) for unequal slopes. The form in phi = arccos |cos| is this library's (`_angle`).
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from poster_jax.core.checks import is_traced
from poster_jax.kernels.stax._angle import angle
from poster_jax.kernels.stax._carried import equal_outputs, relative_gap, safe_sqrt
from poster_jax.kernels.stax._elementwise import Dual, Image, elementwise, smooth
from poster_jax.kernels.stax.layer import layer
from poster_jax.kernels.stax.masking import supports_masking

__all__ = ["ABRelu", "Abs", "LeakyRelu", "RectifiedMonomial", "Relu", "Sign"]


@layer
@supports_masking(remask_kernel=False)
def ABRelu(a: Any, b: Any, do_stabilize: bool = False) -> Any:  # noqa: N802
    """a min(x, 0) + b max(x, 0).

    With g = (a - b)^2 / 2 pi, h = (a^2 + b^2) / 2 and phi = arccos(|k| / r1 r2), the covariance
    becomes `(h if k >= 0 else a b) k + g r1 r2 (sin phi - phi cos phi)`, and the NTK is multiplied
    by `h - g phi` where k >= 0, `a b + g phi` elsewhere.

    Args:
      a: slope on the left.
      b: slope on the right.
      do_stabilize: accepted for programs that set it; nothing overflows here without it.

    Returns:
      `(init_fn, apply_fn, kernel_fn)`.

    Example:
      >>> from poster_jax.kernels import stax
      >>> _, _, kernel_fn = stax.serial(stax.Dense(1, 2.0), stax.ABRelu(0.0, 1.0))
      >>> float(kernel_fn(jnp.ones((1, 3)), None, "nngp")[0, 0])
      2.0
    """
    del do_stabilize

    def fn(x):
        return a * jnp.minimum(x, 0) + b * jnp.maximum(x, 0)

    known = not is_traced((a, b)) and bool(np.all(a * b <= 0))  # then no value is negative

    def cross(k, v1, v2, gap, nonnegative=False):
        image = _rectified(k, v1, v2, gap, a, b, nonnegative=nonnegative)
        return image._replace(nonnegative=known or nonnegative)

    def variance(v):
        return (a**2 + b**2) / 2 * v

    return elementwise(fn, Dual(cross, variance, knows_sign=True), f"ABRelu({a}, {b})")


@functools.partial(jax.jit, static_argnames="nonnegative")
def _rectified(k: Any, v1: Any, v2: Any, gap: Any, a: Any, b: Any, *, nonnegative: bool) -> Image:
    g, h = (a - b) ** 2 / (2 * math.pi), (a**2 + b**2) / 2
    product = safe_sqrt(v1) * safe_sqrt(v2)
    gap = jax.lax.stop_gradient(jnp.maximum(product - jnp.abs(k), 0) if gap is None else gap)
    phi, q = angle(k, v1, v2, gap)
    if nonnegative:
        new_gap = jax.lax.stop_gradient(jnp.maximum(h * gap - g * q, 0))
        return Image(h * k + g * q, h - g * phi, new_gap)
    same_sign = k >= 0
    value = jnp.where(same_sign, h * k, a * b * k) + g * q
    slope = jnp.where(same_sign, h - g * phi, a * b + g * phi)
    opposite = jnp.where(
        value >= 0,
        (a + b) ** 2 / 2 * product - a * b * gap - g * q,
        (a - b) ** 2 / 2 * product + a * b * gap + g * q,
    )
    new_gap = jnp.maximum(jnp.where(same_sign, h * gap - g * q, opposite), 0)
    return Image(value, slope, jax.lax.stop_gradient(new_gap))


def Relu(do_stabilize: bool = False) -> Any:  # noqa: N802
    """max(x, 0), as `ABRelu(0, 1)`.

    Args:
      do_stabilize: accepted for programs that set it; nothing overflows here without it.

    Returns:
      `(init_fn, apply_fn, kernel_fn)`.

    Example:
      >>> _, apply_fn, _ = Relu()
      >>> apply_fn((), jnp.array([-1.0, 2.0])).tolist()
      [0.0, 2.0]
    """
    return ABRelu(0, 1, do_stabilize)


def LeakyRelu(alpha: Any, do_stabilize: bool = False) -> Any:  # noqa: N802
    """alpha min(x, 0) + max(x, 0), as `ABRelu(alpha, 1)`.

    Args:
      alpha: slope on the left.
      do_stabilize: accepted for programs that set it; nothing overflows here without it.

    Returns:
      `(init_fn, apply_fn, kernel_fn)`.

    Example:
      >>> _, apply_fn, _ = LeakyRelu(0.5)
      >>> apply_fn((), jnp.array([-1.0, 2.0])).tolist()
      [-0.5, 2.0]
    """
    return ABRelu(alpha, 1, do_stabilize)


def Abs(do_stabilize: bool = False) -> Any:  # noqa: N802
    """|x|, as `ABRelu(-1, 1)`.

    Args:
      do_stabilize: accepted for programs that set it; nothing overflows here without it.

    Returns:
      `(init_fn, apply_fn, kernel_fn)`.

    Example:
      >>> _, apply_fn, _ = Abs()
      >>> apply_fn((), jnp.array([-1.0, 2.0])).tolist()
      [1.0, 2.0]
    """
    return ABRelu(-1, 1, do_stabilize)


@layer
@supports_masking(remask_kernel=False)
def Sign() -> Any:  # noqa: N802
    """sign(x): covariance 1 - 2 theta / pi, and an NTK of zero.

    Returns:
      `(init_fn, apply_fn, kernel_fn)`. The variance is 1, or 0 where the input has none. (The
      original also writes 1 between different positions of one input in `cov1`, `cov2`, which is
      wrong and shows behind a pooling or attention; here these are 1 - 2 theta / pi as well.)

    Example:
      >>> from poster_jax.kernels import stax
      >>> _, _, kernel_fn = stax.serial(stax.Dense(1), stax.Sign())
      >>> float(kernel_fn(jnp.ones((1, 3)), None, "nngp")[0, 0])
      1.0
    """

    def cross(k, v1, v2, gap):
        phi = _angle_unless_equal(k, v1, v2, gap)
        value = 1 - 2 / math.pi * phi
        new_gap = jax.lax.stop_gradient(jnp.where((v1 > 0) & (v2 > 0), 2 / math.pi * phi, 0))
        return Image(jnp.where(k >= 0, value, -value), jnp.zeros_like(k), new_gap)

    return elementwise(jnp.sign, Dual(cross, lambda v: jnp.where(v == 0, 0.0, 1.0)), "Sign()")


@layer
@supports_masking(remask_kernel=False)
def RectifiedMonomial(degree: int) -> Any:  # noqa: N802
    """x^degree where x >= 0, else 0: the arc-cosine kernels.

    Args:
      degree: at least 0.

    Returns:
      `(init_fn, apply_fn, kernel_fn)`.

    Raises:
      NotImplementedError: a negative degree.

    Example:
      >>> _, apply_fn, _ = RectifiedMonomial(2)
      >>> apply_fn((), jnp.array([-1.0, 2.0])).tolist()
      [0.0, 4.0]
    """
    if degree < 0:
        raise NotImplementedError(f"degree must be at least 0, got {degree}.")

    def fn(x):
        return (x >= 0) * x**degree

    def cross(k, v1, v2, gap):
        value = _arc_cosine(degree, k, v1, v2, gap)
        return value, degree**2 * _arc_cosine(degree - 1, k, v1, v2, gap)

    def step(k, v1, v2, gap):
        turn = _angle_unless_equal(k, v1, v2, gap) / (2 * math.pi)
        value = jnp.where(k >= 0, 0.5 - turn, turn)
        new_gap = jax.lax.stop_gradient(0.5 - value)
        return Image(
            value, jnp.zeros_like(k), jnp.where(k >= 0, jax.lax.stop_gradient(turn), new_gap)
        )

    def variance(v):
        return math.prod(range(2 * degree - 1, 0, -2)) * v**degree / 2

    if degree == 1:
        return ABRelu(0, 1)
    dual = Dual(step, variance) if degree == 0 else smooth(cross, variance)
    return elementwise(fn, dual, f"RectifiedMonomial({degree})")


def _angle_unless_equal(k: Any, v1: Any, v2: Any, gap: Any) -> Any:
    """The angle; a step makes its root of it, so that the rounding of a gap of 0 would show."""
    if gap is not None:
        gap = jnp.where(equal_outputs(k, v1, v2, gap), 0, gap)
    return angle(k, v1, v2, gap)[0]


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _arc_cosine(degree: int, k: Any, v1: Any, v2: Any, gap: Any) -> Any:
    """(r1 r2)^n J_n(theta) / 2 pi with J_n = A_n(cos) sin + B_n(cos) (pi - theta)."""
    r1, r2 = safe_sqrt(v1), safe_sqrt(v2)
    delta = relative_gap(k, r1, r2, gap)
    phi, _ = angle(k, v1, v2, gap)
    cosine = jnp.where(k >= 0, 1 - delta, delta - 1)
    remaining = jnp.where(k >= 0, math.pi - phi, phi)
    a, b = (jnp.asarray(p, cosine.dtype) for p in _arc_cosine_polynomials(degree))
    j = jnp.polyval(a, cosine) * safe_sqrt(delta * (2 - delta)) + jnp.polyval(b, cosine) * remaining
    return (r1 * r2) ** degree * j / (2 * math.pi)


@_arc_cosine.defjvp
def _arc_cosine_jvp(degree, primals, tangents):
    k, v1, v2, gap = primals
    dk, dv1, dv2, _ = tangents
    value = _arc_cosine(degree, k, v1, v2, gap)
    if degree == 0:
        _, dphi = jax.jvp(lambda *args: angle(*args, gap)[0], primals[:3], tangents[:3])
        return value, jnp.where(k >= 0, -dphi, dphi) / (2 * math.pi)
    # The dual is homogeneous: (r1 r2)^n f(cos), so v d/dv follows from value and slope.
    slope = degree**2 * _arc_cosine(degree - 1, k, v1, v2, gap)
    relative = sum(
        jnp.where(v > 0, dv / jnp.where(v > 0, v, 1), 0) for v, dv in ((v1, dv1), (v2, dv2))
    )
    out = slope * dk + (degree * value - k * slope) * relative / 2
    return value, jnp.broadcast_to(out, value.shape)


def _arc_cosine_polynomials(degree: int) -> tuple[np.ndarray, np.ndarray]:
    """A_n and B_n, highest power first, from J_{n+1} = (2n+1) cos J_n - sin J_n'."""
    a, b = np.poly1d([0.0]), np.poly1d([1.0])
    x, one_minus_square = np.poly1d([1.0, 0.0]), np.poly1d([-1.0, 0.0, 1.0])
    for n in range(degree):
        a, b = (
            2 * n * x * a + one_minus_square * a.deriv() + b,
            (2 * n + 1) * x * b + one_minus_square * b.deriv(),
        )
    return a.coeffs, b.coeffs
