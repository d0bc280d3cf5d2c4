"""Pooling, local and global, and `Flatten`.

Pooling is linear in the positions: k and t are averaged (or summed) over both windows. Flatten
makes positions channels, so that only equal positions meet: k and t are averaged over them.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from poster_jax.kernels import _pairs
from poster_jax.kernels.stax._dependent_gap import through_pool
from poster_jax.kernels.stax._gap import through_mean
from poster_jax.kernels.stax.layer import layer
from poster_jax.kernels.stax.masking import mean_and_variance, supports_masking
from poster_jax.kernels.stax.requirements import Bool, Diagonal, requires
from poster_jax.kernels.stax.windows import Padding, check_padding, pool, windows

__all__ = ["AvgPool", "Flatten", "GlobalAvgPool", "GlobalSumPool", "SumPool"]


@layer
@supports_masking(remask_kernel=True)
def AvgPool(  # noqa: N802
    window_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: Any = "VALID",
    normalize_edges: bool = False,
    batch_axis: int = 0,
    channel_axis: int = -1,
) -> Any:
    """The mean over a window.

    Args:
      window_shape: one size a spatial axis.
      strides: likewise; None: 1.
      padding: "VALID", "SAME" (zeros) or "CIRCULAR".
      normalize_edges: with "SAME", divide by the inputs that the window really reads, instead of by
        its size.
      batch_axis: the examples' axis.
      channel_axis: the channels' axis.

    Returns:
      `(init_fn, apply_fn, kernel_fn)`.

    Raises:
      ValueError: another padding; a window that does not fit.

    Example:
      >>> init_fn, _, _ = AvgPool((2, 2), (2, 2))
      >>> init_fn(None, (-1, 8, 8, 3))[0]
      (-1, 4, 4, 3)
    """
    return _local_pool(
        window_shape, strides, padding, batch_axis, channel_axis,
        average=True, normalize_edges=normalize_edges,
    )  # fmt: skip


@layer
@supports_masking(remask_kernel=True)
def SumPool(  # noqa: N802
    window_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: Any = "VALID",
    batch_axis: int = 0,
    channel_axis: int = -1,
) -> Any:
    """The sum over a window.

    Args:
      window_shape: one size a spatial axis.
      strides: likewise; None: 1.
      padding: "VALID", "SAME" (zeros) or "CIRCULAR".
      batch_axis: the examples' axis.
      channel_axis: the channels' axis.

    Returns:
      `(init_fn, apply_fn, kernel_fn)`.

    Raises:
      ValueError: another padding; a window that does not fit.

    Example:
      >>> _, apply_fn, _ = SumPool((2,))
      >>> apply_fn((), jnp.ones((1, 3, 1)))[0, :, 0].tolist()
      [2.0, 2.0]
    """
    return _local_pool(
        window_shape, strides, padding, batch_axis, channel_axis,
        average=False, normalize_edges=False,
    )  # fmt: skip


def _local_pool(
    window_shape: Any, strides: Any, padding: Any, batch_axis: int, channel_axis: int,
    *, average: bool, normalize_edges: bool,
) -> Any:  # fmt: skip
    window_shape = tuple(window_shape)
    strides = tuple(strides) if strides else (1,) * len(window_shape)
    padding = check_padding(padding)
    name = "AvgPool" if average else "SumPool"

    def spatial_axes(ndim):
        return [i for i in range(ndim) if i not in (batch_axis % ndim, channel_axis % ndim)]

    def axis_windows(shape, padding=padding):
        sizes = [shape[i] for i in spatial_axes(len(shape))]
        return windows(sizes, window_shape, strides, padding, f"window_shape of {name}")

    def init_fn(rng, input_shape):
        out = list(input_shape)
        for axis, window in zip(spatial_axes(len(out)), axis_windows(input_shape), strict=True):
            out[axis] = window.out
        return tuple(out), ()

    def apply_fn(params, inputs, **kwargs):
        axes = spatial_axes(inputs.ndim)
        out, count = inputs, 1.0
        for axis, window in zip(axes, axis_windows(inputs.shape), strict=True):
            reads = jnp.asarray(window.incidence, inputs.dtype)
            out = jnp.moveaxis(jnp.tensordot(reads, out, (1, axis)), 0, axis)
            sizes = reads.sum(1).reshape((-1,) + (1,) * (inputs.ndim - axis - 1))
            count = count * sizes
        if not average:
            return out
        return out / (count if normalize_edges else math.prod(window_shape))

    @requires(
        batch_axis=batch_axis,
        channel_axis=channel_axis,
        diagonal_spatial=Diagonal(input=Bool.MAYBE),
    )
    def kernel_fn(k, **kwargs):
        kernel_windows = axis_windows(k.shape1)

        def pooled(x, batch_ndim):
            return pool(
                x, kernel_windows, batch_ndim, average=average, normalize_edges=normalize_edges,
                diagonal_spatial=k.diagonal_spatial,
            )  # fmt: skip

        out = k.map_covariances(pooled)
        if k.ntk is None or getattr(k, "gap", None) is None:
            return out
        counts = None
        if average and normalize_edges:
            reads = [jnp.asarray(w.incidence.sum(1), k.nngp.dtype) for w in kernel_windows]
            counts = functools.reduce(jnp.multiply.outer, reads)
        gap = through_pool(k, out, kernel_windows, counts, sums=not average)
        return out.replace(gap=gap, nonnegative=k.nonnegative)

    def mask_fn(mask, input_shape):
        _check_mask(mask, channel_axis, name)
        same = Padding.SAME if padding is Padding.CIRCULAR else padding
        for axis, window in zip(
            spatial_axes(mask.ndim), axis_windows(input_shape, same), strict=True
        ):
            mask = mask if mask.shape[axis] == 1 else jnp.take(mask, window.centres, axis)
        return mask

    return init_fn, apply_fn, kernel_fn, mask_fn


@layer
@supports_masking(remask_kernel=False)
def GlobalAvgPool(batch_axis: int = 0, channel_axis: int = -1) -> Any:  # noqa: N802
    """The mean over all positions that exist; spatial axes go.

    Args:
      batch_axis: the examples' axis.
      channel_axis: the channels' axis.

    Returns:
      `(init_fn, apply_fn, kernel_fn)`.

    Example:
      >>> init_fn, _, _ = GlobalAvgPool()
      >>> init_fn(None, (-1, 8, 8, 3))[0]
      (-1, 3)
    """
    return _global_pool(batch_axis, channel_axis, average=True)


@layer
@supports_masking(remask_kernel=False)
def GlobalSumPool(batch_axis: int = 0, channel_axis: int = -1) -> Any:  # noqa: N802
    """The sum over all positions; spatial axes go.

    Args:
      batch_axis: the examples' axis.
      channel_axis: the channels' axis.

    Returns:
      `(init_fn, apply_fn, kernel_fn)`.

    Example:
      >>> _, apply_fn, _ = GlobalSumPool()
      >>> apply_fn((), jnp.ones((1, 3, 1))).tolist()
      [[3.0]]
    """
    return _global_pool(batch_axis, channel_axis, average=False)


def _global_pool(batch_axis: int, channel_axis: int, *, average: bool) -> Any:
    def spatial_axes(ndim):
        return tuple(i for i in range(ndim) if i not in (batch_axis % ndim, channel_axis % ndim))

    def reduce(x, axes, mask=None):
        if not average:
            return jnp.sum(x, axes)
        return jnp.squeeze(mean_and_variance(x, axes, mask)[0], axes)

    def init_fn(rng, input_shape):
        gone = spatial_axes(len(input_shape))
        return tuple(n for i, n in enumerate(input_shape) if i not in gone), ()

    def apply_fn(params, inputs, mask=None, **kwargs):
        return reduce(inputs, spatial_axes(inputs.ndim), mask)

    @requires(
        batch_axis=batch_axis,
        channel_axis=channel_axis,
        diagonal_spatial=Diagonal(input=Bool.MAYBE, output=Bool.YES),
    )
    def kernel_fn(k, **kwargs):
        mask11, mask12, mask22 = k.mask_pairs(k.mask1, k.mask2)

        def pooled(x, batch_ndim, mask):
            if x is None or x.ndim == 0:
                return x
            axes = tuple(range(batch_ndim, x.ndim))
            out = reduce(x, axes, mask)
            if k.diagonal_spatial and average:  # zeros between positions count as well
                out = out / math.prod(x.shape[batch_ndim:])
            return out

        ndim = len(k.shape1)
        batch_first = batch_axis % ndim < channel_axis % ndim
        out = k.replace(
            nngp=pooled(k.nngp, 2, mask12),
            ntk=None if k.ntk is None else pooled(k.ntk, 2, mask12),
            cov1=pooled(k.cov1, k.cov_ndim, mask11),
            cov2=pooled(k.cov2, k.cov_ndim, mask22),
            batch_axis=0 if batch_first else 1,
            channel_axis=1 if batch_first else 0,
        )
        if k.ntk is None or k.mask1 is not None or k.mask2 is not None or k.nngp.ndim == 2:
            return out
        if getattr(k, "gap", None) is None:
            return out
        gap = through_pool(k, out, (), None, sums=not average)
        return out.replace(gap=gap, nonnegative=k.nonnegative)

    def mask_fn(mask, input_shape):
        _check_mask(mask, channel_axis, "GlobalAvgPool" if average else "GlobalSumPool")
        return jnp.all(mask, spatial_axes(mask.ndim))

    return init_fn, apply_fn, kernel_fn, mask_fn


@layer
@supports_masking(remask_kernel=False)
def Flatten(batch_axis: int = 0, batch_axis_out: int = 0) -> Any:  # noqa: N802
    """All axes but the batch axis become channels.

    Args:
      batch_axis: of the inputs.
      batch_axis_out: of the outputs, 0 or 1.

    Returns:
      `(init_fn, apply_fn, kernel_fn)`.

    Raises:
      ValueError: `batch_axis_out` is neither.

    Example:
      >>> init_fn, _, _ = Flatten()
      >>> init_fn(None, (-1, 8, 8, 3))[0]
      (-1, 192)
    """
    if batch_axis_out not in (0, 1, -1, -2):
        raise ValueError(f"batch_axis_out must be 0 or 1, got {batch_axis_out}.")
    batch_axis_out %= 2

    def output_shape(input_shape):
        batch = input_shape[batch_axis]
        axis = batch_axis % len(input_shape)
        channels = math.prod(n for i, n in enumerate(input_shape) if i != axis)
        return (channels, batch) if batch_axis_out else (batch, channels)

    def init_fn(rng, input_shape):
        return output_shape(input_shape), ()

    def flatten(x):
        x = jnp.moveaxis(x, batch_axis, -1 if batch_axis_out else 0)
        return x.reshape((-1, x.shape[-1]) if batch_axis_out else (x.shape[0], -1))

    def apply_fn(params, inputs, **kwargs):
        return flatten(inputs)

    @requires(batch_axis=batch_axis, channel_axis=None, diagonal_spatial=Diagonal(output=Bool.YES))
    def kernel_fn(k, **kwargs):
        def trace(x, batch_ndim):
            x = x if k.diagonal_spatial else _pairs.diagonal(x, batch_ndim)
            return jnp.mean(x, tuple(range(batch_ndim, x.ndim)))

        gap = None
        if getattr(k, "gap", None) is not None and k.nngp.ndim > 2:
            only = k if k.diagonal_spatial else k.map_covariances(_pairs.diagonal)
            gap = k.gap if k.diagonal_spatial else _pairs.diagonal(k.gap, 2)
            gap = through_mean(only.replace(gap=gap, diagonal_spatial=True))
        return k.map_covariances(trace).replace(
            gap=gap if k.nngp.ndim > 2 else k.gap,
            is_gaussian=False,
            batch_axis=batch_axis_out,
            channel_axis=1 - batch_axis_out,
            diagonal_spatial=False,
        )

    def mask_fn(mask, input_shape):
        return flatten(jnp.broadcast_to(mask, input_shape))

    return init_fn, apply_fn, kernel_fn, mask_fn


def _check_mask(mask: Any, channel_axis: int, name: str) -> None:
    if mask.shape[channel_axis] != 1:
        raise NotImplementedError(
            f"{name} needs one mask for all channels (size 1 along axis {channel_axis}), got a "
            f"mask of shape {mask.shape}."
        )
