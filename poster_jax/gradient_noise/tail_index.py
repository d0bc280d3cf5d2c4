"""How heavy is the tail, if the numbers come from a stable law? The estimators of a dispute.

A symmetric alpha-stable variable has no variance below alpha = 2, where it is Gaussian. The
estimate compares a number with sums of K1 numbers: a sum of K1 is K1^(1/alpha) times as wide *if
the numbers are independent and of one scale*. Coordinates of a gradient are neither, and then
Gaussian noise as well gives alpha below 2:

* variances sigma^2 that differ within a block: 2 / (1 + (log E sigma^2 - E log sigma^2) / log K1);
* correlation rho: 2 / (1 + log(1 + (K1 - 1) rho) / log K1);
* a share of exact zeros, through the number added inside the logarithm: 1.33 at 5 % of them.

So beside the pooled estimate stand the one over mini-batches, coordinate by coordinate, and the
pooled one of Gaussian vectors that match the noise (`surrogates`).

Poster's opponent: Simsekli, Sagun, Gurbuzbalaban, "A Tail-Index Analysis of Stochastic Gradient
Noise in Deep Neural Networks", ICML 2019, arXiv 1901.06053.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from poster_jax.core.checks import check_count, check_key, check_positive, is_traced
from poster_jax.core.typing import Array, PRNGKey
from poster_jax.gradient_noise.normality._samples import check_samples

__all__ = [
    "coordinate_tail_index",
    "divisor_block",
    "hill_tail_index",
    "pooled_tail_index",
    "sample_stable",
    "stable_tail_index",
]

_EPSILON = 2.2e-16  # what the authors' code adds inside the logarithm


def stable_tail_index(
    samples: Any, *, axis: int = -1, block: int | None = None, epsilon: float = 0.0
) -> Any:
    """alpha of independent samples of one strictly stable law.

    `1 / alpha = (mean log|Y| - mean log|X|) / log K1`, Y the sums of blocks of K1 neighbours. What
    remains of a last short block is left out of both means: searching for a divisor of the number
    of samples ends at K1 = 1 for a prime. The standard deviation of 1/alpha is about
    `sqrt(pi^2 / 8 / K2) / log K1` for Gaussian samples and K2 blocks.

    Args:
      samples: real, any shape; centred at the law's location.
      axis: along which one sample of K numbers lies.
      block: K1, at least 2 and at most K; None takes the integer below sqrt(K).
      epsilon: added inside both logarithms; with 0 a number of exactly zero makes the result 0.

    Returns:
      alpha, the shape of `samples` without `axis`; NaN where all numbers are zero. It can exceed 2.

    Raises:
      ValueError: fewer than 4 numbers; a block outside 2..K; a negative epsilon; no such axis.
      TypeError: samples are no real numbers; block is no integer.

    Source: Mohammadi, Mohammadpour and Ogata 2015, "On estimating the tail index and the spectral
      measure of multivariate alpha-stable distributions", Metrika 78, corollary 2.4.

    Example:
      >>> cauchy = sample_stable(jax.random.key(0), 1.0, (10000,))
      >>> round(float(stable_tail_index(cauchy)), 1)
      1.0
    """
    samples = check_samples(samples, axis, "stable_tail_index", 4, None)
    return _estimate(samples, _check_block(block, samples.shape[-1]), _check_epsilon(epsilon))


def pooled_tail_index(noise: Any, *, block: int | None = None, epsilon: float = _EPSILON) -> Any:
    """The disputed estimate: all coordinates of all noise vectors taken as one sample.

    Row after row, so that a block is K1 neighbouring coordinates of one mini-batch, as in the
    authors' code, `epsilon` included. Differs in that K1 is the integer below sqrt(M P) and the
    short last block is dropped; `block=divisor_block(M * P)` is the authors' choice.

    Args:
      noise: (M, P), a noise vector a row, in the order of the flattened parameters.
      block: K1; None takes the integer below sqrt(M P).
      epsilon: added inside both logarithms; it decides the result where coordinates are zero.

    Returns:
      alpha, a scalar.

    Raises:
      ValueError: noise that is no matrix, or holds fewer than 4 numbers; a block outside 2..M P.
      TypeError: noise is no array of real numbers; block is no integer.

    Source: arXiv 1901.06053, section 4; umutsimsekli/sgd_tail_index, utils.py and main.py.

    Example:
      >>> key, scales = jax.random.key(0), jnp.exp(jax.random.normal(jax.random.key(1), (1000,)))
      >>> gaussian = scales * jax.random.normal(key, (100, 1000))  # of unequal variances
      >>> float(pooled_tail_index(gaussian)) < 1.8
      True
    """
    noise = _check_noise(noise)
    return stable_tail_index(noise.reshape(-1), block=block, epsilon=epsilon)


def coordinate_tail_index(noise: Any, *, block: int | None = None) -> Any:
    """The estimate over mini-batches, one for each coordinate: what a coordinate's law is.

    Mini-batches are independent draws, so here the assumption holds. Take the median over the
    coordinates that are not NaN, and say how many are.

    Args:
      noise: (M, P), a noise vector a row.
      block: K1, of neighbouring rows; None takes the integer below sqrt(M).

    Returns:
      (P,): alpha of each coordinate; NaN where it is zero in every vector.

    Raises:
      ValueError: noise that is no matrix, or holds fewer than 4 vectors; a block outside 2..M.
      TypeError: noise is no array of real numbers; block is no integer.

    Source: Xie, Tang, Sun and Li, NeurIPS 2023, "On the overlooked structure of stochastic
      gradients" (iteration-wise against dimension-wise).

    Example:
      >>> coordinate_tail_index(jax.random.normal(jax.random.key(0), (400, 3))).shape
      (3,)
    """
    return stable_tail_index(_check_noise(noise), axis=0, block=block)


def hill_tail_index(samples: Any, *, k: int, axis: int = -1) -> Any:
    """Hill's estimate of alpha from the k largest absolute values, for any law with a power tail.

    `1 / alpha = mean of log(x_(i) / x_(k+1))` over the k largest. For a tail that is no power, such
    as the Gaussian one, it grows as k falls: look at several k.

    Args:
      samples: real, any shape.
      k: how many of the largest absolute values; below the number of samples.
      axis: along which one sample lies.

    Returns:
      alpha, the shape of `samples` without `axis`.

    Raises:
      ValueError: k outside 1..K-1; no such axis.
      TypeError: samples are no real numbers; k is no integer.

    Source: Hill 1975, "A simple general approach to inference about the tail of a distribution",
      Annals of Statistics 3(5).

    Example:
      >>> pareto = jax.random.pareto(jax.random.key(0), 1.5, (100000,))
      >>> round(float(hill_tail_index(pareto, k=20000)), 1)
      1.5
    """
    samples = check_samples(samples, axis, "hill_tail_index", 2, None)
    k = check_count("k", k)
    if k >= samples.shape[-1]:
        raise ValueError(f"k must be below the number of samples, {samples.shape[-1]}, got {k}.")
    largest, _ = jax.lax.top_k(jnp.abs(samples), k + 1)
    return 1 / jnp.mean(jnp.log(largest[..., :k] / largest[..., k:]), axis=-1)


def sample_stable(key: PRNGKey, alpha: Any, shape: tuple[int, ...], dtype: Any = None) -> Any:
    """Symmetric alpha-stable numbers: `E exp(i t X) = exp(-|t|^alpha)`.

    alpha = 2 is the normal law of variance 2, alpha = 1 Cauchy's.

    Args:
      key: PRNG key.
      alpha: in (0, 2]; a number, or an array that broadcasts to `shape`.
      shape: of the result.
      dtype: floating; None takes jax's default.

    Returns:
      Independent numbers of that shape.

    Raises:
      ValueError: alpha outside (0, 2].
      TypeError: key is no PRNG key.

    Source: Chambers, Mallows and Stuck 1976, "A method for simulating stable random variables",
      JASA 71.

    Example:
      >>> normal = sample_stable(jax.random.key(0), 2.0, (10000,))
      >>> round(float(normal.var()), 1)
      2.0
    """
    check_key("key", key)
    check_positive("alpha", alpha)
    if not is_traced(alpha) and jnp.any(jnp.asarray(alpha) > 2):
        raise ValueError(f"alpha must be at most 2, got {alpha}.")
    dtype = jnp.result_type(float) if dtype is None else dtype
    return _stable(key, jnp.asarray(alpha, dtype), tuple(shape), dtype)


@partial(jax.jit, static_argnums=(2, 3))
def _stable(key: PRNGKey, alpha: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    angle_key, wait_key = jax.random.split(key)
    # Both ends of the angle are left out: its cosine is divided by.
    angle = jax.random.uniform(angle_key, shape, dtype, -1.0, 1.0)
    angle = jnp.where(angle == -1, 0, angle) * (math.pi / 2)
    wait = jax.random.exponential(wait_key, shape, dtype)
    wait = jnp.maximum(wait, jnp.finfo(dtype).tiny)
    ratio = jnp.cos((1 - alpha) * angle) / wait
    return jnp.sin(alpha * angle) / jnp.cos(angle) ** (1 / alpha) * ratio ** ((1 - alpha) / alpha)


def divisor_block(num_samples: int) -> int:
    """The authors' block: the largest divisor of K not above sqrt(K); 1 for a prime.

    Args:
      num_samples: K.

    Returns:
      K1. An estimate needs at least 2.

    Raises:
      ValueError: K below 1.
      TypeError: K is no integer.

    Source: umutsimsekli/sgd_tail_index, main.py.

    Example:
      >>> divisor_block(1000), divisor_block(997)
      (25, 1)
    """
    num_samples = check_count("num_samples", num_samples)
    return next(d for d in range(math.isqrt(num_samples), 0, -1) if num_samples % d == 0)


@partial(jax.jit, static_argnums=1)
def _estimate(samples: Array, block: int, epsilon: Any) -> Array:
    *lead, size = samples.shape
    blocks = samples[..., : size // block * block].reshape(*lead, size // block, block)
    # Means of means: a sum of a million logarithms would lose half of float32's digits.
    single = jnp.log(jnp.abs(blocks) + epsilon).mean(axis=-1).mean(axis=-1)
    summed = jnp.log(jnp.abs(blocks.sum(axis=-1)) + epsilon).mean(axis=-1)
    return math.log(block) / (summed - single)


def _check_block(block: Any, size: int) -> int:
    if block is None:
        return math.isqrt(size)
    block = check_count("block", block, minimum=2, hint="A block of 1 divides by log 1 = 0.")
    if block > size:
        raise ValueError(f"block must be at most the number of samples, {size}, got {block}.")
    return block


def _check_epsilon(epsilon: Any) -> Any:
    check_positive("epsilon", epsilon, zero_allowed=True)
    return epsilon


def _check_noise(noise: Any) -> Array:
    if len(jnp.shape(noise)) != 2:
        raise ValueError(
            f"noise must be a matrix with a noise vector a row, got the shape {jnp.shape(noise)}."
        )
    return jnp.asarray(noise)
