"""Noise shaped like the weights, and what independent samples say about their mean."""

from typing import Any

import jax
import jax.numpy as jnp

from poster_jax.core.typing import Array, Estimate, Float, Params, PRNGKey

__all__ = ["estimate_from_samples", "normal_like"]


def normal_like(key: PRNGKey, params: Params) -> Any:
    """A pytree like `params` of independent standard normal entries."""
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(
        treedef,
        [jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)],
    )


def estimate_from_samples(samples: Float[Array, "samples"]) -> Estimate:
    """Mean of independent samples and its standard error, NaN when there is a single one."""
    count = samples.shape[0]
    spread = jnp.std(samples, ddof=1) if count > 1 else jnp.full_like(samples[0], jnp.nan)
    return Estimate(jnp.mean(samples), spread / count**0.5, jnp.asarray(count))
