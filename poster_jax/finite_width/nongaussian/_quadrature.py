"""Gaussian expectations by quadrature: of two outputs, of four, of many.

Against the normal density the trapezoidal rule converges fastest: for a function with poles at the
distance d its error falls as exp(-2 pi d / step), that of Gauss-Hermite as exp(-2 d sqrt(m)): with
64 points E[tanh^4] of unit variance is exact to 3e-13 against 4e-7. Gauss-Hermite is left for
polynomials, where it is exact; functions with a kink at 0 take `core.quadrature.split_rule`.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from scipy.stats import qmc

from poster_jax.core.linalg import eigh

__all__ = [
    "derivatives", "expect_four", "hermite_rule", "map_chunks", "quasi_random", "root",
    "smooth_rule", "zero_pivot_cholesky",
]  # fmt: skip

_REACH = 9.4  # the normal density is 1e-19 of its peak there


@functools.lru_cache(maxsize=16)
def hermite_rule(degree: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights, summing to 1, for the standard normal."""
    nodes, weights = scipy.special.roots_hermitenorm(degree)
    return nodes, weights / weights.sum()


@functools.lru_cache(maxsize=16)
def smooth_rule(degree: int) -> tuple[np.ndarray, np.ndarray]:
    """Trapezoidal nodes and weights; what is cut off is about as small as what the step leaves."""
    reach = min(_REACH, 1.9 * degree ** (1 / 3))
    nodes = np.linspace(-reach, reach, degree)
    weights = np.exp(-(nodes**2) / 2)
    return nodes, weights / weights.sum()


def derivatives(fn: Callable[..., Any], order: int) -> list[Callable[..., Any]]:
    """`fn` and its derivatives up to `order`, elementwise."""
    found = [fn]
    for _ in range(order):
        found.append(_slope(found[-1]))
    return found


def _slope(fn: Callable[..., Any]) -> Callable[..., Any]:
    return lambda z: jax.jvp(fn, (z,), (jnp.ones_like(z),))[1]


def map_chunks(fn: Callable[..., Any], arrays: tuple[Any, ...], size: int) -> Any:
    """`fn` of arrays with a common first axis, `size` rows at a time; a last short chunk repeats.

    A loop over arrays of several rows, no `vmap`, whose last chunk might have size 1.
    """
    num = arrays[0].shape[0]
    size = min(size, num)
    chunks = -(-num // size)
    rows = np.minimum(np.arange(chunks * size), num - 1)
    split = [a[rows].reshape(chunks, size, *a.shape[1:]) for a in arrays]
    found = jax.lax.map(lambda parts: fn(*parts), tuple(split))
    return jax.tree.map(lambda a: a.reshape(chunks * size, *a.shape[2:])[:num], found)


def expect_four(fn: Callable[..., Any], cov: Any, rule: tuple[np.ndarray, np.ndarray]) -> Any:
    """(Q,) expectations of `fn` of each of four outputs, multiplied, from `cov` (Q, 4, 4)."""
    nodes, weights = (jnp.asarray(a, cov.dtype) for a in rule)

    def chunk(cov):
        L = zero_pivot_cholesky(cov)[..., None, None, None, None]
        x = [nodes.reshape([-1 if i == j else 1 for j in range(4)]) for i in range(4)]
        out = 1.0
        for i in reversed(range(4)):
            z = sum(L[:, i, j] * x[j] for j in range(i + 1))
            out = (fn(z) * out * weights.reshape([-1 if i == j else 1 for j in range(4)])).sum(
                i + 1, keepdims=True
            )
        return out.reshape(-1)

    return map_chunks(chunk, (cov,), max(1, 2**20 // len(nodes) ** 4))


def zero_pivot_cholesky(cov: Any) -> Any:
    """Lower triangles of positive semi-definite (..., n, n), small n; zero pivots leave zeros."""
    n = cov.shape[-1]
    eps = 8 * n * jnp.finfo(cov.dtype).eps

    def column(j, rest):
        pivot = rest[..., j]
        own = jnp.take(jnp.diagonal(cov, axis1=-2, axis2=-1), j, -1)
        good = pivot > eps * own
        scale = jnp.where(good, 1 / jnp.sqrt(jnp.where(good, pivot, 1)), 0)
        return jnp.where(jnp.arange(n) >= j, rest * scale[..., None], 0)

    if n <= 8:
        columns: list[Any] = []
        for j in range(n):
            known = sum(c * c[..., j, None] for c in columns)
            columns.append(column(j, cov[..., j] - known))
        return jnp.stack(columns, -1)

    def add(j, L):
        rest = cov[..., j] - jnp.einsum("...ik,...k->...i", L, L[..., j, :])
        return L.at[..., j].set(column(j, rest))

    return jax.lax.fori_loop(0, n, add, jnp.zeros_like(cov))


def root(cov: Any) -> Any:
    """(N, N) B with B B' = cov, large directions first: where quasi-random points are best.

    Eigenvectors have no derivatives where eigenvalues are equal; held fixed they need none, and a
    triangle of the rotated covariance carries them.
    """
    _, vectors = eigh(jax.lax.stop_gradient(cov))
    vectors = jax.lax.stop_gradient(vectors[:, ::-1])
    return vectors @ zero_pivot_cholesky(vectors.T @ cov @ vectors)


@functools.lru_cache(maxsize=4)
def quasi_random(num: int, dim: int, seed: int) -> np.ndarray:
    """(num, dim) quasi-random standard normal points: Sobol's, scrambled."""
    sampler = qmc.Sobol(dim, scramble=True, rng=np.random.default_rng(seed))
    uniform = sampler.random(1 << max(num - 1, 0).bit_length())[:num]
    return scipy.special.ndtri(np.clip(uniform, 1e-12, 1 - 1e-12))
