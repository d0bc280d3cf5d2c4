"""What every penalty of this room returns, and the random vectors behind those that sample."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from poster_jax.core.checks import check_choice, check_count, check_key
from poster_jax.core.typing import Array, PRNGKey

__all__ = [
    "DISTRIBUTIONS",
    "SIDES",
    "Penalty",
    "check_probing",
    "draw_probes",
    "from_probes",
    "squared_norms",
    "without_probes",
]

DISTRIBUTIONS = ("rademacher", "gaussian", "sphere")
"""Each has mean 0 and covariance I; "sphere" is uniform on the one whose radius is sqrt(size)."""

SIDES = ("rows", "columns")


class Penalty(NamedTuple):
    """A penalty of one layer or network, and how well its random probes know it.

    Attributes:
      value: scalar, the mean of `per_example`; what a loss adds. Divided by no width: that is
        `network_penalty`'s.
      per_example: (B,). For a whole-batch penalty (`coupled=True`) each example's share.
      standard_error: scalar, of `value`, by the spread of its probes; infinite for one probe,
        which cannot tell; 0 where nothing was sampled. It has no gradient.
    """

    value: Any
    per_example: Any
    standard_error: Any


def without_probes(per_example: Array) -> Penalty:
    """A Penalty in which nothing is random."""
    return Penalty(per_example.mean(), per_example, jnp.zeros((), per_example.dtype))


def from_probes(estimates: Array, *, coupled: bool) -> Penalty:
    """The Penalty of unbiased `estimates` (num_probes, B).

    The probes of uncoupled examples are independent, so that their B variances add: B times the
    degrees of freedom that the spread of `value` alone would have. With `coupled` it must do.
    """
    num, size = estimates.shape
    fixed = jax.lax.stop_gradient(estimates)  # sqrt has no derivative at 0, and nobody needs one
    if num == 1:
        error = jnp.full((), jnp.inf, estimates.dtype)
    elif coupled:
        error = fixed.mean(axis=1).std(ddof=1) / math.sqrt(num)
    else:
        error = jnp.sqrt(fixed.var(axis=0, ddof=1).sum() / num) / size
    per_example = estimates.mean(axis=0)
    return Penalty(per_example.mean(), per_example, error)


def check_probing(key: Any, num_probes: Any, distribution: Any) -> None:
    """The checks that all sampled penalties share."""
    if key is None:
        raise TypeError(
            "key must be a PRNG key such as jax.random.key(0), got None; only method='exact' needs "
            "none."
        )
    check_key("key", key)
    check_count("num_probes", num_probes, hint="The standard error needs at least 2.")
    check_choice("distribution", distribution, DISTRIBUTIONS)


def draw_probes(
    key: PRNGKey, num_probes: int, like: Array, distribution: str, *, coupled: bool = False
) -> Array:
    """Probes (num_probes, B, ...) with E v v' = I for a batch (B, ...).

    On the sphere a probe of one example has squared norm m, with `coupled` that of the batch B m.
    """
    keys = jax.random.split(key, num_probes)
    if distribution == "rademacher":
        return jax.vmap(lambda k: jax.random.rademacher(k, like.shape, like.dtype))(keys)
    normal = jax.vmap(lambda k: jax.random.normal(k, like.shape, like.dtype))(keys)
    if distribution == "gaussian":
        return normal
    axes = tuple(range(1 if coupled else 2, normal.ndim))
    radius = math.sqrt(math.prod(normal.shape[axis] for axis in axes))
    return normal * (radius / jnp.sqrt((normal**2).sum(axis=axes, keepdims=True)))


def squared_norms(vectors: Array) -> Array:
    """Squared lengths (num_probes, B) of vectors (num_probes, B, ...)."""
    return (vectors**2).reshape(*vectors.shape[:2], -1).sum(axis=-1)
