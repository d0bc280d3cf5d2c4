"""Regularisers that hold weights, not Jacobians, near orthogonality: what to compare with.

They look at W alone and not at J = D W, so that no activation enters and no example. Throughout
`W` is the matrix (fan_in, out) of one layer, one column a unit: the kernel of a dense layer (in,
out) as Flax has it, or of a convolution (kh, kw, in, out) with all axes but the last flattened, so
that W^T W holds the inner products of the filters. W W^T - I and W^T W - I have the same Frobenius
norm up to the constant |fan_in - out|, so the smaller of both is formed.
"""

from typing import Any

import jax
import jax.numpy as jnp

from poster_jax.core.checks import (
    check_choice,
    check_count,
    check_key,
    check_params,
    check_positive,
)
from poster_jax.core.typing import Array, Float, PRNGKey, Scalar

__all__ = [
    "double_soft_orthogonality",
    "mutual_coherence",
    "parseval_retraction",
    "soft_orthogonality",
    "spectral_restricted_isometry",
]


def soft_orthogonality(kernel: Any) -> Scalar:
    """How far the units of a layer are from orthonormal: `||W^T W - I||_F^2` (SO).

    Where a layer has more units than inputs it is at least out - fan_in; its gradient is that of
    the other side, `||W W^T - I||_F^2`.

    Args:
      kernel: (in, out), or (..., in, out) of a convolution, floating point; a matrix (out, in) as
        torch has it must be transposed first.

    Returns:
      Scalar of the kernel's dtype.

    Raises:
      ValueError: a kernel with fewer than two axes, empty or not finite.
      TypeError: a kernel that is no floating point array.

    Source: Bansal, Chen, Wang 2018 (arXiv 1810.09102), section 3.1, there "SO".

    Example:
      >>> float(soft_orthogonality(2 * jnp.eye(3)))  # three times (4 - 1)^2
      27.0
    """
    W = _matrix(kernel)
    return _squared_distance(W) + max(W.shape[1] - W.shape[0], 0)


def double_soft_orthogonality(kernel: Any) -> Scalar:
    """Both sides at once: `||W^T W - I||_F^2 + ||W W^T - I||_F^2` (DSO).

    The two terms differ by a constant, so that this is twice `soft_orthogonality` up to a constant:
    its gradient is exactly twice as large, whatever the shape.

    Args:
      kernel: as in `soft_orthogonality`.

    Returns:
      Scalar of the kernel's dtype, at least |fan_in - out|.

    Raises:
      ValueError, TypeError: as `soft_orthogonality`.

    Source: Bansal, Chen, Wang 2018 (arXiv 1810.09102), section 3.2, there "DSO"; the constant is
      derived here.

    Example:
      >>> float(double_soft_orthogonality(jnp.eye(3, 2)))
      1.0
    """
    W = _matrix(kernel)
    return 2 * _squared_distance(W) + abs(W.shape[1] - W.shape[0])


def mutual_coherence(kernel: Any) -> Scalar:
    """The worst pair of units, or the worst length of one: `max_ij |W^T W - I|_ij` (MC).

    Only the largest entry gets a gradient (entries that tie share it).

    Args:
      kernel: as in `soft_orthogonality`.

    Returns:
      Scalar of the kernel's dtype.

    Raises:
      ValueError, TypeError: as `soft_orthogonality`.

    Source: Bansal, Chen, Wang 2018 (arXiv 1810.09102), section 3.3, there "MC". This side is not
      interchangeable with the other, so W^T W (out, out) is formed even where it is the larger.

    Example:
      >>> float(mutual_coherence(jnp.array([[1.0, 0.5], [0.0, 1.0]])))
      0.5
    """
    W = _matrix(kernel)
    distance = _from_identity(W)
    # |a| as a sign(a): JAX's derivative of abs at 0 is 1, which would move orthonormal weights.
    return jnp.max(distance * jnp.sign(distance))


def spectral_restricted_isometry(
    kernel: Any, key: PRNGKey, *, num_iterations: int = 2, form: str = "paper"
) -> Scalar:
    """The largest stretch of any vector: `sigma_max(W^T W - I)` by the power method (SRIP).

    A lower bound of it, which grows with `num_iterations`. Differentiable, through the iteration,
    with the start held fixed; W^T W is never formed. Draw a new `key` every step.

    Args:
      kernel: as in `soft_orthogonality`.
      key: PRNG key of the start vector.
      num_iterations: products with W^T W - I, at least 1; the papers' is 2.
      form: "paper" is the formula above with a Gaussian start. Where a layer has more units than
        inputs it is never below 1. "code" is what the authors run: the smaller of W^T W and
        W W^T, a start uniform on [0, 1], and the square of the estimate.

    Returns:
      Scalar of the kernel's dtype; 0 with gradient 0 where the iteration meets a zero vector.

    Raises:
      ValueError: as `soft_orthogonality`; num_iterations below 1; an unknown form.
      TypeError: as `soft_orthogonality`; key is no PRNG key.

    Source: Bansal, Chen, Wang 2018 (arXiv 1810.09102), section 3.4, equation of the two-step power
      iteration; the code's form is VITA-Group/Orthogonality-in-CNNs, Wide-Resnet/train_n.py.

    Example:
      >>> key = jax.random.key(0)
      >>> float(spectral_restricted_isometry(2 * jnp.eye(3), key, form="code").round(3))
      9.0
    """
    check_key("key", key)
    check_count("num_iterations", num_iterations)
    check_choice("form", form, ("paper", "code"))
    W = _matrix(kernel)
    if form == "code" and W.shape[1] > W.shape[0]:
        W = W.T
    draw = jax.random.normal if form == "paper" else jax.random.uniform

    def step(v: Array, _: None) -> tuple[Array, Array]:
        u = _dot(W.T, _dot(W, v)) - v
        square = _dot(u, u)
        # sqrt has no derivative at 0 and u / |u| no value: 1 stands in for a vector that is zero.
        length = jnp.sqrt(jnp.where(square > 0, square, 1))
        return u / length, jnp.where(square > 0, length, 0)

    start = draw(key, (W.shape[1],), W.dtype)
    start = start / jnp.linalg.norm(start)
    _, lengths = jax.lax.scan(step, start, length=num_iterations, unroll=min(num_iterations, 4))
    return lengths[-1] if form == "paper" else lengths[-1] ** 2


def parseval_retraction(kernel: Any, *, beta: Any = 3e-4) -> Float[Array, "..."]:
    """The kernel after one small step towards orthonormality: `(1 + beta) W - beta W W^T W`.

    Called on the new weights after each step of the optimiser. It is gradient descent on
    `soft_orthogonality` with step beta / 4: singular values move as s + beta s (1 - s^2), towards
    1 as long as beta s^2 is small.

    Args:
      kernel: as in `soft_orthogonality`; the result is the same for W and W^T.
      beta: strength, at least 0.

    Returns:
      An array of the kernel's shape and dtype.

    Raises:
      ValueError: as `soft_orthogonality`; beta negative or not finite.
      TypeError: as `soft_orthogonality`.

    Source: Cisse et al. 2017 (arXiv 1704.08847), section 4. Their convolutions, of windows of
      2 k + 1 pixels, aim at rows of length (2 k + 1)^(-1/2): scale the kernel before and after.

    Example:
      >>> float(parseval_retraction(jnp.full((1, 1), 0.5), beta=1.0)[0, 0])  # s + beta s (1 - s^2)
      0.875
    """
    check_positive("beta", beta, zero_allowed=True)
    W = _matrix(kernel)
    tall = W.shape[0] >= W.shape[1]
    cubed = _dot(W, _gram(W)) if tall else _dot(_gram(W.T), W)
    moved = W + beta * (W - cubed)
    return moved.reshape(kernel.shape).astype(W.dtype)


def _matrix(kernel: Any) -> Array:
    """`kernel` as W (fan_in, out); ValueError or TypeError where it is none."""
    check_params(kernel, "kernel")
    shape = getattr(kernel, "shape", None)
    if shape is None or len(shape) < 2 or 0 in shape:
        raise ValueError(
            "kernel must be one array of shape (in, out), or (..., in, out) of a convolution, got "
            f"{shape if shape is not None else type(kernel).__name__}."
        )
    return jnp.asarray(kernel).reshape(-1, shape[-1])


def _squared_distance(W: Array) -> Array:
    """||G - I||_F^2 of the smaller Gram matrix G."""
    return _column_distance(W.T if W.shape[1] > W.shape[0] else W)


@jax.custom_jvp
def _column_distance(W: Array) -> Array:
    """||W'W - I||_F^2."""
    return jnp.sum(_from_identity(W) ** 2)


@_column_distance.defjvp
def _column_distance_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    # The gradient is 4 W (W'W - I): one product where the derivative of W'W would take two.
    (W,), (moved,) = primals, tangents
    distance = _from_identity(W)
    return jnp.sum(distance**2), 4 * jnp.sum(_dot(W, distance) * moved)


def _from_identity(W: Array) -> Array:
    return _gram(W) - jnp.eye(W.shape[1], dtype=W.dtype)


def _gram(W: Array) -> Array:
    return _dot(W.T, W)


def _dot(a: Array, b: Array) -> Array:
    # The distance to I is a small difference: no bfloat16 or TF32 products.
    return jnp.matmul(a, b, precision="highest")
