"""How the eigenvalues are distributed: the spectral density by stochastic Lanczos quadrature.

For a random unit vector z, `z^T f(H) z` is an integral of f against a measure whose mean is the
density of the eigenvalues. m Lanczos steps from z give the Gauss rule of that measure: nodes (Ritz
values) and weights that integrate polynomials up to the degree 2 m - 1 exactly.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from poster_jax.core.checks import check_count, check_finite, check_positive
from poster_jax.core.linalg import eigh
from poster_jax.core.typing import Array, Float, PRNGKey
from poster_jax.core.vectors import inner, norm, orthogonalise, unit
from poster_jax.curvature._flat import FlatOperator, flatten
from poster_jax.curvature._probes import check_probes, sample
from poster_jax.curvature.operator import LinearOperator, map_vectors

__all__ = ["Density", "spectral_density"]


class Density(NamedTuple):
    """The distribution of the eigenvalues of an operator.

    Attributes:
      grid: float (points,); eigenvalues at which the density is given.
      density: float (points,); smoothed density of the eigenvalues, integral 1.
      nodes: float (probes, steps); quadrature nodes of each probe.
      weights: float (probes, steps); their weights, each row sums to 1. The moments of the density
        are `mean(sum(weights * nodes**k, axis=1))`; the fraction of eigenvalues above a value is
        `mean(sum(weights * (nodes > value), axis=1))`.
    """

    grid: Float[Array, " points"]
    density: Float[Array, " points"]
    nodes: Float[Array, "probes steps"]
    weights: Float[Array, "probes steps"]


def spectral_density(
    op: LinearOperator,
    key: PRNGKey,
    *,
    num_lanczos: int = 64,
    num_probes: int = 4,
    grid: int | Float[Array, " points"] = 1024,
    width: float = 0.01,
    probe: str = "sphere",
    block_size: int = 1,
) -> Density:
    """The density of the eigenvalues, bulk and outliers, with its quadrature nodes and weights.

    Args:
      op: the operator, dim P.
      key: PRNG key.
      num_lanczos: steps m for each probe (products: m * num_probes); more steps resolve more
        detail, P at most.
      num_probes: random starting vectors; more of them lower the noise, of the order of
        1 / sqrt(P * num_probes).
      grid: number of equally spaced points over the whole range of the nodes, or the points
        themselves, increasing.
      width: standard deviation of the Gaussian with which each node is smoothed, as a fraction of
        the range of the nodes.
      probe: "sphere", "rademacher" or "gaussian"; the weights are normalised for each.
      block_size: probes at a time; memory is about `block_size * num_lanczos * P` numbers.

    Returns:
      Density.

    Raises:
      ValueError: a count below 1, num_lanczos above P, width not positive, a grid that is no
        increasing vector, unknown probe.
      TypeError: op is no LinearOperator, key is no PRNG key.

    Source: Ubaru, Chen, Saad 2017, "Fast estimation of tr(f(A)) via stochastic Lanczos quadrature",
      SIAM J. Matrix Anal. Appl. 38(4); for networks Ghorbani, Krishnan, Xiao 2019, ICML.

    Example:
      >>> from poster_jax.curvature import matrix_operator
      >>> op = matrix_operator(jnp.diag(jnp.arange(100.0)))
      >>> density = spectral_density(op, jax.random.key(0), num_lanczos=10, num_probes=3)
      >>> density.nodes.shape, round(float(jnp.trapezoid(density.density, density.grid)), 2)
      ((3, 10), 1.0)
    """
    check_probes(op, key, num_probes, probe, block_size)
    check_count("num_lanczos", num_lanczos)
    if num_lanczos > op.dim:
        raise ValueError(
            f"num_lanczos must be at most the dimension of the operator, {op.dim}, got "
            f"{num_lanczos}."
        )
    check_positive("width", width)
    _check_grid(grid)
    nodes, weights = _quadrature(
        op, key, num_lanczos=num_lanczos, num_probes=num_probes, probe=probe, block_size=block_size
    )
    return _smooth(nodes, weights, grid, width)


@partial(jax.jit, static_argnames=("num_lanczos", "num_probes", "probe", "block_size"))
def _quadrature(
    op: LinearOperator,
    key: PRNGKey,
    *,
    num_lanczos: int,
    num_probes: int,
    probe: str,
    block_size: int,
) -> tuple[Array, Array]:
    flat = flatten(op)

    def one(key: Array) -> tuple[Array, Array]:
        start = sample(key, probe, 1, flat)[0]
        values, vectors = eigh(_tridiagonal(flat, start, num_lanczos))
        return values, vectors[0] ** 2

    return map_vectors(one, jax.random.split(key, num_probes), block_size)


def _tridiagonal(flat: FlatOperator, start: Array, num_steps: int) -> Array:
    """The (m, m) projection of the operator on the Krylov space of `start`.

    A closed Krylov space leaves zero rows: nodes at zero that carry no weight.
    """

    def step(carry: tuple[Array, ...], i: Array) -> tuple[tuple[Array, ...], tuple[Array, Array]]:
        basis, vector, beta, scale = carry
        product = flat.product(vector)
        alpha = inner(vector, product)
        # Written before it is read: a read of the old basis would make XLA copy all of it.
        basis = basis.at[i].set(vector)
        local = product - alpha * vector - beta * basis[jnp.maximum(i - 1, 0)]
        _, rest, length = orthogonalise(basis, local)
        scale = jnp.maximum(scale, jnp.maximum(jnp.abs(alpha), length))
        length = jnp.where(length > 10 * jnp.finfo(flat.dtype).eps * scale, length, 0)
        following = jnp.where(length > 0, unit(rest, length), 0)
        return (basis, following, length, scale), (alpha, length)

    zero = jnp.zeros((), flat.dtype)
    first = (jnp.zeros((num_steps, flat.dim), flat.dtype), unit(start, norm(start)), zero, zero)
    _, (diagonal, below) = jax.lax.scan(step, first, jnp.arange(num_steps))
    return jnp.diag(diagonal) + jnp.diag(below[:-1], 1) + jnp.diag(below[:-1], -1)


@jax.jit
def _smooth_on(nodes: Array, weights: Array, grid: Array, deviation: Array) -> Array:
    distance = (grid[:, None] - nodes.reshape(-1)) / deviation
    kernel = jnp.exp(-0.5 * distance**2) / (deviation * jnp.sqrt(2 * jnp.pi))
    return (kernel * weights.reshape(-1)).sum(axis=1) / len(nodes)


def _smooth(nodes: Array, weights: Array, grid: Any, width: Any) -> Density:
    low, high = nodes.min(), nodes.max()
    # A spectrum of one value still needs some width to be drawn.
    spread = jnp.maximum(high - low, 1e-3 * jnp.maximum(jnp.abs(low), jnp.abs(high)) + 1e-30)
    deviation = width * spread
    if isinstance(grid, int | np.integer):
        grid = jnp.linspace(low - 5 * deviation, high + 5 * deviation, int(grid))
    grid = jnp.asarray(grid, nodes.dtype)
    return Density(grid, _smooth_on(nodes, weights, grid, deviation), nodes, weights)


def _check_grid(grid: Any) -> None:
    if isinstance(grid, int | np.integer) and not isinstance(grid, bool):
        check_count("grid", grid, minimum=2)
        return
    if getattr(grid, "ndim", None) != 1 or len(grid) < 1:
        raise ValueError(f"grid must be a number of points or a vector of them, got {grid!r}.")
    check_finite("grid", grid)
    if not isinstance(grid, jax.core.Tracer) and not (np.diff(np.asarray(grid)) > 0).all():
        raise ValueError("grid must be increasing.")
