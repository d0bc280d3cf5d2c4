"""One length of step for all image sizes."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from poster_jax.core.checks import check_fraction, check_positive
from poster_jax.core.typing import Scalar

__all__ = ["GradientNorms", "SmoothingState", "gradient_norms", "smooth_gradients"]


class SmoothingState(NamedTuple):
    """What `smooth_gradients` keeps.

    Attributes:
      norm: the running norm, float32 or wider; the norm of the gradient that it let pass last.
      raw: the norm of that gradient before.
      count: gradients seen, int32.
    """

    norm: Any
    raw: Any
    count: Any


class GradientNorms(NamedTuple):
    """Attributes: raw, norm of the last gradient; smoothed, what smoothing made of it."""

    raw: Any
    smoothed: Any


def smooth_gradients(
    *, decay: Scalar | float = 0.9, eps: float = 1e-6
) -> optax.GradientTransformation:
    """Scales each gradient to a running average of the gradients' norms.

    The first gradient passes as it is; after that m <- decay m + (1 - decay) ||g|| and
    g <- g m / (||g|| + eps), with one norm over all parameters and for all sizes. It can enlarge a
    gradient. Chain it before weight decay and momentum.

    Args:
      decay: weight of the past in the running norm, in [0, 1]; may be traced. With 0 gradients
        pass as they are, to eps, and their norms are kept all the same.
      eps: added to the norm divided by.

    Returns:
      An `optax.GradientTransformation`.

    Source: Hoffer et al. 2019, arXiv 1908.08986, gradient smoothing, as in the authors' code of
    the submission.

    Example:
      >>> smoothing = smooth_gradients()
      >>> _, state = smoothing.update(jnp.array([1.0]), smoothing.init(jnp.array([0.0])))
      >>> print(round(float(smoothing.update(jnp.array([2.0]), state)[0][0]), 4))
      1.1
    """
    check_fraction("decay", decay)
    check_positive("eps", eps, zero_allowed=True)

    def init(params: Any) -> SmoothingState:
        dtype = jnp.result_type(jnp.float32, *jax.tree.leaves(params))
        return SmoothingState(*[jnp.zeros((), dtype)] * 2, jnp.zeros((), jnp.int32))

    def update(updates: Any, state: SmoothingState, params: Any = None) -> tuple[Any, Any]:
        del params
        wide = state.norm.dtype
        squares = [jnp.sum(jnp.square(g.astype(wide))) for g in jax.tree.leaves(updates)]
        norm = jnp.sqrt(sum(squares, jnp.zeros((), wide)))
        first = state.count == 0
        running = jnp.where(first, norm, decay * state.norm + (1 - decay) * norm)
        scale = jnp.where(first, 1.0, running / (norm + eps)).astype(wide)
        smooth = jax.tree.map(lambda g: (g.astype(wide) * scale).astype(g.dtype), updates)
        return smooth, SmoothingState(running, norm, state.count + 1)

    return optax.GradientTransformation(init, update)


def gradient_norms(opt_state: Any) -> GradientNorms:
    """Norms of the last gradient before and after smoothing, from an optimiser's state.

    Args:
      opt_state: of an optimiser that has `smooth_gradients` in it, in a chain or alone.

    Returns:
      `GradientNorms(raw, smoothed)`.

    Raises:
      ValueError: no smoothing, or several, in it.

    Source: this library.

    Example:
      >>> chain = optax.chain(smooth_gradients(), optax.sgd(0.1))
      >>> _, state = chain.update(jnp.array([3.0, 4.0]), chain.init(jnp.zeros(2)))
      >>> print(gradient_norms(state).raw)
      5.0
    """
    is_smoothing = lambda node: isinstance(node, SmoothingState)  # noqa: E731
    found = [s for s in jax.tree.leaves(opt_state, is_leaf=is_smoothing) if is_smoothing(s)]
    if len(found) != 1:
        raise ValueError(f"opt_state must hold one SmoothingState, got {len(found)}.")
    return GradientNorms(found[0].raw, found[0].norm)
