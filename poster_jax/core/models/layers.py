"""What the networks share: the convolution of `core`, 2x2 pooling, and a look at their input."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from poster_jax.core.convolution import conv_general_dilated

Activation = Callable[[Any], Any]
Initializer = Callable[..., Any]


def conv(features: int, size: int, **kwargs: Any) -> nn.Conv:
    """A square `nn.Conv` whose derivatives stay fast inside loops on the CPU."""
    return nn.Conv(features, (size, size), conv_general_dilated=conv_general_dilated, **kwargs)


def batch_norm(train: bool, **kwargs: Any) -> nn.BatchNorm:
    """BatchNorm with the constants of torch, which the published accuracies were made with."""
    return nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5, **kwargs)


class Affine(nn.Module):
    """`scale * x + bias` of each channel: what is left of BatchNorm without its statistics.

    Attributes:
      scale_init: how the scales are drawn; biases start at 0.
    """

    scale_init: Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """`x` (..., channels) scaled and moved."""
        scale = self.param("scale", self.scale_init, x.shape[-1:], x.dtype)
        return x * scale + self.param("bias", nn.initializers.zeros, x.shape[-1:], x.dtype)


def normalisation(norm: str, train: bool, scale_init: Initializer) -> nn.Module:
    """ "batch", "normalise" (statistics without scale and bias) or "affine" (the contrary)."""
    if norm == "affine":
        return Affine(scale_init)
    if norm == "normalise":
        return batch_norm(train, use_scale=False, use_bias=False)
    return batch_norm(train, scale_init=scale_init)


def halve(x: jax.Array, pool: Callable[..., Any] = nn.max_pool) -> jax.Array:
    """2x2 pooling with stride 2; an odd last row or column is left out."""
    return pool(x, (2, 2), strides=(2, 2))


def flatten(x: jax.Array) -> jax.Array:
    """One vector an example."""
    return x.reshape(x.shape[0], -1)


def check_images(model: str, x: Any, *, smallest: int = 1, remedy: str = "") -> None:
    """ValueError unless `x` is (examples, height, width, channels) with sides of `smallest`."""
    check_floats(model, x)
    if x.ndim != 4:
        raise ValueError(
            f"x must be images of shape (examples, height, width, channels) for {model}, got shape "
            f"{x.shape}."
        )
    height, width = x.shape[1:3]
    if min(height, width) < smallest:
        raise ValueError(
            f"x must be images of at least {smallest}x{smallest} pixels for {model}, got "
            f"{height}x{width}. {remedy}".rstrip()
        )


def check_floats(model: str, x: Any) -> None:
    """TypeError unless `x` is a floating point array, ValueError unless it holds examples."""
    dtype = getattr(x, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"x must be a floating point array for {model}, got {dtype or type(x).__name__}."
        )
    if x.ndim < 2 or not x.size:
        raise ValueError(
            f"x must have a leading example axis and at least 1 value for {model}, got shape "
            f"{x.shape}."
        )


def check_widths(name: str, widths: Any) -> None:
    """ValueError unless `widths` is a sequence of at least one positive integer."""
    if not widths or not all(isinstance(w, int | np.integer) and w >= 1 for w in widths):
        raise ValueError(f"{name} must be integers of at least 1, got {tuple(widths)}.")
