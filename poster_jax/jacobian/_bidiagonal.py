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

from poster_jax.core.linalg import eigh, svd
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

    `upper` (m, m) is T and `across` (m + b, m) is R; `scale` the longest product so far. m is a
    multiple of b; rows from `max_steps` on are zero.
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
    # The projection is small but to decompose it is not free: looked at once every few steps.
    blocks = max(1, 8 // block_size)

    def more(s: _Bases) -> Array:
        values, left = _ritz_left(s, num)
        outside = jnp.arange(len(s.across))[:, None] >= s.size
        rest = jnp.where(outside, matmul(s.across, left.T), 0)
        settled = (jnp.sqrt((rest**2).sum(axis=0)) <= tol * values[0]).all()
        # Against NaN, which would otherwise never settle: the loop ends and reports it.
        going = ~(settled & (s.size >= num)) & jnp.isfinite(s.scale)
        return going & (s.size < max_steps)

    def grow(s: _Bases) -> _Bases:
        left = (max_steps - s.size + block_size - 1) // block_size
        step = lambda _, s: _step(linear, s, block_size, max_steps)  # noqa: E731
        return jax.lax.fori_loop(0, jnp.minimum(blocks, left), step, s)

    end = jax.lax.while_loop(more, grow, _start(linear, key, block_size, max_steps))
    ritz = _ritz(end, num)
    left = matmul(ritz.left, end.left)
    right = matmul(ritz.right, end.right[: len(end.left)])
    return Triplets(ritz.values, left, right, 2 * jnp.minimum(end.size, max_steps))


def residuals(linear: LinearMap, found: Triplets) -> Array:
    """(k,) of the symmetric problem: sqrt((||J v - s u||^2 + ||J' u - s v||^2) / 2).

    A singular value of J lies within this distance. From new products, not from the recurrence.
    """

    down = jax.vmap(linear.forward)(found.right) - found.values[:, None] * found.left
    up = jax.vmap(linear.backward)(found.left) - found.values[:, None] * found.right
    return jnp.sqrt((jax.vmap(norm)(down) ** 2 + jax.vmap(norm)(up) ** 2) / 2)


def _start(linear: LinearMap, key: PRNGKey, block_size: int, max_steps: int) -> _Bases:
    key, start_key = jax.random.split(key)
    rows = -(-max_steps // block_size) * block_size
    empty = jnp.zeros((rows + block_size, linear.num_in), linear.dtype)

    def add(i: Array, basis: Array) -> Array:
        return basis.at[i].set(_random_direction(jax.random.fold_in(start_key, i), basis))

    return _Bases(
        left=jnp.zeros((rows, linear.num_out), linear.dtype),
        right=jax.lax.fori_loop(0, block_size, add, empty),
        upper=jnp.zeros((rows, rows), linear.dtype),
        across=jnp.zeros((rows + block_size, rows), linear.dtype),
        scale=jnp.zeros((), linear.dtype),
        size=jnp.int32(0),
        key=key,
    )


def _step(linear: LinearMap, s: _Bases, block_size: int, max_steps: int) -> _Bases:
    """A block more of u and of v; one is random where its product adds nothing to the basis.

    The products of a block are one product of matrices: the weights are read once for all of it.
    """
    key, left_key, right_key = jax.random.split(s.key, 3)
    j, ahead = s.size, s.size + block_size
    rows = jax.lax.dynamic_slice_in_dim(s.right, j, block_size)
    products = jax.vmap(linear.forward)(rows)
    scale = jnp.maximum(s.scale, jax.vmap(norm)(products).max())
    left, columns = _extend(s.left, products, j, scale, left_key, max_steps)
    rows = jax.lax.dynamic_slice_in_dim(left, j, block_size)
    products = jax.vmap(linear.backward)(rows)
    scale = jnp.maximum(scale, jax.vmap(norm)(products).max())
    # A complete basis has no direction left: what remains of a product is rounding.
    right, across = _extend(s.right, products, ahead, scale, right_key, linear.num_in)
    put = jax.lax.dynamic_update_slice_in_dim
    return _Bases(
        left=left,
        right=right,
        upper=put(s.upper, columns.T, j, axis=1),
        across=put(s.across, across.T, j, axis=1),
        scale=scale,
        size=ahead,
        key=key,
    )


def _extend(
    basis: Array, products: Array, row: Array, scale: Array, key: PRNGKey, limit: int
) -> tuple[Array, Array]:
    """The basis with one row more a product, from `row` on, and the products' coefficients in it.

    Rows from `limit` on stay zero.
    """
    block_size = len(products)
    # Twice, whether needed or not: two products of matrices, that read the basis once each.
    coefficients = matmul(products, basis.T)
    rests = products - matmul(coefficients, basis)
    correction = matmul(rests, basis.T)
    rests = rests - matmul(correction, basis)
    coefficients = coefficients + correction

    def add(i: Array, both: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        block, coefficients, inside = both
        before = norm(rests[i])
        own, rest, length = orthogonalise(block, rests[i])

        def again(_: None) -> tuple[Array, Array, Array, Array]:
            outside, second = orthogonalise(basis, rest)[:2]
            more, third, length = orthogonalise(block, second)
            return outside, own + more, third, length

        # Where much of it lay in its own block, rounding along the rest of the basis has grown.
        nothing = jnp.zeros_like(coefficients[i])
        outside, own, rest, length = jax.lax.cond(
            length < 0.7 * before, again, lambda _: (nothing, own, rest, length), None
        )
        closed = length <= _CLOSED * jnp.finfo(basis.dtype).eps * scale
        new = jax.lax.cond(
            closed,
            lambda: _random_direction(jax.random.fold_in(key, i), basis, block),
            lambda: unit(rest, length),
        )
        kept = row + i < limit
        own = own.at[i].set(jnp.where(closed | ~kept, 0, length))
        block = block.at[i].set(jnp.where(kept, new, 0))
        return block, coefficients.at[i].add(outside), inside.at[i].set(own)

    # The block is apart while it grows: the basis itself is written once.
    empty = jnp.zeros_like(products), coefficients, jnp.zeros((block_size,) * 2, basis.dtype)
    block, coefficients, inside = jax.lax.fori_loop(0, block_size, add, empty)
    put = jax.lax.dynamic_update_slice_in_dim
    return put(basis, block, row, axis=0), put(coefficients, inside, row, axis=1)


def _random_direction(key: PRNGKey, *bases: Array) -> Array:
    def project(_: Any, vector: Array) -> Array:
        for basis in bases:
            _, rest, length = orthogonalise(basis, vector)
            vector = unit(rest, length)
        return vector

    # Twice: little of the vector is left outside of a basis that is nearly complete.
    vector = jax.random.normal(key, bases[0].shape[1:], bases[0].dtype)
    return jax.lax.fori_loop(0, 2, project, vector)


class _Ritz(NamedTuple):
    """Of T: values (num,), descending, and vectors (num, m) in both bases."""

    values: Array
    left: Array
    right: Array


def _ritz(s: _Bases, num: int) -> _Ritz:
    """Rows not in use are decoupled and given values above all others, which are then skipped."""

    def decompose(upper: Array) -> _Ritz:
        size = len(upper)
        entries = jnp.abs(upper)
        # ||T||_2^2 <= ||T||_1 ||T||_inf; no larger than needed: the SVD's error grows with it.
        bound = jnp.sqrt(entries.sum(axis=0).max() * entries.sum(axis=1).max())
        above = 2 * bound + jnp.finfo(entries.dtype).tiny
        in_use = jnp.arange(size) < s.size
        left, values, right = svd(upper + jnp.diag(jnp.where(in_use, 0, above)))
        cut = lambda a: jax.lax.dynamic_slice_in_dim(a, size - s.size, num)  # noqa: E731
        return _Ritz(cut(values), _pad(cut(left.T), s), _pad(cut(right), s))

    return _on_part_in_use(decompose, s, num)


def _ritz_left(s: _Bases, num: int) -> tuple[Array, Array]:
    """Values and left vectors of T alone, from T T': a third of the SVD's time.

    The largest values lose nothing by being squared.
    """

    def decompose(upper: Array) -> tuple[Array, Array]:
        scale = jnp.abs(upper).max()
        scale = jnp.where(scale > 0, scale, 1)  # squares of small numbers are 0 in float32
        squares, vectors = eigh(matmul(upper / scale, upper.T / scale))
        values = scale * jnp.sqrt(jnp.maximum(squares[::-1][:num], 0))
        return values, _pad(vectors.T[::-1][:num], s)

    return _on_part_in_use(decompose, s, num)


def _on_part_in_use(decompose: Any, s: _Bases, num: int) -> Any:
    """`decompose` of the leading part of T that holds what is in use, of one of a few sizes."""
    sizes = [max(32, num)]
    while sizes[-1] < len(s.upper):
        sizes.append(sizes[-1] * 3 // 2)
    sizes[-1] = len(s.upper)
    branches = [lambda upper, n=n: decompose(upper[:n, :n]) for n in sizes]
    index = jnp.searchsorted(jnp.array(sizes), s.size)
    return jax.lax.switch(index, branches, s.upper)


def _pad(vectors: Array, s: _Bases) -> Array:
    return jnp.pad(vectors, ((0, 0), (0, len(s.upper) - vectors.shape[1])))
