"""J J' - I or J'J - I in full, whichever is smaller: what the exact methods stand on."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from poster_jax.core.typing import Array
from poster_jax.jacobian._layer import Linearised

__all__ = ["Deviation", "deviation"]


class Deviation(NamedTuple):
    """Of an uncoupled layer B numbers; of a coupled one what each example's share of the batch is.

    Attributes:
      squared_norm: (B,) of ||G - I||_F^2 for the Gram matrix G on the side that was asked for.
      trace: (B,) of tr(G - I).
    """

    squared_norm: Array
    trace: Array


def deviation(layer: Linearised, side: str, *, coupled: bool) -> Deviation:
    """How far the Gram matrix of each example's (`coupled`: of the batch's) Jacobian is from I.

    The two sides differ by a constant: ||J'J - I_n||_F^2 = ||J J' - I_m||_F^2 + n - m.
    """
    size, m, n = len(layer.x), layer.num_outputs, layer.num_inputs
    small = min(m, n)
    space, product = (layer.h, layer.vjp) if m <= n else (layer.x, layer.jvp)
    if coupled:
        basis = jnp.eye(size * small, dtype=space.dtype).reshape(-1, *space.shape)
        J = jax.vmap(product)(basis).reshape(size * small, -1)
        M = jnp.matmul(J, J.T, precision="highest") - jnp.eye(size * small, dtype=J.dtype)
        squared = (M**2).reshape(size, -1).sum(axis=1)
        trace = jnp.diagonal(M).reshape(size, -1).sum(axis=1)
    else:
        basis = jnp.eye(small, dtype=space.dtype).reshape(small, 1, *space.shape[1:])
        J = jax.vmap(product)(jnp.broadcast_to(basis, (small, *space.shape)))
        J = jnp.moveaxis(J.reshape(small, size, -1), 0, 1)
        M = jnp.matmul(J, jnp.swapaxes(J, 1, 2), precision="highest") - jnp.eye(
            small, dtype=J.dtype
        )
        squared = (M**2).sum(axis=(1, 2))
        trace = jnp.trace(M, axis1=1, axis2=2)
    larger = (m if side == "rows" else n) - small
    return Deviation(squared + larger, trace - larger)
