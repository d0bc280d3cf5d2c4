"""The banded form: the taps are shared out between two arrays, and one matmul joins them.

The taps of the last axis are laid side by side in the input's channels, those of all other axes in
the output's. For a 3x3 kernel either array is copied three times, where unfolding the input copies
it nine times, and the matmul does no more work than the convolution:

    output[t] = sum_i (taps[t + i] @ matrix)[i]    kernel = taps^T @ [output moved by every -i]

It runs over blocks of images that stay in the cache. There it is 1.1 to 1.7 times faster than the
plain form for the output, and 2 times for the kernel's gradient, which the plain form computes with
a window as large as the image. Unblocked it is slower than the plain form. Nine matmuls of shifted
slices, or three of slices of the last axis' taps, move more memory: 0.5 to 0.9 of its speed.

Ratios: inside `lax.scan`, jaxlib 0.10, two cores with AVX-512, float32.
"""

import math
from functools import reduce
from itertools import product
from operator import add

import jax.numpy as jnp
from jax import lax

from poster_jax.core.convolution.varying import vary_alike
from poster_jax.core.convolution.window import Window, pad_axis
from poster_jax.core.typing import Array

_BLOCK_SIZE = 1 << 20
"""Elements of the copies of both arrays in one block: 4 MB in float32, the size of the caches."""

_ROWS_AT_LEAST = 256
"""Rows below which the matmul of a block is too short."""

_PIXELS_AT_LEAST = 512
"""Pixels of one image from which the plain form's window, as large as the image, is too slow: for
the gradient of one image of 32 x 32 pixels and 16 channels it takes five times as long."""

_SMALL_GROUP = 1 << 14
"""Elements of the copies of one group up to which groups share a batched matmul."""


def images_per_block(images: Array, other: Array, window: Window) -> int:
    """How many images make a block; 0 where the plain form should be taken.

    Args:
      images: what the last axis' taps are laid side by side of, (n, *inputs, c).
      other: the kernel or the output; only its last axis counts.
      window: the convolution's geometry.
    """
    if not _has_unit_steps(window):
        return 0
    rows, size, count = _rows(window), _size(images, other, window), images.shape[0]
    largest = max(1, min(count, _BLOCK_SIZE // size))
    block = max(n for n in range(1, largest + 1) if count % n == 0)
    suits = count * size > 2 * _BLOCK_SIZE and block * rows >= _ROWS_AT_LEAST
    return block if suits else 0


def images_per_kernel_block(images: Array, output: Array, window: Window) -> int:
    """The same for the kernel's gradient, where also few large images suit, all in one block."""
    block = images_per_block(images, output, window)
    if block or not _has_unit_steps(window) or _rows(window) < _PIXELS_AT_LEAST:
        return block
    few = images.shape[0] * _size(images, output, window) <= 2 * _BLOCK_SIZE
    return images.shape[0] if few else 0


def groups_per_block(images: Array, other: Array, window: Window) -> int:
    """How many of many small groups make a block; 0 where they should run one by one.

    Args:
      images: of all groups, (g, n, *inputs, c).
      other: the kernel or the output of all groups.
      window: the convolution's geometry.
    """
    size = images.shape[1] * _size(images, other, window)
    small = _has_unit_steps(window) and size <= _SMALL_GROUP
    return min(images.shape[0], _BLOCK_SIZE // size) if small else 0


def banded_output(images: Array, kernel: Array, window: Window, block: int) -> Array:
    """Output (n, *outputs, o) of images (n, *inputs, c) and kernel (*taps, c, o)."""
    if block == images.shape[0]:
        return _output(images, kernel, window)
    blocks = images.reshape(-1, block, *images.shape[1:])
    output = lax.map(lambda x: _output(x, kernel, window), blocks)
    return output.reshape(-1, *output.shape[2:])


def banded_kernel(images: Array, output: Array, window: Window, block: int) -> Array:
    """Cotangent (*taps, c, o) of the kernel from images and output (n, *outputs, o)."""
    if block == images.shape[0]:
        return _kernel(images, output, window)
    zero = jnp.zeros((*window.kernel, images.shape[-1], output.shape[-1]), images.dtype)
    zero, images, output = vary_alike(zero, images, output)
    blocks = [x.reshape(-1, block, *x.shape[1:]) for x in (images, output)]
    return lax.scan(lambda total, pair: (total + _kernel(*pair, window), None), zero, blocks)[0]


def _has_unit_steps(window: Window) -> bool:
    return all(step == 1 for step in (*window.strides, *window.input_dilation))


def _rows(window: Window) -> int:
    """Rows of the matmul that one image makes."""
    return math.prod(window.input[:-1]) * window.output[-1]


def _size(images: Array, other: Array, window: Window) -> int:
    """Elements of the copies of both arrays that one image makes."""
    last, others = window.kernel[-1], math.prod(window.kernel[:-1])
    return _rows(window) * (last * images.shape[-1] + others * other.shape[-1])


def _output(images: Array, kernel: Array, window: Window) -> Array:
    taps = _last_axis_taps(images, window)
    last, c, o = kernel.shape[-3:]
    matrix = kernel.reshape(-1, last * c, o).swapaxes(0, 1).reshape(last * c, -1)
    products = (taps.reshape(-1, last * c) @ matrix).reshape(*taps.shape[:-1], -1, o)
    # The product with tap `offset` at input position h belongs to output h + low - offset.
    return reduce(
        add,
        (
            _moved(products[..., i, :], offset, window.output[:-1])
            for i, offset in enumerate(_other_taps(window))
        ),
    )


def _kernel(images: Array, output: Array, window: Window) -> Array:
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


def _last_axis_taps(images: Array, window: Window) -> Array:
    """(n, *others, last, c) to rows (n, *others, t) times columns (last tap, c)."""
    step, taps, size = window.kernel_dilation[-1], window.kernel[-1], window.output[-1]
    padded = pad_axis(images, images.ndim - 2, *window.padding[-1])
    shifted = [lax.slice_in_dim(padded, j * step, j * step + size, axis=-2) for j in range(taps)]
    return jnp.concatenate(shifted, -1)


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
    """Element t of the result is element t + offset of `x`, or zero outside, in axes 1 and on."""
    for axis, (start, size) in enumerate(zip(offset, sizes, strict=True)):
        x = pad_axis(x, 1 + axis, -start, start + size - x.shape[1 + axis])
    return x
