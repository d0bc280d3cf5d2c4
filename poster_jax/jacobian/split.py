"""The layers of a Flax Linen module as functions, without a line of its code written again.

The module itself is called for every layer, with its calls intercepted: where the first submodule
of the layer is called its input is replaced by the layer's, and where that of the next layer is
called the input is taken and the module left. What came before is dead code that XLA removes.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from poster_jax.core.checks import check_batch, check_finite
from poster_jax.core.typing import Params
from poster_jax.jacobian._layer import LayerFn

__all__ = ["split_linen"]


class _Reached(Exception):  # noqa: N818
    """Leaves the module in the middle of its call."""

    def __init__(self, value: Any) -> None:
        self.value = value


def split_linen(
    module: nn.Module,
    params: Params,
    x: Any,
    *,
    boundary: type[nn.Module] | tuple[type[nn.Module], ...] = (nn.Dense, nn.Conv),
    state: Any = (),
    **call_options: Any,
) -> tuple[LayerFn, ...]:
    """A Linen network as the `layers` of `network_penalty`, cut where given submodules are called.

    Layer l goes from the input of the l-th call of a `boundary` to the input of the next, so that
    it holds the activation (and normalisation, pooling) in between; the first begins at x, the last
    ends at the outputs. Each takes the params of the whole module:

        layers = split_linen(module, params, x)
        network_penalty(layers, (params,) * len(layers), x, key)

    Args:
      module: the module, not bound.
      params: its collection "params", as `core.models.from_linen` gives it.
      x: (B, ...) floats, a batch like those to come; a few examples do.
      boundary: classes of submodules. For residual networks name the block, not the convolutions
        inside it: nothing may pass by a cut.
      state: the module's other collections, such as {"batch_stats": ...}; held fixed.
      **call_options: keyword arguments of the module's call, such as train=False.

    Returns:
      Tuple of `layer_fn(params, x_l) -> x_(l+1)`, as many as there are calls of a boundary.

    Raises:
      ValueError: no boundary is called, something passes by a cut (their composition is not the
        module), or a cut inside a lifted transformation (nn.scan, nn.remat).
      TypeError: module is no Linen module.

    Source: this library; the interception is `flax.linen.intercept_methods`.

    Example:
      >>> from poster_jax.core.models import MLP, from_linen
      >>> x = jnp.ones((2, 4))
      >>> params = from_linen(MLP((8, 8, 3))).init(jax.random.key(0), x)
      >>> layers = split_linen(MLP((8, 8, 3)), params, x)
      >>> len(layers), layers[0](params, x).shape
      (3, (2, 8))
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a flax.linen.Module, got {type(module).__name__}.")
    check_finite("params", params)
    check_batch(x, "x")
    shape, dtype = jnp.shape(x)[1:], jnp.result_type(x)

    def run(params: Params, value: Any, start: int, stop: int | None) -> Any:
        """From the input of call `start` (0: of the module) to that of call `stop`."""
        whole = value if start == 0 else jnp.zeros((len(value), *shape), dtype)
        calls = [0]

        def intercept(next_fn: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
            if context.method_name != "__call__" or not isinstance(context.module, boundary):
                return next_fn(*args, **kwargs)
            number, calls[0] = calls[0], calls[0] + 1
            name = None if args else next(iter(kwargs))  # the input may be given by its name
            if number == stop:
                raise _Reached(args[0] if args else kwargs[name])
            if number == start and start > 0:
                args, kwargs = (
                    ((value, *args[1:]), kwargs) if args else (args, {**kwargs, name: value})
                )
            return next_fn(*args, **kwargs)

        variables = {"params": params, **dict(state)}
        mutable = list(dict(state)) or False
        try:
            with nn.intercept_methods(intercept):
                outputs = module.apply(variables, whole, mutable=mutable, **call_options)
        except _Reached as reached:
            return reached.value
        if stop is not None:
            raise ValueError(f"the module calls its boundary {calls[0]} times, not {stop + 1}.")
        return outputs[0] if mutable else outputs

    num = _num_calls(module, params, x, boundary, state, call_options)
    if num == 0:
        names = [c.__name__ for c in (boundary if isinstance(boundary, tuple) else (boundary,))]
        raise ValueError(f"module must call at least one of {names}, the boundary, got none.")
    cuts = [0, *range(1, num), None]

    def layer(start: int, stop: int | None) -> LayerFn:
        return lambda params, x: run(params, x, start, stop)

    layers = tuple(layer(start, stop) for start, stop in pairwise(cuts))
    _check_composition(layers, lambda x: run(params, x, 0, None), params, x)
    return layers


def _num_calls(
    module: nn.Module, params: Params, x: Any, boundary: Any, state: Any, call_options: Any
) -> int:
    calls = [0]

    def intercept(next_fn: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        calls[0] += context.method_name == "__call__" and isinstance(context.module, boundary)
        return next_fn(*args, **kwargs)

    def apply(x: Any) -> Any:
        variables = {"params": params, **dict(state)}
        return module.apply(variables, x, mutable=list(dict(state)) or False, **call_options)

    with nn.intercept_methods(intercept):
        jax.eval_shape(apply, x)
    return calls[0]


def _check_composition(layers: Any, whole: Callable[[Any], Any], params: Params, x: Any) -> None:
    def composed(x: Any) -> Any:
        for layer in layers:
            x = layer(params, x)
        return x

    try:
        wanted, found = jax.jit(lambda x: (whole(x), composed(x)))(x)
    except jax.errors.UnexpectedTracerError as error:
        raise ValueError(
            "boundary must be called by the module itself, but one of its calls stands inside "
            "nn.remat, nn.scan or nn.jit, out of which no input can be taken. Name the module "
            "around it as boundary, or leave the transformation out."
        ) from error
    gap, size = jnp.abs(wanted - found).max(), jnp.abs(wanted).max()
    if isinstance(gap, jax.core.Tracer):
        return
    if not float(gap) <= float(jnp.finfo(wanted.dtype).eps) ** 0.5 * float(size):
        raise ValueError(
            "module must be the composition of what lies between calls of boundary, but its "
            f"outputs of size {float(size):.3g} and the composition's differ by {float(gap):.3g}: "
            "something passes by a cut, as a residual connection does. Name the block as boundary."
        )
