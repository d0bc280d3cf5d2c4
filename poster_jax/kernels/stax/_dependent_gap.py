"""The gap through layers that add outputs which depend on each other: pooling, resizing, attention.

Of the terms that make a distance there only those of equal shifts are known, the others are of the
size of covariances and keep their rounding. So a gap is what these say, but no more than a bound
that is made of known distances, and is nothing where outputs are equal.

Source: this library.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from poster_jax.kernels import _pairs
from poster_jax.kernels.stax._carried import (
    diagonal_variances,
    equal_outputs,
    safe_sqrt,
    scales,
    variances,
)
from poster_jax.kernels.stax._gap import same_position, through_mean, through_shifts
from poster_jax.kernels.stax.windows import Window, mean_of_equal_shifts

__all__ = ["among_equal", "through_pool", "through_weights", "zero_between_equal"]


def through_pool(k: Any, out: Any, windows: tuple[Window, ...], counts: Any, *, sums: bool) -> Any:
    """A gap that a pooled kernel may have: of nearly equal outputs, not more than what is true.

    Pooling adds outputs that depend on each other, and of the terms that make the distance only
    those of equal shifts are known. But by Cauchy and Schwarz

        |mean_t d_t|^2 <= mean_t |d_t|^2,    d_t the difference of the outputs that tap t reads,

    which is the distance of a mean over independent taps, and nothing where outputs are equal.

    Args:
      k: the `Carried` kernel before, whose gap is known.
      out: that after.
      windows: of the pool, one an axis; none for a pool of all positions.
      counts: how many inputs each output position is divided by, (positions...), or None: all taps.
      sums: whether the pool adds and does not divide.
    """
    v1, v2 = (jax.lax.stop_gradient(v) for v in diagonal_variances(k))
    if windows:
        nngp, gap = through_shifts(k, windows)
        means = [mean_of_equal_shifts(v, windows, 1, diagonal_spatial=True) for v in (v1, v2)]
        end = 1 if k.diagonal_spatial else means[0].ndim
        taps = math.prod(w.taps for w in windows)
    else:
        only = k if k.diagonal_spatial else k.map_covariances(_pairs.diagonal)
        gap = k.gap if k.diagonal_spatial else _pairs.diagonal(k.gap, 2)
        gap = through_mean(only.replace(gap=gap, diagonal_spatial=True))
        nngp = jnp.mean(only.nngp, tuple(range(2, only.nngp.ndim)))
        means = [jnp.mean(v, tuple(range(1, v.ndim))) for v in (v1, v2)]
        end, taps = 1, math.prod(v1.shape[1:])
    r1, r2 = scales(out)
    R1, R2 = _pairs.rows(safe_sqrt(means[0]), 0, end), _pairs.columns(safe_sqrt(means[1]), 0, end)
    # The deficit on the side on which the pooled outputs lie: of their difference or of their sum.
    deficit = jnp.where((nngp >= 0) == (out.nngp >= 0), gap, 2 * R1 * R2 - gap)
    # Where only equal positions are kept they are independent: the bound is what the distance is.
    scale = (taps**2 if sums else 1) / (taps if k.diagonal_spatial else 1)
    bound = scale * ((R1 - R2) ** 2 + 2 * deficit)
    if counts is not None:
        left, right = (side(counts[None], 0, end) for side in (_pairs.rows, _pairs.columns))
        bound = jnp.where(left == right, bound * (taps / left) ** 2, jnp.inf)
    if windows or k.diagonal_spatial:
        found = r1 * r2 - jnp.abs(out.nngp)
    else:
        found = ((taps**2 if sums else 1) * _mean_distance(k, out) - (r1 - r2) ** 2) / 2
    gap = jnp.minimum(found, (bound - (r1 - r2) ** 2) / 2)
    return jax.lax.stop_gradient(jnp.maximum(gap, 0))


def _mean_distance(k: Any, out: Any) -> Any:
    """|u - w|^2, or |u + w|^2 where k < 0, of outputs averaged over all positions.

    A mean of differences, which rounds less than the difference of means.
    """
    left, right = k.cov1, k.cov1 if k.cov2 is None else k.cov2
    if not k.diagonal_batch:
        left, right = (jnp.moveaxis(jnp.diagonal(c), -1, 0) for c in (left, right))
    variances, positions = left[:, None] + right[None], tuple(range(2, k.nngp.ndim))
    apart = jnp.mean(variances - 2 * k.nngp, positions)
    if k.nonnegative:
        return apart
    return jnp.where(out.nngp >= 0, apart, jnp.mean(variances + 2 * k.nngp, positions))


def among_equal(k: Any, out: Any) -> Any:
    """The gap after a layer that maps all inputs alike, of outputs at the positions of its inputs.

    Equal positions of equal inputs stay equal, whatever else the layer mixes in.

    Args:
      k: the `Carried` kernel before, whose gap and equal inputs are known.
      out: that after.
    """
    r1, r2 = scales(out)
    gap = jnp.maximum(r1 * r2 - jnp.abs(out.nngp), 0)
    v1, v2 = variances(k)
    same = ((k.nngp >= 0) & equal_outputs(k.nngp, v1, v2, k.gap)) | ((v1 == 0) & (v2 == 0))
    return zero_between_equal(gap, r1 * r2, k.equal, same)


def through_weights(k: Any, out: Any, mapped: Any) -> Any:
    """The gap after weighted means of positions: with weights w, w' >= 0 that sum to 1

        |sum_s w_s u_s - sum_t w'_t v_t|^2 <= sum_st w_s w'_t |u_s - v_t|^2,

    which is nothing where all outputs that are read are equal.

    Args:
      k: the `Carried` kernel before, whose gap and equal inputs are known.
      out: that after.
      mapped: the map of covariances (n1, n2, positions...).
    """
    before, after = scales(k), scales(out)
    (r1, r2), product = before, before[0] * before[1]
    gaps = [jnp.maximum(after[0] * after[1] - jnp.abs(out.nngp), 0)]
    for sign in (1, -1):
        deficit = jnp.where(sign * k.nngp >= 0, k.gap, 2 * product - k.gap)
        bound = mapped(jnp.broadcast_to((r1 - r2) ** 2 + 2 * deficit, k.nngp.shape))
        bound = (bound - (after[0] - after[1]) ** 2) / 2
        gaps.append(jnp.where(sign * out.nngp >= 0, jnp.maximum(bound, 0), jnp.inf))
    gap = functools.reduce(jnp.minimum, gaps)
    positions = same_position(gap, k.diagonal_spatial)
    return zero_between_equal(gap, after[0] * after[1], k.equal, positions)


def zero_between_equal(gap: Any, product: Any, equal: Any, positions: Any) -> Any:
    """`gap` with 0 between `equal` inputs (n1, n2) where `positions` (like `gap`) are so too.

    Rounding leaves less than 64 eps of the product r1 r2; what is more is the noise of a layer that
    draws anew for each example or position, such as Dropout.
    """
    rounding = 64 * jnp.finfo(gap.dtype).eps * product
    equal = equal.reshape(equal.shape + (1,) * (gap.ndim - 2))
    return jax.lax.stop_gradient(jnp.where(equal & positions & (gap <= rounding), 0, gap))
