"""Gaussian vectors that match given noise: what an estimate says of noise known to be Gaussian."""

from typing import Any

import jax
import jax.numpy as jnp

from poster_jax.core.checks import check_key, num_examples
from poster_jax.core.typing import Array, PRNGKey

__all__ = ["gaussian_of_same_covariance", "gaussian_of_same_variances"]


def gaussian_of_same_covariance(noise: Any, key: PRNGKey) -> Any:
    """Gaussian vectors whose covariance is that of the noise, correlations included.

    `E U_c / sqrt(M)`, U_c the centred noise, E (M, M) normal: no P x P matrix is made.

    Args:
      noise: (M, P), a noise vector a row.
      key: PRNG key.

    Returns:
      (M, P): independent rows of mean zero with covariance `U_c' U_c / M`.

    Raises:
      ValueError: noise is no matrix.
      TypeError: noise is not of floating point; key is no PRNG key.

    Source: Theiler et al. 1992, "Testing for nonlinearity in time series: the method of surrogate
      data", Physica D 58.

    Example:
      >>> noise = jnp.array([[1.0, 2.0], [-1.0, -2.0]])  # of rank 1, and so is the surrogate
      >>> drawn = gaussian_of_same_covariance(noise, jax.random.key(0))
      >>> bool(jnp.allclose(drawn[:, 1], 2 * drawn[:, 0]))
      True
    """
    noise = _check(noise, key)
    normal = jax.random.normal(key, (len(noise), len(noise)), noise.dtype)
    centred = noise - noise.mean(axis=0)
    return jnp.matmul(normal / len(noise) ** 0.5, centred, precision="highest")


def gaussian_of_same_variances(noise: Any, key: PRNGKey) -> Any:
    """Gaussian vectors of independent coordinates, each with the variance that the noise has there.

    Args:
      noise: (M, P), a noise vector a row.
      key: PRNG key.

    Returns:
      (M, P), of mean zero; a coordinate without noise stays exactly zero.

    Raises:
      ValueError: noise is no matrix.
      TypeError: noise is not of floating point; key is no PRNG key.

    Source: Theiler et al. 1992, as above.

    Example:
      >>> noise = jnp.array([[1.0, 0.0], [-1.0, 0.0]])
      >>> bool((gaussian_of_same_variances(noise, jax.random.key(0))[:, 1] == 0).all())
      True
    """
    noise = _check(noise, key)
    return jax.random.normal(key, noise.shape, noise.dtype) * noise.std(axis=0)


def _check(noise: Any, key: PRNGKey) -> Array:
    check_key("key", key)
    if len(jnp.shape(noise)) != 2:
        raise ValueError(
            f"noise must be a matrix with a noise vector a row, got the shape {jnp.shape(noise)}."
        )
    num_examples(noise, "noise")
    noise = jnp.asarray(noise)
    if not jnp.issubdtype(noise.dtype, jnp.floating):
        raise TypeError(f"noise must be of floating point, got {noise.dtype}.")
    return noise
