"""Outputs and kernels as matrices, and back: the one place that knows the order of axes.

Outputs of shape `y.shape` become (rows, columns): rows are the axes that the kernel keeps, columns
the `trace_axes`, along which the kernel is a multiple of the identity and every column evolves by
itself.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from poster_jax.core.checks import check_finite
from poster_jax.core.typing import Array
from poster_jax.kernels._axes import canonical_axes, column_shape, row_shape

__all__ = ["Layout", "check_kernels", "field", "layout_of"]


class Layout(NamedTuple):
    """How outputs like `y_train` lie as a matrix.

    Attributes:
      shape: the shape of `y_train`.
      trace_axes: negative, in increasing order, so that they hold with time axes in front.
    """

    shape: tuple[int, ...]
    trace_axes: tuple[int, ...]

    @property
    def trace_shape(self) -> tuple[int, ...]:
        """Sizes of the traced axes."""
        return tuple(self.shape[a] for a in self.trace_axes)

    @property
    def kept_shape(self) -> tuple[int, ...]:
        """Sizes of the axes that the train-train kernel has twice."""
        return tuple(
            s for i, s in enumerate(self.shape) if i - len(self.shape) not in self.trace_axes
        )

    @property
    def size(self) -> int:
        """The number of outputs, over which the mean of the loss runs."""
        return math.prod(self.shape)

    def to_matrix(self, outputs: Any) -> Array:
        """Outputs that broadcast to `shape`, as (rows, columns)."""
        outputs = jnp.broadcast_to(outputs, self.shape)
        outputs = jnp.moveaxis(outputs, self.trace_axes, self._last)
        return outputs.reshape(math.prod(self.kept_shape), math.prod(self.trace_shape))

    def from_matrix(self, matrix: Array, rows: tuple[int, ...], times: Sequence[int] = ()) -> Array:
        """(times..., rows, columns) as outputs with the kept axes `rows`, times in front."""
        outputs = matrix.reshape(*times, *rows, *self.trace_shape)
        return jnp.moveaxis(outputs, self._last, self.trace_axes)

    def output_shape(self, rows: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of outputs with the kept axes `rows`."""
        kept, traced = iter(rows), iter(self.trace_shape)
        ndim = len(self.shape)
        return tuple(
            next(traced) if i - ndim in self.trace_axes else next(kept) for i in range(ndim)
        )

    @property
    def _last(self) -> tuple[int, ...]:
        return tuple(range(-len(self.trace_axes), 0))


def layout_of(y_train: Any, trace_axes: int | Sequence[int]) -> Layout:
    """The layout of targets under `trace_axes`; ValueError when an axis is not there."""
    if not hasattr(y_train, "shape"):
        raise TypeError(f"y_train must be an array, got {type(y_train).__name__}.")
    check_finite("y_train", y_train)
    ndim = len(y_train.shape)
    axes = canonical_axes("trace_axes", trace_axes, ndim)
    return Layout(tuple(y_train.shape), tuple(a - ndim for a in axes))


def check_kernels(layout: Layout, k_train_train: Any, k_test_train: Any = None) -> None:
    """ValueError unless both kernels are finite and fit targets of this layout."""
    kept = layout.kept_shape
    shape = tuple(k_train_train.shape)
    if len(shape) % 2 or row_shape(k_train_train) != kept or column_shape(k_train_train) != kept:
        raise ValueError(
            f"k_train_train must have every kept axis of y_train {kept} twice, side by side, got "
            f"the shape {shape}; y_train has the shape {layout.shape} and trace_axes are "
            f"{layout.trace_axes}."
        )
    check_finite("k_train_train", k_train_train)
    if k_test_train is None:
        return
    shape = tuple(k_test_train.shape)
    if len(shape) != 2 * len(kept) or column_shape(k_test_train) != kept:
        raise ValueError(
            f"k_test_train must have the axes of k_train_train, its second ones of sizes {kept}, "
            f"got the shape {shape}."
        )
    check_finite("k_test_train", k_test_train)


def field(kernel: Any, name: str, argument: str) -> Any:
    """`kernel.nngp` or `kernel.ntk`, or the array itself when `kernel` is one."""
    if hasattr(kernel, "shape") and hasattr(kernel, "dtype"):
        return kernel
    value = getattr(kernel, name, None)
    if value is None:
        raise ValueError(
            f"{argument} must hold the {name} kernel, got {type(kernel).__name__} without it."
        )
    return value
