"""Bayesian inference with the prior of finite width, to order 1/n.

Given G over training inputs D and test inputs *, with noise s2 and S = (G_DD + s2 I)^-1,

    m = G_*D S y,    v = G_** - G_*D S G_D*,    L = log N(y; 0, G_DD + s2 I),

and posterior averages over the mixture are E[m e^L] / E[e^L]. At K, with a = S y, P = [-G_*D S, I]
and M a change of G, all derivatives are products of matrices (a and S stand for D only):

    m' = P M a,   m'' = -2 P M S M a,   v' = P M P',   v'' = -2 P M S M P',
    L' = <B, M>,  L'' = -a' M S M a + (k / 2) tr(S M S M),   B = (a a' - k S) / 2,

so that two contractions of the vertex serve everything,

    W_ad = sum_bc V_(ab)(cd) S_bc,      U_ab = sum_cd V_(ab)(cd) B_cd,
    mean = m + P (G1 - W + U) a / n,
    covariance = v + P (G1 - W + U) P' / n + P [sum_bd V_(ab)(cd) a_b a_d] P' / n,
    log evidence = L + (<B, G1> + (L'':V + <B, U>) / 2) / n.
"""

import math
import warnings
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.scipy.linalg
import numpy as np

from poster_jax.core.checks import check_choice, check_finite, check_positive, is_traced
from poster_jax.core.precision import full_precision
from poster_jax.finite_width.nongaussian._pairs import from_pairs, pairs_of
from poster_jax.finite_width.nongaussian.kernel import FiniteWidthKernel

__all__ = ["Posterior", "gaussian_posterior", "posterior"]

RESUMMATIONS = ("none", "shift")
OUT_OF_RANGE = 0.5


class Posterior(NamedTuple):
    """Predictions at T test inputs for k outputs, to first order and of infinite width.

    Attributes:
      mean: (T, k).
      covariance: (k, T, T) of each output over test inputs, without noise.
      log_evidence: scalar, in nats, of all outputs together.
      mean_order0: (T, k) of infinite width.
      covariance_order0: (T, T) of infinite width, the same for every output.
      log_evidence_order0: of infinite width.
      relative_correction: (3,) largest correction of mean (over the root mean square of a
        prediction, sqrt(m^2 + v)), variance and log evidence over their zeroth order.
      in_range: whether none of these exceeds a half; where it is False do not trust the expansion.
      condition_number: of K_DD + noise; large ones amplify the corrections.
    """

    mean: Any
    covariance: Any
    log_evidence: Any
    mean_order0: Any
    covariance_order0: Any
    log_evidence_order0: Any
    relative_correction: Any
    in_range: Any
    condition_number: Any

    @property
    def variance(self) -> Any:
        """(T, k) of each output at each test input."""
        return jnp.diagonal(self.covariance, axis1=1, axis2=2).T


@full_precision
def posterior(
    kernel: FiniteWidthKernel, y: Any, *, noise: Any, resummation: str = "none"
) -> Posterior:
    """What a Bayesian network of finite width predicts, to first order in 1/n.

    The outputs share one random covariance, so that the first order also makes their predictions
    less certain than a Gaussian process would: `log_evidence` over widths tells the best width.

    Args:
      kernel: of training inputs first, then test inputs, any form.
      y: (D,) or (D, k) targets of the first D inputs.
      noise: variance s2 of the targets' noise, above 0.
      resummation: "none", or "shift": expand around K + G1 / n instead of K.

    Returns:
      Posterior. When a correction exceeds half of its zeroth order a warning says so (not under
      `jit`, where `in_range` does).

    Raises:
      ValueError: y does not fit the kernel or is not finite, noise not above 0, an unknown choice.

    Source: Yaida 2019 (arXiv 1910.00019) for the idea; the formulae are derived in the module's
      docstring and checked by importance sampling.

    Example:
      >>> from poster_jax.finite_width import nongaussian as ng
      >>> x = jnp.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
      >>> kernel = ng.finite_width_kernel("tanh", x, 64, depth=2, C_W=1.5)
      >>> found = posterior(kernel, jnp.array([1.0, -1.0]), noise=0.1)
      >>> found.mean.shape, bool(found.in_range)
      ((1, 1), True)
    """
    check_choice("resummation", resummation, RESUMMATIONS)
    check_positive("noise", noise)
    y = targets_of(y, kernel.K.shape[-1])
    found = _posterior(kernel, y, noise, resummation)
    if not is_traced(found) and not bool(found.in_range):
        warnings.warn(
            "the expansion in 1 / width is out of its range: its first order changes mean, "
            "variance and log evidence by up to "
            f"{', '.join(f'{float(r):.2g}' for r in found.relative_correction)} of the zeroth.",
            stacklevel=2,
        )
    return found


def targets_of(y: Any, num: int) -> Any:
    """`y` as (D, k); ValueError where it does not fit `num` inputs."""
    shape = getattr(y, "shape", None)
    if shape is None or len(shape) not in (1, 2) or not 0 < shape[0] <= num or 0 in shape:
        raise ValueError(
            f"y must have shape (D,) or (D, k) with 1 to {num} training inputs, the number of the "
            f"kernel's inputs, got {shape if shape is not None else type(y).__name__}."
        )
    check_finite("y", y)
    return jnp.asarray(y).reshape(shape[0], -1)


def gaussian_posterior(G: Any, y: Any, noise: Any) -> tuple[Any, Any, Any]:
    """Mean (T, k), covariance (T, T) and log evidence of a Gaussian process of covariance G."""
    num = y.shape[0]
    S_root, a = _solved(G, y, noise)
    cross = jax.scipy.linalg.solve_triangular(S_root, G[:num, num:], lower=True)
    return G[num:, :num] @ a, G[num:, num:] - cross.T @ cross, _log_density(S_root, a, y)


def _solved(G: Any, y: Any, noise: Any) -> tuple[Any, Any]:
    num = y.shape[0]
    factor = jnp.linalg.cholesky(G[:num, :num] + noise * jnp.eye(num, dtype=G.dtype))
    return factor, jax.scipy.linalg.cho_solve((factor, True), y)


def _log_density(factor: Any, a: Any, y: Any) -> Any:
    num, outputs = y.shape
    half_log_det = jnp.log(jnp.diagonal(factor)).sum()
    return -0.5 * (a * y).sum() - outputs * (half_log_det + 0.5 * num * math.log(2 * math.pi))


class _Base(NamedTuple):
    """What the expansion is around; symbols as in the module's docstring."""

    K: Any
    shift: Any
    factor: Any
    S: Any
    a: Any
    P: Any
    B: Any


def _posterior(kernel: FiniteWidthKernel, y: Any, noise: Any, resummation: str) -> Posterior:
    y = y.astype(kernel.K.dtype)
    base = _base(kernel.K, kernel.G1, kernel.width, y, noise, resummation)
    # A vertex on disk is read a few rows at a time.
    contract = _from_disk if isinstance(kernel.V, np.memmap) else _contractions
    return _expanded(kernel.K, base, contract(kernel.V, base), kernel.width, y, noise)


@partial(jax.jit, static_argnames="resummation")
def _base(K: Any, G1: Any, n: Any, y: Any, noise: Any, resummation: str) -> _Base:
    num, outputs = y.shape
    base, shift = (K, G1) if resummation == "none" else (K + G1 / n, jnp.zeros_like(G1))
    factor, a = _solved(base, y, noise)
    S = jax.scipy.linalg.cho_solve((factor, True), jnp.eye(num, dtype=K.dtype))
    P = jnp.concatenate([-base[num:, :num] @ S, jnp.eye(K.shape[0] - num, dtype=K.dtype)], 1)
    return _Base(base, shift, factor, S, a, P, (a @ a.T - outputs * S) / 2)


@jax.jit
def _expanded(K: Any, base: _Base, contracted: Any, n: Any, y: Any, noise: Any) -> Posterior:
    num, outputs = y.shape
    G, shift, factor, S, a, P, B = base
    W, U, spread = contracted
    change = shift - W + U
    mean = G[num:, :num] @ a + P @ change[:, :num] @ a / n
    covariance = G[num:, num:] - G[num:, :num] @ S @ G[:num, num:]
    covariance = covariance + (P @ change @ P.T + spread) / n
    inner = W[:num, :num]
    second = -(a * (inner @ a)).sum() + outputs / 2 * (S * inner).sum()
    first = (B * shift[:num, :num]).sum()
    evidence = _log_density(factor, a, y)
    evidence = evidence + (first + (second + (B * U[:num, :num]).sum()) / 2) / n
    covariance = (covariance + jnp.swapaxes(covariance, 1, 2)) / 2
    at_infinity = gaussian_posterior(K, y, noise)
    ratios = _ratios((mean, covariance, evidence), at_infinity)
    eigenvalues = jnp.linalg.eigvalsh(K[:num, :num]) + noise
    return Posterior(
        mean, covariance, evidence, *at_infinity, ratios, jnp.all(ratios <= OUT_OF_RANGE),
        eigenvalues[-1] / eigenvalues[0],
    )  # fmt: skip


@jax.jit
def _contractions(V: Any, base: _Base) -> tuple[Any, Any, Any]:
    """W (N, N), U (N, N) and the covariance of the mean (k, T, T), times n."""
    S, a, P, B = base[3:]
    num = S.shape[0]
    if V.ndim == 2:
        places = jnp.asarray(pairs_of(P.shape[1]).inverse)
        return _moved(*jax.lax.map(lambda place: _of_input(V[place], base), places), P)
    left = V[:, :, :num]
    W = jnp.einsum("rab,rcb->ac", left @ S, left)
    U = jnp.einsum("rab,r->ab", V, jnp.einsum("rab,ab->r", V[:, :num, :num], B))
    moved = jnp.einsum("ta,rab,bi->rit", P, left, a)
    return W, U, jnp.einsum("rit,riu->itu", moved, moved)


def _from_disk(V: np.ndarray, base: _Base) -> tuple[Any, Any, Any]:
    rows = (_one_input(V[place], base) for place in pairs_of(base.P.shape[1]).inverse)
    return _moved(*map(jnp.stack, zip(*rows, strict=True)), base.P)


def _moved(W: Any, U: Any, spread: Any, P: Any) -> tuple[Any, Any, Any]:
    return W, U, P @ jnp.moveaxis(spread, 0, 1) @ P.T


def _of_input(rows: Any, base: _Base) -> tuple[Any, Any, Any]:
    """W_ad, U_ab and sum_bd V_(ab)(cd) a_b a_d of one a, from the vertex's rows (a, b) (N, P)."""
    S, a, _, B = base[3:]
    num = S.shape[0]
    V = from_pairs(rows)
    W = jnp.einsum("bcd,bc->d", V[:num, :num], S)
    U = jnp.einsum("bcd,cd->b", V[:, :num, :num], B)
    return W, U, jnp.einsum("bcd,bi,di->ic", V[:num, :, :num], a, a)


_one_input = jax.jit(_of_input)


def _ratios(found: Any, at_infinity: Any) -> Any:
    mean, covariance, evidence = found
    mean0, covariance0, evidence0 = at_infinity
    variance0 = jnp.diagonal(covariance0)
    variance = jnp.diagonal(covariance, axis1=1, axis2=2)
    size = jnp.sqrt(mean0**2 + variance0[:, None])
    return jnp.stack(
        [
            jnp.max(jnp.abs(mean - mean0) / size, initial=0),
            jnp.max(jnp.abs(variance - variance0) / variance0, initial=0),
            jnp.abs(evidence - evidence0) / jnp.abs(evidence0),
        ]
    )
