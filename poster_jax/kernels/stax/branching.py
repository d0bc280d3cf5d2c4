"""Branches: one input to several layers, and several outputs to one."""

import functools
import operator
import warnings
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from poster_jax.kernels.kernel import Kernel
from poster_jax.kernels.stax._carried import Carried, carry
from poster_jax.kernels.stax._gap import through_sum
from poster_jax.kernels.stax.layer import layer
from poster_jax.kernels.stax.masking import supports_masking

__all__ = ["FanInConcat", "FanInProd", "FanInSum", "FanOut"]


@layer
def FanOut(num: int) -> Any:  # noqa: N802
    """The input, `num` times.

    Args:
      num: how many copies.

    Returns:
      `(init_fn, apply_fn, kernel_fn)`.

    Example:
      >>> _, apply_fn, _ = FanOut(2)
      >>> apply_fn((), 1.0)
      [1.0, 1.0]
    """

    def init_fn(rng, input_shape):
        return [input_shape] * num, ()

    def apply_fn(params, inputs, **kwargs):
        return [inputs] * num

    def kernel_fn(k, **kwargs):
        return [k] * num

    return init_fn, apply_fn, kernel_fn


@layer
@supports_masking(remask_kernel=False)
def FanInSum() -> Any:  # noqa: N802
    """The sum of independent branches: kernels add.

    Returns:
      `(init_fn, apply_fn, kernel_fn)`. That the branches are independent (each ends in random
      weights of its own, or at most one has none) is not checked.

    Raises:
      NotImplementedError: (`kernel_fn`) a branch that is not Gaussian, or branches of different
        layout.
      ValueError: (`kernel_fn`) branches of different shapes.

    Example:
      >>> _, apply_fn, _ = FanInSum()
      >>> float(apply_fn((), [1.0, 2.0]))
      3.0
    """

    def kernel_fn(ks, **kwargs):
        ks = _same_layout(ks, "FanInSum")
        _same_shapes(ks, "FanInSum")
        if len(ks) > 1 and not all(k.is_gaussian for k in ks):
            raise NotImplementedError(
                "FanInSum needs Gaussian branches (is_gaussian=True), each ending in a layer with "
                f"random weights, got {[k.is_gaussian for k in ks]}: means of other branches would "
                "add up too."
            )

        def total(name):
            values = [getattr(k, name) for k in ks]
            return None if values[0] is None else functools.reduce(operator.add, values)

        gap = None if any(k.gap is None for k in ks) else through_sum(ks)
        return _joined(ks, total, is_gaussian=all(k.is_gaussian for k in ks)).replace(gap=gap)

    def apply_fn(params, inputs, **kwargs):
        return functools.reduce(operator.add, inputs)

    return _first_shape, apply_fn, kernel_fn, _all_masks


@layer
@supports_masking(remask_kernel=False)
def FanInProd() -> Any:  # noqa: N802
    """The product of independent branches: k = prod k_i, t = sum_i t_i prod_{j != i} k_j.

    Returns:
      `(init_fn, apply_fn, kernel_fn)`.

    Raises:
      NotImplementedError: (`kernel_fn`) branches of different layout.
      ValueError: (`kernel_fn`) branches of different shapes.

    Example:
      >>> _, apply_fn, _ = FanInProd()
      >>> float(apply_fn((), [3.0, 2.0]))
      6.0
    """

    def kernel_fn(ks, **kwargs):
        ks = _same_layout(ks, "FanInProd")
        _same_shapes(ks, "FanInProd")

        def product(name):
            values = [getattr(k, name) for k in ks]
            if any(value is None for value in values):
                return None
            if name != "ntk":
                return functools.reduce(operator.mul, values)
            value, slope = ks[0].nngp, ks[0].ntk
            for k in ks[1:]:
                value, slope = value * k.nngp, slope * k.nngp + value * k.ntk
            return slope

        return _joined(ks, product, is_gaussian=len(ks) == 1 and ks[0].is_gaussian)

    def apply_fn(params, inputs, **kwargs):
        return functools.reduce(operator.mul, inputs)

    return _first_shape, apply_fn, kernel_fn, _all_masks


@layer
@supports_masking(remask_kernel=False)
def FanInConcat(axis: int = -1) -> Any:  # noqa: N802
    """Branches one after the other along `axis`.

    Along channels the kernels average, weighted by the widths; along a spatial axis or the batch
    they become blocks, with zeros between branches.

    Args:
      axis: of the activations.

    Returns:
      `(init_fn, apply_fn, kernel_fn)`.

    Raises:
      NotImplementedError: (`kernel_fn`) along another axis than channels, a branch that is not
        Gaussian; or branches of different layout.
      ValueError: (`kernel_fn`) branches that differ in another axis.

    Example:
      >>> _, apply_fn, _ = FanInConcat()
      >>> apply_fn((), [jnp.zeros((1, 2)), jnp.zeros((1, 3))]).shape
      (1, 5)
    """

    def init_fn(rng, input_shape):
        first, i = input_shape[0], axis % len(input_shape[0])
        return (*first[:i], sum(shape[i] for shape in input_shape), *first[i + 1 :]), ()

    def apply_fn(params, inputs, **kwargs):
        return jnp.concatenate(inputs, axis)

    def kernel_fn(ks, **kwargs):
        ks = _same_layout(ks, "FanInConcat")
        first = ks[0]
        i = axis % len(first.shape1)
        _same_shapes(ks, "FanInConcat", besides=i)
        along_channels = i == first.channel_axis
        if not along_channels and not all(k.is_gaussian for k in ks):
            raise NotImplementedError(
                "FanInConcat along another axis than channels needs Gaussian branches "
                f"(is_gaussian=True), got {[k.is_gaussian for k in ks]}."
            )
        if i == first.batch_axis:
            warnings.warn(
                "FanInConcat along the batch axis depends on how inputs are batched.", stacklevel=2
            )
        positions = [
            j for j in range(len(first.shape1)) if j not in (first.batch_axis, first.channel_axis)
        ]

        def joined(name):
            mats = [getattr(k, name) for k in ks]
            if mats[0] is None:
                return None
            if along_channels:
                return _weighted_mean(mats, [k.shape1[i] for k in ks])
            batch_ndim = first.cov_ndim if name.startswith("cov") else 2
            if i == first.batch_axis:
                return _concatenate(mats, 0, single=batch_ndim == 1)
            place = positions.index(i)
            single = first.diagonal_spatial
            return _concatenate(mats, batch_ndim + place * (1 if single else 2), single=single)

        return _joined(ks, joined, is_gaussian=not along_channels)

    def mask_fn(masks, input_shapes):
        return _concatenated_masks(masks, input_shapes, axis % len(input_shapes[0]))

    return init_fn, apply_fn, kernel_fn, mask_fn


def _first_shape(rng: Any, input_shape: Any) -> Any:
    return input_shape[0], ()


def _same_layout(ks: Any, name: str) -> list[Kernel]:
    ks = [carry(k) for k in ks]
    layouts = [(k.diagonal_batch, k.diagonal_spatial, k.batch_axis, k.channel_axis) for k in ks]
    if len(set(layouts)) > 1:
        raise NotImplementedError(
            f"{name} needs branches of one layout (diagonal_batch, diagonal_spatial, batch_axis, "
            f"channel_axis), got {layouts}."
        )
    return ks


def _same_shapes(ks: Sequence[Kernel], name: str, besides: int | None = None) -> None:
    def cut(shape):
        return tuple(n for i, n in enumerate(shape) if i != besides)

    shapes = {(cut(k.shape1), cut(k.shape2)) for k in ks}
    if len(shapes) > 1:
        where = "" if besides is None else f" besides axis {besides}"
        raise ValueError(
            f"{name} needs branches of equal shapes{where}, got {[k.shape1 for k in ks]} and "
            f"{[k.shape2 for k in ks]}."
        )


def _joined(ks: Sequence[Kernel], combine: Any, *, is_gaussian: bool) -> Kernel:
    names = ("nngp", "ntk", "cov1", "cov2")
    equal = [getattr(k, "equal", None) for k in ks]
    carried = {}
    if isinstance(ks[0], Carried):
        known = all(e is not None for e in equal)
        carried["equal"] = functools.reduce(operator.and_, equal) if known else None
    return ks[0].replace(
        **{name: combine(name) for name in names}, is_gaussian=is_gaussian, mask1=None, mask2=None,
        **carried,
    )  # fmt: skip


def _weighted_mean(mats: Sequence[Any], widths: Sequence[int]) -> Any:
    return sum(mat * width for mat, width in zip(mats, widths, strict=True)) / sum(widths)


def _concatenate(mats: Sequence[Any], axis: int, *, single: bool) -> Any:
    """Along a single axis, or block-diagonal over the pair of axes that starts at `axis`."""
    if single or mats[0].ndim == 0:
        return mats[0] if mats[0].ndim == 0 else jnp.concatenate(mats, axis)
    sizes = [mat.shape[axis] for mat in mats]
    blocks = []
    for i, mat in enumerate(mats):
        pads = [(0, 0)] * mat.ndim
        pads[axis] = (sum(sizes[:i]), sum(sizes[i + 1 :]))
        blocks.append(jnp.pad(mat, pads))
    return jnp.concatenate(blocks, axis + 1)


def _all_masks(masks: Sequence[Any], input_shapes: Any) -> Any:
    """A sum or product does not exist where no branch does."""
    given = [mask for mask in masks if mask is not None]
    return functools.reduce(operator.and_, given) if given else None


def _concatenated_masks(masks: Sequence[Any], input_shapes: Any, axis: int) -> Any:
    given = [mask for mask in masks if mask is not None]
    if not given:
        return None
    # Masks are broadcastable to their inputs; widen each only as far as the others are wide.
    wide = tuple(max(sizes) for sizes in zip(*(mask.shape for mask in given), strict=True))

    def widened(mask, shape):
        target = tuple(shape[i] if i == axis else min(n, shape[i]) for i, n in enumerate(wide))
        return jnp.zeros(target, bool) if mask is None else jnp.broadcast_to(mask, target)

    return jnp.concatenate(list(map(widened, masks, input_shapes)), axis)
