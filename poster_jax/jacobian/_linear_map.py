"""The Jacobian of one example as a map of flat vectors, and its explicit matrix."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from poster_jax.core.linalg import svd
from poster_jax.core.typing import ApplyFn, Array, Params

__all__ = ["LinearMap", "explicit_svd", "linear_map", "working_dtype"]

# Columns of the explicit matrix that are made at a time.
_BLOCK = 128


class LinearMap(NamedTuple):
    """`forward` takes (num_in,) to (num_out,), `backward` is its transpose; num_in <= num_out."""

    forward: Callable[[Array], Array]
    backward: Callable[[Array], Array]
    num_in: int
    num_out: int
    dtype: Any


def linear_map(apply_fn: ApplyFn, params: Params, example: Array) -> LinearMap:
    """J of one example (no leading axis), or J' where that makes the domain the smaller side."""
    flat, unravel = ravel_pytree(example)

    def one(flat: Array) -> Array:
        return apply_fn(params, unravel(flat)[None]).reshape(-1)

    out, jvp = jax.linearize(one, flat)
    vjp = jax.linear_transpose(jvp, flat)
    dtype = working_dtype(jnp.promote_types(flat.dtype, out.dtype))

    def forward(vector: Array) -> Array:
        return jvp(vector.astype(flat.dtype)).astype(dtype)

    def backward(vector: Array) -> Array:
        return vjp(vector.astype(out.dtype))[0].astype(dtype)

    if flat.size <= out.size:
        return LinearMap(forward, backward, flat.size, out.size, dtype)
    return LinearMap(backward, forward, out.size, flat.size, dtype)


def explicit_svd(linear: LinearMap) -> tuple[Array, Array, Array, Array]:
    """The matrix (num_out, num_in) and its singular value decomposition, see `core.linalg.svd`."""
    unit_vectors = jnp.eye(linear.num_in, dtype=linear.dtype)
    matrix = jax.lax.map(linear.forward, unit_vectors, batch_size=_BLOCK).T
    return matrix, *svd(matrix)


def working_dtype(dtype: Any) -> Any:
    """Half precision would lose orthogonality: float32 at least."""
    return jnp.promote_types(dtype, jnp.float32)
