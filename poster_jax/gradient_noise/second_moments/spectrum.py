"""The eigenvalues of the noise: of a few stored gradients, and whether they follow a power law."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from poster_jax.core.checks import check_count, check_params, num_examples
from poster_jax.core.linalg import eigh
from poster_jax.core.typing import Array, Float, Int, Params, Scalar

__all__ = ["PowerLaw", "fit_power_law", "stored_spectrum"]


class PowerLaw(NamedTuple):
    """A power law fitted to the largest eigenvalues, and how far they are from it.

    Attributes:
      exponent: beta of the density `p(x) ~ x^-beta`, x at least the smallest value fitted.
      rank_exponent: s = 1 / (beta - 1) of `lambda_k ~ k^-s`.
      ks_distance: the largest difference of the cumulative distributions of values and law. About
        1.36 / sqrt(n) would be the 5 % point for a law not fitted to the same values; fitted, it is
        lower.
      num_values: n, how many values were fitted.
    """

    exponent: Scalar
    rank_exponent: Scalar
    ks_distance: Scalar
    num_values: Int[Array, ""]


def fit_power_law(values: Float[Array, "k"], *, num_values: int | None = None) -> PowerLaw:
    """Whether the largest eigenvalues follow a power law: maximum likelihood, and the KS distance.

    `beta = 1 + n / sum_i log(x_i / x_min)` over the n largest values, x_min the smallest of them.

    Args:
      values: (k,), positive, in any order.
      num_values: n, at least 2; None takes all.

    Returns:
      PowerLaw; NaN where one of the n values is not positive.

    Raises:
      ValueError: values are no vector, num_values below 2 or above k.

    Source: Clauset, Shalizi, Newman 2009, "Power-law distributions in empirical data", SIAM Review
      51(4), equations 3.1 and 3.9; Xie et al. 2023, "On the overlooked structure of stochastic
      gradients", NeurIPS, for the noise's spectrum.

    Example:
      >>> law = fit_power_law(1 / jnp.arange(1.0, 1001.0) ** 2)
      >>> abs(float(law.rank_exponent) - 2) < 0.02, float(law.ks_distance) < 0.01
      (True, True)
    """
    values = jnp.asarray(values)
    if values.ndim != 1:
        raise ValueError(f"values must be a vector of eigenvalues, got the shape {values.shape}.")
    num = len(values) if num_values is None else num_values
    check_count("num_values", num, minimum=2)
    if num > len(values):
        raise ValueError(
            f"num_values must be at most the number of values, {len(values)}, got {num}."
        )
    top = jnp.sort(values)[::-1][:num]
    logs = jnp.log(jnp.where(top > 0, top, jnp.nan))
    logs = logs - logs[-1]
    tail = num / logs.sum()  # beta - 1
    # Under the law, the fraction above x is (x / x_min)^-tail; among the values, k/n at the k-th.
    above, ranks = jnp.exp(-tail * logs), jnp.arange(num, dtype=values.dtype)
    distance = jnp.maximum((ranks + 1) / num - above, above - ranks / num).max()
    return PowerLaw(1 + tail, 1 / tail, distance, jnp.int32(num))


def stored_spectrum(gradients: Params) -> Float[Array, "M"]:
    """The eigenvalues of the covariance of M stored gradients, from their M x M inner products.

    Args:
      gradients: pytree like the parameters, each leaf with a leading axis M: gradients of examples
        or of mini-batches at one theta.

    Returns:
      (M,), descending, the last one zero to rounding (the mean is taken out); the P - M eigenvalues
      that are zero are not listed.

    Raises:
      ValueError: leaves without a common leading axis, or not finite.
      TypeError: other than floats.

    Source: the singular values of the centred (M, P) matrix, squared, over M.

    Example:
      >>> stored_spectrum(jnp.array([[3.0, 0.0], [-3.0, 0.0], [0.0, 0.0]])).tolist()
      [6.0, 0.0, 0.0]
    """
    check_params(gradients, "gradients")
    num = num_examples(gradients, "gradients")
    gram = jnp.zeros(())
    for leaf in jax.tree.leaves(gradients):
        rows = leaf.reshape(num, -1)
        rows = rows.astype(jnp.promote_types(rows.dtype, jnp.float32))
        rows = rows - rows.mean(axis=0)
        gram = gram + jnp.matmul(rows, rows.T, precision="highest")
    values = eigh(gram / num)[0][::-1]
    return jnp.maximum(values, 0)
