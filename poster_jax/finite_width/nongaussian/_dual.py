"""How the covariance of activations answers to a change of the covariance below it.

A_ab = E[phi_a phi_b] depends on the three numbers k = K_ab, v1 = K_aa, v2 = K_bb. Its slopes make
the map J, its second derivatives H:

    (J M)_ab = A_k M_ab + A_v1 M_aa + A_v2 M_bb,
    (H:V)_ab = sum over i, j of A_ij V_(i)(j),       i, j in {(a,b), (a,a), (b,b)}.

By Price's theorem A_k = E[phi' phi'], A_v1 = E[phi'' phi] / 2, and so on.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from poster_jax.core.quadrature import split_rule
from poster_jax.finite_width.nongaussian._pairs import num_inputs, pairs_of
from poster_jax.finite_width.nongaussian._quadrature import derivatives, map_chunks, smooth_rule
from poster_jax.finite_width.nongaussian.activation import Activation

__all__ = [
    "DualDerivatives",
    "apply_jacobian",
    "contract_hessian",
    "dual_derivatives",
    "variance_slopes",
]


class DualDerivatives(NamedTuple):
    """The dual of every pair of inputs with its derivatives in (K_ab, K_aa, K_bb).

    Attributes:
      value: (P,).
      first: (3, P).
      second: (3, 3, P), symmetric.
    """

    value: Any
    first: Any
    second: Any


def dual_derivatives(phi: Activation, K: Any, degree: int) -> DualDerivatives:
    """From the closed form where there is one, else by quadrature with `degree` points a side."""
    rows, columns, _, diagonal, _ = pairs_of(K.shape[-1])
    v = jnp.diagonal(K)
    if phi.dual is not None:
        value, first, second = _closed(phi.dual, K, v, v)
        pick = (rows, columns)
        found = DualDerivatives(
            value[pick],
            jnp.stack([a[pick] for a in first]),
            jnp.stack([jnp.stack([a[pick] for a in line]) for line in second]),
        )
    else:
        by_quadrature = _by_parts if phi.kinked else _by_price
        arrays = (K[rows, columns], v[rows], v[columns])
        nine = map_chunks(
            lambda *a: by_quadrature(phi.fn, *a, degree), arrays, max(2, 2**19 // degree**2)
        )
        value, first, second = _by_pair(nine)
        found = DualDerivatives(value, first, second)
    return _on_diagonal(phi, found, v, diagonal, degree)


def apply_jacobian(first: Any, M: Any) -> Any:
    """J M for symmetric M (..., P)."""
    return sum(slope * M[..., near] for slope, near in zip(first, _near(M), strict=True))


def contract_hessian(second: Any, entries: Callable[[Any, Any], Any]) -> Any:
    """H:V from `entries(i, j) -> V_(i)(j)` at places i and j, each (P,)."""
    near = _near(second)
    return sum(second[i, j] * entries(near[i], near[j]) for i in range(3) for j in range(3))


def _near(array: Any) -> np.ndarray:
    num = array.shape[-1]
    return pairs_of(num_inputs(num)).neighbours


def _closed(dual: Any, *args: Any) -> tuple[Any, list[Any], list[list[Any]]]:
    first = [_along(dual, i) for i in range(3)]
    second = [[_along(first[min(i, j)], max(i, j))(*args) for j in range(3)] for i in range(3)]
    return dual(*args), [slope(*args) for slope in first], second


def _along(fn: Any, index: int) -> Any:
    """The derivative in one argument. Entry (a, b) reads k_ab, v1_a and v2_b alone: ones do."""

    def derivative(*args):
        tangents = [jnp.full_like(a, float(i == index)) for i, a in enumerate(args)]
        return jax.jvp(fn, args, tuple(tangents))[1]

    return derivative


def _by_pair(nine: Any) -> tuple[Any, Any, Any]:
    value, k, v1, v2, kk, k1, k2, v11, v12, v22 = nine
    second = jnp.stack([jnp.stack(r) for r in ((kk, k1, k2), (k1, v11, v12), (k2, v12, v22))])
    return value, jnp.stack([k, v1, v2]), second


def _by_price(fn: Any, k: Any, v1: Any, v2: Any, degree: int) -> Any:
    """Smooth functions: expectations of products of derivatives, also where outputs are equal."""
    x, w = (jnp.asarray(a, k.dtype) for a in smooth_rule(degree))
    scale = _root(v1)
    along = jnp.where(v1 > 0, k / jnp.where(v1 > 0, scale, 1), 0)
    across = _root(v2 - along**2)
    u = scale[:, None] * x
    z = along[:, None, None] * x[:, None] + across[:, None, None] * x
    slopes = derivatives(fn, 4)
    left = [f(u) * w for f in slopes]
    # One array of all nodes at a time: the inner sums are over the second coordinate.
    right = [jnp.einsum("pij,j->pi", f(z), w) for f in slopes]

    def mean(i, j):
        return (left[i] * right[j]).sum(-1)

    return (
        mean(0, 0),
        mean(1, 1), mean(2, 0) / 2, mean(0, 2) / 2,
        mean(2, 2), mean(3, 1) / 2, mean(1, 3) / 2,
        mean(4, 0) / 4, mean(2, 2) / 4, mean(0, 4) / 4,
    )  # fmt: skip


def _by_parts(fn: Any, k: Any, v1: Any, v2: Any, degree: int) -> Any:
    """Functions with a kink at 0: the derivatives fall on the density (Hermite weights, Stein).

    In whitened coordinates d/dx1 = sqrt(v1) d/da + along d/db and d/dx2 = across d/db, and
    E[d^i/dx1^i d^j/dx2^j f] = E[He_i(x1) He_j(x2) f].
    """
    positive = v1 > 0
    scale = jnp.where(positive, jnp.sqrt(v1), 1)
    along = k / scale
    across = _root(v2 - along**2)
    apart = across > 1e-6 * jnp.sqrt(v2)
    safe = jnp.where(apart, across, 1)
    x, wx = split_rule(jnp.zeros_like(k), degree)
    y, wy = split_rule(-along[:, None] * x / safe[:, None], degree)
    u = jnp.where(positive, scale, 0)[:, None] * x
    z = along[:, None, None] * x[..., None] + across[:, None, None] * y
    f = (wx * fn(u))[..., None] * wy * fn(z)
    hermite = [_hermite(i, x)[..., None] for i in range(5)], [_hermite(j, y) for j in range(5)]
    moments = {
        (i, j): (f * hermite[0][i] * hermite[1][j]).sum((-1, -2))
        for i in range(5)
        for j in range(5 - i)
    }
    zero = jnp.zeros_like(k)
    # d/da and d/db as forms in d/dx1, d/dx2; where outputs coincide the singular part is zero.
    inverse, across_inverse = jnp.where(positive, 1 / scale, 0), jnp.where(apart, 1 / safe, 0)
    da = {(1, 0): inverse, (0, 1): -along * inverse * across_inverse}
    db = {(0, 1): across_inverse}

    def mean(i, j):
        form = {(0, 0): zero + 1}
        for factor in [da] * i + [db] * j:
            grown = {}
            for (p, q), c in form.items():
                for (r, s), d in factor.items():
                    grown[p + r, q + s] = grown.get((p + r, q + s), 0) + c * d
            form = grown
        return sum(c * moments[order] for order, c in form.items())

    return (
        mean(0, 0),
        mean(1, 1), mean(2, 0) / 2, mean(0, 2) / 2,
        mean(2, 2), mean(3, 1) / 2, mean(1, 3) / 2,
        mean(4, 0) / 4, mean(2, 2) / 4, mean(0, 4) / 4,
    )  # fmt: skip


def _root(v: Any) -> Any:
    """sqrt of max(v, 0), with derivative 0 where it is 0: of an output with itself."""
    positive = v > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, v, 1)), 0)


def _hermite(order: int, x: Any) -> Any:
    return [jnp.ones_like(x), x, x**2 - 1, x**3 - 3 * x, x**4 - 6 * x**2 + 3][order]


def _on_diagonal(
    phi: Activation, found: DualDerivatives, v: Any, diagonal: np.ndarray, degree: int
) -> DualDerivatives:
    """Of an output with itself there is one number, its variance: its derivatives are exact."""
    if phi.variance is not None:
        value = phi.variance(v)
        first = _slope(phi.variance)(v)
        second = _slope(_slope(phi.variance))(v)
    else:
        value, first, second = (m / 2**n for n, m in enumerate(_square(phi, v, degree)))
    only = jnp.zeros((3, 3, len(v)), v.dtype).at[0, 0].set(second)
    line = jnp.zeros((3, len(v)), v.dtype).at[0].set(first)
    return DualDerivatives(
        found.value.at[diagonal].set(value),
        found.first.at[:, diagonal].set(line),
        found.second.at[:, :, diagonal].set(only),
    )


def variance_slopes(phi: Activation, v: Any, degree: int) -> tuple[Any, Any, Any]:
    """E[phi^2], its slope in the variance v (n,), and E[phi'^2]."""
    x, w = (jnp.asarray(a, v.dtype) for a in smooth_rule(degree))
    if phi.kinked:
        x, w = split_rule(jnp.zeros_like(v), max(degree // 2, 8))
    z = jnp.sqrt(v)[:, None] * x
    steepness = (_slope(phi.fn)(z) ** 2 * w).sum(-1)  # of a kink it needs no value at 0
    if phi.variance is not None:
        return phi.variance(v), _slope(phi.variance)(v), steepness
    value, slope, _ = _square(phi, v, degree)
    return value, slope / 2, steepness


def _slope(fn: Callable[..., Any]) -> Callable[..., Any]:
    return derivatives(fn, 1)[1]


def _square(phi: Activation, v: Any, degree: int) -> tuple[Any, ...]:
    """E[(phi^2)^(n)] for n = 0, 2, 4."""
    scale = _root(v)[:, None]
    if phi.kinked:
        x, w = split_rule(jnp.zeros_like(v), degree)
        square = phi.fn(scale * x) ** 2 * w
        safe = jnp.where(v > 0, v, 1)
        return tuple((square * _hermite(n, x)).sum(-1) / safe ** (n // 2) for n in (0, 2, 4))
    x, w = (jnp.asarray(a, v.dtype) for a in smooth_rule(degree))
    slopes = derivatives(lambda z: phi.fn(z) ** 2, 4)
    return tuple((slopes[n](scale * x) * w).sum(-1) for n in (0, 2, 4))
