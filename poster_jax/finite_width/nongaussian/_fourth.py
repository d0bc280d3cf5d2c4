"""The fluctuation of one layer: Cov(phi_a phi_b, phi_c phi_d) over a Gaussian neuron.

Closed where the four-point expectation is, exact by Gauss-Hermite for polynomials. A smooth
activation of at most four inputs is integrated over all of them at once by a product rule, of more
(on demand) over four at a time. Else the average is over quasi-random neurons,

    Cov = sum_s d_s x d_s,      d_s = (phi_s phi_s' - A) / sqrt(S),

which is positive semi-definite as it stands and never needs N^4 integrals.
"""

import functools
import math
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

__all__ = ["METHODS", "covariance_of_products", "method_of", "sampled_factors"]

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
    chosen = method_of(phi, num, method)
    if chosen == "sampling":
        points = _neurons(phi, num, num_samples, seed)
        weights = np.full(num_samples, 1 / num_samples)
        return _sum_of_squares(phi, K, A, points, weights)
    if chosen == "quadrature" and phi.degree is None and num <= 4:
        return _sum_of_squares(phi, K, A, *_grid(num, degree))
    quadruples, table = quadruples_of(num)
    cov = K[quadruples[:, :, None], quadruples[:, None, :]]
    if chosen == "closed" and phi.fourth is not None:
        four = phi.fourth(cov)
    elif phi.degree is not None:
        four = expect_four(phi.fn, cov, hermite_rule(2 * phi.degree + 1))
    else:
        four = expect_four(phi.fn, cov, smooth_rule(degree))
    return four[table] - A[:, None] * A


def sampled_factors(phi: Activation, K: Any, A: Any, *, num_samples: int, seed: int) -> Any:
    """(R, P) rows d_s whose squares sum to the covariance."""
    points = _neurons(phi, K.shape[-1], num_samples, seed)
    rows = _deviations(phi, K, A, points) / math.sqrt(num_samples)
    return jnp.concatenate([rows, *_radial(phi, K, A)])


def _sum_of_squares(phi: Activation, K: Any, A: Any, points: Any, weights: Any) -> Any:
    """sum_s w_s d_s x d_s, a block of points at a time."""
    size = min(max(2, _BLOCK // len(A)), len(points))
    whole = len(points) // size

    def add(total, block):
        points, weights = block
        rows = _deviations(phi, K, A, points)
        return total + (rows * weights[:, None]).T @ rows, None

    total = sum(jnp.dot(r.T, r) for r in _radial(phi, K, A)) + jnp.zeros((len(A), len(A)), K.dtype)
    points, weights = (jnp.asarray(a, K.dtype) for a in (points, weights))
    blocks = [a[: whole * size].reshape(whole, size, *a.shape[1:]) for a in (points, weights)]
    total, _ = jax.lax.scan(add, total, tuple(blocks))
    rest = points[whole * size :], weights[whole * size :]
    return add(total, rest)[0] if len(rest[0]) else total


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


def _deviations(phi: Activation, K: Any, A: Any, points: Any) -> Any:
    """d_s of Gaussian neurons, or, for a homogeneous activation, of neurons on the sphere.

    There the radius r of the D-dimensional normal splits off: E r^2 = D, E r^4 = D (D + 2), and
    Cov = D (D + 2) Cov(on the sphere) + (2 / D) A x A; a single input is then exact.
    """
    dim = K.shape[-1]
    rows, columns, *_ = pairs_of(dim)
    values = phi.fn(jnp.asarray(points, K.dtype) @ root(K).T)
    products = values[:, rows] * values[:, columns]
    if phi.homogeneous:
        return (products - A / dim) * math.sqrt(dim * (dim + 2))
    return products - A


def _radial(phi: Activation, K: Any, A: Any) -> list[Any]:
    return [math.sqrt(2 / K.shape[-1]) * A[None]] if phi.homogeneous else []
