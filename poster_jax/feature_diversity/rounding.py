"""The noise of arithmetic whose order changes from run to run, but with a key."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from poster_jax.core.checks import check_key, check_positive
from poster_jax.core.typing import Array, Int, PRNGKey

__all__ = ["rounding_noise"]


class RoundingState(NamedTuple):
    """How many updates were made.

    Attributes:
      count: int32 scalar.
    """

    count: Int[Array, ""]


def rounding_noise(key: PRNGKey, *, scale: Any = 2.0**-23) -> optax.GradientTransformation:
    """Multiplies each entry of the gradients by 1 + scale * r, r uniform in (-1, 1), step by step.

    It stands for sums whose order a GPU does not fix: their results differ by 2^-24 to 2^-20 of
    their size. Unlike there, a key gives the same run again, on any machine.

    Args:
      key: of all steps; step t draws from `fold_in(key, t)`.
      scale: the largest relative change; may be traced. 2^-23 is the spacing of float32, in which
        smaller ones are lost.

    Returns:
      An optax transformation, the first of a chain.

    Raises:
      ValueError: scale is negative or not finite.
      TypeError: key is no PRNG key.

    Source: Blumenfeld, Gilboa, Soudry 2019 (arXiv 1912.05137), where the hardware does it.

    Example:
      >>> optimizer = optax.chain(rounding_noise(jax.random.key(0), scale=0.1), optax.sgd(1.0))
      >>> params = jnp.zeros(3)
      >>> updates, _ = optimizer.update(jnp.ones(3), optimizer.init(params), params)
      >>> bool((abs(updates + 1) <= 0.1).all()), len(set(updates.tolist()))
      (True, 3)
    """
    check_key("key", key)
    check_positive("scale", scale, zero_allowed=True)

    def init(params: Any) -> RoundingState:
        del params
        return RoundingState(jnp.zeros((), jnp.int32))

    def update(gradients: Any, state: RoundingState, params: Any = None) -> tuple[Any, Any]:
        del params
        leaves, treedef = jax.tree.flatten(gradients)
        # One draw for all leaves: each draw is a second of compilation.
        ends = np.cumsum([g.size for g in leaves])
        r = jax.random.uniform(
            jax.random.fold_in(key, state.count),
            (int(ends[-1]),),
            jnp.result_type(*leaves),
            -1.0,
            1.0,
        )
        noisy = [
            (g * (1 + scale * own.reshape(g.shape))).astype(g.dtype)
            for g, own in zip(leaves, jnp.split(r, ends[:-1]), strict=True)
        ]
        return treedef.unflatten(noisy), RoundingState(state.count + 1)

    return optax.GradientTransformation(init, update)
