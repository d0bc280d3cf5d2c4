"""Products and convolutions with a weight as one product, y[b, s, j] = a[b, s, i] w[b, i, j].

s runs over positions, i over what one output feature sees, j over output features, and b over
groups or batches that have weights of their own.
"""

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp

from poster_jax.core.typing import Array
from poster_jax.kernels.empirical.uses import feature_axes

__all__ = ["input_factor", "output_factor"]

_MAX_SLICES = 64  # beyond this many filter positions a convolution with unit filters is shorter


def input_factor(equation: Any, operand: int, other: Array) -> Array:
    """The operand beside the weight as a[b, s, i]."""
    if equation.primitive.name == "conv_general_dilated":
        return _patches(equation.params, equation.invars[1].aval.shape, other)
    contract, batch = (dims[1 - operand] for dims in equation.params["dimension_numbers"])
    free = [d for d in range(other.ndim) if d not in (*contract, *batch)]
    sizes = [math.prod(other.shape[d] for d in dims) for dims in (batch, free, contract)]
    return other.transpose(*batch, *free, *contract).reshape(sizes)


def output_factor(equation: Any, operand: int, cotangents: Array, num_axes: int) -> Array:
    """Cotangents (o..., like the result) as (o..., b, s, j); there are `num_axes` axes o."""
    shape = cotangents.shape[num_axes:]
    features = feature_axes(equation, operand)
    groups, lead = 1, []
    if equation.primitive.name == "conv_general_dilated":
        groups = equation.params["feature_group_count"]
    else:
        lead = list(range(len(equation.params["dimension_numbers"][1][0])))
    free = [d for d in _position_axes(equation, len(shape)) if d not in (*features, *lead)]
    order = [num_axes + d for d in (*lead, *free, *features)]
    cotangents = cotangents.transpose(*range(num_axes), *order)
    sizes = [math.prod(shape[d] for d in dims) for dims in (lead, free, features)]
    outputs = cotangents.shape[:num_axes]
    if groups == 1:
        return cotangents.reshape(*outputs, *sizes)
    cotangents = cotangents.reshape(*outputs, sizes[1], groups, sizes[2] // groups)
    return jnp.swapaxes(cotangents, -3, -2)


def _position_axes(equation: Any, ndim: int) -> list[int]:
    """The axes of the result in the order in which `input_factor` has positions."""
    if equation.primitive.name == "conv_general_dilated":
        spec = equation.params["dimension_numbers"].out_spec
        return [spec[0], *spec[2:]]
    return list(range(ndim))


def _patches(params: Any, kernel_shape: tuple[int, ...], images: Array) -> Array:
    """What every filter position sees, (groups, images and positions, offsets and channels)."""
    numbers, groups = params["dimension_numbers"], params["feature_group_count"]
    window = [kernel_shape[d] for d in numbers.rhs_spec[2:]]
    batch, channel, *spatial = numbers.lhs_spec
    seen = _slices(params, window, images.transpose(batch, *spatial, channel))
    *positions, offsets, channels = seen.shape
    seen = seen.reshape(math.prod(positions), offsets, groups, channels // groups)
    seen = jnp.moveaxis(seen, 2, 0)
    return seen.reshape(groups, math.prod(positions), offsets * (channels // groups))


def _slices(params: Any, window: list[int], images: Array) -> Array:
    """Of images (n, positions..., channels): (n, positions..., offsets, channels)."""
    strides, dilation = params["window_strides"], params["rhs_dilation"]
    if math.prod(window) > _MAX_SLICES:
        images = jnp.moveaxis(images, -1, 1)
        out = jax.lax.conv_general_dilated_patches(
            images, window, strides, params["padding"], params["lhs_dilation"], dilation
        )
        out = out.reshape(*images.shape[:2], math.prod(window), *out.shape[2:])
        return jnp.moveaxis(out, (1, 2), (-1, -2))
    padding = [(low, high, d - 1) for (low, high), d in
               zip(params["padding"], params["lhs_dilation"], strict=True)]  # fmt: skip
    zero = jnp.zeros((), images.dtype)
    padded = jax.lax.pad(images, zero, [(0, 0, 0), *padding, (0, 0, 0)])
    spans = [
        (size - d * (w - 1) - 1) // s + 1
        for size, w, d, s in zip(padded.shape[1:-1], window, dilation, strides, strict=True)
    ]
    parts = []
    for offset in itertools.product(*map(range, window)):
        start = [o * d for o, d in zip(offset, dilation, strict=True)]
        stop = [a + (n - 1) * s + 1 for a, n, s in zip(start, spans, strides, strict=True)]
        n, channels = padded.shape[0], padded.shape[-1]
        parts.append(jax.lax.slice(padded, (0, *start, 0), (n, *stop, channels), (1, *strides, 1)))
    return jnp.stack(parts, axis=-2)
