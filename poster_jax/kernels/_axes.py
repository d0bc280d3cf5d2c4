"""Kernels carry every kept output axis twice, side by side: (n1, n2, h1, h2, ...).

Algebra wants them as matrices: rows (n1, h1, ...), columns (n2, h2, ...).
"""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from poster_jax.core.typing import Array

__all__ = ["as_matrix", "canonical_axes", "column_shape", "interleave", "row_shape"]


def canonical_axes(name: str, axes: int | Sequence[int], ndim: int) -> tuple[int, ...]:
    """`axes` counted from the front, each once, in increasing order; ValueError out of range."""
    axes = (axes,) if isinstance(axes, int) else tuple(axes)
    for axis in axes:
        if not -ndim <= axis < ndim:
            raise ValueError(f"{name} must lie in an array of {ndim} axes, got {axis}.")
    return tuple(sorted({axis % ndim for axis in axes}))


def row_shape(kernel: Any) -> tuple[int, ...]:
    """The shape of the first function's outputs, as far as the kernel keeps them."""
    return tuple(kernel.shape[::2])


def column_shape(kernel: Any) -> tuple[int, ...]:
    """The shape of the second function's outputs, as far as the kernel keeps them."""
    return tuple(kernel.shape[1::2])


def as_matrix(kernel: Any) -> Array:
    """(n1, n2, h1, h2, ...) as the matrix (n1 h1 ..., n2 h2 ...)."""
    kernel = jnp.asarray(kernel)
    odd = range(1, kernel.ndim, 2)
    rows_first = jnp.moveaxis(kernel, odd, range(kernel.ndim // 2, kernel.ndim))
    return rows_first.reshape(math.prod(row_shape(kernel)), math.prod(column_shape(kernel)))


def interleave(kernel: Array, start: int = 0) -> Array:
    """(..., n1, h1, ..., n2, h2, ...) as (..., n1, n2, h1, h2, ...) from the axis `start` on."""
    half = (kernel.ndim - start) // 2
    return jnp.moveaxis(kernel, range(start + half, kernel.ndim), range(start + 1, kernel.ndim, 2))
