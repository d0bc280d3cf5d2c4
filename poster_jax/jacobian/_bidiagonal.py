"""Golub-Kahan-Lanczos bidiagonalisation from a block of vectors, fully reorthogonalised.

Two orthonormal bases grow by turns, J v_j = sum_i T_ij u_i and J' u_j = sum_i R_ij v_i, from b
random v. T is upper triangular of bandwidth b + 1, and the Ritz triplets of J are the singular
triplets of T. With b = 1 this is the method of Golub and Kahan; a Krylov space of one vector holds
one vector of every singular space, though, and convolutions have each singular value twice (the
frequencies k and -k). A block of b finds up to b copies.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from poster_jax.core.linalg import svd
from poster_jax.core.typing import Array, PRNGKey
from poster_jax.core.vectors import matmul, norm, orthogonalise, unit
from poster_jax.jacobian._linear_map import LinearMap

__all__ = ["Triplets", "residuals", "top_triplets"]

# The limit at which a new vector is rounding error of the product that it is left of.
_CLOSED = 30


class Triplets(NamedTuple):
    """Values (k,) descending, vectors (k, num_out) and (k, num_in), and the products spent."""

    values: Array
    left: Array
    right: Array
    num_products: Array


class _Bases(NamedTuple):
    """State: `size` rows of `left` (m, num_out) and `size + b` of `right` (m + b, num_in) in use.

    `upper` (m, m) is T and `across` (m + b, m) is R; `scale` the longest product so far.
    """

    left: Array
    right: Array
    upper: Array
    across: Array
    scale: Array
    size: Array
    key: PRNGKey


def top_triplets(
    linear: LinearMap, key: PRNGKey, tol: Any, *, num: int, block_size: int, max_steps: int
) -> Triplets:
    """The `num` largest, to residuals of `tol` times the largest, or after `max_steps` steps.

    Needs num_in <= num_out, block_size and num at most max_steps, and max_steps at most num_in.
    """
    # The projection is small but its SVD is not free: looked at once every few steps.
    stride = max(block_size, 8)

    def more(s: _Bases) -> Array:
        ritz = _ritz(s, num)
        outside = jnp.arange(len(s.across))[:, None] >= s.size
        rest = jnp.where(outside, matmul(s.across, ritz.left.T), 0)
        settled = (jnp.sqrt((rest**2).sum(axis=0)) <= tol * ritz.values[0]).all()
        # Against NaN, which would otherwise never settle: the loop ends and reports it.
        going = ~(settled & (s.size >= num)) & jnp.isfinite(s.scale)
        return going & (s.size < max_steps)

    def grow(s: _Bases) -> _Bases:
        end = jnp.minimum(s.size + stride, max_steps)
        return jax.lax.fori_loop(s.size, end, lambda _, s: _step(linear, s, block_size), s)

    end = jax.lax.while_loop(more, grow, _start(linear, key, block_size, max_steps))
    ritz = _ritz(end, num)
    left = matmul(ritz.left, end.left)
    right = matmul(ritz.right, end.right[:max_steps])
    return Triplets(ritz.values, left, right, 2 * end.size)


def residuals(linear: LinearMap, found: Triplets) -> Array:
    """(k,) of the symmetric problem: sqrt((||J v - s u||^2 + ||J' u - s v||^2) / 2).

    A singular value of J lies within this distance. From new products, not from the recurrence.
    """

    def one(triplet: tuple[Array, Array, Array]) -> Array:
        value, left, right = triplet
        down = norm(linear.forward(right) - value * left)
        up = norm(linear.backward(left) - value * right)
        return jnp.sqrt((down**2 + up**2) / 2)

    return jax.lax.map(one, (found.values, found.left, found.right))


def _start(linear: LinearMap, key: PRNGKey, block_size: int, max_steps: int) -> _Bases:
    key, start_key = jax.random.split(key)
    empty = jnp.zeros((max_steps + block_size, linear.num_in), linear.dtype)

    def add(i: Array, basis: Array) -> Array:
        return basis.at[i].set(_random_direction(jax.random.fold_in(start_key, i), basis))

    return _Bases(
        left=jnp.zeros((max_steps, linear.num_out), linear.dtype),
        right=jax.lax.fori_loop(0, block_size, add, empty),
        upper=jnp.zeros((max_steps, max_steps), linear.dtype),
        across=jnp.zeros((max_steps + block_size, max_steps), linear.dtype),
        scale=jnp.zeros((), linear.dtype),
        size=jnp.int32(0),
        key=key,
    )


def _step(linear: LinearMap, s: _Bases, block_size: int) -> _Bases:
    """One more u and one more v; each is random where the product adds nothing to its basis."""
    key, left_key, right_key = jax.random.split(s.key, 3)
    j, ahead = s.size, s.size + block_size
    product = linear.forward(s.right[j])
    scale = jnp.maximum(s.scale, norm(product))
    column, u = _extend(s.left, product, j, scale, left_key)
    left = s.left.at[j].set(u)
    product = linear.backward(u)
    scale = jnp.maximum(scale, norm(product))
    across, v = _extend(s.right, product, ahead, scale, right_key)
    # A complete basis has no direction left: what remains of a product is rounding.
    v = jnp.where(ahead < linear.num_in, v, 0)
    return _Bases(
        left=left,
        right=s.right.at[ahead].set(v),
        upper=s.upper.at[:, j].set(column),
        across=s.across.at[:, j].set(across),
        scale=scale,
        size=j + 1,
        key=key,
    )


def _extend(
    basis: Array, product: Array, row: Array, scale: Array, key: PRNGKey
) -> tuple[Array, Array]:
    """Coefficients of `product` in the basis with its new row, and that row."""
    coefficients, rest, length = orthogonalise(basis, product)
    closed = length <= _CLOSED * jnp.finfo(basis.dtype).eps * scale
    new = jax.lax.cond(closed, lambda: _random_direction(key, basis), lambda: unit(rest, length))
    return coefficients.at[row].set(jnp.where(closed, 0, length)), new


def _random_direction(key: PRNGKey, basis: Array) -> Array:
    def project(_: Any, vector: Array) -> Array:
        _, rest, length = orthogonalise(basis, vector)
        return unit(rest, length)

    # Twice: little of the vector is left outside of a basis that is nearly complete.
    vector = jax.random.normal(key, basis.shape[1:], basis.dtype)
    return jax.lax.fori_loop(0, 2, project, vector)


class _Ritz(NamedTuple):
    """Of T: values (num,), descending, and vectors (num, m) in both bases."""

    values: Array
    left: Array
    right: Array


def _ritz(s: _Bases, num: int) -> _Ritz:
    """Rows not in use are decoupled and given values above all others, which are then skipped."""
    size = len(s.upper)
    entries = jnp.abs(s.upper)
    # ||T||_2^2 <= ||T||_1 ||T||_inf; no larger than needed, since the SVD's error grows with it.
    bound = jnp.sqrt(entries.sum(axis=0).max() * entries.sum(axis=1).max())
    above = 2 * bound + jnp.finfo(entries.dtype).tiny
    in_use = jnp.arange(size) < s.size
    left, values, right = svd(s.upper + jnp.diag(jnp.where(in_use, 0, above)))
    cut = lambda a: jax.lax.dynamic_slice_in_dim(a, size - s.size, num)  # noqa: E731
    return _Ritz(cut(values), cut(left.T), cut(right))
