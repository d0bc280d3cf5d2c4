"""Which form computes which of the three maps on the CPU, group by group.

Groups, and with them populations under `vmap`, run one after another, each in the form that suits
it: XLA's grouped convolution costs 5 to 10 times the sum of its parts. A loop over them costs 1.1
to 1.4 times an unrolled one, so that few groups are unrolled.
"""

import jax.numpy as jnp
from jax import lax

from poster_jax.core.convolution.banded import banded_kernel, banded_output, images_per_block
from poster_jax.core.convolution.plain import plain_kernel, plain_output
from poster_jax.core.convolution.window import Window, mirrored
from poster_jax.core.typing import Array

_CHANNELS_AT_LEAST = 16
"""Input channels below which the plain form's output is the faster one."""

_UNROLLED_GROUPS = 8


def evaluate(a: Array, b: Array, *, kind: str, window: Window) -> Array:
    """The array `kind` from the other two, in the layout of `primitive.py`."""
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
    block = images_per_block(images, kernel, window)
    if block and images.shape[-1] >= _CHANNELS_AT_LEAST:
        return banded_output(images, kernel, window, block)
    return plain_output(images, kernel, window)


def _input(output: Array, kernel: Array, window: Window) -> Array:
    """A convolution of the output with the flipped kernel, channels exchanged."""
    flipped = jnp.flip(kernel, range(len(window.kernel))).swapaxes(-1, -2)
    return _output(output, flipped, mirrored(window))


def _kernel(images: Array, output: Array, window: Window) -> Array:
    block = images_per_block(images, output, window)
    if block:
        return banded_kernel(images, output, window, block)
    return plain_kernel(images, output, window)
