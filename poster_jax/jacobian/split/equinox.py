"""The layers of an Equinox module: on a copy, the submodules' calls go through a hook."""

from functools import cache
from typing import Any

import jax

from poster_jax.core.typing import Params
from poster_jax.jacobian._layer import NamedLayer
from poster_jax.jacobian.split._cuts import Boundary, Hook, cut, pass_through

__all__ = ["split_equinox"]


def split_equinox(
    module: Any,
    params: Params,
    x: Any,
    *,
    boundary: Boundary | None = None,
    state: Any = None,
    per_example: bool = True,
    **call_options: Any,
) -> tuple[NamedLayer, ...]:
    """An Equinox network as the `layers` of `network_penalty`, cut where submodules are called.

    As `split_linen`: layer l goes from the input of the l-th call of a `boundary` to the input of
    the next, and each takes the params of the whole module. Layers take a batch.

    Args:
      module: the module, in the mode in which to measure it (`eqx.nn.inference_mode(module)`). It
        is not changed.
      params: its floating point arrays, `eqx.filter(module, eqx.is_inexact_array)`, as
        `core.models.from_equinox` gives them.
      x: (B, ...) floats, a batch like those to come; a few examples do.
      boundary: classes of submodules, `(eqx.nn.Linear, eqx.nn.Conv)` when None; of a residual
        network the block.
      state: the `eqx.nn.State` of a module that has one; held fixed.
      per_example: whether the module takes one example, as those of Equinox do; it is then mapped
        over the batch, whose axis is called "batch". False: the module takes a batch.
      **call_options: keyword arguments of the module's call, such as key=..., the same for all
        examples.

    Returns:
      Tuple of `layer_fn(params, x_l) -> x_(l+1)`, as many as there are calls of a boundary, each
      with the `name` of its boundary, such as "layers/0".

    Raises:
      ImportError: Equinox is not installed.
      ValueError: no boundary is called, something passes by a cut (their composition is not the
        module), or a cut inside a transformation (`jax.checkpoint`, `jax.lax.scan`).
      TypeError: module is no Equinox module.

    Source: this library.

    Example:
      >>> import equinox as eqx, jax.numpy as jnp
      >>> module = eqx.nn.MLP(4, 3, 8, depth=2, key=jax.random.key(0))
      >>> params, x = eqx.filter(module, eqx.is_inexact_array), jnp.ones((2, 4))
      >>> layers = split_equinox(module, params, x)
      >>> [layer.name for layer in layers], layers[0](params, x).shape
      (['layers/0', 'layers/1', 'layers/2'], (2, 8))
    """
    try:
        import equinox as eqx
    except ImportError as error:
        raise ImportError("split_equinox needs Equinox: pip install equinox") from error

    if not isinstance(module, eqx.Module):
        raise TypeError(f"module must be an eqx.Module, got {type(module).__name__}.")
    kinds: Boundary = (eqx.nn.Linear, eqx.nn.Conv) if boundary is None else boundary
    # A State is made for a single use: every call has one of its own.
    leaves, structure = jax.tree.flatten(state)

    def call(params: Params, x: Any, hook: Hook) -> Any:
        own = eqx.combine(params, module)
        is_boundary = lambda node: isinstance(node, kinds)  # noqa: E731
        for path, node in jax.tree_util.tree_leaves_with_path(own, is_leaf=is_boundary):
            if is_boundary(node):
                name = jax.tree_util.keystr(path, simple=True, separator="/")
                # Modules are frozen, but this copy is nobody else's.
                object.__setattr__(node, "_poster_jax_place", (hook, name))
                object.__setattr__(node, "__class__", _hooked(type(node)))
        if state is None:
            return own(x, **call_options)
        return own(x, jax.tree.unflatten(structure, leaves), **call_options)[0]

    return cut(call, params, x, kinds, per_example=per_example)


@cache
def _hooked(cls: Any) -> Any:
    """`cls` whose calls tell the hook of the instance: a subclass, so that the rest stays."""
    import equinox as eqx

    def __init__(self: Any) -> None:  # noqa: N807
        raise TypeError("instances are made of those of the class above.")

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N807
        args, kwargs = pass_through(*self._poster_jax_place, args, kwargs)
        return cls.__call__(self, *args, **kwargs)

    members = {
        "__init__": __init__,
        "__call__": __call__,
        "__module__": cls.__module__,
        # A field, so that it outlasts flattening where the module itself transforms.
        "__annotations__": {"_poster_jax_place": Any},
        "_poster_jax_place": eqx.field(static=True, default=None),
    }
    return type(cls)(cls.__name__, (cls,), members)
