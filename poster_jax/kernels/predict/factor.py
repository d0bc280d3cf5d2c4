"""Solving with a train-train kernel, and its spectrum; singular kernels are seen and said.

An eigenvalue below `4 sqrt(n) eps` times the largest cannot be told from zero in arithmetic of
precision `eps`. Such a direction is never learned: the kernel is used as its pseudo-inverse, which
is the limit of gradient descent from equal starting points.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.scipy.linalg

from poster_jax.core.checks import is_traced
from poster_jax.core.typing import Array

__all__ = ["Spectrum", "regularise", "remember", "solver", "spectrum"]


class Spectrum(NamedTuple):
    """The eigenvalues and eigenvectors of a train-train kernel.

    Attributes:
      values: (n,), those that rounding cannot tell from zero set to 0.
      vectors: (n, n), one a column.
      threshold: the eigenvalue below which that happened.
    """

    values: Array
    vectors: Array
    threshold: Array

    def solve(self, b: Array) -> Array:
        """The pseudo-inverse times `b` of shape (n, m)."""
        inverse = jnp.where(self.values > 0, 1 / jnp.where(self.values > 0, self.values, 1), 0)
        return self.vectors @ (inverse[:, None] * (self.vectors.T @ b))


def regularise(matrix: Array, diag_reg: Any, absolute: bool) -> Array:
    """`matrix + diag_reg I`; unless `absolute`, in units of the mean of the diagonal."""
    n = matrix.shape[0]
    scale = 1.0 if absolute else jnp.trace(matrix) / n
    return matrix + diag_reg * scale * jnp.eye(n, dtype=matrix.dtype)


def spectrum(matrix: Array) -> Spectrum:
    """The eigenvalues and eigenvectors of a train-train kernel.

    Raises:
      ValueError: a concrete kernel has a negative eigenvalue far beyond rounding, or is not
        symmetric: it is no kernel of `x_train` with itself.
    """
    values, vectors = jnp.linalg.eigh(matrix)
    eps = jnp.finfo(matrix.dtype).eps
    threshold = 4 * matrix.shape[0] ** 0.5 * eps * jnp.abs(values).max(initial=0)
    if not is_traced(values):
        _check_semidefinite(matrix, values, float(eps))
    return Spectrum(jnp.where(values > threshold, values, 0), vectors, threshold)


def solver(matrix: Array) -> Callable[[Array], Array]:
    """A function that solves `matrix x = b` by Cholesky, by pseudo-inverse when singular."""
    factor = jnp.linalg.cholesky(matrix)  # NaN when a pivot is negative
    pivots = jnp.diagonal(factor) ** 2
    norm = jnp.abs(matrix).sum(axis=1).max(initial=0)  # at least the largest eigenvalue
    tolerance = 4 * matrix.shape[0] ** 0.5 * jnp.finfo(matrix.dtype).eps
    # The smallest pivot bounds the smallest eigenvalue from above; false for NaN.
    regular = jnp.all(pivots > tolerance * norm)

    def by_cholesky(b: Array) -> Array:
        return jax.scipy.linalg.cho_solve((factor, True), b)

    if is_traced(regular):
        return lambda b: jax.lax.cond(
            regular, by_cholesky, lambda b: spectrum(matrix).solve(b).astype(b.dtype), b
        )
    return by_cholesky if bool(regular) else spectrum(matrix).solve


def remember(compute: Callable[[], Any], *depends_on: Any) -> Callable[[], Any]:
    """`compute()` done once, at the first call; anew at each call while an argument is traced.

    Concrete arrays are worked on at once even inside `jit`, so that nothing traced is kept.
    """
    kept: list[Any] = []

    def get() -> Any:
        if is_traced(depends_on):
            return compute()
        if not kept:
            with jax.ensure_compile_time_eval():
                kept.append(compute())
        return kept[0]

    return get


def _check_semidefinite(matrix: Array, values: Array, eps: float) -> None:
    # eps ** (1/4) is 2e-2 in float32 and 1e-4 in float64: kernels that other programs computed in
    # float32 carry noise near these, and must pass.
    tolerance = eps**0.25
    n = matrix.shape[0]
    lowest, highest = (float(values.min()), float(values.max())) if n else (0.0, 0.0)
    asymmetry = float(jnp.abs(matrix - matrix.T).max(initial=0))
    if asymmetry > tolerance * float(jnp.abs(matrix).max(initial=0)):
        raise ValueError(
            "k_train_train must be symmetric, the kernel of the training inputs with themselves; "
            f"an entry and its mirror image differ by {asymmetry:.2g}."
        )
    if lowest < -tolerance * max(highest, -lowest):
        mean = float(jnp.trace(matrix)) / n
        cure = f" diag_reg above {-lowest / mean:.2g} would make it so." if mean > 0 else ""
        raise ValueError(
            "k_train_train must be positive semi-definite, got eigenvalues from "
            f"{lowest:.3g} to {highest:.3g}.{cure}"
        )
