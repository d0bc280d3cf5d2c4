"""Haiku's transformed functions."""

from collections.abc import Mapping
from typing import Any

import jax

from poster_jax.core.checks import check_key
from poster_jax.core.models.adapters.mode import mode_kwargs, parameters
from poster_jax.core.models.model import NEEDS_STATE, Model
from poster_jax.core.typing import Params, PRNGKey

__all__ = ["from_haiku"]


def from_haiku(
    transformed: Any,
    *,
    train_kwargs: Mapping[str, Any] | None = None,
    eval_kwargs: Mapping[str, Any] | None = None,
) -> Model:
    """A `Model` of what `hk.transform` or `hk.transform_with_state` returns.

    Params and state are Haiku's own dicts, so that a leaf is called "mlp/~/linear_0/w". A function
    that draws random numbers does so in training mode only.

    Args:
      transformed: an `hk.Transformed`, `hk.without_apply_rng` of one included, or an
        `hk.TransformedWithState`.
      train_kwargs: keyword arguments of the function in training mode and in `init`. By default one
        named `train`, `training`, `is_training`, `deterministic` or `use_running_average` is set
        accordingly.
      eval_kwargs: the same in evaluation mode.

    Returns:
      A Model.

    Raises:
      ImportError: Haiku is not installed.
      TypeError: transformed is neither.

    Source: this library; the calls are those of the Haiku documentation.

    Example:
      >>> import haiku as hk, jax.numpy as jnp
      >>> model = from_haiku(hk.transform(lambda x: hk.Linear(3)(x)))
      >>> params = model.init(jax.random.key(0), jnp.ones((2, 4)))
      >>> model.apply_fn(params, jnp.ones((2, 4))).shape
      (2, 3)
    """
    try:
        import haiku as hk
    except ImportError as error:
        raise ImportError("from_haiku needs Haiku: pip install dm-haiku") from error
    if not isinstance(transformed, hk.Transformed | hk.TransformedWithState):
        raise TypeError(
            "transformed must come from hk.transform or hk.transform_with_state, got "
            f"{type(transformed).__name__}."
        )
    with_state = isinstance(transformed, hk.TransformedWithState)
    written = getattr(transformed.apply, "_original_fn", transformed.apply)
    in_training, in_evaluation = mode_kwargs(written, train_kwargs, eval_kwargs)
    takes_rng = "rng" in parameters(transformed.apply)

    # Compiled, so that the forward pass of init, whose result nobody reads, is left out. BatchNorm
    # makes its averages only in training mode.
    @jax.jit
    def variables(key: PRNGKey, x: Any) -> Any:
        made = transformed.init(key, x, **in_training)
        return made if with_state else (made, ())

    def init(key: PRNGKey, x: Any) -> Params:
        check_key("key", key)
        return variables(key, x)[0]

    def init_state(key: PRNGKey, x: Any) -> Any:
        check_key("key", key)
        return variables(key, x)[1] or ()

    def call(params: Params, state: Any, key: Any, x: Any, kwargs: Any) -> tuple[Any, Any]:
        before = (params, dict(state)) if with_state else (params,)
        rng = (key,) if takes_rng else ()
        result = transformed.apply(*before, *rng, x, **kwargs)
        if not with_state:
            return result, ()
        outputs, new_state = result
        return outputs, new_state or ()

    def apply_train(params: Params, state: Any, x: Any, key: PRNGKey) -> tuple[Any, Any]:
        check_key("key", key)
        return call(params, state, key, x, in_training)

    def apply_eval(params: Params, state: Any, x: Any) -> Any:
        return call(params, state, None, x, in_evaluation)[0]

    def apply_fn(params: Params, x: Any) -> Any:
        try:
            return apply_eval(params, (), x)
        except ValueError as error:
            if "No value for" in str(error):  # Haiku's words for a state that is not there
                raise ValueError(NEEDS_STATE) from error
            raise

    return Model(init, apply_fn, init_state, apply_train, apply_eval)
