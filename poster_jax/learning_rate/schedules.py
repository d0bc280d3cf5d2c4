"""The hand-tuned schedules and the other ways to do without one; rates may be traced."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from poster_jax.core.checks import check_count, check_positive

__all__ = [
    "HypergradientState",
    "cosine",
    "cosine_restarts",
    "hypergradient",
    "one_cycle",
    "step_decay",
]

Schedule = Callable[[Any], Any]


def step_decay(
    rate: Any, *, num_steps: int, at: Sequence[float] = (0.5, 0.75), factor: float = 0.1
) -> Schedule:
    """The rate times `factor` at each of the given shares of the run.

    Args:
      rate: at the start, above 0.
      num_steps: of the whole run.
      at: shares of num_steps.
      factor: above 0.

    Returns:
      `schedule(step) -> rate`, for any optax optimiser.

    Raises:
      ValueError, TypeError: an argument that does not fit.

    Source: He et al. 2016, arXiv 1512.03385, section 4.2 (CIFAR-10).

    Example:
      >>> [round(float(step_decay(1.0, num_steps=100)(t)), 3) for t in (0, 50, 75)]
      [1.0, 0.1, 0.01]
    """
    _check(rate, num_steps)
    check_positive("factor", factor)
    edges = jnp.asarray([share * num_steps for share in at])
    return lambda step: rate * factor ** jnp.sum(step >= edges)


def cosine(rate: Any, *, num_steps: int) -> Schedule:
    """From the rate to 0 along half a cosine.

    Args:
      rate: at the start, above 0.
      num_steps: of the whole run.

    Returns:
      `schedule(step) -> rate`.

    Raises:
      ValueError, TypeError: an argument that does not fit.

    Source: Loshchilov and Hutter 2017, arXiv 1608.03983, equation 5 with one period.

    Example:
      >>> [round(float(cosine(2.0, num_steps=100)(t)), 3) for t in (0, 50, 100)]
      [2.0, 1.0, 0.0]
    """
    _check(rate, num_steps)
    return lambda step: rate * (1 + jnp.cos(jnp.pi * jnp.minimum(step / num_steps, 1))) / 2


def cosine_restarts(rate: Any, *, first_period: int, num_steps: int, growth: int = 2) -> Schedule:
    """Half cosines one after another, each `growth` times as long as the one before.

    Args:
      rate: at the start of each, above 0.
      first_period: steps of the first.
      num_steps: of the whole run; the last period is cut there.
      growth: at least 1.

    Returns:
      `schedule(step) -> rate`.

    Raises:
      ValueError, TypeError: an argument that does not fit.

    Source: arXiv 1608.03983, equation 5 (SGDR).

    Example:
      >>> schedule = cosine_restarts(1.0, first_period=10, num_steps=30)
      >>> [round(float(schedule(t)), 3) for t in (0, 5, 10, 20)]
      [1.0, 0.5, 1.0, 0.5]
    """
    _check(rate, num_steps)
    period = check_count("first_period", first_period)
    check_count("growth", growth)
    starts, periods = [0], [period]
    while starts[-1] + periods[-1] < num_steps:
        starts.append(starts[-1] + periods[-1])
        periods.append(periods[-1] * growth)
    begins, lengths = jnp.asarray(starts), jnp.asarray(periods)

    def schedule(step: Any) -> Any:
        place = jnp.sum(step >= begins) - 1
        return rate * (1 + jnp.cos(jnp.pi * (step - begins[place]) / lengths[place])) / 2

    return schedule


def one_cycle(
    rate: Any, *, num_steps: int, warm: float = 0.3, start: float = 25.0, end: float = 1e4
) -> Schedule:
    """Up from `rate / start` to the rate and down to `rate / (start * end)`, both along cosines.

    Args:
      rate: the peak, above 0.
      num_steps: of the whole run.
      warm: share of the steps before the peak.
      start: the peak over the first rate.
      end: the first rate over the last.

    Returns:
      `schedule(step) -> rate`.

    Raises:
      ValueError, TypeError: an argument that does not fit.

    Source: Smith and Topin 2018, arXiv 1708.07120; defaults of optax and torch.

    Example:
      >>> [round(float(one_cycle(1.0, num_steps=100)(t)), 3) for t in (0, 30, 100)]
      [0.04, 1.0, 0.0]
    """
    _check(rate, num_steps)
    unit = optax.cosine_onecycle_schedule(num_steps, 1.0, warm, start, end)
    return lambda step: rate * unit(step)


class HypergradientState(NamedTuple):
    """The rate and the direction of the last step.

    Attributes:
      rate: scalar, of the next step.
      last: a pytree like the parameters.
    """

    rate: Any
    last: Any


def hypergradient(rate: Any, *, step_size: Any) -> optax.GradientTransformation:
    """A rate that rises while successive directions agree and falls while they oppose each other.

    Equation: `rate += step_size * <g_t, d_(t-1)>`, then `params -= rate * d_t`, where g and d are
    the incoming directions; after `optax.trace` d includes momentum, and g does too.

    Args:
      rate: at the start, above 0; may be traced.
      step_size: of the rate, at least 0.

    Returns:
      An optax transformation for the end of a chain.

    Raises:
      ValueError, TypeError: an argument that does not fit.

    Source: Baydin et al. 2018, arXiv 1703.04782, algorithm 4.

    Example:
      >>> piece = hypergradient(0.5, step_size=0.1)
      >>> update, state = piece.update(jnp.ones(2), piece.init(jnp.zeros(2)))
      >>> _, state = piece.update(jnp.ones(2), state)
      >>> update.tolist(), round(float(state.rate), 3)
      ([-0.5, -0.5], 0.7)
    """
    check_positive("rate", rate)
    check_positive("step_size", step_size, zero_allowed=True)

    def init(params: Any) -> HypergradientState:
        return HypergradientState(
            jnp.asarray(rate, jax.tree.leaves(params)[0].dtype),
            jax.tree.map(jnp.zeros_like, params),
        )

    def update(updates: Any, state: HypergradientState, params: Any = None) -> Any:
        del params
        pairs = zip(jax.tree.leaves(updates), jax.tree.leaves(state.last), strict=True)
        now = state.rate + step_size * sum(jnp.vdot(new, old) for new, old in pairs)
        return jax.tree.map(lambda g: -now * g, updates), HypergradientState(now, updates)

    return optax.GradientTransformation(init, update)


def _check(rate: Any, num_steps: int) -> None:
    check_positive("rate", rate)
    check_count("num_steps", num_steps)
