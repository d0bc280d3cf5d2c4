"""Which directions are the most curved, and by how much: a few eigenpairs of a large operator.

Thick-restart Lanczos (Wu, Simon 2000) with full reorthogonalisation: a basis of at most
`basis_size` vectors grows by one product at a time; when it is full, the best Ritz vectors are
kept. All wanted pairs are found in one run, where power iteration with deflation spends a run on
each, and the method stops at a residual, not at a number of steps.

A Krylov space holds one vector of every eigenspace, so that a repeated eigenvalue would be found
once. Therefore, when all wanted pairs have converged, the search goes on from a random vector
orthogonal to everything found: what it finds beyond the wanted eigenvalues was missed (another
copy) and is taken in. It ends when a missed eigenvector would have shown itself.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from poster_jax.core.checks import check_choice, check_count, check_key, check_positive
from poster_jax.core.typing import Array, Eigenpairs, PRNGKey
from poster_jax.core.vectors import inner, matmul, norm, orthogonalise, unit
from poster_jax.curvature._flat import FlatOperator, flatten
from poster_jax.curvature._lanczos import masked_eigh
from poster_jax.curvature._probes import check_operator
from poster_jax.curvature.operator import LinearOperator

__all__ = ["top_eigenpairs"]

WHICH = ("largest", "smallest", "both", "magnitude")
# The chance that a second look overlooks a missed eigenvector.
OVERLOOK = 0.01


def top_eigenpairs(
    op: LinearOperator,
    key: PRNGKey,
    *,
    k: int,
    which: str = "largest",
    tol: float = 1e-4,
    max_iters: int | None = None,
    basis_size: int | None = None,
) -> Eigenpairs:
    """The k most extreme eigenvalues and their vectors, with true residuals.

    Args:
      op: the operator, dim P.
      key: PRNG key of the starting vectors.
      k: how many pairs.
      which: "largest" (algebraic, descending), "smallest" (ascending), "both" (half from each end,
        the odd one from the top; descending) or "magnitude" (absolute value, descending).
      tol: a pair has converged when `||H v - value v|| <= tol * ||H||` (the spectral norm). The
        error of the eigenvalue is then at most that, and of the order of its square over the gap.
      max_iters: products after which the search stops, converged or not; None takes
        `max(300, 30 k)`.
      basis_size: basis vectors held, each with its product: memory is about
        `3 * basis_size * P` numbers. None takes the larger of `k + 30` and `2 k`.

    Returns:
      Eigenpairs; the residuals are true ones: H v is put together from the products of the basis
      vectors that make up v, not taken from the recurrence. `converged` says which meet `tol`. An
      operator that gives NaN ends the search with NaN values that have not converged.

    Raises:
      ValueError: k below 1 or above P, an unknown `which`, tol not positive, basis_size too small.
      TypeError: op is no LinearOperator, key is no PRNG key.

    Source: Wu, Simon 2000, "Thick-restart Lanczos method for large symmetric eigenvalue problems",
      SIAM J. Matrix Anal. Appl. 22(2); the second look: this library.

    Example:
      >>> from poster_jax.curvature import matrix_operator
      >>> op = matrix_operator(jnp.diag(jnp.arange(50.0)))
      >>> pairs = top_eigenpairs(op, jax.random.key(0), k=3)
      >>> [round(float(v), 2) for v in pairs.values], bool(pairs.converged.all())
      ([49.0, 48.0, 47.0], True)
    """
    check_operator(op)
    check_key("key", key)
    check_choice("which", which, WHICH)
    check_positive("tol", tol)
    check_count("k", k)
    if k > op.dim:
        raise ValueError(f"k must be at most the dimension of the operator, {op.dim}, got {k}.")
    if max_iters is None:
        max_iters = max(300, 30 * k)
    check_count("max_iters", max_iters)
    if basis_size is None:
        basis_size = max(k + 30, 2 * k)
    check_count("basis_size", basis_size, minimum=min(op.dim, k + 8), hint="It must exceed k by 8.")
    basis_size = min(op.dim, basis_size)
    return _top_eigenpairs(
        op, key, tol, k=k, which=which, max_iters=max_iters, basis_size=basis_size
    )


class _Search(NamedTuple):
    """State of the search; `size` rows are in use.

    `basis` (m, P) is orthonormal, `products` (m, P) is H times it, `projected` (m, m) is
    basis H basis^T. `left` (m,) is the part of H basis_i that lies outside of the basis and is no
    longer followed: with it, a Ritz vector s has the residual sqrt(sum_i (left_i s_i)^2). `next` is
    the vector to add, `coupling` its product with H times the last row. `look` is the row from
    which the second look started, -1 outside of one. `restart` asks for room.
    """

    basis: Array
    products: Array
    projected: Array
    left: Array
    next: Array
    coupling: Array
    size: Array
    look: Array
    key: PRNGKey
    num_products: Array
    restart: Array
    done: Array


@partial(jax.jit, static_argnames=("k", "which", "max_iters", "basis_size"))
def _top_eigenpairs(
    op: LinearOperator,
    key: PRNGKey,
    tol: Any,
    *,
    k: int,
    which: str,
    max_iters: int,
    basis_size: int,
) -> Eigenpairs:
    flat = flatten(op)
    keep = k + (basis_size - k) // 2

    def step(s: _Search) -> _Search:
        return _decide(_grow(flat, s), k=k, which=which, tol=tol, max_iters=max_iters, keep=keep)

    def grow_to_restart(s: _Search) -> _Search:
        s = jax.lax.while_loop(lambda s: ~(s.restart | s.done), step, s)
        # Outside of the inner loop: there, a choice would copy the basis in every step.
        return jax.lax.cond(
            s.done, lambda s: s, partial(_restart, which=which, tol=tol, keep=keep), s
        )

    start = _start(flat, key, basis_size)
    end = jax.lax.while_loop(lambda s: ~s.done, grow_to_restart, start)
    return _answer(end, flat, k=k, which=which, tol=tol)


def _start(flat: FlatOperator, key: PRNGKey, basis_size: int) -> _Search:
    start_key, key = jax.random.split(key)
    empty = jnp.zeros((basis_size, flat.dim), flat.dtype)
    return _Search(
        basis=empty,
        products=empty,
        projected=jnp.zeros((basis_size, basis_size), flat.dtype),
        left=jnp.zeros(basis_size, flat.dtype),
        next=_random_direction(start_key, empty),
        coupling=jnp.zeros((), flat.dtype),
        size=jnp.int32(0),
        look=jnp.int32(-1),
        key=key,
        num_products=jnp.int32(0),
        restart=jnp.asarray(False),
        done=jnp.asarray(False),
    )


def _grow(flat: FlatOperator, s: _Search) -> _Search:
    """Adds `next` and its product, what is left of which becomes `next`, its length `coupling`."""
    product = flat.product(s.next)
    alpha = inner(s.next, product)
    before = jnp.maximum(s.size - 1, 0)
    # Written before it is read: a read of the old basis would make XLA copy all of it.
    basis = s.basis.at[s.size].set(s.next)
    local = product - alpha * s.next - s.coupling * basis[before]
    coefficients, rest, beta = orthogonalise(basis, local)
    coefficients = coefficients.at[s.size].add(alpha).at[before].add(s.coupling)
    return s._replace(
        basis=basis,
        products=s.products.at[s.size].set(product),
        projected=s.projected.at[:, s.size].set(coefficients).at[s.size, :].set(coefficients),
        next=unit(rest, beta),
        coupling=beta,
        size=s.size + 1,
        num_products=s.num_products + 1,
    )


def _decide(s: _Search, *, k: int, which: str, tol: Any, max_iters: int, keep: int) -> _Search:
    """Whether to end, to go on along the rest, to take a random vector, or to ask for room."""
    capacity, dim = s.basis.shape
    last, beta = s.size - 1, s.coupling
    left = s.left.at[last].set(beta)
    ritz = _ritz(s, which)
    scale = jnp.maximum(jnp.abs(ritz.values[0]), jnp.abs(ritz.values[s.size - 1]))
    scale = jnp.maximum(scale, beta)
    slack = tol * scale
    wanted = ritz.order[:k]
    residuals = jnp.sqrt(((left[:, None] * ritz.vectors[:, wanted]) ** 2).sum(axis=0))
    converged = (s.size >= k) & (residuals <= slack).all()

    settled, beyond = _second_look(s, _limits(ritz.values[wanted], which, slack), slack)
    looking = s.look >= 0
    full = s.size == capacity
    done = (
        (converged & looking & (settled | (full & ~beyond)))
        | (s.size == dim)
        | (s.num_products >= max_iters)
        | ~jnp.isfinite(beta)
    )
    # A new random vector: for a second look, or because the Krylov space is closed.
    look = converged & (~looking | beyond)
    fresh = look | (beta <= 0.1 * slack)
    key, fresh_key = jax.random.split(s.key)
    following = jax.lax.cond(
        fresh & ~done, lambda: _random_direction(fresh_key, s.basis), lambda: s.next
    )
    no_room = full | (look & (capacity - s.size < (capacity - keep) // 2))
    return s._replace(
        left=jnp.where(fresh, left, s.left),
        next=following,
        coupling=jnp.where(fresh, 0, beta),
        look=jnp.where(look, s.size, s.look),
        key=key,
        restart=no_room & ~done,
        done=done,
    )


def _second_look(s: _Search, limits: tuple[Array, Array], slack: Array) -> tuple[Array, Array]:
    """Whether the sequence since row `look` rules out a missed eigenvector, or has found one.

    A missed eigenvector makes up about 1/sqrt(P) of the random vector with which the look began.
    Lanczos amplifies it by the Chebyshev polynomial T_n(x) = cosh(n arccosh x), where x is its
    distance from the middle of the other eigenvalues over their half range. After the n for which
    this exceeds sqrt(P), with a margin, it would stand out.
    """
    rows = jnp.arange(len(s.projected))
    values, vectors = masked_eigh(s.projected, (rows >= s.look) & (rows < s.size))
    count = jnp.maximum(s.size - s.look, 1)
    errors = s.coupling * jnp.abs(vectors[s.size - 1])
    low, high = values[0], values[count - 1]
    middle = (low + high) / 2
    radius = (high - low) / 2 + jnp.maximum(errors[0], errors[count - 1])
    floor, ceiling = limits
    x = jnp.minimum(ceiling - middle, middle - floor) / jnp.where(radius > 0, radius, 1)
    growth = jnp.arccosh(jnp.maximum(x, 1))
    part = OVERLOOK / jnp.sqrt(s.basis.shape[1])
    shown = (count - 1) * growth >= jnp.log(2 / part)
    # The whole Krylov space of the random vector has been seen, or its extremes are known.
    closed = s.coupling <= part * slack
    known = (count * 2 >= -jnp.log(part)) & (errors[0] <= slack) & (errors[count - 1] <= slack)
    inside = (high <= ceiling) & (low >= floor)
    looking = s.look >= 0
    return looking & inside & (shown | closed | known), looking & ~inside


def _limits(wanted: Array, which: str, slack: Array) -> tuple[Array, Array]:
    """The interval that must hold every eigenvalue which is not wanted."""
    infinity = jnp.full((), jnp.inf, wanted.dtype)
    if which == "largest":
        return -infinity, wanted[-1] + slack
    if which == "smallest":
        return wanted[-1] - slack, infinity
    if which == "magnitude":
        return -jnp.abs(wanted[-1]) - slack, jnp.abs(wanted[-1]) + slack
    top, bottom = wanted[0::2], wanted[1::2]
    return (bottom[-1] - slack if len(bottom) else -infinity), top[-1] + slack


def _restart(s: _Search, *, which: str, tol: Any, keep: int) -> _Search:
    """Keeps the best Ritz vectors, so that the search goes on in the same memory."""
    ritz = _ritz(s, which)
    rows = jnp.arange(len(s.projected))
    slack = tol * jnp.maximum(jnp.abs(ritz.values[0]), jnp.abs(ritz.values[s.size - 1]))
    # A residual that is no longer followed cannot shrink: what it keeps from converging goes.
    outside = jnp.sqrt(((s.left[:, None] * ritz.vectors) ** 2).sum(axis=0))[ritz.order]
    usable = (outside <= slack) & (rows < s.size)
    best = ritz.order[jnp.argsort(~usable, stable=True)]
    size = jnp.minimum(keep, usable.sum()).astype(jnp.int32)
    kept = rows < size
    rotation = jnp.where(kept[:, None], ritz.vectors[:, best].T, 0)
    looks_afresh = s.look == s.size
    return s._replace(
        basis=matmul(rotation, s.basis),
        products=matmul(rotation, s.products),
        projected=jnp.diag(jnp.where(kept, ritz.values[best], 0)),
        left=jnp.sqrt(((s.left[None, :] * rotation) ** 2).sum(axis=1)),
        coupling=jnp.zeros_like(s.coupling),
        size=size,
        look=jnp.where(looks_afresh, size, -1),
        restart=jnp.asarray(False),
    )


def _answer(s: _Search, flat: FlatOperator, *, k: int, which: str, tol: Any) -> Eigenpairs:
    """The wanted Ritz vectors with their Rayleigh quotients and true residuals."""
    ritz = _ritz(s, which)
    rotation = ritz.vectors[:, ritz.order[:k]].T
    vectors, products = matmul(rotation, s.basis), matmul(rotation, s.products)
    lengths = jax.vmap(norm)(vectors)[:, None]
    vectors, products = vectors / lengths, products / lengths
    quotients = jax.vmap(inner)(vectors, products)
    residuals = jax.vmap(norm)(products - quotients[:, None] * vectors)
    scale = jnp.maximum(jnp.abs(ritz.values[0]), jnp.abs(ritz.values[s.size - 1]))
    rank = {"smallest": quotients, "magnitude": -jnp.abs(quotients)}.get(which, -quotients)
    final = jnp.argsort(rank)
    return Eigenpairs(
        values=quotients[final],
        vectors=flat.unflatten(vectors[final]),
        residuals=residuals[final],
        converged=(residuals <= tol * scale)[final],
        num_products=s.num_products,
    )


class _Ritz(NamedTuple):
    """Of the projection: ascending values, vectors in columns, indices from the most wanted on."""

    values: Array
    vectors: Array
    order: Array


def _ritz(s: _Search, which: str) -> _Ritz:
    t = jnp.arange(len(s.projected))
    values, vectors = masked_eigh(s.projected, t < s.size)
    if which == "smallest":
        order = t
    elif which == "largest":
        order = s.size - 1 - t
    elif which == "both":
        order = jnp.where(t % 2 == 0, s.size - 1 - t // 2, t // 2)
    else:
        order = jnp.argsort(jnp.where(t < s.size, -jnp.abs(values), jnp.inf))
    return _Ritz(values, vectors, jnp.where(t < s.size, order, t))


def _random_direction(key: PRNGKey, basis: Array) -> Array:
    vector = jax.random.normal(key, basis.shape[1:], basis.dtype)
    for _ in range(2):
        _, rest, length = orthogonalise(basis, vector)
        vector = unit(rest, length)
    return vector
