"""`jax.lax.conv_general_dilated` with the same arguments; here the backend's form is chosen."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from poster_jax.core.convolution.primitive import solve
from poster_jax.core.convolution.window import Window, dilated
from poster_jax.core.typing import Array


def conv_general_dilated(
    lhs: ArrayLike,
    rhs: ArrayLike,
    window_strides: Sequence[int],
    padding: Any,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
    out_sharding: Any = None,
) -> Array:
    """The convolution of `jax.lax`, with derivatives that stay fast inside loops on the CPU.

    Equal to `jax.lax.conv_general_dilated` to rounding, for all its arguments, under `jit`, `vmap`
    and derivatives of any order. To use it in Flax, change `nn.Conv(32, (3, 3))` to
    `nn.Conv(32, (3, 3), conv_general_dilated=conv_general_dilated)`.

    Args:
      lhs: input, rank n + 2, laid out as `dimension_numbers` says.
      rhs: kernel, rank n + 2.
      window_strides: n strides.
      padding: "SAME", "SAME_LOWER", "VALID", or n pairs (low, high).
      lhs_dilation: n input dilations; None means 1.
      rhs_dilation: n kernel dilations; None means 1.
      dimension_numbers: as in `jax.lax`; None means "NCHW"-like.
      feature_group_count: groups of input features, each with its own kernels.
      batch_group_count: groups of images, each with its own kernels.
      precision: as in `jax.lax`; on the CPU every precision is the highest.
      preferred_element_type: dtype in which to accumulate and to return.
      out_sharding: as in `jax.lax`, for meshes with explicit axes.

    Returns:
      The output, rank n + 2.

    Raises:
      ValueError: a stride or dilation below 1.
      TypeError, ValueError: those of `jax.lax.conv_general_dilated`, word for word.

    Source: this library (the derivation stands in `primitive.py`).

    Example:
      >>> import jax, jax.numpy as jnp
      >>> image, kernel = jnp.ones((1, 1, 8, 8)), jnp.ones((4, 1, 3, 3))
      >>> conv_general_dilated(image, kernel, (1, 1), "SAME").shape
      (1, 4, 8, 8)
    """
    for name, steps in [
        ("window_strides", window_strides),
        ("lhs_dilation", lhs_dilation or ()),
        ("rhs_dilation", rhs_dilation or ()),
    ]:
        if any(step < 1 for step in steps):
            raise ValueError(f"{name} must be at least 1 in every axis, got {tuple(steps)}.")
    theirs = partial(
        lax.conv_general_dilated,
        window_strides=window_strides,
        padding=padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=dimension_numbers,
        feature_group_count=feature_group_count,
        batch_group_count=batch_group_count,
        precision=precision,
        preferred_element_type=preferred_element_type,
        out_sharding=out_sharding,
    )
    result = jax.eval_shape(theirs, lhs, rhs)  # every check, and every message, is lax's
    if not _ours_is_better(lhs, rhs, result):
        return theirs(lhs, rhs)
    dims = lax.conv_dimension_numbers(jnp.shape(lhs), jnp.shape(rhs), dimension_numbers)
    window = _window(
        [jnp.shape(lhs)[d] for d in dims.lhs_spec[2:]],
        [jnp.shape(rhs)[d] for d in dims.rhs_spec[2:]],
        [result.shape[d] for d in dims.out_spec[2:]],
        window_strides,
        padding,
        lhs_dilation,
        rhs_dilation,
    )
    lhs, rhs = jnp.asarray(lhs, result.dtype), jnp.asarray(rhs, result.dtype)
    images = jnp.transpose(lhs, (dims.lhs_spec[0], *dims.lhs_spec[2:], dims.lhs_spec[1]))
    kernel = jnp.transpose(rhs, (*dims.rhs_spec[2:], dims.rhs_spec[1], dims.rhs_spec[0]))
    # Feature groups share out input channels, batch groups images, and both the output channels.
    groups, axis = max((feature_group_count, -1), (batch_group_count, 0))
    output = solve(
        "output",
        window,
        input=_split_groups(images, groups, axis),
        kernel=_split_groups(kernel, groups, -1),
    )
    output = jnp.moveaxis(output, 0, -2).reshape(*output.shape[1:-1], -1)
    where = {dims.out_spec[0]: 0, dims.out_spec[1]: output.ndim - 1}
    where |= {d: i + 1 for i, d in enumerate(dims.out_spec[2:])}
    return jnp.transpose(output, [where[d] for d in range(output.ndim)])


def _ours_is_better(lhs: ArrayLike, rhs: ArrayLike, result: Any) -> bool:
    """The one place where the backend decides.

    XLA for the CPU brings a convolution into the layout that its fast kernels take only where it
    stands at the top level of a program. In the body of a loop the gradients, which arrive in other
    layouts, fall to a naive loop nest: 9 to 40 times slower for the input's, 50 to 240 times for
    the kernel's. Grouped convolutions, which is what `vmap` over kernels makes, lose 5 to 10 times
    everywhere. GPU and TPU bring every convolution into shape, so there XLA's own stays.
    The backend is asked for when the function is traced; a program that a machine with a GPU places
    on its CPU therefore gets XLA's, which is right and slow.

    XLA's also serves what the forms do not: integers and complex numbers, arrays that are empty or
    have no spatial axis, shapes that are symbols, arrays laid out over explicit mesh axes.
    """
    shapes = (jnp.shape(lhs), jnp.shape(rhs), result.shape)
    return (
        jax.default_backend() == "cpu"
        and len(result.shape) > 2
        and jnp.issubdtype(result.dtype, jnp.floating)
        and jnp.issubdtype(jnp.result_type(lhs), jnp.floating)
        and all(isinstance(d, int) for shape in shapes for d in shape)
        and all(math.prod(shape) > 0 for shape in shapes)
        and not any(_explicitly_sharded(x) for x in (lhs, rhs))
    )


def _explicitly_sharded(x: ArrayLike) -> bool:
    sharding = getattr(jax.typeof(x), "sharding", None)
    return any(axis is not None for axis in getattr(sharding, "spec", ()))


def _window(
    sizes: Sequence[int],
    taps: Sequence[int],
    output: Sequence[int],
    strides: Sequence[int],
    padding: Any,
    lhs_dilation: Sequence[int] | None,
    rhs_dilation: Sequence[int] | None,
) -> Window:
    ones = (1,) * len(sizes)
    kernel_dilation = tuple(rhs_dilation or ones)
    if isinstance(padding, str):
        reach = [dilated(k, d) for k, d in zip(taps, kernel_dilation, strict=True)]
        padding = lax.padtype_to_pads(sizes, reach, strides, padding)
    return Window(
        input=tuple(sizes),
        kernel=tuple(taps),
        output=tuple(output),
        strides=tuple(int(s) for s in strides),
        padding=tuple((int(low), int(high)) for low, high in padding),
        input_dilation=tuple(int(d) for d in lhs_dilation or ones),
        kernel_dilation=tuple(int(d) for d in kernel_dilation),
    )


def _split_groups(x: Array, groups: int, axis: int) -> Array:
    """(..., groups * size, ...) at `axis` to (groups, ..., size, ...)."""
    axis = axis % x.ndim
    x = x.reshape(*x.shape[:axis], groups, -1, *x.shape[axis + 1 :])
    return jnp.moveaxis(x, axis, 0)
