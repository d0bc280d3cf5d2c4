"""PAC-Bayes flatness: how much Gaussian noise on the weights costs a tenth of the accuracy."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from poster_jax.core.checks import (
    check_count,
    check_fraction,
    check_key,
    check_loss,
    check_positive,
)
from poster_jax.core.typing import Array, Batch, Bool, Float, Int, Params, PRNGKey
from poster_jax.flatness.sampling import normal_like

__all__ = ["PacBayesSigma", "pac_bayes_bound", "pac_bayes_sigma"]


class PacBayesSigma(NamedTuple):
    """The noise that a network stands, and how well the search met its target.

    Attributes:
      sigma: standard deviation of the noise on every weight; `1 / sigma**2` is the measure.
      displacement: the change of the metric at `sigma`, to be compared with what was asked for.
      converged: whether it was met within the tolerance. False also where even `max_sigma`
        displaces too little, and where the metric jumps over the target.
      num_steps: bisection steps taken.
    """

    sigma: Float[Array, "..."]
    displacement: Float[Array, "..."]
    converged: Bool[Array, "..."]
    num_steps: Int[Array, "..."]


def pac_bayes_sigma(
    metric_fn: Callable[[Params, Batch], Any],
    params: Params,
    batch: Batch,
    key: PRNGKey,
    *,
    displacement: float = 0.1,
    tolerance: float = 0.01,
    num_draws: int = 10,
    max_sigma: float = 2.0,
    max_steps: int = 15,
) -> PacBayesSigma:
    """Which standard deviation of Gaussian weight noise displaces the training accuracy by 0.1.

    Bisection on [0, max_sigma] inside one compiled program. Every step sees the same directions of
    noise (common random numbers), so that the search is one of a fixed function of sigma and a
    population of networks is compared under the same noise.

    Args:
      metric_fn: `metric_fn(params, batch) -> scalar`, the training accuracy (`losses.accuracy`).
      params: pytree of the network; noise is added to every leaf.
      batch: pytree with a leading example axis.
      key: PRNG key of the noise.
      displacement: the change of the mean metric to reach, either way.
      tolerance: how close counts as reached.
      num_draws: draws of noise that the metric is averaged over; 3 in Petzka et al. 2021, 10 in the
        source that they follow.
      max_sigma: upper end of the search.
      max_steps: most bisection steps; sigma is then known to max_sigma / 2**max_steps.

    Returns:
      PacBayesSigma.

    Raises:
      ValueError, TypeError: counts below 1, displacement outside [0, 1], tolerance or max_sigma not
        positive, bad params, batch or metric.

    Source: Petzka et al. 2021 (arXiv 2001.00939), after Jiang et al. 2020
      (arXiv 1912.02178). Caution: the authors' code hands sigma**2 to the normal draw as
      its standard deviation; here sigma is the standard deviation.

    Example:
      >>> def accuracy(params, batch): return jnp.mean(jnp.abs(params) < batch)  # a wall at |w| = 1
      >>> key, wall = jax.random.key(0), jnp.ones(1)
      >>> found = pac_bayes_sigma(accuracy, jnp.zeros(()), wall, key, num_draws=2000)
      >>> bool(found.converged), round(float(found.sigma), 1)  # P(|N(0, 0.6**2)| > 1) = 0.1
      (True, 0.6)
    """
    check_loss(metric_fn, params, batch)
    check_key("key", key)
    check_fraction("displacement", displacement)
    check_positive("tolerance", tolerance)
    check_positive("max_sigma", max_sigma)
    check_count("num_draws", num_draws)
    check_count("max_steps", max_steps)
    return _pac_bayes_sigma(
        metric_fn, params, batch, key, displacement, tolerance, max_sigma, num_draws, max_steps
    )


@partial(jax.jit, static_argnums=(0, 7, 8))
def _pac_bayes_sigma(
    metric_fn: Callable[[Params, Batch], Any],
    params: Params,
    batch: Batch,
    key: PRNGKey,
    displacement: Array,
    tolerance: Array,
    max_sigma: Array,
    num_draws: int,
    max_steps: int,
) -> PacBayesSigma:
    reference = metric_fn(params, batch)
    keys = jax.random.split(key, num_draws)

    def displaced(sigma: Array) -> Array:
        def draw(key: PRNGKey) -> Array:
            noise = normal_like(key, params)
            return metric_fn(
                jax.tree.map(lambda w, n: w + sigma.astype(w.dtype) * n, params, noise), batch
            )

        return jnp.abs(jnp.mean(jax.lax.map(draw, keys)) - reference)

    def searching(carry: tuple) -> Array:
        _, _, _, found, step = carry
        return (jnp.abs(found - displacement) >= tolerance) & (step < max_steps)

    def bisect(carry: tuple) -> tuple:
        lower, upper, _, _, step = carry
        sigma = (lower + upper) / 2
        found = displaced(sigma)
        too_much = found > displacement
        lower, upper = jnp.where(too_much, lower, sigma), jnp.where(too_much, sigma, upper)
        return lower, upper, sigma, found, step + 1

    zero = jnp.zeros_like(reference)
    start = (zero, zero + max_sigma, zero, zero - jnp.inf, jnp.asarray(0))
    _, _, sigma, found, steps = jax.lax.while_loop(searching, bisect, start)
    return PacBayesSigma(sigma, found, jnp.abs(found - displacement) < tolerance, steps)


def pac_bayes_bound(
    squared_norm: Float[Array, "..."] | float, sigma: Float[Array, "..."] | float, num_examples: int
) -> Float[Array, "..."]:
    r"""The PAC-Bayes complexity $\|w\|^2 / (4\sigma^2) + \log(N/\sigma) + 10$.

    Args:
      squared_norm: squared length of the weights (without biases in the paper); any shape.
      sigma: of `pac_bayes_sigma`, same shape.
      num_examples: N, size of the training set.

    Returns:
      The complexity term, larger for networks that the bound expects to generalise worse.

    Raises:
      ValueError, TypeError: a squared norm below 0, sigma not positive, num_examples below 1.

    Source: Jiang et al. 2020 (arXiv 1912.02178), the measure "pacbayes-orig" before the division
      by N and the root.

    Example:
      >>> round(float(pac_bayes_bound(4.0, 1.0, 1)), 2)
      11.0
    """
    check_positive("squared_norm", squared_norm, zero_allowed=True)
    check_positive("sigma", sigma)
    check_count("num_examples", num_examples)
    sigma = jnp.asarray(sigma)
    return squared_norm / (4 * sigma**2) + jnp.log(num_examples / sigma) + 10
