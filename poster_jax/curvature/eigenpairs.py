"""Which directions are the most curved, and by how much: a few eigenpairs of a large operator.

Thick-restart Lanczos (Wu, Simon 2000) with full reorthogonalisation: a basis of at most
`basis_size` vectors grows by one product at a time; when it is full, the best Ritz vectors are
kept. All wanted pairs are found in one run, where power iteration with deflation spends a run on
each, and the method stops at a residual, not at a number of steps.

A Krylov space holds one vector of every eigenspace, so that a repeated eigenvalue would be found
once. Therefore, when all wanted pairs have converged, the search goes on from a random vector
orthogonal to everything found: what it finds above the wanted eigenvalues was missed (another copy)
and is taken in; when its own best Ritz value settles below them, the answer stands.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from poster_jax.core.checks import check_choice, check_count, check_key, check_positive
from poster_jax.core.typing import Array, Eigenpairs, PRNGKey
from poster_jax.curvature._flat import FlatOperator, flatten, inner
from poster_jax.curvature._lanczos import masked_eigh, matmul, norm, orthogonalise, unit
from poster_jax.curvature._probes import check_operator
from poster_jax.curvature.operator import LinearOperator

__all__ = ["top_eigenpairs"]

WHICH = ("largest", "smallest", "both", "magnitude")
# A second look goes on for at least this many products, and until its best Ritz value is known to
# a tenth: a missed eigenvector is a 1/sqrt(dim) part of a random vector and needs to grow first.
SECOND_LOOK_STEPS = 6
SECOND_LOOK_ACCURACY = 0.1


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
      basis_size: basis vectors held; memory is about `1.5 * basis_size * P` numbers. None takes
        `2 k + 30`.

    Returns:
      Eigenpairs; `residuals` come from k more products with the returned vectors, `converged` says
      which meet `tol`, `num_products` counts all. An operator that gives NaN ends the search with
      NaN values that have not converged.

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
        basis_size = 2 * k + 30
    check_count("basis_size", basis_size, minimum=min(op.dim, k + 8), hint="It must exceed k by 8.")
    basis_size = min(op.dim, basis_size)
    return _top_eigenpairs(
        op, key, tol, k=k, which=which, max_iters=max_iters, basis_size=basis_size
    )


class _Search(NamedTuple):
    """State of the search; `size` rows of `basis` (m, P) are in use.

    `projected` (m, m) is basis H basis^T. `left` (m,) is the part of H basis_i that lies outside
    the basis and is no longer followed: with it, a Ritz vector s has the residual
    sqrt(sum_i (left_i s_i)^2). `next` is the vector to add; `coupling` its product with H times the
    last one. `look` is the row from which the second look started, -1 outside one.
    """

    basis: Array
    projected: Array
    left: Array
    next: Array
    coupling: Array
    size: Array
    look: Array
    key: PRNGKey
    num_products: Array
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
    start_key, key = jax.random.split(key)
    basis = jnp.zeros((basis_size, flat.dim), flat.dtype)
    zero = jnp.zeros((), flat.dtype)
    start = _Search(
        basis=basis,
        projected=jnp.zeros((basis_size, basis_size), flat.dtype),
        left=jnp.zeros(basis_size, flat.dtype),
        next=_random_direction(start_key, basis),
        coupling=zero,
        size=jnp.int32(0),
        look=jnp.int32(-1),
        key=key,
        num_products=jnp.int32(0),
        done=jnp.asarray(False),
    )

    def step(search: _Search) -> _Search:
        grown, beta, rest = _grow(flat, search)
        return _decide(grown, beta, rest, k=k, which=which, tol=tol, max_iters=max_iters)

    end = jax.lax.while_loop(lambda s: ~s.done, step, start)
    return _answer(flat, end, k=k, which=which, tol=tol)


def _grow(flat: FlatOperator, s: _Search) -> tuple[_Search, Array, Array]:
    """Adds `next` to the basis, and its product to the projection; also the rest and its length."""
    product = flat.product(s.next)
    alpha = inner(s.next, product)
    previous = s.basis[jnp.maximum(s.size - 1, 0)]
    basis = s.basis.at[s.size].set(s.next)
    local = product - alpha * s.next - s.coupling * previous
    coefficients, rest, beta = orthogonalise(basis, local)
    coefficients = coefficients.at[s.size].add(alpha)
    coefficients = coefficients.at[jnp.maximum(s.size - 1, 0)].add(s.coupling)
    projected = s.projected.at[:, s.size].set(coefficients).at[s.size, :].set(coefficients)
    grown = s._replace(
        basis=basis,
        projected=projected,
        size=s.size + 1,
        num_products=s.num_products + 1,
    )
    return grown, beta, rest


def _decide(
    s: _Search, beta: Array, rest: Array, *, k: int, which: str, tol: Any, max_iters: int
) -> _Search:
    """Ends, goes on along the rest, restarts from the best Ritz vectors, or looks again."""
    capacity, dim = s.basis.shape
    rows = jnp.arange(capacity)
    last = s.size - 1
    left = s.left.at[last].set(beta)
    values, vectors = masked_eigh(s.projected, rows < s.size)
    order = _preference(values, s.size, which)
    scale = jnp.maximum(jnp.where(rows < s.size, jnp.abs(values), 0).max(), beta)
    residuals = jnp.sqrt(((left[:, None] * vectors) ** 2).sum(axis=0))
    converged = (s.size >= k) & (residuals[order[:k]] <= tol * scale).all()

    wanted = values[order[:k]]
    closed = beta <= 0.1 * tol * scale
    settled, missed = _second_look(s, beta, wanted, which=which, slack=tol * scale, closed=closed)
    full = s.size == capacity
    complete = s.size == dim
    certain = (s.look >= 0) & (settled | (full & ~missed))
    done = (converged & certain) | complete | (s.num_products >= max_iters) | ~jnp.isfinite(beta)

    # A new random vector: for a second look, or because the Krylov space is closed.
    look_again = converged & ((s.look < 0) | missed)
    fresh = look_again | closed
    keep = k + (capacity - k) // 2 if capacity < dim else capacity
    restart = full | (look_again & (capacity - s.size < (capacity - keep) // 2) & (capacity < dim))
    followed = jnp.where(fresh, left, left.at[last].set(0))

    def thick_restart(_: None) -> tuple[Array, ...]:
        # A residual that is no longer followed cannot shrink: what it keeps from converging goes.
        outside = jnp.sqrt(((followed[:, None] * vectors) ** 2).sum(axis=0))[order]
        usable = (outside <= tol * scale) & (rows < s.size)
        best = order[jnp.argsort(~usable, stable=True)]
        size = jnp.minimum(keep, usable.sum())
        kept = rows < size
        ritz = jnp.where(kept[:, None], vectors[:, best].T, 0)
        projected = jnp.diag(jnp.where(kept, values[best], 0))
        left = jnp.sqrt(((followed[None, :] * ritz) ** 2).sum(axis=1))
        return matmul(ritz, s.basis), projected, left, size.astype(jnp.int32), jnp.zeros_like(beta)

    def go_on(_: None) -> tuple[Array, ...]:
        return s.basis, s.projected, followed, s.size, beta

    basis, projected, left, size, coupling = jax.lax.cond(
        restart & ~done, thick_restart, go_on, None
    )
    key, fresh_key = jax.random.split(s.key)
    following = jax.lax.cond(
        fresh & ~done,
        lambda: _random_direction(fresh_key, basis),
        lambda: unit(rest, beta),
    )
    look = jnp.where(look_again, size, jnp.where(restart, -1, s.look))
    return _Search(
        basis=basis,
        projected=projected,
        left=left,
        next=following,
        coupling=jnp.where(fresh | restart, 0, coupling),
        size=size,
        look=look.astype(jnp.int32),
        key=key,
        num_products=s.num_products,
        done=done,
    )


def _second_look(
    s: _Search, beta: Array, wanted: Array, *, which: str, slack: Array, closed: Array
) -> tuple[Array, Array]:
    """Whether the sequence since row `look` has settled below the wanted values, or beyond them."""
    rows = jnp.arange(len(s.projected))
    active = (rows >= s.look) & (rows < s.size)
    values, vectors = masked_eigh(s.projected, active)
    count = jnp.maximum(s.size - s.look, 1)
    residuals = beta * jnp.abs(vectors[s.size - 1])
    low, high = values[0], values[count - 1]
    low_error, high_error = residuals[0], residuals[count - 1]
    floor, ceiling = _limits(wanted, which)
    known = SECOND_LOOK_ACCURACY * jnp.maximum(jnp.abs(low), jnp.abs(high)) + slack
    enough = closed | ((count >= SECOND_LOOK_STEPS) & (jnp.maximum(low_error, high_error) <= known))
    within = (high + high_error <= ceiling + slack) & (low - low_error >= floor - slack)
    beyond = (high > ceiling + slack) | (low < floor - slack)
    return (s.look >= 0) & enough & within, (s.look >= 0) & beyond


def _limits(wanted: Array, which: str) -> tuple[Array, Array]:
    """The interval that must hold every eigenvalue which is not wanted."""
    infinity = jnp.full((), jnp.inf, wanted.dtype)
    if which == "largest":
        return -infinity, wanted[-1]
    if which == "smallest":
        return wanted[-1], infinity
    if which == "magnitude":
        return -jnp.abs(wanted[-1]), jnp.abs(wanted[-1])
    top, bottom = wanted[0::2], wanted[1::2]
    return (bottom[-1] if len(bottom) else -infinity), top[-1]


def _preference(values: Array, size: Array, which: str) -> Array:
    """Indices of the ascending `values`, the most wanted first; those from `size` on come last."""
    t = jnp.arange(len(values))
    if which == "smallest":
        return t
    if which == "largest":
        order = size - 1 - t
    elif which == "both":
        order = jnp.where(t % 2 == 0, size - 1 - t // 2, t // 2)
    else:
        order = jnp.argsort(jnp.where(t < size, -jnp.abs(values), jnp.inf))
    return jnp.where(t < size, order, t)


def _answer(flat: FlatOperator, s: _Search, *, k: int, which: str, tol: Any) -> Eigenpairs:
    """Ritz vectors, and one more product with each for its Rayleigh quotient and true residual."""
    values, vectors = masked_eigh(s.projected, jnp.arange(len(s.projected)) < s.size)
    order = _preference(values, s.size, which)
    ritz = matmul(vectors[:, order[:k]].T, s.basis)
    ritz = jax.vmap(lambda v: unit(v, norm(v)))(ritz)

    def check(vector: Array) -> tuple[Array, Array]:
        product = flat.product(vector)
        value = inner(vector, product)
        return value, norm(product - value * vector)

    quotients, residuals = jax.lax.map(check, ritz)
    rank = {
        "largest": -quotients,
        "both": -quotients,
        "smallest": quotients,
        "magnitude": -jnp.abs(quotients),
    }[which]
    final = jnp.argsort(rank)
    scale = jnp.where(jnp.arange(len(values)) < s.size, jnp.abs(values), 0).max()
    return Eigenpairs(
        values=quotients[final],
        vectors=flat.unflatten(ritz[final]),
        residuals=residuals[final],
        converged=(residuals <= tol * scale)[final],
        num_products=s.num_products + k,
    )


def _random_direction(key: PRNGKey, basis: Array) -> Array:
    vector = jax.random.normal(key, basis.shape[1:], basis.dtype)
    for _ in range(2):
        _, rest, length = orthogonalise(basis, vector)
        vector = unit(rest, length)
    return vector
