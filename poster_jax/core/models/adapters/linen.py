"""Flax Linen modules."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
from flax import errors
from flax import linen as nn

from poster_jax.core.checks import check_key
from poster_jax.core.models.adapters.mode import mode_kwargs
from poster_jax.core.models.model import NEEDS_STATE, Model
from poster_jax.core.typing import Params, PRNGKey

__all__ = ["from_linen"]


def from_linen(
    module: nn.Module,
    *,
    rngs: Sequence[str] = ("dropout",),
    train_kwargs: Mapping[str, Any] | None = None,
    eval_kwargs: Mapping[str, Any] | None = None,
) -> Model:
    """A `Model` of a Flax Linen module.

    Params are the collection "params" without that outer name, so that a leaf is called
    "Dense_2/kernel"; the state is the dict of all other collections. To go back:
    `module.apply({"params": params, **state}, x)`.

    Args:
      module: the module, not initialised.
      rngs: names of the random streams in training mode; the first gets the key itself.
      train_kwargs: keyword arguments of the module's call in training mode. By default one named
        `train`, `training`, `is_training`, `deterministic` or `use_running_average` is set
        accordingly.
      eval_kwargs: the same in evaluation mode.

    Returns:
      A Model.

    Raises:
      TypeError: module is no Linen module.

    Source: this library; the calls are those of the Flax documentation.

    Example:
      >>> import jax.numpy as jnp
      >>> model = from_linen(nn.Dense(3))
      >>> params = model.init(jax.random.key(0), jnp.ones((2, 4)))
      >>> model.apply_fn(params, jnp.ones((2, 4))).shape
      (2, 3)
    """
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"module must be a flax.linen.Module such as MLP(), got {type(module).__name__}."
        )
    in_training, in_evaluation = mode_kwargs(type(module).__call__, train_kwargs, eval_kwargs)

    # Compiled, so that the forward pass of init, whose result nobody reads, is left out. Flax's
    # lazy_init would do, but from 0.12.12 on it draws params that depend on data from zeros.
    @jax.jit
    def variables(key: PRNGKey, x: Any) -> dict[str, Any]:
        return nn.unbox(module.init(key, x, **in_evaluation))

    def init(key: PRNGKey, x: Any) -> Params:
        check_key("key", key)
        return variables(key, x)["params"]

    def init_state(key: PRNGKey, x: Any) -> Any:
        check_key("key", key)
        return {name: v for name, v in variables(key, x).items() if name != "params"} or ()

    def apply_eval(params: Params, state: Any, x: Any) -> Any:
        return module.apply({"params": params, **dict(state)}, x, **in_evaluation)

    def apply_train(params: Params, state: Any, x: Any, key: PRNGKey) -> tuple[Any, Any]:
        check_key("key", key)
        keys = {name: jax.random.fold_in(key, i) if i else key for i, name in enumerate(rngs)}
        outputs, new_state = module.apply(
            {"params": params, **dict(state)}, x, rngs=keys, mutable=list(state), **in_training
        )
        return outputs, dict(new_state) or ()

    def apply_fn(params: Params, x: Any) -> Any:
        try:
            return apply_eval(params, (), x)
        except errors.ScopeCollectionNotFound as error:
            raise ValueError(NEEDS_STATE) from error

    return Model(init, apply_fn, init_state, apply_train, apply_eval)
