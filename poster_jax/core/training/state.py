"""What changes while a network trains, and the two forms of loss that change it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from poster_jax.core.checks import check_batch, check_callable, check_key, check_loss, check_params
from poster_jax.core.typing import Batch, Int, LossFn, Params, PRNGKey

__all__ = ["StatefulLoss", "TrainState", "init_state", "model_loss", "stateful"]


class TrainState(NamedTuple):
    """Everything that a run needs to go on; a pytree of arrays.

    Attributes:
      params: what the optimiser moves.
      opt_state: the optimiser's own state.
      model_state: what else the model keeps (BatchNorm's running statistics); () when nothing.
      key: the key of the run. It never changes: step t draws from `fold_in(key, t)`.
      step: int32 scalar, the number of updates made.
    """

    params: Params
    opt_state: Any
    model_state: Any
    key: PRNGKey
    step: Int[jax.Array, "..."]


@dataclass(frozen=True)
class StatefulLoss:
    """A loss that reads and renews a model state and may draw random numbers; see `stateful`.

    Attributes:
      fn: `fn(params, model_state, batch, key) -> (loss, model_state)`.
    """

    fn: Callable[[Params, Any, Batch, PRNGKey], tuple[Any, Any]]


def stateful(fn: Callable[[Params, Any, Batch, PRNGKey], tuple[Any, Any]]) -> StatefulLoss:
    """Marks a loss of the form `fn(params, model_state, batch, key) -> (loss, model_state)`.

    `fit` and its kin take it in place of a plain `loss_fn(params, batch)`: for BatchNorm, dropout,
    noise added to weights.

    Args:
      fn: the loss, a mean over the batch, and the renewed state.

    Returns:
      A StatefulLoss.

    Raises:
      TypeError: fn is no function.

    Source: this library.

    Example:
      >>> noisy = stateful(lambda p, s, x, key: (jnp.mean(p * x) + jax.random.normal(key), s))
      >>> type(noisy).__name__
      'StatefulLoss'
    """
    check_callable("fn", fn)
    return StatefulLoss(fn)


def model_loss(model: Any, output_loss_fn: Callable[[Any, Any], Any]) -> StatefulLoss:
    """The training loss of a `models.Model` in training mode, its running statistics renewed.

    Args:
      model: has `apply_train(params, model_state, x, key) -> (outputs, model_state)`.
      output_loss_fn: `output_loss_fn(outputs, y) -> scalar`, a mean over the batch.

    Returns:
      A StatefulLoss for batches `(x, y)`; start it from `model.init_state(key, x)`.

    Raises:
      TypeError: output_loss_fn is no function.

    Source: this library.

    Example:
      `fit(model_loss(model, softmax_cross_entropy), params, data, key, model_state=state, ...)`
    """
    check_callable("output_loss_fn", output_loss_fn)

    def fn(params: Params, model_state: Any, batch: Batch, key: PRNGKey) -> tuple[Any, Any]:
        x, y = batch
        outputs, model_state = model.apply_train(params, model_state, x, key)
        return output_loss_fn(outputs, y), model_state

    return StatefulLoss(fn)


def init_state(
    params: Params,
    key: PRNGKey,
    *,
    optimizer: optax.GradientTransformation,
    model_state: Any = (),
) -> TrainState:
    """The state before the first step.

    Args:
      params: pytree of floating point arrays.
      key: the key of the run.
      optimizer: any optax transformation.
      model_state: as in `TrainState`.

    Returns:
      A TrainState with step 0.

    Raises:
      ValueError, TypeError: params are empty or not finite, key is no key, optimizer no optimiser.

    Source: this library.

    Example:
      >>> int(init_state({"w": jnp.ones(3)}, jax.random.key(0), optimizer=optax.sgd(0.1)).step)
      0
    """
    check_params(params)
    check_key("key", key)
    check_optimizer(optimizer)
    params = jax.tree.map(jnp.asarray, params)
    model_state = jax.tree.map(jnp.asarray, model_state)
    return TrainState(params, optimizer.init(params), model_state, key, jnp.zeros((), jnp.int32))


def check_optimizer(optimizer: Any) -> None:
    """TypeError unless `optimizer` has optax's `init` and `update`."""
    if not (callable(getattr(optimizer, "init", None)) and callable(optimizer.update)):
        raise TypeError(
            "optimizer must be an optax.GradientTransformation such as optax.adam(1e-3), got "
            f"{type(optimizer).__name__}."
        )


def check_training_loss(loss_fn: LossFn | StatefulLoss, state: TrainState, batch: Batch) -> Any:
    """The dtype of either form of loss; ValueError when it does not fit state and batch."""
    if not isinstance(loss_fn, StatefulLoss):
        return check_loss(loss_fn, state.params, batch)
    check_params(state.params)
    check_batch(batch)
    try:
        out = jax.eval_shape(loss_fn.fn, state.params, state.model_state, batch, state.key)
        loss, model_state = out
    except Exception as error:  # a model may raise anything; the user wants one sentence
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            "loss_fn(params, model_state, batch, key) -> (loss, model_state) could not be "
            f"evaluated: {first}"
        ) from error
    if getattr(loss, "shape", None) != () or not jnp.issubdtype(loss.dtype, jnp.floating):
        raise ValueError(f"loss_fn must return (loss, model_state) with a scalar loss, got {loss}.")
    before = jax.tree.map(lambda a: (jnp.shape(a), jnp.result_type(a)), state.model_state)
    after = jax.tree.map(lambda a: (a.shape, a.dtype), model_state)
    if before != after:
        raise ValueError(
            f"loss_fn must return a model_state like the one it got ({before}), got {after}."
        )
    return loss.dtype


def lift(loss_fn: LossFn | StatefulLoss) -> Callable[..., tuple[Any, Any]]:
    """Either form of loss as the stateful one."""
    if isinstance(loss_fn, StatefulLoss):
        return loss_fn.fn
    return lambda params, model_state, batch, key: (loss_fn(params, batch), model_state)
