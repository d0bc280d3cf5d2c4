"""Constant linear maps of the activations: `DotGeneral`, `ImageResize`, `Index` and `Slice`.

A linear map of positions is the same map of both positions of every covariance.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from poster_jax.kernels import _pairs
from poster_jax.kernels.stax._dependent_gap import through_weights
from poster_jax.kernels.stax.layer import layer
from poster_jax.kernels.stax.masking import supports_masking
from poster_jax.kernels.stax.requirements import Bool, Diagonal, requires

__all__ = ["DotGeneral", "ImageResize", "Index", "Slice"]


@layer
@supports_masking(remask_kernel=False)
def DotGeneral(  # noqa: N802
    *,
    lhs: Any = None,
    rhs: Any = None,
    dimension_numbers: Any = (((), ()), ((), ())),
    precision: Any = None,
    batch_axis: int = 0,
    channel_axis: int = -1,
) -> Any:
    """`lax.dot_general` of the activations with a constant array.

    Args:
      lhs: the constant on the left, or None.
      rhs: the constant on the right, or None. With neither the layer does nothing.
      dimension_numbers: as in `lax.dot_general`; must not name the channel axis.
      precision: as in `lax.dot_general`.
      batch_axis: the examples' axis; after summing over it no layer can follow.
      channel_axis: the channels' axis.

    Returns:
      `(init_fn, apply_fn, kernel_fn)`.

    Raises:
      ValueError: both constants are given.

    Example:
      >>> numbers = (((1,), (0,)), ((), ()))
      >>> difference = DotGeneral(rhs=jnp.array([1.0, -1.0]), dimension_numbers=numbers)
      >>> difference[1]((), jnp.ones((5, 2, 3))).shape
      (5, 3)
    """
    if rhs is not None and lhs is not None:
        raise ValueError("lhs or rhs must be None: the activations are the other factor; got both.")
    is_lhs = rhs is None
    nothing = rhs is None and lhs is None
    other = jnp.asarray(jnp.nan) if nothing else jnp.asarray(lhs if is_lhs else rhs)

    def dot(x, constant):
        factors = (constant, x) if is_lhs else (x, constant)
        return lax.dot_general(*factors, dimension_numbers, precision)

    def init_fn(rng, input_shape):
        if nothing:
            return input_shape, ()
        # An axis of unknown size (-1) keeps it: no constant can depend on it.
        known = tuple(max(n, 1) for n in input_shape)
        structs = jax.ShapeDtypeStruct(known, other.dtype), other
        shape = list(jax.eval_shape(dot, *structs).shape)
        if input_shape[batch_axis] < 0:
            shape[_batch_position()] = input_shape[batch_axis]
        return tuple(shape), ()

    def _batch_position():
        (lhs_sum, rhs_sum), (lhs_batch, rhs_batch) = dimension_numbers
        own_sum, own_batch = (rhs_sum, rhs_batch) if is_lhs else (lhs_sum, lhs_batch)
        if batch_axis in own_batch:
            return list(own_batch).index(batch_axis)
        free_other = other.ndim - len(lhs_sum) - len(lhs_batch) if is_lhs else 0
        before = sum(i < batch_axis for i in (*own_sum, *own_batch))
        return len(own_batch) + free_other + batch_axis - before

    def apply_fn(params, inputs, **kwargs):
        return inputs if nothing else dot(inputs, other.astype(inputs.dtype))

    summed = tuple(dimension_numbers[0][1 if is_lhs else 0])
    keeps_positions = nothing or summed in ((), (batch_axis,))

    @requires(
        diagonal_batch=nothing or batch_axis not in summed,
        diagonal_spatial=Diagonal(input=Bool.YES if keeps_positions else Bool.NO),
        batch_axis=batch_axis,
        channel_axis=channel_axis,
    )
    def kernel_fn(k, **kwargs):
        return k if nothing else k.dot_general(other, other, is_lhs, dimension_numbers)

    def mask_fn(mask, input_shape):
        """An output exists where an existing input enters with a weight other than 0."""
        if nothing:
            return mask
        shape = list(input_shape)
        shape[channel_axis] = mask.shape[channel_axis]
        exists = ~jnp.broadcast_to(mask, shape)
        return dot(exists.astype(jnp.float32), (other != 0).astype(jnp.float32)) == 0

    return init_fn, apply_fn, kernel_fn, mask_fn


@layer
@supports_masking(remask_kernel=True)
def ImageResize(  # noqa: N802
    shape: Sequence[int],
    method: Any,
    antialias: bool = True,
    precision: Any = lax.Precision.HIGHEST,
    batch_axis: int = 0,
    channel_axis: int = -1,
) -> Any:
    """`jax.image.resize`; its kernel exists for "linear" and "nearest".

    Args:
      shape: the new shape, one entry an axis; -1 leaves an axis as it is (and its kernel small).
      method: as in `jax.image.resize`.
      antialias: likewise.
      precision: likewise.
      batch_axis: the examples' axis.
      channel_axis: the channels' axis, whose entry must be -1 for a kernel.

    Returns:
      `(init_fn, apply_fn, kernel_fn)`.

    Raises:
      NotImplementedError: (`kernel_fn`) another method.
      ValueError: (`kernel_fn`) channels are resized.

    Example:
      >>> init_fn, _, _ = ImageResize((-1, 4, 4, -1), "linear")
      >>> init_fn(None, (-1, 8, 8, 3))[0]
      (-1, 4, 4, 3)
    """
    batch_axis, channel_axis = batch_axis % len(shape), channel_axis % len(shape)
    spatial = [i for i in range(len(shape)) if i not in (batch_axis, channel_axis)]

    def new_shape(input_shape):
        return tuple(n if new == -1 else new for n, new in zip(input_shape, shape, strict=True))

    def resize(x, to):
        return jax.image.resize(x, to, method, antialias, precision)

    def init_fn(rng, input_shape):
        return new_shape(input_shape), ()

    def apply_fn(params, x, **kwargs):
        return resize(x, new_shape(x.shape))

    def mask_fn(mask, input_shape):
        """An output exists where anything that exists contributes."""
        exists = (~mask).astype(jnp.float32)
        return resize(exists, new_shape(mask.shape)) == 0

    resized = any(shape[i] != -1 for i in spatial)

    @requires(
        batch_axis=batch_axis,
        channel_axis=channel_axis,
        diagonal_batch=shape[batch_axis] == -1,
        diagonal_spatial=Diagonal(input=Bool.NO if resized else Bool.YES),
    )
    def kernel_fn(k, **kwargs):
        kind = jax.image.ResizeMethod.from_string(method) if isinstance(method, str) else method
        if kind not in (jax.image.ResizeMethod.LINEAR, jax.image.ResizeMethod.NEAREST):
            raise NotImplementedError(
                f"method must be 'linear' or 'nearest' for a kernel, got {method!r}."
            )
        if shape[channel_axis] != -1:
            raise ValueError(
                f"shape[{channel_axis}] must be -1: the channel axis is infinite, got "
                f"{shape[channel_axis]}."
            )
        shape1, shape2 = new_shape(k.shape1), new_shape(k.shape2)

        def mapped(x, batch_ndim, left, right):
            if x is None or x.ndim == 0:
                return x
            batch = (left[batch_axis], right[batch_axis])[-batch_ndim:]
            pairs = 1 if k.diagonal_spatial else 2
            return resize(x, (*batch, *(n for i in spatial for n in (left[i], right[i])[:pairs])))

        out = k.replace(
            nngp=mapped(k.nngp, 2, shape1, shape2),
            ntk=mapped(k.ntk, 2, shape1, shape2),
            cov1=mapped(k.cov1, k.cov_ndim, shape1, shape1),
            cov2=mapped(k.cov2, k.cov_ndim, shape2, shape2),
        )
        known = all(getattr(k, name, None) is not None for name in ("ntk", "gap", "equal"))
        if not known or shape[batch_axis] != -1:
            return out
        gap = through_weights(k, out, lambda x: mapped(x, 2, shape1, shape2))
        return out.replace(gap=gap)

    return init_fn, apply_fn, kernel_fn, mask_fn


@layer
@supports_masking(remask_kernel=False)
def Index(idx: Any, batch_axis: int = 0, channel_axis: int = -1) -> Any:  # noqa: N802
    """`x[idx]`.

    Args:
      idx: made by `Slice`, as in `Index(Slice[:, ::2, 0])`.
      batch_axis: the examples' axis; no integer may remove it.
      channel_axis: the channels' axis; must stay whole for a kernel.

    Returns:
      `(init_fn, apply_fn, kernel_fn)`.

    Raises:
      NotImplementedError: (`kernel_fn`) the channel axis is cut, or the batch axis removed.
      ValueError: (`init_fn`) an axis of unknown size is cut.

    Example:
      >>> init_fn, _, _ = Index(Slice[:, ::2, 0])
      >>> init_fn(None, (-1, 8, 8, 3))[0]
      (-1, 4, 3)
    """

    def init_fn(rng, input_shape):
        return _pairs.sliced_shape(input_shape, idx), ()

    def apply_fn(params, x, **kwargs):
        return x[idx]

    @requires(batch_axis=batch_axis, channel_axis=channel_axis)
    def kernel_fn(k, **kwargs):
        return k[idx]

    def mask_fn(mask, input_shape):
        return mask[idx]

    return init_fn, apply_fn, kernel_fn, mask_fn


class _Slice:
    """Writes down an index: `Slice[1, :, 2:8]`."""

    def __getitem__(self, idx: Any) -> Any:
        return idx


Slice = _Slice()
