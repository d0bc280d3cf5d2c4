"""An operator as a map of flat vectors, in the precision in which the solvers work."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from poster_jax.core.typing import Array
from poster_jax.curvature.operator import LinearOperator


class FlatOperator(NamedTuple):
    """`product` maps (dim,) to (dim,); `unflatten` maps (..., dim) to pytrees like the params."""

    product: Callable[[Array], Array]
    dim: int
    dtype: Any
    unflatten: Callable[[Array], Any]


def flatten(op: LinearOperator) -> FlatOperator:
    """Linearises `op` once; to be called inside a compiled program.

    Vectors are kept in float32 at least: half precision parameters would lose orthogonality.
    """
    flat, unravel = ravel_pytree(op.like)
    dtype = jnp.promote_types(flat.dtype, jnp.float32)
    linear = op.linear_map()

    def product(vector: Array) -> Array:
        return ravel_pytree(linear(unravel(vector.astype(flat.dtype))))[0].astype(dtype)

    def unflatten(vectors: Array) -> Any:
        if vectors.ndim > 1:
            return jax.vmap(unflatten)(vectors)
        return unravel(vectors.astype(flat.dtype))

    return FlatOperator(product, flat.size, dtype, unflatten)
