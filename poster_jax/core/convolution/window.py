"""The geometry of a convolution, without batch and channels: sizes, strides, padding, dilations.

In an axis, output t reads input position `t stride + k kernel_dilation - low` for tap k, counted in
the input with `input_dilation - 1` zeros between its elements.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from poster_jax.core.typing import Array

Sizes = tuple[int, ...]


class Window(NamedTuple):
    """Static geometry, one entry per spatial axis.

    Attributes:
      input: sizes of the input.
      kernel: taps of the kernel.
      output: sizes of the output.
      strides: steps of the window over the dilated input.
      padding: zeros (low, high) around the dilated input; a negative number crops.
      input_dilation: distance between neighbouring input elements.
      kernel_dilation: distance between neighbouring taps.
    """

    input: Sizes
    kernel: Sizes
    output: Sizes
    strides: Sizes
    padding: tuple[tuple[int, int], ...]
    input_dilation: Sizes
    kernel_dilation: Sizes


def dilated(size: int, dilation: int) -> int:
    """Length of `size` elements at distance `dilation`."""
    return (size - 1) * dilation + 1 if size else 0


def mirrored(window: Window) -> Window:
    """The convolution with the flipped kernel that maps the output's cotangent to the input's.

    Strides and input dilation change places. Output t meets the kernel's last tap first, which lies
    `dilated(kernel) - 1 - low` before the input's first element: the low padding; the high padding
    is what is then missing to as many results as the input had elements.
    """
    padding = []
    for axis, (low, _) in enumerate(window.padding):
        reach = dilated(window.kernel[axis], window.kernel_dilation[axis])
        full = dilated(window.input[axis], window.input_dilation[axis])
        before = reach - 1 - low
        after = full + reach - 1 - dilated(window.output[axis], window.strides[axis]) - before
        padding.append((before, after))
    return Window(
        input=window.output,
        kernel=window.kernel,
        output=window.input,
        strides=window.input_dilation,
        padding=tuple(padding),
        input_dilation=window.strides,
        kernel_dilation=window.kernel_dilation,
    )


def pad_axis(x: Array, axis: int, low: int, high: int, between: int = 0) -> Array:
    """Zeros before, after and between the elements of one axis; negative numbers crop."""
    widths = [(0, 0, 0)] * x.ndim
    widths[axis] = (low, high, between)
    return lax.pad(x, jnp.zeros((), x.dtype), widths)
