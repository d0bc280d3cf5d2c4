"""How the three maps of a convolution are computed on the CPU, and the measurements behind it.

Ratios below were measured inside `lax.scan` with jaxlib 0.10 on two cores with AVX-512, float32.

Plain form: XLA's convolution, spelt so that its fast kernels take it inside a loop too. They take
channels-last images with (taps, in, out) kernels that are not flipped by the window; so transposes
and flips are written out (naive loops otherwise: 4 to 230 times slower). Three traps besides:
* odd numbers of input channels above 1 miss the vectorised path (2.5 to 4 times): one zero is added;
* without any padding, images above some megabytes are unfolded in memory (5 to 6 times): one output
  column more than is wanted is computed and cut off, which takes the other path;
* the kernel's gradient is a convolution whose window is as large as the image; it reaches half the
  speed of the output's.

Banded form, for large convolutions without strides: the taps of the last axis are laid side by side
in the input's channels, those of the other axes in the output's, and one matmul joins them. A 3x3
kernel copies each array three times, where unfolding the input copies it nine times. In blocks of
images that stay in the cache it is 1.1 to 1.6 times faster than the plain form for the output and
the input's gradient, and 2 times for the kernel's. Blocks of about 2,000 rows of the matmul were the
best of 1,000 to 16,000; unblocked it loses to the plain form. Nine matmuls of shifted slices, or
three of slices of the last axis' taps, move more memory: 0.6 to 0.9 of its speed.

Groups (and populations under `vmap`) run one after another, each in the form that suits it: XLA's
grouped convolution costs 5 to 10 times the sum of its parts.
"""

import math
from collections.abc import Callable
from itertools import product

import jax
import jax.numpy as jnp
from jax import lax

from poster_jax.core.convolution.varying import vary_alike
from poster_jax.core.convolution.window import Window, dilated, mirrored
from poster_jax.core.typing import Array

_BLOCK_SIZE = 1 << 20
_ROWS_AT_LEAST = 256
_CHANNELS_AT_LEAST = 16
_UNROLLED_GROUPS = 8
_UNFOLDED_AT_MOST = 1 << 20


def evaluate(a: Array, b: Array, *, kind: str, window: Window) -> Array:
    """The array `kind` from the other two, with the leading axis of groups."""
    form = {"output": _output, "input": _input, "kernel": _kernel}[kind]
    dtype = a.dtype
    # Half precision is accumulated in single, as XLA does.
    wide = jnp.promote_types(dtype, jnp.float32)

    def one(pair: tuple[Array, Array]) -> Array:
        return form(pair[0].astype(wide), pair[1].astype(wide), window).astype(dtype)

    groups = a.shape[0]
    if groups <= _UNROLLED_GROUPS:
        return jnp.stack([one((a[g], b[g])) for g in range(groups)])
    return lax.map(one, (a, b))


def _output(images: Array, kernel: Array, window: Window) -> Array:
    block = _block(window, images, kernel)
    if block and images.shape[-1] >= _CHANNELS_AT_LEAST:
        return _over_images(lambda x: _banded_output(x, kernel, window), block, images)
    return _plain(images, kernel, window)


def _input(output: Array, kernel: Array, window: Window) -> Array:
    spatial = tuple(range(len(window.kernel)))
    return _output(output, jnp.flip(kernel, spatial).swapaxes(-1, -2), mirrored(window))


def _kernel(images: Array, output: Array, window: Window) -> Array:
    block = _block(window, images, output)
    if block:
        return _sum_over_images(lambda x, y: _banded_kernel(x, y, window), block, images, output)
    return _plain_kernel(images, output, window)


def _plain(images: Array, kernel: Array, window: Window) -> Array:
    """XLA's convolution in the layout, and out of the traps, that the module's docstring names."""
    if images.shape[-1] % 2 and images.shape[-1] > 1:
        images = _pad(images, images.ndim - 1, 0, 1)
        kernel = _pad(kernel, kernel.ndim - 2, 0, 1)
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


def _cropped(images: Array, window: Window) -> tuple[Array, Window]:
    """Writes negative padding out, which XLA's fast kernels do not take."""
    padding, input_dilation, sizes = map(
        list, (window.padding, window.input_dilation, window.input)
    )
    for axis, (low, high) in enumerate(window.padding):
        if low < 0 or high < 0:
            images = _pad(images, 1 + axis, min(low, 0), min(high, 0), input_dilation[axis] - 1)
            padding[axis] = (max(low, 0), max(high, 0))
            input_dilation[axis], sizes[axis] = 1, images.shape[1 + axis]
    return images, window._replace(
        padding=tuple(padding), input_dilation=tuple(input_dilation), input=tuple(sizes)
    )


def _plain_kernel(images: Array, output: Array, window: Window) -> Array:
    """Channels become images, images channels, and the output the kernel, dilated by the strides."""
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
    result = _plain(jnp.swapaxes(images, 0, -1), jnp.moveaxis(output, 0, -2), swapped)
    return jnp.moveaxis(result, 0, -2)


def _block(window: Window, images: Array, other: Array) -> int:
    """Images per block of the banded form; 0 where the plain form is the better one."""
    other_taps = math.prod(window.kernel[:-1])
    rows = math.prod(window.input[:-1]) * window.output[-1]
    width = window.kernel[-1] * images.shape[-1] + other_taps * other.shape[-1]
    largest = max(1, _BLOCK_SIZE // (rows * width))
    block = max(n for n in range(1, largest + 1) if images.shape[0] % n == 0)
    steps = (*window.strides, *window.input_dilation)
    suits = (
        all(step == 1 for step in steps)
        and images.shape[0] * rows * width > 2 * _BLOCK_SIZE
        and block * rows >= _ROWS_AT_LEAST
    )
    return block if suits else 0


def _split_images(block: int, *arrays: Array) -> tuple[Array, ...]:
    return tuple(x.reshape(-1, block, *x.shape[1:]) for x in arrays)


def _over_images(form: Callable[[Array], Array], block: int, images: Array) -> Array:
    result = lax.map(form, *_split_images(block, images))
    return result.reshape(-1, *result.shape[2:])


def _last_axis_taps(images: Array, window: Window) -> Array:
    """(n, *others, last, c) to rows (n, *others, t) times columns (last tap, c)."""
    step, taps, size = window.kernel_dilation[-1], window.kernel[-1], window.output[-1]
    padded = _pad(images, images.ndim - 2, *window.padding[-1])
    shifted = [lax.slice_in_dim(padded, j * step, j * step + size, axis=-2) for j in range(taps)]
    return jnp.concatenate(shifted, -1)


def _sum_over_images(
    form: Callable[[Array, Array], Array], block: int, images: Array, output: Array
) -> Array:
    blocks = _split_images(block, images, output)
    like = jax.eval_shape(form, *(x[0] for x in blocks))
    zero, *blocks = vary_alike(jnp.zeros(like.shape, like.dtype), *blocks)
    return lax.scan(lambda total, pair: (total + form(*pair), None), zero, tuple(blocks))[0]


def _banded_output(images: Array, kernel: Array, window: Window) -> Array:
    taps = _last_axis_taps(images, window)
    last, c, o = kernel.shape[-3:]
    matrix = kernel.reshape(-1, last * c, o).swapaxes(0, 1).reshape(last * c, -1)
    products = (taps.reshape(-1, last * c) @ matrix).reshape(*taps.shape[:-1], -1, o)
    # The product with tap `offset` at input position h belongs to output h + low - offset.
    return sum(
        _moved(products[..., i, :], offset, window.output[:-1])
        for i, offset in enumerate(_other_taps(window))
    )


def _banded_kernel(images: Array, output: Array, window: Window) -> Array:
    taps = _last_axis_taps(images, window)
    columns = jnp.concatenate(
        [
            _moved(output, tuple(-d for d in offset), window.input[:-1])
            for offset in _other_taps(window)
        ],
        -1,
    )
    last, c, o = window.kernel[-1], images.shape[-1], output.shape[-1]
    rows = taps.size // taps.shape[-1]
    gram = taps.reshape(rows, -1).T @ columns.reshape(rows, -1)
    return gram.reshape(last * c, -1, o).swapaxes(0, 1).reshape(*window.kernel, c, o)


def _other_taps(window: Window) -> list[tuple[int, ...]]:
    """Input position minus output position at every tap of all axes but the last, in order."""
    return list(
        product(
            *(
                range(-low, taps * step - low, step)
                for (low, _), taps, step in zip(
                    window.padding[:-1],
                    window.kernel[:-1],
                    window.kernel_dilation[:-1],
                    strict=True,
                )
            )
        )
    )


def _moved(x: Array, offset: tuple[int, ...], sizes: tuple[int, ...]) -> Array:
    """Element t of the result is element t + offset of `x`, or zero outside; axes after the first."""
    for axis, (start, size) in enumerate(zip(offset, sizes, strict=True)):
        x = _pad(x, 1 + axis, -start, start + size - x.shape[1 + axis])
    return x


def _pad(x: Array, axis: int, low: int, high: int, inner: int = 0) -> Array:
    widths = [(0, 0, 0)] * x.ndim
    widths[axis] = (low, high, inner)
    return lax.pad(x, jnp.zeros((), x.dtype), widths)
