"""The layers of a Flax NNX module: on a copy, the submodules' calls go through a hook."""

from functools import cache
from typing import Any

from flax import nnx

from poster_jax.core.typing import Params
from poster_jax.jacobian._layer import NamedLayer
from poster_jax.jacobian.split._cuts import Hook, cut, pass_through

__all__ = ["split_nnx"]


def split_nnx(
    module: nnx.Module,
    params: Params,
    x: Any,
    *,
    boundary: type[nnx.Module] | tuple[type[nnx.Module], ...] = (nnx.Linear, nnx.Conv),
    state: Any = (),
    **call_options: Any,
) -> tuple[NamedLayer, ...]:
    """An NNX network as the `layers` of `network_penalty`, cut where given submodules are called.

    As `split_linen`: layer l goes from the input of the l-th call of a `boundary` to the input of
    the next, and each takes the params of the whole module.

    Args:
      module: the module, in the mode in which to measure it (`module.eval()`, `module.train()`).
        It is not changed.
      params: its `nnx.Param` values as a dict, as `core.models.from_nnx` gives them.
      x: (B, ...) floats, a batch like those to come; a few examples do.
      boundary: classes of submodules; of a residual network the block.
      state: values of its other variables, as `from_nnx` gives them; () takes the module's own.
        Held fixed.
      **call_options: keyword arguments of the module's call.

    Returns:
      Tuple of `layer_fn(params, x_l) -> x_(l+1)`, as many as there are calls of a boundary, each
      with the `name` of its boundary, such as "layers/0".

    Raises:
      ValueError: no boundary is called, something passes by a cut (their composition is not the
        module), or a cut inside a lifted transformation (nnx.scan, nnx.remat).
      TypeError: module is no NNX module.

    Source: this library.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from poster_jax.core.models import from_nnx
      >>> rngs = nnx.Rngs(0)
      >>> first, last = nnx.Linear(4, 8, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)
      >>> module = nnx.Sequential(first, nnx.tanh, last)
      >>> params = from_nnx(module).init(jax.random.key(0), jnp.ones((2, 4)))
      >>> layers = split_nnx(module, params, jnp.ones((2, 4)))
      >>> [layer.name for layer in layers], layers[0](params, jnp.ones((2, 4))).shape
      (['layers/0', 'layers/2'], (2, 8))
    """
    if not isinstance(module, nnx.Module):
        raise TypeError(f"module must be an nnx.Module, got {type(module).__name__}.")
    graph, _, others = nnx.split(module, nnx.Param, ...)
    others = nnx.to_pure_dict(others)

    def call(params: Params, x: Any, hook: Hook) -> Any:
        own = nnx.merge(graph, params, others)
        if state:
            nnx.update(own, state)
        for path, submodule in nnx.iter_modules(own):
            if isinstance(submodule, boundary):
                submodule._poster_jax_place = (hook, "/".join(map(str, path)))
                submodule.__class__ = _hooked(type(submodule))
        return own(x, **call_options)

    return cut(call, params, x, boundary)


@cache
def _hooked(cls: Any) -> Any:
    """`cls` whose calls tell the hook of the instance: a subclass, so that the rest stays."""

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N807
        args, kwargs = pass_through(*self._poster_jax_place, args, kwargs)
        return cls.__call__(self, *args, **kwargs)

    return type(cls)(cls.__name__, (cls,), {"__call__": __call__, "__module__": cls.__module__})
