"""Where a network is cut, and whether the pieces make the whole: the same for every library.

The whole network is called for every layer, with the calls of its submodules intercepted: where the
first submodule of the layer is called its input is replaced by the layer's, and where that of the
next layer is called the input is taken and the network left. What came before is dead code that XLA
removes.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp

from poster_jax.core.checks import check_batch, check_finite, is_traced
from poster_jax.core.typing import Params
from poster_jax.jacobian._layer import NamedLayer

__all__ = ["Boundary", "Hook", "cut", "pass_through"]

Boundary = type | tuple[type, ...]
Hook = Callable[[str, Any], Any]
"""`hook(name, value) -> value`: told the input of a boundary's call, it says what to go on with."""


class _Reached(Exception):  # noqa: N818
    """Leaves the network in the middle of its call."""

    def __init__(self, value: Any) -> None:
        self.value = value


def pass_through(hook: Hook, name: str, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """The arguments of a submodule's call, the first, its input, as `hook` wants it."""
    if args:
        return (hook(name, args[0]), *args[1:]), kwargs
    first = next(iter(kwargs))  # the input may be given by its name
    return args, {**kwargs, first: hook(name, kwargs[first])}


def cut(
    call: Callable[[Params, Any, Hook], Any],
    params: Params,
    x: Any,
    boundary: Boundary,
    *,
    per_example: bool = False,
) -> tuple[NamedLayer, ...]:
    """The layers of `call(params, x, hook) -> outputs`, checked to compose to it.

    Args:
      call: runs the network; gives every call of a boundary to the hook.
      params: of the network.
      x: (B, ...) floats.
      boundary: for messages.
      per_example: whether `call` takes one example.
    """
    check_finite("params", params)
    check_batch(x, "x")
    shape, dtype = jnp.shape(x)[1:], jnp.result_type(x)
    each = partial(jax.vmap, axis_name="batch") if per_example else lambda fn: fn

    def run(params: Params, value: Any, start: int, stop: int | None) -> Any:
        """From the input of call `start` (0: of the network) to that of call `stop`."""
        calls = [0]

        def hook(name: str, given: Any) -> Any:
            number, calls[0] = calls[0], calls[0] + 1
            if number == stop:
                raise _Reached(given)
            return value if number == start and start > 0 else given

        batch = () if per_example else (len(value),)
        whole = value if start == 0 else jnp.zeros((*batch, *shape), dtype)
        try:
            outputs = call(params, whole, hook)
        except _Reached as reached:
            return reached.value
        if stop is not None:
            raise ValueError(f"the module calls its boundary {calls[0]} times, not {stop + 1}.")
        return outputs

    def layer(start: int, stop: int | None) -> Callable[[Params, Any], Any]:
        def layer_fn(params: Params, x: Any) -> Any:
            return each(lambda x: run(params, x, start, stop))(x)

        return layer_fn

    names = _names(each, call, params, x)
    if not names:
        classes = [c.__name__ for c in (boundary if isinstance(boundary, tuple) else (boundary,))]
        raise ValueError(f"module must call at least one of {classes}, the boundary, got none.")
    places = pairwise([0, *range(1, len(names)), None])
    layers = tuple(
        NamedLayer(layer(start or 0, stop), name)
        for name, (start, stop) in zip(names, places, strict=True)
    )
    _check_composition(layers, layer(0, None), params, x)
    return layers


def _names(each: Any, call: Callable[..., Any], params: Params, x: Any) -> list[str]:
    """Of the submodules that the network calls, in the order of the calls."""
    names = []

    def hook(name: str, given: Any) -> Any:
        names.append(name)
        return given

    jax.eval_shape(each(lambda x: call(params, x, hook)), x)
    return names


def _check_composition(layers: Any, whole: Callable[..., Any], params: Params, x: Any) -> None:
    def both(x: Any) -> Any:
        composed = x
        for layer in layers:
            composed = layer(params, composed)
        return whole(params, x), composed

    try:
        wanted, found = jax.jit(both)(x)
    except jax.errors.UnexpectedTracerError as error:
        raise ValueError(
            "boundary must be called by the module itself, but one of its calls stands inside a "
            "lifted transformation (remat, scan, jit, vmap), out of which no input can be taken. "
            "Name the module around it as boundary, or leave the transformation out."
        ) from error
    if is_traced((wanted, found)):
        return
    gap, size = jnp.abs(wanted - found).max(), jnp.abs(wanted).max()
    if not float(gap) <= float(jnp.finfo(wanted.dtype).eps) ** 0.5 * float(size):
        raise ValueError(
            "module must be the composition of what lies between calls of boundary, but its "
            f"outputs of size {float(size):.3g} and the composition's differ by {float(gap):.3g}: "
            "something passes by a cut, as a residual connection does. Name the block as boundary."
        )
