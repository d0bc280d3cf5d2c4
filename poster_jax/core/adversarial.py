"""Which nearby input does a network get most wrong, and how is it trained on those?

`fgsm` takes one step along the gradient of the loss with respect to the input, `pgd` many small
ones that are projected back. `adversarial_loss` makes a training loss of either.
"""

from typing import Any

import jax
import jax.numpy as jnp

from poster_jax.core.checks import (
    check_choice,
    check_count,
    check_key,
    check_positive,
    is_traced,
    num_examples,
)
from poster_jax.core.training.state import StatefulLoss, lift, stateful
from poster_jax.core.typing import Array, Batch, Float, LossFn, Params, PRNGKey

__all__ = ["adversarial_loss", "fgsm", "pgd"]

Bounds = tuple[float, float] | None


def fgsm(
    loss_fn: LossFn,
    params: Params,
    batch: Batch,
    *,
    epsilon: Any,
    norm: str = "inf",
    bounds: Bounds = None,
) -> Float[Array, "examples *shape"]:
    """One step of length epsilon along the gradient of the loss with respect to the inputs.

    Equation: `x + epsilon sign(grad_x loss)`, or `x + epsilon grad / ||grad||_2` for each example,
    then clipped to the bounds. Exact where the loss is linear in x.

    Args:
      loss_fn: `loss_fn(params, (x, y)) -> scalar`.
      params: of the network.
      batch: `(x, y)`; x floats with a leading axis of examples, inside the bounds.
      epsilon: radius of the ball in the units of x, at least 0; may be traced.
      norm: "inf" or "2".
      bounds: the range of the data, `(low, high)`; None clips nothing.

    Returns:
      Inputs shaped like x.

    Raises:
      ValueError, TypeError: an argument that does not fit, named.

    Source: Goodfellow, Shlens and Szegedy 2015, arXiv 1412.6572, section 4.

    Example:
      >>> loss_fn = lambda w, batch: jnp.mean(batch[0] @ w)
      >>> batch = (jnp.zeros((1, 2)), jnp.zeros(1))
      >>> fgsm(loss_fn, jnp.array([3.0, -1.0]), batch, epsilon=0.5).tolist()
      [[0.5, -0.5]]
    """
    x, _ = _check(batch, epsilon, norm, bounds)
    grad = jax.grad(lambda x: loss_fn(params, (x, batch[1])))(x)
    return _project(x + epsilon * _direction(grad, norm), x, epsilon, norm, bounds)


def pgd(
    loss_fn: LossFn,
    params: Params,
    batch: Batch,
    key: PRNGKey,
    *,
    epsilon: Any,
    step_size: Any,
    num_steps: int,
    norm: str = "inf",
    bounds: Bounds = None,
    random_start: bool = True,
) -> Float[Array, "examples *shape"]:
    """Projected gradient ascent of the loss over the ball around each input.

    Args:
      loss_fn: as in `fgsm`.
      params: as in `fgsm`.
      batch: as in `fgsm`.
      key: of the random start.
      epsilon: as in `fgsm`.
      step_size: length of each step, above 0; may be traced.
      num_steps: at least 1.
      norm: as in `fgsm`.
      bounds: as in `fgsm`.
      random_start: from a uniform point of the ball; else from x. One step of size epsilon from x
        is `fgsm`.

    Returns:
      Inputs shaped like x, in the ball and in the bounds.

    Raises:
      ValueError, TypeError: an argument that does not fit, named.

    Source: Madry et al. 2018, arXiv 1706.06083, section 2.1.

    Example:
      >>> loss_fn = lambda w, batch: jnp.mean(batch[0] @ w)
      >>> batch = (jnp.zeros((1, 2)), jnp.zeros(1))
      >>> pgd(loss_fn, jnp.array([3.0, -1.0]), batch, jax.random.key(0), epsilon=0.5,
      ...     step_size=0.25, num_steps=5).tolist()
      [[0.5, -0.5]]
    """
    x, y = _check(batch, epsilon, norm, bounds)
    check_key("key", key)
    check_positive("step_size", step_size)
    check_count("num_steps", num_steps)
    grad_fn = jax.grad(lambda x: loss_fn(params, (x, y)))

    def step(_: Any, now: Any) -> Any:
        return _project(now + step_size * _direction(grad_fn(now), norm), x, epsilon, norm, bounds)

    start = x
    if random_start:
        start = _project(x + epsilon * _in_unit_ball(key, x, norm), x, epsilon, norm, bounds)
    return jax.lax.fori_loop(0, num_steps, step, start)


def adversarial_loss(
    loss_fn: LossFn | StatefulLoss,
    *,
    epsilon: Any,
    step_size: Any = None,
    num_steps: int = 1,
    norm: str = "inf",
    bounds: Bounds = None,
) -> StatefulLoss:
    """The training loss on inputs that are attacked at every step: adversarial training.

    The attack sees the network as it trains (BatchNorm by the statistics of the batch), and what
    the model remembers of the attack's passes is dropped.

    Args:
      loss_fn: `loss_fn(params, (x, y)) -> scalar`, or what `stateful` makes.
      epsilon: as in `fgsm`.
      step_size: as in `pgd`; None takes one step without a random start: `fgsm`.
      num_steps: as in `pgd`; 1 where step_size is None.
      norm: as in `fgsm`.
      bounds: as in `fgsm`.

    Returns:
      A StatefulLoss for `core.training`.

    Raises:
      ValueError, TypeError: an argument that does not fit, named.

    Source: arXiv 1706.06083, equation 2.1.

    Example:
      >>> loss_fn = lambda w, batch: jnp.mean(batch[0] @ w)
      >>> robust = adversarial_loss(loss_fn, epsilon=0.5)
      >>> batch = (jnp.zeros((1, 2)), jnp.zeros(1))
      >>> float(robust.fn(jnp.array([3.0, -1.0]), (), batch, jax.random.key(0))[0])
      2.0
    """
    inner = lift(loss_fn)
    if step_size is None and num_steps != 1:
        raise ValueError(f"step_size must be given for num_steps={num_steps}; FGSM takes 1 step.")

    def fn(params: Params, model_state: Any, batch: Batch, key: PRNGKey) -> tuple[Any, Any]:
        attack_key, key = jax.random.split(key)
        shared = {"epsilon": epsilon, "norm": norm, "bounds": bounds}

        def attacked(params: Params, batch: Batch) -> Any:
            return inner(params, model_state, batch, key)[0]

        if step_size is None:
            x = fgsm(attacked, params, batch, **shared)
        else:
            x = pgd(
                attacked,
                params,
                batch,
                attack_key,
                step_size=step_size,
                num_steps=num_steps,
                **shared,
            )
        return inner(params, model_state, (jax.lax.stop_gradient(x), batch[1]), key)

    return stateful(fn)


def _check(batch: Batch, epsilon: Any, norm: str, bounds: Bounds) -> tuple[Any, Any]:
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise ValueError(f"batch must be a pair (x, y), got {type(batch).__name__}.")
    num_examples(batch)
    x, y = jnp.asarray(batch[0]), batch[1]
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"x must be a floating point array, got {x.dtype}.")
    check_positive("epsilon", epsilon, zero_allowed=True)
    check_choice("norm", norm, ["inf", "2"])
    if bounds is not None:
        low, high = bounds
        if not is_traced(bounds) and not low < high:
            raise ValueError(f"bounds must be (low, high) with low < high, got {bounds}.")
    return x, y


def _direction(grad: Any, norm: str) -> Any:
    """Steepest ascent of unit length in the norm, for each example; zero where flat."""
    if norm == "inf":
        return jnp.sign(grad)
    lengths = _lengths(grad)
    return grad / jnp.where(lengths > 0, lengths, 1)


def _project(moved: Any, x: Any, epsilon: Any, norm: str, bounds: Bounds) -> Any:
    if norm == "inf":
        moved = jnp.clip(moved, x - epsilon, x + epsilon)
    else:
        shift = moved - x
        lengths = _lengths(shift)
        moved = x + shift * jnp.minimum(1, epsilon / jnp.where(lengths > 0, lengths, 1))
    # Clipping moves towards x, which lies inside: it never leaves the ball.
    return moved if bounds is None else jnp.clip(moved, *bounds)


def _in_unit_ball(key: PRNGKey, x: Any, norm: str) -> Any:
    if norm == "inf":
        return jax.random.uniform(key, x.shape, x.dtype, -1, 1)
    direction_key, radius_key = jax.random.split(key)
    direction = _direction(jax.random.normal(direction_key, x.shape, x.dtype), norm)
    shape = (len(x),) + (1,) * (x.ndim - 1)
    size = max(1, x[0].size)
    return direction * jax.random.uniform(radius_key, shape, x.dtype) ** (1 / size)


def _lengths(x: Any) -> Any:
    """2-norm of each example, shaped to divide by."""
    # The largest entry is taken out: gradients of a confident network underflow when squared.
    axes = tuple(range(1, x.ndim))
    largest = jnp.abs(x).max(axes, keepdims=True) if axes else jnp.abs(x)
    scale = jnp.where(largest > 0, largest, 1)
    return largest * jnp.sqrt(jnp.sum((x / scale) ** 2, axes, keepdims=True))
