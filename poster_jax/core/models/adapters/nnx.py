"""Flax NNX modules, by split and merge."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from poster_jax.core.checks import check_key
from poster_jax.core.models.adapters.mode import mode_kwargs, parameters
from poster_jax.core.models.model import NEEDS_STATE, Model
from poster_jax.core.typing import Params, PRNGKey

__all__ = ["from_nnx"]


def from_nnx(
    module: nnx.Module | Callable[[nnx.Rngs], nnx.Module],
    *,
    train_kwargs: Mapping[str, Any] | None = None,
    eval_kwargs: Mapping[str, Any] | None = None,
) -> Model:
    """A `Model` of a Flax NNX module.

    Params are the module's `nnx.Param` values as a plain dict, so that a leaf is called
    "layers/0/kernel"; the state is the dict of its other variables, random streams left out: those
    start from the key of `apply_train`. To go back: `nnx.update(module, params)` and, where there
    is a state, `nnx.update(module, state)`. The module given is never changed.

    Args:
      module: a function that makes the module from `nnx.Rngs`, as in
        `from_nnx(lambda rngs: Net(rngs=rngs))`, called with `Rngs(key)` by `init`; or a module that
        is made already, whose own values `init` and `init_state` then return whatever the key.
      train_kwargs: keyword arguments of the module's call in training mode, beside
        `module.train()`. By default one named `train`, `training`, `is_training`, `deterministic`
        or `use_running_average` is set accordingly.
      eval_kwargs: the same in evaluation mode, beside `module.eval()`.

    Returns:
      A Model.

    Raises:
      TypeError: module is neither.

    Source: this library; the calls are those of the Flax documentation ("split and merge").

    Example:
      >>> model = from_nnx(lambda rngs: nnx.Linear(4, 3, rngs=rngs))
      >>> params = model.init(jax.random.key(0), jnp.ones((2, 4)))
      >>> model.apply_fn(params, jnp.ones((2, 4))).shape
      (2, 3)
    """
    make = _maker(module)
    template = nnx.eval_shape(lambda: make(jax.random.key(0)))
    if not isinstance(template, nnx.Module):
        raise TypeError(f"module must make an nnx.Module, got {type(template).__name__}.")
    in_training, in_evaluation = mode_kwargs(type(template).__call__, train_kwargs, eval_kwargs)
    template.train()
    training_graph = nnx.graphdef(template)
    template.eval()
    evaluation_graph = nnx.graphdef(template)
    _, streams, rest = _values(template)

    def init(key: PRNGKey, x: Any) -> Params:
        check_key("key", key)
        return values(key)[0]

    def init_state(key: PRNGKey, x: Any) -> Any:
        check_key("key", key)
        return values(key)[1]

    @jax.jit
    def values(key: PRNGKey) -> tuple[Params, Any]:
        params, _, state = _values(make(key))
        return params, state or ()

    def apply_train(params: Params, state: Any, x: Any, key: PRNGKey) -> tuple[Any, Any]:
        check_key("key", key)
        merged = nnx.merge(training_graph, params, _start(streams, key), dict(state))
        outputs = merged(x, **in_training)
        return outputs, _values(merged)[2] or ()

    def apply_eval(params: Params, state: Any, x: Any) -> Any:
        if rest and not state:
            raise ValueError(NEEDS_STATE)
        unused = _start(streams, jax.random.key(0))
        return nnx.merge(evaluation_graph, params, unused, dict(state))(x, **in_evaluation)

    def apply_fn(params: Params, x: Any) -> Any:
        return apply_eval(params, (), x)

    return Model(init, apply_fn, init_state, apply_train, apply_eval)


def _maker(module: Any) -> Callable[[PRNGKey], Any]:
    """`make(key) -> module`."""
    if isinstance(module, nnx.Module):
        graph, values = nnx.split(module)
        return lambda key: nnx.merge(graph, values)
    if not callable(module):
        raise TypeError(
            "module must be an nnx.Module or a function that makes one from nnx.Rngs, got "
            f"{type(module).__name__}."
        )
    if "rngs" in parameters(module):  # a class, whose rngs are keyword-only
        return lambda key: module(rngs=nnx.Rngs(key))
    return lambda key: module(nnx.Rngs(key))


def _values(module: nnx.Module) -> tuple[Any, Any, Any]:
    """Values of the params, of the random streams, and of all other lasting variables."""
    # What a call sows for its caller to read is no state of the next call.
    nnx.pop(module, nnx.Intermediate)
    _, params, streams, rest = nnx.split(module, nnx.Param, nnx.RngState, ...)
    return nnx.to_pure_dict(params), nnx.to_pure_dict(streams), nnx.to_pure_dict(rest)


def _start(streams: Any, key: PRNGKey) -> Any:
    """Every random stream at its beginning: the first with the key itself, others derived."""
    leaves, treedef = jax.tree.flatten(streams)
    key = key if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else jax.random.wrap_key_data(key)
    started, num_keys = [], 0
    for leaf in leaves:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            own = jax.random.fold_in(key, num_keys) if num_keys else key
            started.append(jax.random.split(own, leaf.shape) if leaf.shape else own)
            num_keys += 1
        else:
            started.append(jnp.zeros(leaf.shape, leaf.dtype))
    return jax.tree.unflatten(treedef, started)
