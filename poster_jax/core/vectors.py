"""Long vectors in full precision, and bases of them that stay orthogonal.

What Krylov methods are made of: `curvature` builds the bases of symmetric operators from it,
`jacobian` the two bases of a Jacobian.
"""

import jax
import jax.numpy as jnp

from poster_jax.core.typing import Array

__all__ = ["inner", "matmul", "norm", "orthogonalise", "unit"]


def inner(a: Array, b: Array) -> Array:
    """`<a, b>` summed in two levels, so that the float32 error grows like sqrt(dim), not dim.

    Args:
      a: (dim,).
      b: (dim,).

    Returns:
      The scalar sum of products.

    Source: pairwise summation; Higham 2002, "Accuracy and stability of numerical algorithms",
      chapter 4.

    Example:
      >>> float(inner(jnp.arange(4.0), jnp.ones(4)))
      6.0
    """
    width = max(1, int(a.size**0.5))
    terms = a * b
    rows = terms[: terms.size // width * width].reshape(-1, width).sum(axis=1)
    return rows.sum() + terms[terms.size // width * width :].sum()


def norm(vector: Array) -> Array:
    """Euclidean length.

    Args:
      vector: (dim,).

    Returns:
      A scalar.

    Source: `inner`.

    Example:
      >>> float(norm(jnp.array([3.0, 4.0])))
      5.0
    """
    return jnp.sqrt(inner(vector, vector))


def matmul(a: Array, b: Array) -> Array:
    """A product in full float32: accelerators otherwise round to fewer bits.

    Args:
      a: (..., rows, k) or (k,).
      b: (..., k, columns) or (k,).

    Returns:
      What `jnp.matmul` returns.

    Source: `jax.lax.Precision`.

    Example:
      >>> matmul(jnp.eye(2), jnp.ones(2)).tolist()
      [1.0, 1.0]
    """
    return jnp.matmul(a, b, precision="highest")


def orthogonalise(basis: Array, vector: Array) -> tuple[Array, Array, Array]:
    """Splits a vector into its part along a basis and the rest, which is orthogonal to the basis.

    `vector = coefficients @ basis + rest`. A second pass where the first removed most of the
    vector: "twice is enough".

    Args:
      basis: (k, dim); rows orthonormal or zero.
      vector: (dim,).

    Returns:
      `(coefficients, rest, length of rest)` of shapes (k,), (dim,) and ().

    Source: Daniel, Gragg, Kaufman, Stewart 1976, Mathematics of Computation 30(136).

    Example:
      >>> _, rest, length = orthogonalise(jnp.eye(2)[:1], jnp.array([3.0, 4.0]))
      >>> rest.tolist(), float(length)
      ([0.0, 4.0], 4.0)
    """
    before = norm(vector)
    coefficients = matmul(basis, vector)
    rest = vector - matmul(coefficients, basis)
    length = norm(rest)

    def again(_: None) -> tuple[Array, Array, Array]:
        correction = matmul(basis, rest)
        second = rest - matmul(correction, basis)
        return coefficients + correction, second, norm(second)

    def keep(_: None) -> tuple[Array, Array, Array]:
        return coefficients, rest, length

    return jax.lax.cond(length < 0.7 * before, again, keep, None)


def unit(vector: Array, length: Array) -> Array:
    """`vector / length`, zero for a zero vector.

    Args:
      vector: (dim,).
      length: its length, a scalar.

    Returns:
      (dim,), of length 1 or 0.

    Source: this library.

    Example:
      >>> unit(jnp.zeros(2), jnp.zeros(())).tolist()
      [0.0, 0.0]
    """
    return jnp.where(length > 0, vector / jnp.where(length > 0, length, 1), 0)
