"""What makes `(init_fn, apply_fn, kernel_fn)` a layer: its `kernel_fn` takes arrays as well.

Between layers a kernel travels as `Carried` (see `_carried`); a user puts in arrays or a `Kernel`
and gets a `Kernel`, or the fields that `get` names.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from poster_jax.core.checks import check_finite, is_traced
from poster_jax.core.precision import full_precision
from poster_jax.kernels._get import answer, requested
from poster_jax.kernels.kernel import Kernel
from poster_jax.kernels.stax._cache import in_tiles, tile_sizes
from poster_jax.kernels.stax._carried import Carried, carry, map_kernels, public
from poster_jax.kernels.stax.inputs import input_kernel
from poster_jax.kernels.stax.masking import mask_inputs
from poster_jax.kernels.stax.requirements import (
    DEFAULTS,
    fuse,
    requirements_of,
    requires,
    set_requirements,
)

__all__ = ["combinator", "layer"]


def layer(layer_fn: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a function that returns `(init_fn, apply_fn, kernel_fn)` a layer.

    Args:
      layer_fn: returns `init_fn(key, input_shape) -> (output_shape, params)`,
        `apply_fn(params, inputs, **kwargs)` and `kernel_fn(kernel, **kwargs) -> kernel`.

    Returns:
      A function of the same arguments, whose third part is
      `kernel_fn(x1_or_kernel, x2=None, get=None, *, pattern=None, mask_constant=None,
      diagonal_batch=None, diagonal_spatial=None, **kwargs)`.

    Source: this library.

    Example:
      >>> from poster_jax.kernels import stax
      >>> @layer
      ... @stax.supports_masking(remask_kernel=False)
      ... def Double():
      ...     def init_fn(key, input_shape):
      ...         return input_shape, ()
      ...     def apply_fn(params, inputs, **kwargs):
      ...         return 2 * inputs
      ...     def kernel_fn(k, **kwargs):
      ...         return k * 2.0
      ...     return init_fn, apply_fn, kernel_fn
      >>> _, _, kernel_fn = stax.serial(stax.Dense(1), Double())
      >>> kernel_fn(np.ones((1, 3)), None, "nngp").tolist()
      [[4.0]]
    """
    return _layer(layer_fn, knows_shapes=False)


def combinator(layer_fn: Callable[..., Any]) -> Callable[..., Any]:
    """As `layer`, for layers made of layers: their kernels come with the right shapes."""
    return _layer(layer_fn, knows_shapes=True)


def _layer(layer_fn: Callable[..., Any], *, knows_shapes: bool) -> Callable[..., Any]:
    @functools.wraps(layer_fn)
    def make(*args, **kwargs):
        init_fn, apply_fn, kernel_fn = layer_fn(*args, **kwargs)
        if not knows_shapes:
            kernel_fn = _with_shapes(init_fn, kernel_fn)
        kernel_fn = _on_arrays(kernel_fn)
        for fn in (init_fn, apply_fn, kernel_fn):
            fn.__name__ = layer_fn.__name__
        return init_fn, apply_fn, kernel_fn

    return make


def _on_arrays(kernel_fn: Any) -> Any:
    reqs = requirements_of(kernel_fn)
    kernel_fn = kernel_fn if reqs else requires()(kernel_fn)

    @full_precision
    def any_kernel_fn(
        x1_or_kernel,
        x2=None,
        get=None,
        *,
        pattern=None,
        mask_constant=None,
        diagonal_batch=None,
        diagonal_spatial=None,
        **kwargs,
    ):
        """The kernel of the layer's outputs.

        Args:
          x1_or_kernel: the first batch of inputs (an array, or a tree of them for a layer with
            several inputs), or the `Kernel` of the layer's inputs.
          x2: the second batch; None: the first again.
          get: the name of a field ("nngp", "ntk", ...), a tuple of names, or None for a `Kernel`.
          pattern: a pair of arrays for `Aggregate`.
          mask_constant: entries of this value (NaN too) do not exist.
          diagonal_batch: False to keep the covariances between all examples in `cov1`, `cov2`.
          diagonal_spatial: False to keep those between all positions.
          **kwargs: handed to every layer.
        """
        names = requested(get, ())
        kwargs |= {
            "pattern": pattern,
            "diagonal_batch": diagonal_batch,
            "diagonal_spatial": diagonal_spatial,
        }
        if _all_kernels(x1_or_kernel) and x2 is None:
            if _between_layers(x1_or_kernel):
                return kernel_fn(x1_or_kernel, **kwargs)
            kernel = map_kernels(carry, x1_or_kernel)
        else:
            kwargs["mask_constant"] = mask_constant
            asked = fuse(reqs, DEFAULTS, kwargs)
            compute_ntk = get is None or "ntk" in names

            def whole(x1, x2=None):
                kernel = input_kernel(x1, x2, compute_ntk=compute_ntk, **asked)
                return _hand_out(kernel_fn(kernel, **kwargs), get)

            plain = set(kwargs) == _OWN and pattern is None
            plain = plain and (mask_constant is None or np.isscalar(mask_constant))
            if names and set(names) <= {"nngp", "ntk"} and plain:
                key = repr((get, kwargs))
                return _compiled(whole, x1_or_kernel, x2, asked, programs, key, mask_constant)
            return whole(x1_or_kernel, x2)
        return _hand_out(kernel_fn(kernel, **kwargs), get)

    programs: dict[Any, Any] = {}
    set_requirements(any_kernel_fn, reqs)
    return any_kernel_fn


_OWN = {"pattern", "diagonal_batch", "diagonal_spatial", "mask_constant"}


def _compiled(
    whole: Any, x1: Any, x2: Any, asked: dict[str, Any], programs: dict[Any, Any], key: Any,
    mask_constant: Any,
) -> Any:  # fmt: skip
    """`whole(x1, x2)` as one program, in tiles where that is faster; made once for a `key`."""
    both = (x1, x1 if x2 is None else x2)
    if not all(isinstance(x, jax.Array | np.ndarray) and x.ndim > 1 for x in both):
        return whole(x1, x2)
    size = tile_sizes(x1, x2, asked)
    fn = whole if size is None else lambda x1, x2: in_tiles(whole, x1, x2, size)
    if is_traced((x1, x2)):
        return fn(x1, x2)
    for name, x in (("x1", x1), ("x2", x2)):
        if x is not None:
            check_finite(name, mask_inputs(x, mask_constant).masked_value)
    if (key, size) not in programs:
        programs[key, size] = jax.jit(fn)
    try:
        return programs[key, size](x1, x2)
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError):
        return whole(x1, x2)  # a layer of the user's reads numbers


def _hand_out(kernels: Any, get: Any) -> Any:
    if type(kernels) in (list, tuple):
        return type(kernels)(_hand_out(k, get) for k in kernels)
    return public(kernels) if get is None else answer("AnalyticKernel", get, _fields(kernels, get))


def _fields(kernel: Kernel, get: Any) -> dict[str, Any]:
    fields = kernel.asdict()
    for name in requested(get, ()):
        if name not in fields:
            raise UnknownFieldError(
                f"get must name fields of Kernel ({sorted(fields)}), got {name!r}."
            )
    return fields


class UnknownFieldError(KeyError, ValueError):
    """`get` names nothing; a KeyError for programs that expect one."""

    __str__ = ValueError.__str__


def _is_leaf(x: Any) -> bool:
    return isinstance(x, Kernel | jax.Array | np.ndarray)


def _all_kernels(x: Any) -> bool:
    leaves = jax.tree.leaves(x, is_leaf=_is_leaf)
    return bool(leaves) and all(isinstance(leaf, Kernel) for leaf in leaves)


def _between_layers(x: Any) -> bool:
    return all(isinstance(leaf, Carried) for leaf in jax.tree.leaves(x, is_leaf=_is_leaf))


def _with_shapes(init_fn: Any, kernel_fn: Any) -> Any:
    """`kernel_fn` whose kernels also say which shape the outputs have at finite width."""

    @functools.lru_cache(maxsize=64)
    def output_shapes(shapes):
        out = []

        def init(key):
            shape, params = init_fn(key, _as_init_wants(shapes))
            out.append(_hashable(shape))
            return params

        jax.eval_shape(init, jax.eval_shape(lambda: jax.random.key(0)))
        return out[0]

    def set_shapes(kernels, shapes1, shapes2):
        if isinstance(kernels, Kernel):
            return kernels.replace(shape1=shapes1, shape2=shapes2)
        return type(kernels)(map(set_shapes, kernels, shapes1, shapes2))

    @functools.wraps(kernel_fn)
    def shaped_kernel_fn(k, **kwargs):
        out = kernel_fn(k, **kwargs)
        return set_shapes(out, *(output_shapes(_shapes(k, name)) for name in ("shape1", "shape2")))

    set_requirements(shaped_kernel_fn, requirements_of(kernel_fn))
    return shaped_kernel_fn


def _shapes(kernels: Any, name: str) -> Any:
    if isinstance(kernels, Kernel):
        return tuple(getattr(kernels, name))
    return tuple(_shapes(k, name) for k in kernels)


def _is_shape(shape: Any) -> bool:
    return all(size is None or isinstance(size, int | np.integer) for size in shape)


def _hashable(shape: Any) -> Any:
    return tuple(shape) if _is_shape(shape) else tuple(map(_hashable, shape))


def _as_init_wants(shape: Any) -> Any:
    return tuple(shape) if _is_shape(shape) else [_as_init_wants(s) for s in shape]
