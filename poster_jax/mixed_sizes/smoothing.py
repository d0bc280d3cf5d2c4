"""One length of step for all image sizes."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from poster_jax.core.checks import check_fraction, check_positive

__all__ = ["SmoothingState", "smooth_gradients"]


class SmoothingState(NamedTuple):
    """Attributes: norm, the running norm (float32 or wider); count, gradients seen (int32)."""

    norm: Any
    count: Any


def smooth_gradients(*, decay: float = 0.9, eps: float = 1e-6) -> optax.GradientTransformation:
    """Scales each gradient to a running average of the gradients' norms.

    The first gradient passes as it is; after that m <- decay m + (1 - decay) ||g|| and
    g <- g m / (||g|| + eps), with one norm over all parameters and for all sizes. It can enlarge a
    gradient. Chain it before weight decay and momentum.

    Args:
      decay: weight of the past in the running norm, in [0, 1].
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
        return SmoothingState(jnp.zeros((), dtype), jnp.zeros((), jnp.int32))

    def update(updates: Any, state: SmoothingState, params: Any = None) -> tuple[Any, Any]:
        del params
        wide = state.norm.dtype
        squares = [jnp.sum(jnp.square(g.astype(wide))) for g in jax.tree.leaves(updates)]
        norm = jnp.sqrt(sum(squares, jnp.zeros((), wide)))
        first = state.count == 0
        running = jnp.where(first, norm, decay * state.norm + (1 - decay) * norm)
        scale = jnp.where(first, 1.0, running / (norm + eps)).astype(wide)
        smooth = jax.tree.map(lambda g: (g.astype(wide) * scale).astype(g.dtype), updates)
        return smooth, SmoothingState(running, state.count + 1)

    return optax.GradientTransformation(init, update)
