"""One step of Lanczos with full reorthogonalisation, shared by eigenpairs and density.

matfree's `decomp.tridiag_sym` also reorthogonalises fully, and is not used: it divides by the
length of the new vector, which is zero as soon as the Krylov space is closed (few distinct
eigenvalues, as for every Hessian of low rank), and the result is NaN; and it takes its number of
steps as given, so that it cannot stop at a residual or restart in bounded memory.
"""

import jax
import jax.numpy as jnp

from poster_jax.core.linalg import eigh
from poster_jax.core.typing import Array
from poster_jax.curvature._flat import inner


def norm(vector: Array) -> Array:
    """Euclidean length."""
    return jnp.sqrt(inner(vector, vector))


def matmul(a: Array, b: Array) -> Array:
    """A product in full float32: accelerators otherwise round to fewer bits."""
    return jnp.matmul(a, b, precision="highest")


def orthogonalise(basis: Array, vector: Array) -> tuple[Array, Array, Array]:
    """`vector = coefficients @ basis + rest`; returns (coefficients, rest, length of rest).

    Rows of `basis` are orthonormal or zero. A second pass where the first removed most of the
    vector: "twice is enough" (Daniel, Gragg, Kaufman, Stewart 1976).
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
    """`vector / length`, zero for a zero vector."""
    return jnp.where(length > 0, vector / jnp.where(length > 0, length, 1), 0)


def masked_eigh(matrix: Array, active: Array) -> tuple[Array, Array]:
    """Eigenvalues (ascending) and vectors of the rows and columns where `active`; those come first.

    The rest is decoupled and given eigenvalues above all others.
    """
    both = active[:, None] & active[None, :]
    matrix = jnp.where(both, matrix, 0)
    above = 2 * jnp.abs(matrix).sum(axis=1).max() + 1e-30
    return eigh(matrix + jnp.diag(jnp.where(active, 0, above)))
