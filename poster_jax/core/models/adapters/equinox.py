"""Equinox modules, by partition and combine."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from poster_jax.core.checks import check_key, num_examples
from poster_jax.core.models.adapters.mode import mode_kwargs, parameters
from poster_jax.core.models.model import NEEDS_STATE, Model
from poster_jax.core.typing import Params, PRNGKey

__all__ = ["from_equinox"]


def from_equinox(
    module: Any,
    *,
    per_example: bool = True,
    axis_name: str = "batch",
    train_kwargs: Mapping[str, Any] | None = None,
    eval_kwargs: Mapping[str, Any] | None = None,
) -> Model:
    """A `Model` of an Equinox module.

    Params are the module itself with everything but its floating point arrays set to None, as
    `eqx.partition(module, eqx.is_inexact_array)` gives it, so that a leaf is called
    "layers/0/weight". The state is the tuple of the leaves of the pair (the module with only its
    other arrays, its `eqx.nn.State`), a State being made for a single use and not comparable. To go
    back: `eqx.combine(params, module)`.

    Args:
      module: the module; or `(module, state)` of `eqx.nn.make_with_state`; or a function of a key
        that makes either, as in `from_equinox(lambda key: eqx.nn.MLP(64, 10, 48, 1, key=key))`. Of
        a module that is made already `init` and `init_state` return its own values, whatever the
        key.
      per_example: whether the module takes one example, as those of Equinox do; it is then mapped
        over the batch, and keys are split over it. False: the module takes a batch.
      axis_name: how the module's BatchNorm calls the axis of that map.
      train_kwargs: keyword arguments of the module's call in training mode, beside
        `eqx.nn.inference_mode(module, False)` and `key`. By default one named `train`, `training`,
        `is_training` or `deterministic` is set accordingly.
      eval_kwargs: the same in evaluation mode, beside `eqx.nn.inference_mode(module)`.

    Returns:
      A Model.

    Raises:
      ImportError: Equinox is not installed.
      TypeError: module is none of these.

    Source: this library; the calls are those of the Equinox documentation.

    Example:
      >>> import equinox as eqx
      >>> model = from_equinox(lambda key: eqx.nn.Linear(4, 3, key=key))
      >>> params = model.init(jax.random.key(0), jnp.ones((2, 4)))
      >>> model.apply_fn(params, jnp.ones((2, 4))).shape
      (2, 3)
    """
    try:
        import equinox as eqx
    except ImportError as error:
        raise ImportError("from_equinox needs Equinox: pip install equinox") from error

    make = _maker(module, eqx)
    template = eqx.filter_eval_shape(make, jax.random.key(0))
    if not isinstance(template[0], eqx.Module):
        raise TypeError(f"module must make an eqx.Module, got {type(template[0]).__name__}.")
    params_like, arrays_like, static = _split(template[0], eqx)
    state_leaves, state_structure = jax.tree.flatten((arrays_like, template[1]))
    with_eqx_state = template[1] is not None
    in_training, in_evaluation = mode_kwargs(type(template[0]).__call__, train_kwargs, eval_kwargs)
    takes_key = "key" in parameters(type(template[0]).__call__)

    @jax.jit
    def values(key: PRNGKey) -> tuple[Any, Any]:
        made, state = make(key)
        params, arrays, _ = _split(made, eqx)
        return jax.tree.leaves(params), tuple(jax.tree.leaves((arrays, state)))

    def init(key: PRNGKey, x: Any) -> Params:
        check_key("key", key)
        # One structure for all keys: functions inside a module need not be equal to themselves
        # when it is made twice.
        return jax.tree.unflatten(jax.tree.structure(params_like), values(key)[0])

    def init_state(key: PRNGKey, x: Any) -> Any:
        check_key("key", key)
        return values(key)[1]

    def call(params: Params, state: Any, x: Any, key: Any, training: bool) -> tuple[Any, Any]:
        if state_leaves and not state:
            raise ValueError(NEEDS_STATE)
        kwargs = in_training if training else in_evaluation
        arrays, eqx_state = jax.tree.unflatten(state_structure, state)
        whole = eqx.combine(params, arrays, static)
        whole = eqx.nn.inference_mode(whole, value=not training)

        def one(x: Any, key: Any, eqx_state: Any) -> tuple[Any, Any]:
            keyed = {"key": key} if takes_key else {}
            if not with_eqx_state:
                return whole(x, **keyed, **kwargs), None
            return whole(x, eqx_state, **keyed, **kwargs)

        if per_example:
            if takes_key and key is not None:
                key = jax.random.split(key, num_examples(x, "x"))
            each = None if key is None or not takes_key else 0
            mapped = jax.vmap(one, in_axes=(0, each, None), out_axes=(0, None), axis_name=axis_name)
            outputs, eqx_state = mapped(x, key, eqx_state)
        else:
            outputs, eqx_state = one(x, key, eqx_state)
        return outputs, tuple(jax.tree.leaves((arrays, eqx_state)))

    def apply_train(params: Params, state: Any, x: Any, key: PRNGKey) -> tuple[Any, Any]:
        check_key("key", key)
        return call(params, state, x, key, training=True)

    def apply_eval(params: Params, state: Any, x: Any) -> Any:
        return call(params, state, x, None, training=False)[0]

    def apply_fn(params: Params, x: Any) -> Any:
        return apply_eval(params, (), x)

    return Model(init, apply_fn, init_state, apply_train, apply_eval)


def _maker(module: Any, eqx: Any) -> Callable[[PRNGKey], tuple[Any, Any]]:
    """`make(key) -> (module, eqx.nn.State or None)`."""
    if isinstance(module, eqx.Module | tuple):
        return lambda key: _pair(module)
    if not callable(module):
        raise TypeError(
            "module must be an eqx.Module, a pair (module, state), or a function of a key that "
            f"makes one, got {type(module).__name__}."
        )
    if "key" in parameters(module):  # a class, whose key is keyword-only
        return lambda key: _pair(module(key=key))
    return lambda key: _pair(module(key))


def _pair(made: Any) -> tuple[Any, Any]:
    return made if isinstance(made, tuple) else (made, None)


def _split(module: Any, eqx: Any) -> tuple[Any, Any, Any]:
    """The floating point arrays of a module, its other arrays, and all the rest."""

    def is_array(leaf: Any) -> bool:
        return isinstance(leaf, jax.Array | jax.ShapeDtypeStruct)

    arrays, static = eqx.partition(module, is_array)
    params, others = eqx.partition(
        arrays, lambda leaf: is_array(leaf) and jnp.issubdtype(leaf.dtype, jnp.inexact)
    )
    return params, others, static
