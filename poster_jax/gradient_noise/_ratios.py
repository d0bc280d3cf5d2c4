"""A function of means, such as a ratio, with its standard error."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from poster_jax.core.typing import Array, Estimate, Float


def of_means(fn: Callable[[Array], Array], samples: Float[Array, "samples quantities"]) -> Estimate:
    """`fn` of the means of the quantities; the error by the delta method, NaN for one sample.

    The means move together where the quantities do, and the first derivative of `fn` carries that
    over. The bias of a ratio of means is of the order of one over the number of samples.
    """
    num = samples.shape[0]
    means = samples.mean(axis=0)
    value, slope = jax.value_and_grad(fn)(means)
    influence = jnp.matmul(samples - means, slope, precision="highest")
    stderr = jnp.sqrt((influence**2).sum() / (num - 1) / num) if num > 1 else jnp.nan
    return Estimate(value, jnp.asarray(stderr, value.dtype), jnp.int32(num))
