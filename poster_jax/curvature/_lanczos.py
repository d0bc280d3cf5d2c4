"""The eigenvalues of a Lanczos projection, of which some rows are in use.

The steps are those of `core.vectors`. matfree's `decomp.tridiag_sym` also reorthogonalises fully,
and is not used: it divides by the length of the new vector, which is zero as soon as the Krylov
space is closed (few distinct eigenvalues, as for every Hessian of low rank), and the result is NaN;
and it takes its number of steps as given, so that it cannot stop at a residual or restart in
bounded memory.
"""

import jax.numpy as jnp

from poster_jax.core.linalg import eigh
from poster_jax.core.typing import Array


def masked_eigh(matrix: Array, active: Array) -> tuple[Array, Array]:
    """Eigenvalues (ascending) and vectors of the rows and columns where `active`; those come first.

    The rest is decoupled and given eigenvalues above all others.
    """
    both = active[:, None] & active[None, :]
    matrix = jnp.where(both, matrix, 0)
    above = 2 * jnp.abs(matrix).sum(axis=1).max() + 1e-30
    return eigh(matrix + jnp.diag(jnp.where(active, 0, above)))
