"""Initialisations whose Jacobian spectrum `mean_field_spectrum` predicts, for Flax and others.

Each is a function `init(key, shape, dtype) -> kernel` of kernels whose last two axes are (inputs,
outputs), as `flax.linen.Dense(kernel_init=...)` and `Conv` take it. They are those of
`jax.nn.initializers` where these exist; but under `vmap` over keys, as in a population of seeds,
matrices are factorised one at a time, for the reason that `core.linalg` gives.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn import initializers

from poster_jax.core.checks import check_positive
from poster_jax.core.typing import Array, PRNGKey

__all__ = ["delta_orthogonal", "gaussian", "orthogonal"]

Initialiser = Callable[..., Array]


def gaussian(sigma_w: float = 1.0) -> Initialiser:
    """Independent normal weights of standard deviation sigma_w / sqrt(inputs).

    Inputs of a convolution count window and channels.

    Args:
      sigma_w: above 0; sqrt(2) keeps the signals of ReLU, 1 those of the identity.

    Returns:
      `init(key, shape, dtype) -> kernel`.

    Raises:
      ValueError: sigma_w not above 0.

    Source: Poole et al. 2016 (arXiv 1606.05340); He et al. 2015 (arXiv 1502.01852).

    Example:
      >>> kernel = gaussian(2.0)(jax.random.key(0), (400, 400))
      >>> round(float(kernel.std()), 2)  # 2 / 20
      0.1
    """
    check_positive("sigma_w", sigma_w)
    return initializers.variance_scaling(sigma_w**2, "fan_in", "normal")


def orthogonal(sigma_w: float = 1.0) -> Initialiser:
    """A random matrix all of whose singular values are sigma_w.

    All axes but the last together are the inputs; with fewer inputs than outputs the rows of the
    kernel are orthogonal, otherwise its columns.

    Args:
      sigma_w: above 0, the singular value.

    Returns:
      `init(key, shape, dtype) -> kernel`; ValueError for fewer than 2 axes.

    Raises:
      ValueError: sigma_w not above 0.

    Source: Saxe, McClelland, Ganguli 2013 (arXiv 1312.6120).

    Example:
      >>> kernel = orthogonal(3.0)(jax.random.key(0), (5, 5))
      >>> bool(jnp.allclose(kernel @ kernel.T, 9 * jnp.eye(5), atol=1e-5))
      True
    """
    check_positive("sigma_w", sigma_w)
    jax_init = initializers.orthogonal(sigma_w)

    def init(key: PRNGKey, shape: Sequence[int], dtype: Any = float) -> Array:
        if len(shape) < 2:
            raise ValueError(f"shape must be (inputs..., outputs), got {tuple(shape)}.")
        one_at_a_time = jax.custom_batching.sequential_vmap(
            lambda key: jax_init(key, tuple(shape), dtype)
        )
        return one_at_a_time(key)

    return init


def delta_orthogonal(sigma_w: float = 1.0) -> Initialiser:
    """A convolution that maps the channels of each position by one random orthogonal matrix.

    The kernel is zero but at its centre, so that with stride 1 and padding "SAME" (odd windows) or
    circular, all singular values of the layer are sigma_w. In contrast to
    `jax.nn.initializers.delta_orthogonal` there may be more channels in than out.

    Args:
      sigma_w: above 0, the singular value.

    Returns:
      `init(key, shape, dtype) -> kernel` of shape (window..., inputs, outputs); ValueError for
      fewer than 3 axes.

    Raises:
      ValueError: sigma_w not above 0.

    Source: Xiao et al. 2018 (arXiv 1806.05393).

    Example:
      >>> kernel = delta_orthogonal()(jax.random.key(0), (3, 3, 4, 4))
      >>> float(jnp.abs(kernel).sum() - jnp.abs(kernel[1, 1]).sum())
      0.0
    """
    matrix = orthogonal(sigma_w)

    def init(key: PRNGKey, shape: Sequence[int], dtype: Any = float) -> Array:
        if len(shape) < 3:
            raise ValueError(f"shape must be (window..., inputs, outputs), got {tuple(shape)}.")
        centre = tuple((size - 1) // 2 for size in shape[:-2])
        kernel = matrix(key, tuple(shape[-2:]), dtype)
        return jnp.zeros(shape, kernel.dtype).at[centre].set(kernel)

    return init
