"""Inputs of varying size: some entries of an array do not exist, and layers pass that on."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from poster_jax.kernels import _pairs
from poster_jax.kernels.kernel import Kernel
from poster_jax.kernels.stax.requirements import requirements_of, set_requirements

__all__ = ["MaskedArray", "mask_inputs", "mean_and_variance", "supports_masking", "unmask_fn"]


@dataclasses.dataclass(frozen=True, eq=False)
class MaskedArray:
    """What an `apply_fn` returns when it was given a `mask_constant`.

    Attributes:
      masked_value: the array (or pytree of arrays), zero where masked.
      mask: boolean, broadcastable to it, True where an entry does not exist; or None.
    """

    masked_value: Any
    mask: Any

    def replace(self, **changes: Any) -> "MaskedArray":
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def asdict(self) -> dict[str, Any]:
        """Both fields by name."""
        return {"masked_value": self.masked_value, "mask": self.mask}

    def astuple(self) -> tuple[Any, Any]:
        """Both fields in order."""
        return self.masked_value, self.mask


jax.tree_util.register_dataclass(MaskedArray, ["masked_value", "mask"], [])


def _is_array_leaf(x: Any) -> bool:
    return isinstance(x, MaskedArray | jax.Array | np.ndarray)


def mask_inputs(x: Any, mask_constant: Any = None) -> MaskedArray:
    """`x` with zeros where it equals `mask_constant` (NaN too) or is masked, and where that is."""
    if isinstance(x, MaskedArray):  # the layer before may have filled it, with a bias say
        one = _is_array_leaf(x.masked_value)
        return MaskedArray(_pairs.masked(x.masked_value, x.mask), x.mask) if one else x
    if not isinstance(x, jax.Array | np.ndarray | float | int):
        raise TypeError(f"x must be an array to be masked, got {type(x).__name__}.")
    if mask_constant is None:
        return MaskedArray(x, None)
    mask = jnp.where(jnp.isnan(mask_constant), jnp.isnan(x), jnp.asarray(x) == mask_constant)
    return MaskedArray(_pairs.masked(jnp.asarray(x), mask), mask)


def supports_masking(remask_kernel: bool) -> Callable[[Any], Any]:
    """Makes a layer pass masks on, for authors of layers; goes below `layer`.

    The layer function may return a fourth part, `mask_fn(mask, input_shape) -> mask`, that says
    which outputs do not exist; without it masks stay as they are. Its `apply_fn` receives `mask=`;
    the decorated one takes `mask_constant=` and returns a `MaskedArray` when there is a mask.

    Args:
      remask_kernel: set covariances of masked entries to zero after this layer, needed where it
        maps 0 to something else.

    Returns:
      A decorator of functions that return `(init_fn, apply_fn, kernel_fn[, mask_fn])`.

    Source: this library.

    Example:
      >>> from poster_jax.kernels import stax
      >>> _, apply_fn, _ = stax.Relu()
      >>> apply_fn((), jnp.array([[1.0, -1.0, 9.0]]), mask_constant=9.0).mask.tolist()
      [[False, False, True]]
    """

    def decorate(layer_fn):
        @functools.wraps(layer_fn)
        def masking_layer_fn(*args, **kwargs):
            init_fn, apply_fn, kernel_fn, *rest = layer_fn(*args, **kwargs)
            if len(rest) > 1:
                raise ValueError(
                    "a layer must return (init_fn, apply_fn, kernel_fn) or (..., mask_fn), got "
                    f"{3 + len(rest)} parts."
                )
            mask_fn = rest[0] if rest else lambda mask, input_shape: mask
            return (
                init_fn,
                _masking_apply(apply_fn, mask_fn),
                _masking_kernel(kernel_fn, mask_fn, remask_kernel),
            )

        return masking_layer_fn

    return decorate


def _masking_apply(apply_fn: Any, mask_fn: Any) -> Any:
    def masking_apply_fn(params, inputs, *, mask_constant=None, **kwargs):
        pairs = jax.tree.map(
            lambda x: mask_inputs(x, mask_constant), inputs, is_leaf=_is_array_leaf
        )
        values, mask = _split(pairs)
        outputs = apply_fn(params, values, mask=mask, **kwargs)
        shape = jnp.shape(values) if _is_array_leaf(values) else [jnp.shape(v) for v in values]
        mask = _propagate(mask_fn, mask, shape)
        return outputs if mask is None else MaskedArray(outputs, mask)

    return masking_apply_fn


def _masking_kernel(kernel_fn: Any, mask_fn: Any, remask: bool) -> Any:
    def masking_kernel_fn(k, **kwargs):
        mask1 = _propagate(mask_fn, _field(k, "mask1"), _field(k, "shape1"))
        mask2 = _propagate(mask_fn, _field(k, "mask2"), _field(k, "shape2"))
        return _with_masks(kernel_fn(k, **kwargs), mask1, mask2, remask)

    masking_kernel_fn.__name__ = getattr(kernel_fn, "__name__", "kernel_fn")
    set_requirements(masking_kernel_fn, requirements_of(kernel_fn))
    return masking_kernel_fn


def _field(kernels: Any, name: str) -> Any:
    """A field of one kernel, or the list of it for the kernels of parallel branches."""
    if isinstance(kernels, Kernel):
        return getattr(kernels, name)
    return [_field(k, name) for k in kernels]


def _with_masks(kernels: Any, mask1: Any, mask2: Any, remask: bool) -> Any:
    if not isinstance(kernels, Kernel):
        nothing = [None] * len(kernels)
        branches = zip(kernels, mask1 or nothing, mask2 or nothing, strict=True)
        return type(kernels)(_with_masks(k, m1, m2, remask) for k, m1, m2 in branches)
    if remask and (mask1 is not None or mask2 is not None):
        return kernels.mask(mask1, mask2)
    return kernels.replace(mask1=mask1, mask2=mask2)


def _propagate(mask_fn: Any, mask: Any, shape: Any) -> Any:
    return None if mask is None else mask_fn(mask, shape)


def _split(pairs: Any) -> tuple[Any, Any]:
    def is_leaf(x):
        return isinstance(x, MaskedArray)

    values = jax.tree.map(lambda p: p.masked_value, pairs, is_leaf=is_leaf)
    return values, jax.tree.map(lambda p: p.mask, pairs, is_leaf=is_leaf)


def unmask_fn(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn` with plain arrays for results: a `MaskedArray` becomes its value, zero where masked.

    Args:
      fn: any function, such as an `apply_fn` of this room called with `mask_constant`.

    Returns:
      A function of the same arguments. Zeros may not be what you want to average over: normalise by
      the number of entries yourself where that matters.

    Source: this library.

    Example:
      >>> from poster_jax.kernels import stax
      >>> _, apply_fn, _ = stax.Relu()
      >>> unmask_fn(apply_fn)((), jnp.array([[1.0, 9.0]]), mask_constant=9.0).tolist()
      [[1.0, 0.0]]
    """

    def unmask(x):
        return _pairs.masked(x.masked_value, x.mask) if isinstance(x, MaskedArray) else x

    @functools.wraps(fn)
    def unmasked(*args, **kwargs):
        return jax.tree.map(unmask, fn(*args, **kwargs), is_leaf=_is_array_leaf)

    return unmasked


def mean_and_variance(x: Any, axis: Any, mask: Any = None) -> tuple[Any, Any]:
    """Mean and variance over `axis` (kept with size 1) of the entries that exist."""
    if mask is None:
        return jnp.mean(x, axis, keepdims=True), jnp.var(x, axis, keepdims=True)
    exists = ~jnp.broadcast_to(mask, x.shape)
    count = jnp.maximum(jnp.sum(exists, axis, keepdims=True), 1)
    mean = jnp.sum(x, axis, keepdims=True) / count
    return mean, jnp.sum(jnp.where(exists, (x - mean) ** 2, 0), axis, keepdims=True) / count
