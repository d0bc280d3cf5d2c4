"""What the Jacobian's spectrum is before training, in the limit of wide layers.

For L layers x -> phi(W x + b), W_ij of variance sigma_w^2 / N and b_i of variance sigma_b^2, the
variance q of the pre-activations goes to a fixed point,

    q* = sigma_w^2 E phi(sqrt(q*) z)^2 + sigma_b^2,  mu_k = E phi'(sqrt(q*) z)^(2 k),  z ~ N(0, 1),

and the eigenvalues of J J' of the L layers have

    mean = (sigma_w^2 mu_1)^L,    variance / mean^2 = L (mu_2 / mu_1^2 - 1 - s_1),

with s_1 = -1 for Gaussian and 0 for orthogonal W: only linear orthogonal layers (and nearly linear
ones) keep all singular values equal at every depth.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from poster_jax.core.checks import check_callable, check_count, check_positive, is_traced
from poster_jax.core.quadrature import split_rule
from poster_jax.core.typing import Array

__all__ = ["MeanFieldSpectrum", "mean_field_spectrum"]

# Beyond it a variance counts as growing without end, and activations as homogeneous.
_ENDLESS = 1e8


class MeanFieldSpectrum(NamedTuple):
    """The spectrum of J J' of deep and wide networks at initialisation.

    Attributes:
      q_star: the fixed variance of pre-activations; 0 where signals die, infinite where they grow
        without end. mu_k are then the limits on the way.
      mu_1: E phi'^2; sigma_w^2 mu_1 is the mean squared singular value of a layer.
      mu_2: E phi'^4.
      mean: of the eigenvalues of J J' of `depth` layers.
      variance_gaussian: over mean squared, for Gaussian weights.
      variance_orthogonal: over mean squared, for orthogonal weights.
      converged: whether the fixed point was reached to rounding.
    """

    q_star: Any
    mu_1: Any
    mu_2: Any
    mean: Any
    variance_gaussian: Any
    variance_orthogonal: Any
    converged: Any


def mean_field_spectrum(
    phi: Callable[[Any], Any],
    *,
    sigma_w: Any,
    sigma_b: Any = 0.0,
    depth: Any,
    degree: int = 160,
    max_iters: int = 300,
) -> MeanFieldSpectrum:
    """Mean and spread of the squared singular values that an initialisation gives a deep network.

    The fixed point is the one reached from q = 1, by iteration with Aitken's acceleration. Where
    every q is a fixed point (ReLU with sigma_w^2 = 2, linear with 1) it is q = 1.

    Args:
      phi: elementwise activation, differentiable but for a kink at 0; with kinks elsewhere the
        quadrature errs by about 1 / degree.
      sigma_w: above 0; the standard deviation of weights is sigma_w / sqrt(inputs). Any shape.
      sigma_b: standard deviation of biases, at least 0; its shape is broadcast with the others.
      depth: L, the number of layers, at least 1.
      degree: quadrature nodes on each side of 0.
      max_iters: of the fixed point.

    Returns:
      MeanFieldSpectrum of arrays of the common shape, in the default float dtype.

    Raises:
      ValueError: sigma_w not above 0, sigma_b negative, depth, degree or max_iters below 1.
      TypeError: phi is no function.

    Source: Pennington, Schoenholz, Ganguli 2017 (arXiv 1711.04735) for the variance of J J'; Poole
      et al. 2016 (arXiv 1606.05340) for q*.

    Example:
      >>> found = mean_field_spectrum(jax.nn.relu, sigma_w=2**0.5, depth=5)
      >>> [round(float(v), 3) for v in (found.mean, found.variance_gaussian)]
      [1.0, 10.0]
    """
    check_callable("phi", phi)
    check_positive("sigma_w", sigma_w)
    check_positive("sigma_b", sigma_b, zero_allowed=True)
    check_positive("depth", depth)
    if not is_traced(depth) and not (np.asarray(depth) >= 1).all():
        raise ValueError(f"depth must be at least 1, got {depth}.")
    check_count("degree", degree)
    check_count("max_iters", max_iters)
    sigma_w, sigma_b, depth = jnp.broadcast_arrays(
        *(jnp.asarray(a, float) for a in (sigma_w, sigma_b, depth))
    )
    return _spectrum(phi, sigma_w, sigma_b, depth, degree=degree, max_iters=max_iters)


class _Search(NamedTuple):
    """Variances, whether each has come to rest, and how many steps were taken."""

    q: Array
    done: Array
    count: Array


@partial(jax.jit, static_argnums=0, static_argnames=("degree", "max_iters"))
def _spectrum(
    phi: Callable[[Any], Any],
    sigma_w: Array,
    sigma_b: Array,
    depth: Array,
    *,
    degree: int,
    max_iters: int,
) -> MeanFieldSpectrum:
    nodes, weights = split_rule(jnp.zeros((), sigma_w.dtype), degree)
    weights = weights / weights.sum()  # then linear layers have no spread but rounding
    eps = jnp.finfo(sigma_w.dtype).eps

    def mean_over_z(fn: Callable[[Array], Array], q: Array) -> Array:
        return (weights * fn(jnp.sqrt(q)[..., None] * nodes)).sum(axis=-1)

    def layer(q: Array) -> Array:
        return sigma_w**2 * mean_over_z(lambda z: phi(z) ** 2, q) + sigma_b**2

    def step(s: _Search) -> _Search:
        once = layer(s.q)
        twice = layer(once)
        slope = (twice - once) / jnp.where(once == s.q, 1, once - s.q)
        jump = once + (twice - once) / jnp.where(slope == 1, 1, 1 - slope)
        # A slope of 1 or more leads away from a fixed point, or is one that rounding hides: on with
        # long strides. Beyond the next fixed point the iteration itself turns back.
        away = jnp.where(twice > once, 2 * twice, twice / 2)
        usable = (jnp.abs(slope) < 1) & (jump >= 0) & jnp.isfinite(jump)
        q = jnp.where(usable, jump, away)
        still = jnp.abs(once - s.q) <= 256 * eps * s.q
        ended = still | (q <= eps**2) | (q > _ENDLESS)
        # Where the step is rounding, its slope is noise.
        return _Search(jnp.where(s.done | still, s.q, q), s.done | ended, s.count + 1)

    start = _Search(jnp.ones_like(sigma_w), jnp.zeros(sigma_w.shape, bool), jnp.int32(0))
    end = jax.lax.while_loop(lambda s: ~s.done.all() & (s.count < max_iters), step, start)
    # Not at 0 itself: the slope of a kink there is neither side's.
    q = jnp.clip(end.q, eps**2, _ENDLESS)

    def slope(z: Array) -> Array:
        return jax.jvp(phi, (z,), (jnp.ones_like(z),))[1]

    mu_1, mu_2 = (mean_over_z(lambda z, k=k: slope(z) ** (2 * k), q) for k in (1, 2))
    orthogonal = depth * (mu_2 / mu_1**2 - 1)
    q_star = jnp.where(end.q > _ENDLESS, jnp.inf, jnp.where(end.q <= eps**2, 0, end.q))
    mean = (sigma_w**2 * mu_1) ** depth
    return MeanFieldSpectrum(q_star, mu_1, mu_2, mean, orthogonal + depth, orthogonal, end.done)
