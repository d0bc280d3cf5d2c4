"""The plain form: XLA's convolution, spelt so that its fast CPU kernels take it inside a loop too.

They take channels-last images with (taps, in, out) kernels that are not flipped by the window, so
transposes and flips are written out; otherwise a naive loop nest runs, 9 to 240 times slower. Three
more traps are kept away from:
* an odd number of input channels above 1 misses the vectorised path (2 to 4 times slower): a
  channel of zeros is added;
* without any padding, large images are unfolded in memory (5 to 6 times slower): one output column
  more than is wanted is computed and cut off, which takes the other path;
* negative padding is written out as a crop;
* kernels of one tap are matmuls (3 times faster).

Ratios: inside `lax.scan`, jaxlib 0.10, two cores with AVX-512, float32.
"""

import math

import jax.numpy as jnp
from jax import lax

from poster_jax.core.convolution.window import Window, dilated, pad_axis
from poster_jax.core.typing import Array

_UNFOLDED_AT_MOST = 1 << 20
"""Elements of the unfolded images up to which XLA may unfold them."""


def plain_output(images: Array, kernel: Array, window: Window) -> Array:
    """Output (n, *outputs, o) of images (n, *inputs, c) and kernel (*taps, c, o)."""
    if _is_pointwise(window):
        return _met(images, window) @ kernel.reshape(kernel.shape[-2:])
    if images.shape[-1] % 2 and images.shape[-1] > 1:
        images = pad_axis(images, images.ndim - 1, 0, 1)
        kernel = pad_axis(kernel, kernel.ndim - 2, 0, 1)
    images, window = _cropped(images, window)
    padding, size = list(window.padding), window.output[-1]
    unfolded = images.shape[0] * math.prod(window.output) * math.prod(kernel.shape[:-1])
    if unfolded > _UNFOLDED_AT_MOST and not any(map(any, padding)):
        reach = dilated(window.kernel[-1], window.kernel_dilation[-1])
        full = dilated(window.input[-1], window.input_dilation[-1])
        padding[-1] = (0, size * window.strides[-1] + reach - full)
    axes = tuple(range(1, images.ndim - 1))
    channels_last = (0, images.ndim - 1, *axes)
    taps_first = (kernel.ndim - 1, kernel.ndim - 2, *range(kernel.ndim - 2))
    result = lax.conv_general_dilated(
        images,
        kernel,
        window.strides,
        padding,
        window.input_dilation,
        window.kernel_dilation,
        lax.ConvDimensionNumbers(channels_last, taps_first, channels_last),
    )
    return lax.slice_in_dim(result, 0, size, axis=-2)


def plain_kernel(images: Array, output: Array, window: Window) -> Array:
    """Cotangent (*taps, c, o) of the kernel from images (n, *inputs, c) and output (n, ..., o).

    Channels become images, images channels, and the output a kernel dilated by the strides.
    """
    if _is_pointwise(window):
        rows = [x.reshape(-1, x.shape[-1]) for x in (_met(images, window), output)]
        return (rows[0].T @ rows[1]).reshape(*window.kernel, images.shape[-1], output.shape[-1])
    padding = []
    for axis, (low, _) in enumerate(window.padding):
        reach = dilated(window.kernel[axis], window.kernel_dilation[axis])
        wide = dilated(window.output[axis], window.strides[axis])
        full = dilated(window.input[axis], window.input_dilation[axis])
        padding.append((low, reach + wide - 1 - full - low))
    swapped = Window(
        input=window.input,
        kernel=window.output,
        output=window.kernel,
        strides=window.kernel_dilation,
        padding=tuple(padding),
        input_dilation=window.input_dilation,
        kernel_dilation=window.strides,
    )
    result = plain_output(jnp.swapaxes(images, 0, -1), jnp.moveaxis(output, 0, -2), swapped)
    return jnp.moveaxis(result, 0, -2)


def _is_pointwise(window: Window) -> bool:
    ones = (*window.kernel, *window.input_dilation)
    return all(n == 1 for n in ones) and not any(map(any, window.padding))


def _met(images: Array, window: Window) -> Array:
    """The elements that a kernel of one tap meets."""
    strides = (1, *window.strides, 1)
    return lax.slice(images, (0,) * images.ndim, images.shape, strides)


def _cropped(images: Array, window: Window) -> tuple[Array, Window]:
    """Writes negative padding out, which XLA's fast kernels do not take."""
    padding, sizes = list(window.padding), list(window.input)
    input_dilation = list(window.input_dilation)
    for axis, (low, high) in enumerate(window.padding):
        if low < 0 or high < 0:
            images = pad_axis(images, 1 + axis, min(low, 0), min(high, 0), input_dilation[axis] - 1)
            padding[axis] = (max(low, 0), max(high, 0))
            input_dilation[axis], sizes[axis] = 1, images.shape[1 + axis]
    return images, window._replace(
        padding=tuple(padding), input_dilation=tuple(input_dilation), input=tuple(sizes)
    )
