"""The layers of a Flax Linen module, by `flax.linen.intercept_methods`."""

from collections.abc import Callable
from typing import Any

from flax import linen as nn

from poster_jax.core.typing import Params
from poster_jax.jacobian._layer import NamedLayer
from poster_jax.jacobian.split._cuts import Hook, cut, pass_through

__all__ = ["split_linen"]


def split_linen(
    module: nn.Module,
    params: Params,
    x: Any,
    *,
    boundary: type[nn.Module] | tuple[type[nn.Module], ...] = (nn.Dense, nn.Conv),
    state: Any = (),
    **call_options: Any,
) -> tuple[NamedLayer, ...]:
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
      Tuple of `layer_fn(params, x_l) -> x_(l+1)`, as many as there are calls of a boundary, each
      with the `name` of its boundary, such as "Dense_0" or "Block_1/Conv_0".

    Raises:
      ValueError: no boundary is called, something passes by a cut (their composition is not the
        module), or a cut inside a lifted transformation (nn.scan, nn.remat).
      TypeError: module is no Linen module.

    Source: this library; the interception is `flax.linen.intercept_methods`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from poster_jax.core.models import MLP, from_linen
      >>> x = jnp.ones((2, 4))
      >>> params = from_linen(MLP((8, 8, 3))).init(jax.random.key(0), x)
      >>> layers = split_linen(MLP((8, 8, 3)), params, x)
      >>> [layer.name for layer in layers], layers[0](params, x).shape
      (['Dense_0', 'Dense_1', 'Dense_2'], (2, 8))
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a flax.linen.Module, got {type(module).__name__}.")

    def call(params: Params, x: Any, hook: Hook) -> Any:
        def intercept(next_fn: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
            if context.method_name == "__call__" and isinstance(context.module, boundary):
                name = "/".join(context.module.path)
                args, kwargs = pass_through(hook, name, args, kwargs)
            return next_fn(*args, **kwargs)

        variables = {"params": params, **dict(state)}
        mutable = list(dict(state)) or False
        with nn.intercept_methods(intercept):
            outputs = module.apply(variables, x, mutable=mutable, **call_options)
        return outputs[0] if mutable else outputs

    return cut(call, params, x, boundary)
