"""What every network looks like from here on, whichever library it was written in."""

from collections.abc import Callable
from typing import Any, NamedTuple

from poster_jax.core.typing import ApplyFn, Params, PRNGKey

__all__ = ["Model"]


class Model(NamedTuple):
    """A network as pure functions; the adapters `from_linen`, `from_nnx`, ... make one.

    A population is `jax.vmap` of any of these functions over params, state or key.

    Attributes:
      init: `init(key, x) -> params`; a pytree of arrays. x is a batch like those to come.
      apply_fn: `apply_fn(params, x) -> outputs` in evaluation mode. For a model with a state it
        raises ValueError: such a model is seen through `freeze(state)`.
      init_state: `init_state(key, x) -> state`: what the model keeps beside params (BatchNorm's
        running statistics); () when nothing.
      apply_train: `apply_train(params, state, x, key) -> (outputs, new_state)` in training mode;
        key draws dropout masks and the like.
      apply_eval: `apply_eval(params, state, x) -> outputs` in evaluation mode.
    """

    init: Callable[[PRNGKey, Any], Params]
    apply_fn: ApplyFn
    init_state: Callable[[PRNGKey, Any], Any]
    apply_train: Callable[[Params, Any, Any, PRNGKey], tuple[Any, Any]]
    apply_eval: Callable[[Params, Any, Any], Any]

    def freeze(self, state: Any) -> ApplyFn:
        """`apply_fn(params, x)` in evaluation mode with the state held fixed.

        Args:
          state: of `init_state`, or what training made of it; () for a model without one.

        Returns:
          `apply_fn(params, x) -> outputs`, for every method that takes an apply_fn.

        Source: this library.

        Example:
          >>> from poster_jax.core.models import from_function
          >>> model = from_function(lambda key, x: 2.0, lambda params, x: params * x)
          >>> model.freeze(())(2.0, 3.0)
          6.0
        """
        return lambda params, x: self.apply_eval(params, state, x)


NEEDS_STATE = (
    "model.apply_fn was called, but the model keeps a state beside params (such as BatchNorm's "
    "statistics): take model.freeze(state), with the state of model.init_state or of training."
)
