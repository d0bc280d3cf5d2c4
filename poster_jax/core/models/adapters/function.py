"""A network written by hand as two functions."""

from collections.abc import Callable
from typing import Any

from poster_jax.core.checks import check_callable
from poster_jax.core.models.model import Model
from poster_jax.core.typing import ApplyFn, Params, PRNGKey

__all__ = ["from_function"]


def from_function(init: Callable[[PRNGKey, Any], Params], apply: ApplyFn) -> Model:
    """A `Model` of two plain functions, without state or randomness.

    Args:
      init: `init(key, x) -> params`, any pytree of arrays.
      apply: `apply(params, x) -> outputs`.

    Returns:
      A Model; its state is () and training mode is evaluation mode.

    Raises:
      TypeError: init or apply is no function.

    Source: this library.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> init = lambda key, x: jax.random.normal(key, (x.shape[-1], 10))
      >>> model = from_function(init, lambda w, x: x @ w)
      >>> x = jnp.ones((5, 64))
      >>> model.apply_fn(model.init(jax.random.key(0), x), x).shape
      (5, 10)
    """
    check_callable("init", init)
    check_callable("apply", apply)
    return Model(
        init=init,
        apply_fn=lambda params, x: apply(params, x),
        init_state=lambda key, x: (),
        apply_train=lambda params, state, x, key: (apply(params, x), ()),
        apply_eval=lambda params, state, x: apply(params, x),
    )
