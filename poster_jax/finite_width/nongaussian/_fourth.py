"""The fluctuation of one layer: Cov(phi_a phi_b, phi_c phi_d) over a Gaussian neuron.

Closed where the four-point expectation is, exact by Gauss-Hermite for polynomials. A smooth
activation of at most four inputs is integrated over all of them at once by a product rule, of more
(on demand) over four at a time. Else the average is over quasi-random neurons,

    Cov = sum_s d_s x d_s,      d_s = (phi_s phi_s' - A) / sqrt(S),

which is positive semi-definite as it stands and never needs N^4 integrals.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from poster_jax.finite_width.nongaussian._pairs import pairs_of, quadruples_of
from poster_jax.finite_width.nongaussian._quadrature import (
    expect_four,
    hermite_rule,
    quasi_random,
    root,
    smooth_rule,
)
from poster_jax.finite_width.nongaussian.activation import Activation

__all__ = [
    "METHODS",
    "activations",
    "centred",
    "covariance_of_products",
    "four_point",
    "method_of",
    "neurons",
    "over_blocks",
    "radial",
    "sampled_factors",
]

METHODS = ("auto", "closed", "quadrature", "sampling")
# Entries of a block of factors: 2^22 float64 are 32 MiB.
_BLOCK = 2**22
# Numbers that a rule of four dimensions may evaluate before sampling is taken for polynomials.
_MOST = 2**28


def method_of(phi: Activation, num: int, method: str) -> str:
    """What "auto" stands for with `num` inputs; ValueError for a closed form that is not known."""
    if method == "closed" and phi.fourth is None:
        raise ValueError(
            f"fourth='closed' needs an activation with a closed four-point function, got "
            f"{phi.name!r}: take 'quadrature' or 'sampling'."
        )
    if method != "auto":
        return method
    if phi.fourth is not None:
        return "closed"
    if phi.degree is not None and num <= 64:
        exact = (2 * phi.degree + 1) ** 4 * len(quadruples_of(num)[0]) < _MOST
        return "quadrature" if exact else "sampling"
    return "quadrature" if num <= 4 and not phi.kinked else "sampling"


def covariance_of_products(
    phi: Activation, K: Any, A: Any, *, method: str, degree: int, num_samples: int, seed: int
) -> Any:
    """(P, P) covariances; `A` (P,) are the means of the products."""
    num = K.shape[-1]
    rule = neurons(phi, num, method=method, degree=degree, num_samples=num_samples, seed=seed)
    if rule is not None:
        return _sum_of_squares(phi, K, A, *rule)
    quadruples, table = quadruples_of(num)
    cov = K[quadruples[:, :, None], quadruples[:, None, :]]
    return four_point(phi, cov, method=method, degree=degree)[table] - A[:, None] * A


def neurons(
    phi: Activation, num: int, *, method: str, degree: int, num_samples: int, seed: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """(S, N) points and (S,) weights that stand for a neuron; None where `four_point` is taken."""
    chosen = method_of(phi, num, method)
    if chosen == "sampling":
        return _neurons(phi, num, num_samples, seed), np.full(num_samples, 1 / num_samples)
    if chosen == "quadrature" and phi.degree is None and num <= 4:
        return _grid(num, degree)
    return None


def four_point(phi: Activation, cov: Any, *, method: str, degree: int) -> Any:
    """(Q,) expectations of four activations multiplied, of covariances (Q, 4, 4)."""
    if phi.fourth is not None and method in ("auto", "closed"):
        return phi.fourth(cov)
    if phi.degree is not None:
        return expect_four(phi.fn, cov, hermite_rule(2 * phi.degree + 1))
    return expect_four(phi.fn, cov, smooth_rule(degree))


def sampled_factors(phi: Activation, K: Any, A: Any, *, num_samples: int, seed: int) -> Any:
    """(R, P) rows d_s whose squares sum to the covariance."""
    num = K.shape[-1]
    values = activations(phi, _neurons(phi, num, num_samples, seed), root(K))
    rows = centred(phi, _products(values), A, num) / math.sqrt(num_samples)
    return jnp.concatenate([rows, *radial(phi, A, num)])


def _sum_of_squares(phi: Activation, K: Any, A: Any, points: Any, weights: Any) -> Any:
    """sum_s w_s d_s x d_s, a block of points at a time."""
    num, factor = K.shape[-1], root(K)

    def add(total, block):
        points, weights = block
        rows = centred(phi, _products(activations(phi, points, factor)), A, num)
        return total + (rows * weights[:, None]).T @ rows

    total = jnp.zeros((len(A), len(A)), K.dtype)
    total = total + sum(r.T @ r for r in radial(phi, A, num))
    return over_blocks(add, total, (points, weights), len(A))


def over_blocks(add: Callable[..., Any], total: Any, rows: tuple[Any, ...], breadth: int) -> Any:
    """`total = add(total, block)` over blocks of rows that make at most `_BLOCK` numbers each."""
    num = len(rows[0])
    size = min(max(2, _BLOCK // breadth), num)
    whole = num // size
    rows = tuple(jnp.asarray(a, total.dtype) for a in rows)
    blocks = tuple(a[: whole * size].reshape(whole, size, *a.shape[1:]) for a in rows)
    total, _ = jax.lax.scan(lambda total, block: (add(total, block), None), total, blocks)
    rest = tuple(a[whole * size :] for a in rows)
    return add(total, rest) if len(rest[0]) else total


@functools.lru_cache(maxsize=4)
def _grid(num: int, degree: int) -> tuple[np.ndarray, np.ndarray]:
    """A product rule of `num` dimensions; fewer dimensions leave more points for each."""
    nodes, weights = smooth_rule({1: 4, 2: 3, 3: 2, 4: 1}[num] * degree)
    points = np.stack([a.ravel() for a in np.meshgrid(*[nodes] * num, indexing="ij")], -1)
    product = functools.reduce(np.multiply.outer, [weights] * num)
    return points, product.ravel()


@functools.lru_cache(maxsize=4)
def _neurons(phi: Activation, dim: int, num_samples: int, seed: int) -> np.ndarray:
    if not phi.homogeneous:
        return quasi_random(num_samples, dim, seed)
    points = quasi_random(num_samples // 2, dim, seed)
    points = points / np.linalg.norm(points, axis=-1, keepdims=True)
    return np.concatenate([points, -points])


def centred(phi: Activation, products: Any, A: Any, dim: int) -> Any:
    """d_s from products (S, P) of Gaussian neurons, or, of a homogeneous activation, on the sphere.

    There the radius r of the D-dimensional normal splits off: E r^2 = D, E r^4 = D (D + 2), and
    Cov = D (D + 2) Cov(on the sphere) + (2 / D) A x A; a single input is then exact.
    """
    if phi.homogeneous:
        return (products - A / dim) * math.sqrt(dim * (dim + 2))
    return products - A


def radial(phi: Activation, A: Any, dim: int) -> list[Any]:
    """The rows that the radius of a homogeneous activation adds: (1, P), or none."""
    return [math.sqrt(2 / dim) * A[None]] if phi.homogeneous else []


def activations(phi: Activation, points: Any, factor: Any) -> Any:
    """(S, N) values of neurons at `points` (S, N), of covariance factor factor'."""
    return phi.fn(jnp.asarray(points, factor.dtype) @ factor.T)


def _products(values: Any) -> Any:
    rows, columns, *_ = pairs_of(values.shape[-1])
    return values[:, rows] * values[:, columns]
