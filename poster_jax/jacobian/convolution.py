"""Orthogonal convolutions: the Jacobian of a convolution, measured on its kernel alone.

J of a convolution is a huge matrix of shifted copies of its kernel K. Row (c, p) times row (d, q)
of it is the autocorrelation of the kernel at the offset between p and q, away from the border,

    (K * K)_cd(o) = sum_ia K_c(i, a + o) K_d(i, a),      (J J^T)_(cp)(dq) = (K * K)_cd(s (p - q)),

so that J J^T = I says that the filters' autocorrelation is 1 with themselves at offset 0 and 0 at
every other multiple of the stride s. With circular padding there is no border, all P positions of
the output are alike, and ||J J^T - I||_F^2 = P ||K * K - I_0||_F^2 exactly.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from poster_jax.core.checks import check_choice, check_count, check_params
from poster_jax.core.typing import Array, Scalar

__all__ = ["circular_convolution_penalty", "convolution_orthogonality"]


def convolution_orthogonality(
    kernel: Any, *, strides: int | Sequence[int] = 1, padding: int | Sequence[int] | None = None
) -> Scalar:
    """How far a convolution is from orthonormal rows: `||conv(K, K) - I_0||_F^2`.

    Times the number of output pixels it is ||J J^T - I||_F^2, exactly for circular padding
    (`circular_convolution_penalty`) and up to the border for others; divided by the number of
    output channels it is in the units of `network_penalty`, R / m.

    Args:
      kernel: (..., in, out), as Flax has it, with 1, 2, 3 or more spatial axes and one group.
      strides: of the layer, one number or one a spatial axis.
      padding: up to which offset the filters are compared, one number or one a spatial axis, a
        multiple of the stride; None compares all that overlap, floor((k - 1) / s) s.

    Returns:
      Scalar of the kernel's dtype.

    Raises:
      ValueError: a kernel without spatial axes, empty or not finite; strides below 1, padding below
        0 or no multiple of the stride; as many of them as there are no spatial axes.
      TypeError: a kernel that is no floating point array, strides or padding that are no integers.

    Source: Wang, Chen, Chakraborty, Yu 2020 (CVPR, arXiv 1911.12207), section 3.2. Their code takes
      the norm without its square, and where its padding is no multiple of the stride (its default,
      1 and 2) it compares offsets without 0 among them; that is refused here.

    Example:
      >>> identity = jnp.zeros((3, 3, 2, 2)).at[1, 1].set(jnp.eye(2))
      >>> float(convolution_orthogonality(identity)), float(convolution_orthogonality(2 * identity))
      (0.0, 18.0)
    """
    window, steps = _window(kernel, strides)
    if padding is None:
        reach = _full_reach(window, steps)
    else:
        reach = _per_axis("padding", padding, len(window), minimum=0)
    if any(p % s for p, s in zip(reach, steps, strict=True)):
        raise ValueError(
            "padding must be a multiple of the stride, or offset 0 is not among those compared, "
            f"got padding {reach} with strides {steps}."
        )
    autocorrelation = _autocorrelation(kernel, steps, reach)
    centre = tuple(p // s for p, s in zip(reach, steps, strict=True))
    return _squared_distance(autocorrelation, centre)


def circular_convolution_penalty(
    kernel: Any,
    spatial_shape: Sequence[int],
    *,
    strides: int | Sequence[int] = 1,
    side: str = "rows",
) -> Scalar:
    """Exactly `||J J^T - I||_F^2` of a linear convolution with circular padding, no probe needed.

    For images of any size, also those so small that the kernel's autocorrelation wraps onto itself;
    from 2k - 1 pixels on it is the number of output pixels times `convolution_orthogonality`.

    Args:
      kernel: (..., in, out), as in `convolution_orthogonality`.
      spatial_shape: of the input, multiples of the strides.
      strides: one number or one a spatial axis.
      side: "rows" for J J^T - I, "columns" for J^T J - I, which differs by a constant.

    Returns:
      Scalar of the kernel's dtype.

    Raises:
      ValueError, TypeError: as `convolution_orthogonality`; a spatial_shape that does not fit; an
        unknown side.

    Source: derived for this library, from Wang et al. 2020 (arXiv 1911.12207).

    Example:
      >>> identity = jnp.zeros((3, 3, 2, 2)).at[1, 1].set(jnp.eye(2))
      >>> float(circular_convolution_penalty(2 * identity, (5, 5)))
      450.0
    """
    check_choice("side", side, ("rows", "columns"))
    window, steps = _window(kernel, strides)
    spatial = _per_axis("spatial_shape", spatial_shape, len(window), minimum=1)
    if any(n % s for n, s in zip(spatial, steps, strict=True)):
        raise ValueError(
            "spatial_shape must be a multiple of the strides (else no two output pixels see the "
            f"circle alike), got {spatial} with strides {steps}."
        )
    reach = _full_reach(window, steps)
    folded = _autocorrelation(kernel, steps, reach)
    counts = tuple(n // s for n, s in zip(spatial, steps, strict=True))
    centre = []
    for axis, (p, s, count) in enumerate(zip(reach, steps, counts, strict=True), start=2):
        num = 2 * p // s + 1
        if num <= count:
            centre.append(p // s)
            continue
        # Offsets that agree modulo the circle are one and the same: their entries add up.
        places = np.eye(count)[(np.arange(num) - p // s) % count]
        folded = jnp.moveaxis(
            jnp.tensordot(
                folded, jnp.asarray(places, folded.dtype), (axis, 0), precision="highest"
            ),
            -1,
            axis,
        )
        centre.append(0)
    rows = math.prod(counts) * _squared_distance(folded, tuple(centre))
    num_in, num_out = kernel.shape[-2:]
    excess = num_in * math.prod(spatial) - num_out * math.prod(counts)
    return rows if side == "rows" else rows + excess


def _window(kernel: Any, strides: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The kernel's spatial shape and the strides along it."""
    check_params(kernel, "kernel")
    shape = getattr(kernel, "shape", None)
    if shape is None or len(shape) < 3 or 0 in shape:
        raise ValueError(
            "kernel must be one array of shape (..., in, out) with at least one spatial axis, got "
            f"{shape if shape is not None else type(kernel).__name__}."
        )
    window = tuple(shape[:-2])
    return window, _per_axis("strides", strides, len(window), minimum=1)


def _per_axis(name: str, value: Any, num_axes: int, *, minimum: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, Sequence) else (value,) * num_axes
    if len(values) != num_axes:
        raise ValueError(
            f"{name} must be one number or {num_axes}, one a spatial axis of the kernel, got "
            f"{values}."
        )
    return tuple(check_count(name, v, minimum=minimum) for v in values)


def _full_reach(window: tuple[int, ...], steps: tuple[int, ...]) -> tuple[int, ...]:
    """The largest multiple of the stride at which two copies of the kernel overlap."""
    return tuple((k - 1) // s * s for k, s in zip(window, steps, strict=True))


def _autocorrelation(kernel: Any, steps: tuple[int, ...], reach: tuple[int, ...]) -> Array:
    """(out, out, ...offsets): the filters as images, convolved with themselves as filters."""
    kernel = jnp.asarray(kernel)
    num_axes = kernel.ndim - 2
    spatial = tuple(range(num_axes))
    numbers = jax.lax.ConvDimensionNumbers(
        lhs_spec=(num_axes + 1, num_axes, *spatial),
        rhs_spec=(num_axes + 1, num_axes, *spatial),
        out_spec=tuple(range(num_axes + 2)),
    )
    return jax.lax.conv_general_dilated(
        kernel,
        kernel,
        window_strides=steps,
        padding=[(p, p) for p in reach],
        dimension_numbers=numbers,
        precision="highest",
    )


def _squared_distance(autocorrelation: Array, centre: tuple[int, ...]) -> Array:
    identity = jnp.eye(autocorrelation.shape[0], dtype=autocorrelation.dtype)
    return jnp.sum(autocorrelation.at[(..., *centre)].add(-identity) ** 2)
