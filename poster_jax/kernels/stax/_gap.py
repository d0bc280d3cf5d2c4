"""How the gap sqrt(v1 v2) - |k| moves: from the inputs, and through sums of outputs.

A sum over independent parts (taps of a filter, positions, branches) adds covariances and variances:
k = sum_t k_t, and the standard deviations r_t of the parts are a vector u of one output and w of
the other. With the deficit r1 r2 - k of every pair, which is its gap where k >= 0,

    |u| |w| - k = sum_t (u_t w_t - k_t) + (|u| |w| - u . w),
    |u| |w| - u . w = 1/2 sum_t (a_t C2 - b_t C1)^2,    C1 = sqrt|u|, a = u / C1, likewise C2, b.

Every term is positive, so nothing cancels, and equal outputs keep a gap of exactly 0. Where k < 0
the same holds of r1 r2 + k; both are followed until no covariance can be negative.

Source: this library.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from poster_jax.kernels import _pairs
from poster_jax.kernels.stax._carried import diagonal_variances, safe_sqrt, variances
from poster_jax.kernels.stax.windows import (
    Window,
    examples_innermost,
    sum_of_equal_shifts,
)

__all__ = [
    "gap_of_inputs",
    "same_entry",
    "same_position",
    "through_mean",
    "through_shifts",
    "through_sum",
]

# Up to so many channels differences of inputs are formed for all pairs: they cost no more than the
# layers that follow. Beyond it a matrix product finds the close pairs, and only those are refined.
_DIRECT_CHANNELS = 8


def _deficits(k: Any, gap: Any, product: Any, *, nonnegative: bool) -> tuple[Any, ...]:
    """(r1 r2 - k, r1 r2 + k) from product = r1 r2; only the first, where k cannot be negative."""
    if nonnegative:
        return (gap,)
    positive, other = jax.lax.stop_gradient(k) >= 0, 2 * product - gap
    return jnp.where(positive, gap, other), jnp.where(positive, other, gap)


def _gap_of(deficits: tuple[Any, ...]) -> Any:
    return jnp.maximum(functools.reduce(jnp.minimum, deficits), 0)


def _normalised(parts: list[Any], total: Any) -> tuple[list[Any], Any]:
    """a_t and C: the parts' deviations over the root of their length, and that root."""
    root = safe_sqrt(safe_sqrt(total))
    return [r / jnp.where(root > 0, root, 1) for r in parts], root


def same_entry(x: Any, batch_ndim: int, diagonal_spatial: bool) -> Any:
    """Where a covariance belongs to one input and one position; None if nowhere."""
    if batch_ndim == 2 and x.shape[0] != x.shape[1]:
        return None
    positions = range(batch_ndim, batch_ndim if diagonal_spatial else x.ndim, 2)
    return _on_diagonals(x, (*((0,) if batch_ndim == 2 else ()), *positions))


def same_position(x: Any, diagonal_spatial: bool) -> Any:
    """Where a covariance (n1, n2, h, h', ...) belongs to one position."""
    return _on_diagonals(x, range(2, 2 if diagonal_spatial else x.ndim, 2))


def _on_diagonals(x: Any, axes: Any) -> Any:
    """Where the index along each of `axes` is that along the next one."""
    same = jnp.ones((1,) * x.ndim, bool)
    for axis in axes:
        shape = [1] * x.ndim
        shape[axis] = shape[axis + 1] = x.shape[axis]
        same = same & jnp.eye(x.shape[axis], dtype=bool).reshape(shape)
    return same


def through_shifts(k: Any, windows: tuple[Window, ...]) -> tuple[Any, Any]:
    """nngp and gap after a mean over equal shifts of both positions.

    Args:
      k: a `Carried` kernel whose gap is known.
      windows: of the filter, one an axis.
    """
    return _through_shifts(
        *diagonal_variances(k), k.nngp, k.gap, windows=windows,
        diagonal_spatial=k.diagonal_spatial, nonnegative=k.nonnegative,
    )  # fmt: skip


# Compiled as one, since its many small operations would take long to compile one by one.
@functools.partial(jax.jit, static_argnames=("diagonal_spatial", "nonnegative", "windows"))
def _through_shifts(
    v1: Any, v2: Any, nngp: Any, gap: Any, *, windows: Any, diagonal_spatial: bool,
    nonnegative: bool,
) -> tuple[Any, Any]:  # fmt: skip
    v1, v2 = (jax.lax.stop_gradient(v) for v in (v1, v2))
    end = 1 if diagonal_spatial else v1.ndim

    def left(x):
        return _pairs.rows(x, 0, end)

    def right(x):
        return _pairs.columns(x, 0, end)

    product = left(safe_sqrt(v1)) * right(safe_sqrt(v2))
    deficits = _deficits(nngp, gap, product, nonnegative=nonnegative)
    for i, window in enumerate(windows):  # an axis at a time: few parts each
        (first, root1, v1), (second, root2, v2) = (_taps(v, window, 1 + i) for v in (v1, v2))
        differences = [
            left(a) * right(root2) - right(b) * left(root1)
            for a, b in zip(first, second, strict=True)
        ]
        excess = sum(x**2 for x in differences) / 2
        deficits = tuple(
            sum_of_equal_shifts(d, window, i, 2, diagonal_spatial=diagonal_spatial) + excess
            for d in deficits
        )
    count = math.prod(w.taps for w in windows)
    deficits = tuple(d / count for d in deficits)
    product = left(safe_sqrt(v1 / count)) * right(safe_sqrt(v2 / count))
    value = product - deficits[0]
    if not nonnegative:
        value = jnp.where(deficits[0] <= deficits[1], value, deficits[1] - product)

    def linear(x):
        for i, window in enumerate(windows):
            x = sum_of_equal_shifts(x, window, i, 2, diagonal_spatial=diagonal_spatial)
        return x / count

    return _with_value(linear, nngp, value), _gap_of(deficits)


def _taps(v: Any, window: Window, axis: int) -> tuple[list[Any], Any, Any]:
    """a_t of every tap, C, and the sum of variances, each with the outputs along `axis`."""
    shape = [1] * v.ndim
    shape[axis] = window.out
    parts = [
        jnp.take(v, np.maximum(source, 0), axis) * jnp.asarray(source >= 0, v.dtype).reshape(shape)
        for source in window.sources
    ]
    total = functools.reduce(jnp.add, parts)
    normalised, root = _normalised([safe_sqrt(part) for part in parts], total)
    return [examples_innermost(a, 1) for a in normalised], examples_innermost(root, 1), total


def through_mean(k: Any) -> Any:
    """The gap after averaging equal positions (`k` keeps only those)."""
    v1, v2 = (jax.lax.stop_gradient(v) for v in diagonal_variances(k))
    positions = tuple(range(1, v1.ndim))
    ((a,), root1), ((b,), root2) = (
        _normalised([safe_sqrt(v)], jnp.sum(v, positions, keepdims=True)) for v in (v1, v2)
    )
    product = safe_sqrt(v1)[:, None] * safe_sqrt(v2)[None]
    excess = (a[:, None] * root2[None] - b[None] * root1[:, None]) ** 2 / 2
    deficits = _deficits(k.nngp, k.gap, product, nonnegative=k.nonnegative)
    return _gap_of(tuple(jnp.mean(d + excess, tuple(range(2, d.ndim))) for d in deficits))


def through_sum(ks: Any) -> Any:
    """The gap of the sum of independent branches."""
    squares = [variances(k) for k in ks]
    (first, root1), (second, root2) = (
        _normalised([safe_sqrt(v[side]) for v in squares], sum(v[side] for v in squares))
        for side in (0, 1)
    )
    excess = sum((a * root2 - b * root1) ** 2 for a, b in zip(first, second, strict=True)) / 2
    branches = [
        _deficits(k.nngp, k.gap, safe_sqrt(v1) * safe_sqrt(v2), nonnegative=False)
        for k, (v1, v2) in zip(ks, squares, strict=True)
    ]
    totals = (functools.reduce(jnp.add, parts) + excess for parts in zip(*branches, strict=True))
    return jax.lax.stop_gradient(_gap_of(tuple(totals)))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _with_value(linear: Any, x: Any, value: Any) -> Any:
    """`linear(x)`, whose value is known, and whose derivative is that of `linear`."""
    return value


@_with_value.defjvp
def _with_value_jvp(linear, primals, tangents):
    return primals[1], linear(tangents[0])


@functools.partial(jax.jit, static_argnames=("diagonal_spatial", "same_batch"))
def gap_of_inputs(x1: Any, x2: Any, k: Any, *, diagonal_spatial: bool, same_batch: bool) -> Any:
    """The gap of all pairs of inputs, to the relative accuracy of the inputs themselves.

    Args:
      x1: (n1, positions..., channels).
      x2: (n2, positions..., channels).
      k: their covariances.
      diagonal_spatial: whether only equal positions are paired.
      same_batch: whether x2 is x1.

    Returns:
      An array like `k`. Pairs whose cosine is nearer to +-1 than sqrt(eps) are formed from
      differences: one by one while they are few, all of them otherwise (which costs channels times
      pairs, without a matrix product).
    """
    r1, r2 = (safe_sqrt(jnp.mean(x**2, -1)) for x in (x1, x2))

    def unit(x, r):  # called where it is needed, which is seldom
        return x / jnp.where(r > 0, r, 1)[..., None]

    end = 1 if diagonal_spatial else r1.ndim
    product = _pairs.rows(r1, 0, end) * _pairs.columns(r2, 0, end)

    def all_pairs(_):
        u1, u2 = unit(x1, r1), unit(x2, r2)
        num_channels = u1.shape[-1]
        if num_channels <= _DIRECT_CHANNELS:
            return product * _half_mean_square(
                [
                    (_pairs.rows(u1[..., c], 0, end), _pairs.columns(u2[..., c], 0, end))
                    for c in range(num_channels)
                ]
            )

        def add(sums, channel):
            a, b = (_pairs.rows(channel[0], 0, end), _pairs.columns(channel[1], 0, end))
            return (sums[0] + (a - b) ** 2, sums[1] + (a + b) ** 2), None

        channels = (jnp.moveaxis(u1, -1, 0), jnp.moveaxis(u2, -1, 0))
        sums, _ = jax.lax.scan(add, (jnp.zeros_like(k), jnp.zeros_like(k)), channels)
        return product * jnp.minimum(*sums) / (2 * num_channels)

    if x1.shape[-1] <= _DIRECT_CHANNELS:
        return all_pairs(None)

    near = jnp.maximum(product - jnp.abs(k), 0)
    close = near <= product * math.sqrt(jnp.finfo(k.dtype).eps)
    same = same_entry(k, 2, diagonal_spatial)
    if same is not None and not same_batch:  # a tile on the diagonal comes as two batches
        same = same & jnp.all(x1 == x2)
    if same is not None:
        near, close = jnp.where(same, 0, near), close & ~same
    capacity = min(k.size, 4 * (x1.shape[0] + x2.shape[0]) + 256)

    def few_pairs(_):
        pairs = jnp.nonzero(close, size=capacity, fill_value=k.shape[0])  # past the end: dropped
        batch, positions = pairs[:2], pairs[2:]
        lefts, rights = (
            (positions, positions) if diagonal_spatial else (positions[::2], positions[1::2])
        )
        left, right = (batch[0], *lefts), (batch[1], *rights)
        found = _gap_of_pair(x1[left], x2[right], r1[left], r2[right])
        return near.at[pairs].set(found, mode="drop")

    count = jnp.sum(close)
    level = jnp.where(count == 0, 0, jnp.where(count <= capacity, 1, 2))
    return jax.lax.switch(level, [lambda _: near, few_pairs, all_pairs], None)


def _gap_of_pair(x1: Any, x2: Any, r1: Any, r2: Any) -> Any:
    """The gap of outputs (..., channels) with deviations (...), formed from their difference.

    That is (|x1 - x2|^2 - (r1 - r2)^2) / 2, whose terms are exact for nearby numbers, or, where one
    is nearly a multiple s of the other, r1 r2 (1 - sqrt(1 - |d|^2 / v2)) from the part d of x2 that
    is orthogonal to x1. Rounding s x1 may already be more than d: the product is taken without
    error, and what s, rounded too, leaves along x1 is taken out again.
    """
    difference, total = x1 - x2, x1 + x2
    lengths = jnp.mean(difference * total, -1) / jnp.where(r1 + r2 > 0, r1 + r2, 1)  # r1 - r2
    square = jnp.minimum(jnp.mean(difference**2, -1), jnp.mean(total**2, -1))
    direct = (square - lengths**2) / 2

    v1, v2 = (jnp.where(r > 0, r, 1) ** 2 for r in (r1, r2))

    def along(x):
        return (jnp.mean(x * x1, -1) / v1)[..., None]

    product, rest = _exact_product(along(x2), x1)
    apart = (x2 - product) - rest
    apart = apart - along(apart) * x1
    share = jnp.minimum(jnp.mean(apart**2, -1) / v2, 1)
    of_multiples = r1 * r2 * share / (1 + jnp.sqrt(1 - share))
    return jnp.where(lengths**2 < square / 2, direct, of_multiples)


def _exact_product(a: Any, b: Any) -> tuple[Any, Any]:
    """a b as the sum of two numbers, without error (Dekker 1971)."""
    shift = 2.0 ** ((jnp.finfo(b.dtype).nmant + 2) // 2) + 1

    def split(x):
        high = shift * x - (shift * x - x)
        return high, x - high

    (a1, a2), (b1, b2) = split(a), split(b)
    product = a * b
    return product, ((a1 * b1 - product) + a1 * b2 + a2 * b1) + a2 * b2


def _half_mean_square(channels: list[tuple[Any, Any]]) -> Any:
    """Half the mean over channels of (a - b)^2, or of (a + b)^2 where that is less."""
    apart = sum((a - b) ** 2 for a, b in channels)
    opposite = sum((a + b) ** 2 for a, b in channels)
    return jnp.minimum(apart, opposite) / (2 * len(channels))
