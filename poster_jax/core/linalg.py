"""Matrix factorisations that are safe inside a population.

On the CPU jaxlib (0.10 to 0.12) spreads a *batched* LAPACK call over the thread pool in which the
program itself runs, and waits for it there. When as many such calls meet as the pool has threads
(two layers measured in one program on two cores, or the shares of several devices) each waits for
the others and the program hangs for ever. One matrix at a time is not spread; so here `vmap` turns
into a loop over the matrices.
"""

import jax
import jax.numpy as jnp

from poster_jax.core.typing import Array, Float

__all__ = ["eigh", "qr", "svd"]


@jax.custom_batching.sequential_vmap
def qr(matrix: Float[Array, "rows columns"]) -> tuple[Array, Array]:
    """Orthonormal columns and a triangle whose product is `matrix`: `jnp.linalg.qr`, reduced.

    Args:
      matrix: (rows, columns).

    Returns:
      `(Q, R)` of shapes (rows, k) and (k, columns), k the smaller of both.

    Source: LAPACK geqrf and orgqr.

    Example:
      >>> jax.vmap(qr)(jnp.ones((5, 3, 2)))[1].shape
      (5, 2, 2)
    """
    q, r = jnp.linalg.qr(matrix)
    return q, r


@jax.custom_batching.sequential_vmap
def eigh(matrix: Float[Array, "n n"]) -> tuple[Array, Array]:
    """Eigenvalues, ascending, and eigenvectors of a symmetric matrix: `jnp.linalg.eigh`.

    Args:
      matrix: (n, n), symmetric.

    Returns:
      `(values, vectors)` of shapes (n,) and (n, n); vectors are columns.

    Source: LAPACK syevd.

    Example:
      >>> jax.vmap(eigh)(jnp.ones((5, 2, 2)))[0].shape
      (5, 2)
    """
    values, vectors = jnp.linalg.eigh(matrix)
    return values, vectors


@jax.custom_batching.sequential_vmap
def svd(matrix: Float[Array, "rows columns"]) -> tuple[Array, Array, Array]:
    """Singular values, descending, and vectors of a matrix: `jnp.linalg.svd`, reduced.

    Args:
      matrix: (rows, columns).

    Returns:
      `(U, values, V)` of shapes (rows, k), (k,) and (k, columns), k the smaller of both;
      `matrix = (U * values) @ V`.

    Source: LAPACK gesdd.

    Example:
      >>> jax.vmap(svd)(jnp.ones((5, 3, 2)))[1].shape
      (5, 2)
    """
    u, values, v = jnp.linalg.svd(matrix, full_matrices=False)
    return u, values, v
