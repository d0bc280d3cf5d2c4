"""Which form computes which of the three maps on the CPU, group by group.

Groups, and with them populations under `vmap`, run in a loop, each in the form that suits it: XLA's
grouped convolution costs 5 to 10 times the sum of its parts. A population of 8 CNNs trains as fast
in the loop as unrolled and compiles in 0.4 of the time. Groups so small that the loop's overhead
counts (gradients of single examples) share batched matmuls, 1.1 to 4 times faster for them and
slower for larger ones.
"""

import jax.numpy as jnp
from jax import lax

from poster_jax.core.convolution.banded import (
    banded_kernel,
    banded_output,
    groups_per_block,
    images_per_block,
    images_per_kernel_block,
)
from poster_jax.core.convolution.plain import plain_kernel, plain_output
from poster_jax.core.convolution.window import Window, mirrored
from poster_jax.core.typing import Array

_CHANNELS_AT_LEAST = 16
"""Input channels below which the plain form's output is the faster one."""


def evaluate(a: Array, b: Array, *, kind: str, window: Window) -> Array:
    """The array `kind` from the other two, in the layout of `primitive.py`."""
    dtype, groups = a.dtype, a.shape[0]
    # Half precision is accumulated in single, as XLA does.
    wide = jnp.promote_types(dtype, jnp.float32)
    a, b = a.astype(wide), b.astype(wide)
    if kind == "input":  # a convolution of the output with the flipped kernel, channels exchanged
        taps = range(1, 1 + len(window.kernel))
        b, window = jnp.flip(b, taps).swapaxes(-1, -2), mirrored(window)
    at_once = banded_kernel if kind == "kernel" else banded_output
    in_turn = _kernel if kind == "kernel" else _output
    if groups == 1:
        result = in_turn(a[0], b[0], window)[None]
    elif together := groups_per_block(a, b, window):
        images = a.shape[1]
        result = lax.map(lambda x: at_once(*x, window, images), (a, b), batch_size=together)
    else:
        result = lax.map(lambda x: in_turn(*x, window), (a, b))
    return result.astype(dtype)


def _output(images: Array, kernel: Array, window: Window) -> Array:
    block = images_per_block(images, kernel, window)
    if block and images.shape[-1] >= _CHANNELS_AT_LEAST:
        return banded_output(images, kernel, window, block)
    return plain_output(images, kernel, window)


def _kernel(images: Array, output: Array, window: Window) -> Array:
    block = images_per_kernel_block(images, output, window)
    if block:
        return banded_kernel(images, output, window, block)
    return plain_kernel(images, output, window)
