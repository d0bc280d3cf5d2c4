"""The posterior of finite width without any expansion, by importance sampling.

The prior is a mixture of Gaussians over G, so that a posterior average is that of the Gaussian
posteriors of sampled G, weighted by their evidence.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from poster_jax.core.checks import check_count, check_key, check_positive
from poster_jax.core.precision import full_precision
from poster_jax.core.typing import Estimate
from poster_jax.finite_width.nongaussian.activation import Activation
from poster_jax.finite_width.nongaussian.kernel import resolve
from poster_jax.finite_width.nongaussian.network import Network
from poster_jax.finite_width.nongaussian.posterior import gaussian_posterior, targets_of
from poster_jax.finite_width.nongaussian.recursion import as_matrix
from poster_jax.finite_width.nongaussian.simulation import chain, group_size

__all__ = ["ExactPosterior", "exact_posterior", "weighted_posterior"]


class ExactPosterior(NamedTuple):
    """Predictions at T test inputs for k outputs, with their errors of sampling.

    Attributes:
      mean: Estimate (T, k).
      variance: Estimate (T, k), without noise.
      log_evidence: Estimate, in nats.
      effective_sample_size: (sum w)^2 / sum w^2 of the weights; below a hundred or so neither the
        estimates nor their errors are to be believed.
      num_nonfinite: networks whose evidence was not finite; they have weight 0.
    """

    mean: Estimate
    variance: Estimate
    log_evidence: Estimate
    effective_sample_size: Any
    num_nonfinite: Any


@full_precision
def exact_posterior(
    phi: Network | str | Callable[..., Any] | Activation,
    x: Any,
    y: Any,
    key: Any,
    *,
    noise: Any,
    num_samples: int,
    widths: int | Sequence[int] | None = None,
    depth: int | None = None,
    C_W: Any = None,
    C_b: Any = None,
) -> ExactPosterior:
    """What a Bayesian network of finite width predicts, exact up to sampling.

    Args:
      phi: as in `finite_width_kernel`.
      x: (N, features), training inputs first, then test inputs.
      y: (D,) or (D, k) targets of the first D.
      key: PRNG key.
      noise: variance of the targets' noise, above 0.
      num_samples: networks, at least 2. Their weights spread by the evidence: with many training
        points, much data per noise or narrow networks few of them count, which
        `effective_sample_size` tells.
      widths: as in `finite_width_kernel`; any width above 0.
      depth: as there.
      C_W: as there.
      C_b: as there.

    Returns:
      ExactPosterior.

    Raises:
      ValueError: as `finite_width_kernel` and `posterior`.
      TypeError: key is no PRNG key.

    Source: this library; importance sampling with errors by the delta method, Owen 2013, "Monte
      Carlo theory, methods and examples", chapter 9.

    Example:
      >>> x, y = jnp.array([[1.0, 0.0], [0.6, 0.8]]), jnp.array([1.0])
      >>> found = exact_posterior("linear", x, y, jax.random.key(0), noise=0.1, num_samples=500,
      ...                         widths=16, depth=1)
      >>> found.mean.mean.shape, bool(found.effective_sample_size > 100)
      ((1, 1), True)
    """
    check_key("key", key)
    check_positive("noise", noise)
    num = check_count("num_samples", num_samples, minimum=2)
    net, sizes = resolve(phi, widths, depth, C_W, C_b, any_width=True)
    x = as_matrix("x", x)
    y = targets_of(y, x.shape[0]).astype(x.dtype)
    variances = tuple(jnp.asarray(v, x.dtype) for v in (net.C_W, net.C_b))
    group = group_size(num, sizes, x.shape[0])
    return _compiled(x, y, key, variances, noise, net.activations, sizes, num, group)


@partial(jax.jit, static_argnums=(5, 6, 7, 8))
def _compiled(
    x: Any, y: Any, key: Any, variances: Any, noise: Any, activations: Any, sizes: Any, num: int,
    group: int,
) -> ExactPosterior:  # fmt: skip
    def one_group(key):
        G = chain(x, key, variances, activations, sizes, group)[:, -1]
        return _gaussian_posteriors(G, y, noise)

    groups = -(-num // group)
    found = jax.lax.map(one_group, jax.random.split(key, groups))
    return _weighted(*(a.reshape(groups * group, *a.shape[2:])[:num] for a in found))


@full_precision
def weighted_posterior(G: Any, y: Any, *, noise: Any) -> ExactPosterior:
    """`exact_posterior` from sampled covariances: many widths of one `sample_covariances`, say.

    Args:
      G: (num_samples, N, N), training inputs first.
      y: (D,) or (D, k).
      noise: as in `exact_posterior`.

    Returns:
      ExactPosterior.

    Raises:
      ValueError: shapes that do not fit, noise not above 0.

    Source: as `exact_posterior`.

    Example:
      >>> found = weighted_posterior(jnp.eye(2)[None] * jnp.ones((3, 1, 1)), jnp.ones(1), noise=1.0)
      >>> float(found.mean.mean[0, 0]), float(found.variance.mean[0, 0])
      (0.0, 1.0)
    """
    check_positive("noise", noise)
    if getattr(G, "ndim", 0) != 3 or G.shape[0] < 2 or G.shape[1] != G.shape[2]:
        raise ValueError(
            "G must have shape (num_samples, N, N) with at least 2 samples, got "
            f"{getattr(G, 'shape', type(G).__name__)}."
        )
    y = targets_of(y, G.shape[-1]).astype(G.dtype)
    return _from_samples(G, y, noise)


@jax.jit
def _from_samples(G: Any, y: Any, noise: Any) -> ExactPosterior:
    return _weighted(*_gaussian_posteriors(G, y, noise))


def _gaussian_posteriors(G: Any, y: Any, noise: Any) -> tuple[Any, Any, Any]:
    """Of each G, one after the other: LAPACK's batched calls can lock up the CPU's threads."""

    def one(G):
        mean, covariance, evidence = gaussian_posterior(G, y, noise)
        return mean, jnp.diagonal(covariance), evidence

    return jax.lax.map(one, G)


def _weighted(m: Any, v: Any, log_weight: Any) -> ExactPosterior:
    num = log_weight.shape[0]
    good = jnp.isfinite(log_weight)
    log_weight = jnp.where(good, log_weight, -jnp.inf)
    m, v = (jnp.where(good.reshape(-1, *[1] * (a.ndim - 1)), a, 0) for a in (m, v))
    top = log_weight.max()
    w = jnp.exp(log_weight - top)
    share = w / w.sum()

    def mean_of(values):
        return jnp.tensordot(share, values, 1)

    def stderr_of(values):
        return jnp.sqrt(jnp.tensordot(share**2, values**2, 1))

    mean = mean_of(m)
    q = v[..., None] + m**2
    variance = mean_of(q) - mean**2
    # The influence of one sample on the variance, with that on the mean in it.
    influence = q - mean_of(q) - 2 * mean * (m - mean)
    size = 1 / jnp.sum(share**2)
    error = jnp.sqrt(jnp.maximum(1 / size - 1 / num, 0))
    count = jnp.asarray(num)
    return ExactPosterior(
        Estimate(mean, stderr_of(m - mean), count),
        Estimate(variance, stderr_of(influence), count),
        Estimate(top + jnp.log(w.mean()), error, count),
        size,
        jnp.sum(~good),
    )
