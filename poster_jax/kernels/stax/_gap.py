"""How the gap sqrt(v1 v2) - |k| moves: from the inputs, and through sums of outputs.

A sum over positions or branches adds covariances and variances, so that not the gap but half the
mean squared distance of the two outputs is additive. With each output divided by a scale of its own
(rho = r / s; this makes multiples of one input as good as equal inputs),

    distance = (rho1^2 + rho2^2) / 2 - k / (s1 s2) = deficit / (s1 s2) + (rho1 - rho2)^2 / 2,

where deficit = r1 r2 - k. Every term is positive, so nothing cancels.

Source: this library.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from poster_jax.kernels import _pairs
from poster_jax.kernels.stax._carried import diagonal_variances, safe_sqrt, variances
from poster_jax.kernels.stax.windows import Window, mean_of_equal_shifts, mean_of_shifts_alone

__all__ = ["gap_of_inputs", "same_entry", "through_mean", "through_shifts", "through_sum"]

# Up to so many channels differences of inputs are formed for all pairs: they cost no more than the
# layers that follow. Beyond it a matrix product finds the close pairs, and only those are refined.
_DIRECT_CHANNELS = 8


def _deficit(k: Any, product: Any, gap: Any) -> Any:
    """r1 r2 - k, from product = r1 r2; `k` None: it is not negative."""
    return gap if k is None else jnp.where(k >= 0, gap, 2 * product - gap)


def _distance(k: Any, gap: Any, rho1: Any, rho2: Any, scale: Any) -> Any:
    """Half the squared distance of the scaled outputs; scale = s1 s2 > 0."""
    return (
        _deficit(None if k is None else k / scale, rho1 * rho2, gap / scale)
        + (rho1 - rho2) ** 2 / 2
    )


def _gap_of_distance(
    distance: Any, rho1: Any, rho2: Any, scale: Any, *, nonnegative: bool = False
) -> Any:
    """The gap again."""
    lacking = jnp.maximum(distance - (rho1 - rho2) ** 2 / 2, 0)
    if nonnegative:
        return scale * lacking
    return scale * jnp.minimum(lacking, jnp.maximum(2 * rho1 * rho2 - lacking, 0))


def same_entry(x: Any, batch_ndim: int, diagonal_spatial: bool) -> Any:
    """Where a covariance belongs to one input and one position; None if nowhere."""
    if batch_ndim == 2 and x.shape[0] != x.shape[1]:
        return None
    first = 0 if batch_ndim == 2 else 1
    last = batch_ndim if diagonal_spatial else x.ndim
    same = jnp.ones((1,) * x.ndim, bool)
    for axis in range(first, last, 2):
        shape = [1] * x.ndim
        shape[axis] = shape[axis + 1] = x.shape[axis]
        same = same & jnp.eye(x.shape[axis], dtype=bool).reshape(shape)
    return same


def through_shifts(k: Any, windows: tuple[Window, ...], *, reads_outside: bool) -> tuple[Any, Any]:
    """nngp and gap after a mean over equal shifts of both positions.

    Args:
      k: a `Carried` kernel whose gap is known.
      windows: of the filter, one an axis.
      reads_outside: whether a shift of a pair can leave the input with one position only.
    """
    return _through_shifts(
        *diagonal_variances(k), k.nngp, k.gap, windows=windows, reads_outside=reads_outside,
        diagonal_spatial=k.diagonal_spatial, nonnegative=k.nonnegative,
    )  # fmt: skip


# Compiled as one, since its many small operations would take long to compile one by one.
@functools.partial(
    jax.jit, static_argnames=("diagonal_spatial", "nonnegative", "reads_outside", "windows")
)
def _through_shifts(
    v1: Any, v2: Any, nngp: Any, gap: Any, *, windows: Any, reads_outside: bool,
    diagonal_spatial: bool, nonnegative: bool,
) -> tuple[Any, Any]:  # fmt: skip
    def shifts(x, batch_ndim, diagonal_spatial):
        return mean_of_equal_shifts(x, windows, batch_ndim, diagonal_spatial=diagonal_spatial)

    v1, v2 = (jax.lax.stop_gradient(v) for v in (v1, v2))
    positions = tuple(range(1, v1.ndim))
    s1, s2 = (safe_sqrt(jnp.mean(v, positions, keepdims=True)) for v in (v1, v2))
    s1, s2 = (jnp.where(s > 0, s, 1) for s in (s1, s2))
    end = 1 if diagonal_spatial else v1.ndim

    def pairs(x, y):
        return _pairs.rows(x, 0, end), _pairs.columns(y, 0, end)

    (scale1, scale2), squares = pairs(s1, s2), (v1 / s1**2, v2 / s2**2)
    scale = scale1 * scale2
    signed = None if nonnegative else jax.lax.stop_gradient(nngp)
    before = _distance(signed, gap, *pairs(*map(safe_sqrt, squares)), scale)
    after = shifts(before, 2, diagonal_spatial)
    means = [shifts(square, 1, True) for square in squares]
    if reads_outside and not diagonal_spatial:
        for side, square in zip((0, 1), squares, strict=True):
            alone = mean_of_shifts_alone(square, windows, 1)
            after = after + (alone[:, None] if side == 0 else _exchanged(alone)[None]) / 2
    deviations = pairs(*map(safe_sqrt, means))
    gap = _gap_of_distance(after, *deviations, scale, nonnegative=nonnegative)
    left, right = pairs(*means)
    value = scale * ((left + right) / 2 - after)
    return _with_value(lambda x: shifts(x, 2, diagonal_spatial), nngp, value), gap


def _exchanged(x: Any) -> Any:
    """(n, h, h', w, w') as (n, h', h, w', w)."""
    pairs = [axis for i in range(1, x.ndim, 2) for axis in (i + 1, i)]
    return jnp.transpose(x, (0, *pairs))


def through_mean(k: Any) -> Any:
    """The gap after averaging equal positions (`k` keeps only those)."""
    v1, v2 = (jax.lax.stop_gradient(v) for v in diagonal_variances(k))
    positions = tuple(range(1, v1.ndim))
    s1, s2 = (safe_sqrt(jnp.mean(v, positions, keepdims=True)) for v in (v1, v2))
    s1, s2 = (jnp.where(s > 0, s, 1) for s in (s1, s2))
    scale = s1[:, None] * s2[None]
    rho1, rho2 = safe_sqrt(v1)[:, None] / s1[:, None], safe_sqrt(v2)[None] / s2[None]
    apart = _distance(jax.lax.stop_gradient(k.nngp), k.gap, rho1, rho2, scale)
    mean = jnp.mean(apart, tuple(range(2, apart.ndim)))
    # The mean of rho^2 is 1 on both sides by the choice of scales, or 0 where nothing is there.
    ones = [jnp.where(jnp.any(v > 0, positions), 1.0, 0.0).astype(v.dtype) for v in (v1, v2)]
    return _gap_of_distance(mean, ones[0][:, None], ones[1][None], scale.reshape(mean.shape))


def through_sum(ks: Any) -> Any:
    """The gap of the sum of independent branches."""
    deviations = [tuple(map(safe_sqrt, variances(k))) for k in ks]
    left, right = (safe_sqrt(sum(r[i] ** 2 for r in deviations)) for i in (0, 1))
    left, right = (jnp.where(s > 0, s, 1) for s in (left, right))
    scale = left * right
    apart = sum(
        _distance(k.nngp, k.gap, r1 / left, r2 / right, scale)
        for k, (r1, r2) in zip(ks, deviations, strict=True)
    )
    ones = [
        jnp.where(sum(r[i] for r in deviations) > 0, 1.0, 0.0).astype(scale.dtype) for i in (0, 1)
    ]
    return jax.lax.stop_gradient(_gap_of_distance(apart, *ones, scale))


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
    same = same_entry(k, 2, diagonal_spatial) if same_batch else None
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
        a, b = unit(x1[left], r1[left]), unit(x2[right], r2[right])
        scale = r1[left] * r2[right]
        squares = jnp.minimum(jnp.mean((a - b) ** 2, -1), jnp.mean((a + b) ** 2, -1))
        return near.at[pairs].set(scale * squares / 2, mode="drop")

    count = jnp.sum(close)
    level = jnp.where(count == 0, 0, jnp.where(count <= capacity, 1, 2))
    return jax.lax.switch(level, [lambda _: near, few_pairs, all_pairs], None)


def _half_mean_square(channels: list[tuple[Any, Any]]) -> Any:
    """Half the mean over channels of (a - b)^2, or of (a + b)^2 where that is less."""
    apart = sum((a - b) ** 2 for a, b in channels)
    opposite = sum((a + b) ** 2 for a, b in channels)
    return jnp.minimum(apart, opposite) / (2 * len(channels))
