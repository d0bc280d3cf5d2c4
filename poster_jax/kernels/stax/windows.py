"""Filter windows, and what they do to covariances.

Along one spatial axis, a convolution (strided, transposed, padded, circular) is said by one line:
tap d of output i reads input

    (i stride + d + offset) / dilation     (modulo the size of the axis, if circular),

and reads nothing where that is no input. With independent weights at every tap, the covariance of
two outputs is the mean over taps of the covariance of the inputs read ("equal shifts of both
positions"): on the pair of axes (h, h') one shift along the diagonal per tap. Pooling instead reads
all taps with the same weight, so it is the same matrix applied to h and to h'.
"""

import dataclasses
import enum
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Layout, with_layout_constraint

from poster_jax.core.checks import check_choice

__all__ = [
    "Padding",
    "Window",
    "check_padding",
    "mean_of_equal_shifts",
    "pool",
    "transposed_windows",
    "windows",
]


class Padding(enum.Enum):
    """What a window reads outside the input: CIRCULAR the other side, SAME zeros, VALID nothing."""

    CIRCULAR = "CIRCULAR"
    SAME = "SAME"
    VALID = "VALID"


@dataclasses.dataclass(frozen=True)
class Window:
    """A window along one axis; see the module's docstring for its meaning."""

    size: int
    out: int
    taps: int
    offset: int
    stride: int = 1
    dilation: int = 1
    circular: bool = False

    @property
    def sources(self) -> np.ndarray:
        """int (taps, out): the input that a tap of an output reads, -1 for none."""
        at = np.arange(self.out) * self.stride + np.arange(self.taps)[:, None] + self.offset
        span = self.size * self.dilation
        at = at % span if self.circular else at
        reads = (at >= 0) & (at < span) & (at % self.dilation == 0)
        return np.where(reads, at // self.dilation, -1)

    @property
    def incidence(self) -> np.ndarray:
        """float (out, size): how many taps of an output read an input."""
        return np.sum(self.sources[..., None] == np.arange(self.size), 0, dtype=float)

    @property
    def pairs(self) -> np.ndarray:
        """float (out^2, size^2): how many taps of two outputs read two inputs at once."""
        reads = (self.sources[..., None] == np.arange(self.size)).astype(float)
        return np.einsum("toi,tpj->opij", reads, reads).reshape(self.out**2, self.size**2)

    @property
    def centres(self) -> np.ndarray:
        """int (out,): the input under the middle of the window (the left one of two)."""
        return np.arange(self.out) * self.stride + self.offset + (self.taps - 1) // 2


def windows(
    sizes: Sequence[int], taps: Sequence[int], strides: Sequence[int], padding: Padding, name: str
) -> tuple[Window, ...]:
    """The windows of a convolution or pooling, one an axis.

    Args:
      sizes: of the axes.
      taps: of the windows.
      strides: of the windows.
      padding: what a window reads outside.
      name: of the argument that `taps` is, for errors.

    Raises:
      ValueError: not one window an axis; without padding, a window larger than its axis.
    """
    _check_one_an_axis(sizes, taps, strides, name)
    if padding is Padding.VALID and any(t > n for t, n in zip(taps, sizes, strict=True)):
        raise ValueError(
            f"{name} must fit into the input with padding='VALID', got {tuple(taps)} for spatial "
            f"axes of {tuple(sizes)}."
        )
    return tuple(_window(*axis, padding) for axis in zip(sizes, taps, strides, strict=True))


def _check_one_an_axis(sizes: Any, taps: Any, strides: Any, name: str) -> None:
    if not len(sizes) == len(taps) == len(strides):
        raise ValueError(
            f"{name} and strides must have one entry for each of the {len(sizes)} spatial axes of "
            f"the input, got {tuple(taps)} and {tuple(strides)}."
        )


def _window(size: int, taps: int, stride: int, padding: Padding) -> Window:
    if padding is Padding.VALID:
        return Window(size, (size - taps) // stride + 1, taps, 0, stride)
    out = -(-size // stride)
    padded = max((out - 1) * stride + taps - size, 0)
    return Window(size, out, taps, -(padded // 2), stride, circular=padding is Padding.CIRCULAR)


def transposed_windows(
    sizes: Sequence[int], taps: Sequence[int], strides: Sequence[int], padding: Padding, name: str
) -> tuple[Window, ...]:
    """The windows of a transposed convolution (`lax.conv_transpose`), one an axis."""
    _check_one_an_axis(sizes, taps, strides, name)
    return tuple(_transposed(*axis, padding) for axis in zip(sizes, taps, strides, strict=True))


def _transposed(size: int, taps: int, stride: int, padding: Padding) -> Window:
    out, full = size * stride, size * stride + max(taps - stride, 0)
    if padding is Padding.VALID:
        return Window(size, full, taps, 1 - taps, dilation=stride)
    if padding is Padding.CIRCULAR:  # the full output, folded around its middle part
        offset = (full - out) // 2 + 1 - taps
        return Window(size, out, taps, offset, dilation=stride, circular=True)
    total = taps + stride - 2
    before = taps - 1 if stride > taps - 1 else -(-total // 2)
    return Window(size, out, taps, -before, dilation=stride)


def mean_of_equal_shifts(
    x: Any, windows: Sequence[Window], batch_ndim: int, *, diagonal_spatial: bool
) -> Any:
    """The covariance of a convolution's outputs with independent weights of mean square 1.

    Args:
      x: `(batch..., h, h, w, w)`, or `(batch..., h, w)` when `diagonal_spatial`; None and scalars
        pass.
      windows: one an axis.
      batch_ndim: how many batch axes lead.
      diagonal_spatial: whether only equal positions are kept.
    """
    if x is None or x.ndim == 0:
        return x
    scale = 1 / math.prod(w.taps for w in windows)
    for i, window in enumerate(windows):
        x = sum_of_equal_shifts(x, window, i, batch_ndim, diagonal_spatial=diagonal_spatial)
    return x * scale


def sum_of_equal_shifts(
    x: Any, window: Window, i: int, batch_ndim: int, *, diagonal_spatial: bool
) -> Any:
    """One axis of `mean_of_equal_shifts`, the `i`-th, without the division by the taps."""
    times = 1 if diagonal_spatial else 2
    axis = batch_ndim + times * i
    if _prefers_shifts(x, batch_ndim):
        return examples_innermost(_shift_and_add(x, axis, window, times), batch_ndim)
    if diagonal_spatial:
        return _apply([window.incidence], x, axis)
    if window.size <= _LARGEST_MATRIX:
        return _apply_to_pair(window.pairs, x, axis, window.out)
    return _shift_and_add(x, axis, window, times)


# Beyond this many positions a band matrix over pairs of positions is mostly zeros, and shifts win.
_LARGEST_MATRIX = 12
# With so many pairs of examples innermost in memory, shifts of positions move whole vectors.
_VECTOR = 8


def _prefers_shifts(x: Any, batch_ndim: int) -> bool:
    """Whether a compiled program on the CPU has examples enough to lay them innermost."""
    on_cpu = jax.default_backend() == "cpu" and isinstance(x, jax.core.Tracer)
    return on_cpu and math.prod(x.shape[:batch_ndim]) >= _VECTOR


def examples_innermost(x: Any, batch_ndim: int) -> Any:
    """`x` with the examples innermost in memory, where that is faster.

    Padding and slicing of short axes of positions breaks up loops if these are innermost: one
    window sum then takes ten times a copy, so less than twice a copy. What is computed from `x`
    follows if its own last result is constrained too: a chain of layers in two layouts would write
    every number of its polynomials as an array.
    """
    if not _prefers_shifts(x, batch_ndim):
        return x
    order = (*range(batch_ndim, x.ndim), *range(batch_ndim))
    return with_layout_constraint(x, Layout(major_to_minor=order))


def _apply_to_pair(matrix: np.ndarray, x: Any, axis: int, out: int) -> Any:
    before, after = x.shape[:axis], x.shape[axis + 2 :]
    flat = x.reshape(math.prod(before), -1, math.prod(after))
    flat = _matmul(matrix, flat)
    return flat.reshape(*before, out, out, *after)


def _apply(matrices: Sequence[np.ndarray], x: Any, start: int) -> Any:
    """Each matrix on its axis, from `start` on."""
    for i, matrix in enumerate(matrices):
        axis = start + i
        before, after = x.shape[:axis], x.shape[axis + 1 :]
        flat = x.reshape(math.prod(before), x.shape[axis], math.prod(after))
        x = _matmul(matrix, flat).reshape(*before, matrix.shape[0], *after)
    return x


def _matmul(matrix: np.ndarray, flat: Any) -> Any:
    """(out, in) on the middle axis of (b, in, r)."""
    constant = jnp.asarray(matrix, flat.dtype)
    highest = jax.lax.Precision.HIGHEST
    if flat.shape[-1] == 1:
        return jnp.matmul(flat[..., 0], constant.T, precision=highest)[..., None]
    return jnp.matmul(constant, flat, precision=highest)


def _shift_and_add(x: Any, axis: int, window: Window, times: int) -> Any:
    """Every tap reads a slice along `times` axes from `axis` on, with the same shift in each."""
    axes = range(axis, axis + times)
    d = window.dilation
    if d > 1:  # zeros between inputs, and after the last one
        config = [(0, 0, 0)] * x.ndim
        for a in axes:
            config[a] = (0, d - 1, d - 1)
        x = jax.lax.pad(x, jnp.zeros((), x.dtype), config)
    last = (window.out - 1) * window.stride + window.taps - 1 + window.offset
    before, after = max(-window.offset, 0), max(last + 1 - window.size * d, 0)
    pads = [(0, 0)] * x.ndim
    for a in axes:
        pads[a] = (before, after)
    x = jnp.pad(x, pads, mode="wrap") if window.circular else jnp.pad(x, pads)

    def tap(i):
        start = i + window.offset + before
        stop = start + (window.out - 1) * window.stride + 1
        cut = slice(start, stop, window.stride)
        return x[(slice(None),) * axis + (cut,) * times]

    return sum(tap(i) for i in range(1, window.taps)) + tap(0) if window.taps > 1 else tap(0)


def pool(
    x: Any,
    windows: Sequence[Window],
    batch_ndim: int,
    *,
    average: bool,
    normalize_edges: bool,
    diagonal_spatial: bool,
) -> Any:
    """The covariance of pooled outputs.

    Args:
      x: as in `mean_of_equal_shifts`.
      windows: one an axis.
      batch_ndim: how many batch axes lead.
      average: whether to divide by the window.
      normalize_edges: by the inputs that the window really reads instead.
      diagonal_spatial: whether only equal positions are kept (others must be zero).
    """
    if x is None or x.ndim == 0:
        return x
    matrices = [_pooling_matrix(w, average, normalize_edges) for w in windows]
    if diagonal_spatial:
        return _apply([matrix**2 for matrix in matrices], x, batch_ndim)
    return _apply([matrix for matrix in matrices for _ in range(2)], x, batch_ndim)


def _pooling_matrix(window: Window, average: bool, normalize_edges: bool) -> np.ndarray:
    reads = window.incidence
    if not average:
        return reads
    return reads / (reads.sum(1, keepdims=True) if normalize_edges else window.taps)


def check_padding(padding: Any) -> Padding:
    """The enum's member of this name."""
    if isinstance(padding, Padding):
        return padding
    check_choice("padding", padding, [p.name for p in Padding])
    return Padding(padding)
