"""From inputs to their covariances: the mean over channels of x x'."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from poster_jax.core.checks import check_finite
from poster_jax.kernels import _pairs
from poster_jax.kernels.stax._carried import Carried, equal_outputs
from poster_jax.kernels.stax._gap import gap_of_inputs
from poster_jax.kernels.stax.masking import mask_inputs

__all__ = ["input_kernel", "same_inputs"]


def input_kernel(x1: Any, x2: Any, **requirements: Any) -> Any:
    """The kernel(s) of inputs, one for each array of the trees `x1` and `x2` (None: `x1`)."""
    if x2 is None:
        return jax.tree.map(lambda a: _kernel(a, None, **requirements), x1)
    return jax.tree.map(lambda a, b: _kernel(a, b, **requirements), x1, x2)


def _kernel(
    x1: Any,
    x2: Any,
    *,
    compute_ntk: bool,
    diagonal_batch: Any,
    diagonal_spatial: Any,
    batch_axis: int,
    channel_axis: int | None,
    mask_constant: Any,
    eps: float = 1e-12,
    **unused: Any,
) -> Carried:
    _check_arrays(x1, x2, batch_axis, channel_axis)
    diagonal_batch, diagonal_spatial = bool(diagonal_batch), bool(diagonal_spatial)
    if batch_axis % x1.ndim != 0:
        warnings.warn(
            f"batch_axis={batch_axis}: kernels of inputs whose examples do not come first cannot "
            "be computed in batches.",
            stacklevel=2,
        )
    if channel_axis is None:  # a layer such as Flatten takes any shape: channels are all the rest
        flat = lambda x: jnp.moveaxis(x, batch_axis, 0).reshape(x.shape[batch_axis], -1)  # noqa: E731
        x1, x2 = flat(x1), None if x2 is None else flat(x2)
        batch_axis, channel_axis, diagonal_spatial = 0, 1, False
    axes = (batch_axis % x1.ndim, channel_axis % x1.ndim)

    x1, mask1 = _masked("x1", x1, mask_constant)
    x2, mask2 = _masked("x2", x2, mask_constant)
    x1_rows = _rows(x1, *axes)
    x2_rows = x1_rows if x2 is None else _rows(x2, *axes)
    nngp = _cross(x1_rows, x2_rows, diagonal_spatial)

    def own(rows):
        return (_own if diagonal_batch else _cross_self)(rows, diagonal_spatial)

    gap = None
    if compute_ntk:
        gap = gap_of_inputs(
            *(jax.lax.stop_gradient(x) for x in (x1_rows, x2_rows, nngp)),
            diagonal_spatial=diagonal_spatial,
            same_batch=x2 is None,
        )
    return Carried(
        gap=gap,
        # Layers that mix examples ask for all pairs of them.
        equal=_equal(gap, nngp, x1_rows, x2_rows, mask1, mask2) if diagonal_batch else None,
        few_channels=True,
        nngp=nngp,
        ntk=jnp.zeros((), nngp.dtype) if compute_ntk else None,
        cov1=own(x1_rows),
        cov2=None if x2 is None else own(x2_rows),
        x1_is_x2=same_inputs(x1, x2, eps=eps),
        is_gaussian=False,
        is_reversed=False,
        is_input=False,
        diagonal_batch=diagonal_batch,
        diagonal_spatial=diagonal_spatial,
        shape1=x1.shape,
        shape2=x1.shape if x2 is None else x2.shape,
        batch_axis=axes[0],
        channel_axis=axes[1],
        mask1=mask1,
        mask2=mask2,
    )


def _equal(gap: Any, nngp: Any, x1: Any, x2: Any, mask1: Any, mask2: Any) -> Any:
    """(n1, n2), whether two inputs are the same at every position, masks included."""
    if gap is None:
        return None

    def everywhere(same):
        return jnp.all(same, tuple(range(2, same.ndim)))

    if gap.ndim > x1.ndim:
        gap, nngp = (_pairs.diagonal(x, 2) for x in (gap, nngp))
    v1, v2 = (jnp.mean(jax.lax.stop_gradient(x) ** 2, -1) for x in (x1, x2))
    equal = everywhere((nngp >= 0) & equal_outputs(nngp, v1[:, None], v2[None], gap))
    if mask1 is None and mask2 is None:
        return equal
    if mask1 is None or (mask2 is None and x1 is not x2):
        return None
    mask2 = mask1 if mask2 is None else mask2
    return equal & everywhere(mask1[:, None] == mask2[None])


def same_inputs(x1: Any, x2: Any = None, eps: float = 1e-12) -> Any:
    """Whether two batches are the same up to `eps`: True, False or a boolean array."""
    if x2 is None or x1 is x2:
        return True
    if x1.shape != x2.shape:
        return False
    return jnp.all(jnp.abs(x1 - x2) < eps)


def _check_arrays(x1: Any, x2: Any, batch_axis: int, channel_axis: int | None) -> None:
    for name, x in (("x1", x1), ("x2", x2)):
        if name == "x2" and x is None:
            continue
        if not isinstance(x, jax.Array | np.ndarray):
            raise TypeError(f"{name} must be an array, got {type(x).__name__}.")
        if x.ndim < 2:
            raise ValueError(
                f"{name} must have a batch axis and a channel axis at least, got {x.ndim} axes."
            )
        needed = max(batch_axis, channel_axis or 0) + 1
        if x.ndim < needed:
            raise ValueError(
                f"{name} must have {needed} axes at least for the first layer of this network, "
                f"whose channel_axis is {channel_axis}, got the shape {x.shape}."
            )


def _masked(name: str, x: Any, mask_constant: Any) -> tuple[Any, Any]:
    if x is None:
        return None, None
    pair = mask_inputs(x, mask_constant)
    value = jnp.asarray(pair.masked_value).astype(jax.dtypes.canonicalize_dtype(jnp.float64))
    check_finite(name, value)
    return value, pair.mask


def _rows(x: Any, batch_axis: int, channel_axis: int) -> Any:
    """(batch, positions, channels)."""
    return jnp.moveaxis(x, (batch_axis, channel_axis), (0, -1))


def _cross(x1: Any, x2: Any, diagonal_spatial: bool) -> Any:
    if x1.shape[1:] != x2.shape[1:]:
        raise ValueError(
            f"x1 and x2 must agree in all axes but the batch axis, got shapes {x1.shape[1:]} and "
            f"{x2.shape[1:]} without it."
        )
    positions = tuple(range(1, x1.ndim - 1))
    if diagonal_spatial:
        dims = (((x1.ndim - 1,), (x2.ndim - 1,)), (positions, positions))
        out = jnp.moveaxis(jax.lax.dot_general(x1, x2, dims), (-2, -1), (0, 1))
    else:
        out = jnp.tensordot(x1, x2, (-1, -1))
        out = _pairs.interleaved(jnp.moveaxis(out, x1.ndim - 1, 1), 2)
    return out / x1.shape[-1]


def _cross_self(x: Any, diagonal_spatial: bool) -> Any:
    return _cross(x, x, diagonal_spatial)


def _own(x: Any, diagonal_spatial: bool) -> Any:
    if diagonal_spatial:
        return jnp.mean(x**2, -1)
    dims = (((x.ndim - 1,), (x.ndim - 1,)), ((0,), (0,)))
    return _pairs.interleaved(jax.lax.dot_general(x, x, dims), 1) / x.shape[-1]
