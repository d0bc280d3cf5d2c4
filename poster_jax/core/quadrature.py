"""Means over a standard normal of functions with a kink."""

import functools
import math
from typing import Any

import jax.numpy as jnp
import numpy as np

__all__ = ["split_rule"]

_REACH = 9.4  # the normal density is 1e-19 of its peak there


def split_rule(kink: Any, degree: int) -> tuple[Any, Any]:
    """Nodes and weights for the standard normal, exact on both sides of a kink.

    Args:
      kink: (...) where the function or its slope jumps; beyond 9.4 standard deviations it counts as
        standing there.
      degree: Gauss-Legendre nodes on each side.

    Returns:
      `(nodes, weights)`, each (..., 2 degree) in the dtype of `kink`.

    Source: Gauss-Legendre on each side, times the normal density; this library.

    Example:
      >>> nodes, weights = split_rule(jnp.zeros(()), 40)
      >>> round(float((weights * jnp.abs(nodes)).sum()), 5)  # sqrt(2 / pi)
      0.79788
    """
    t, w = (jnp.asarray(a, kink.dtype) for a in _pieces_rule(degree))
    kink = jnp.clip(kink, -_REACH, _REACH)[..., None]
    below, above = kink + _REACH, _REACH - kink
    nodes = jnp.concatenate([kink - below * t, kink + above * t], -1)
    weights = jnp.concatenate([below * w, above * w], -1)
    return nodes, weights * jnp.exp(-(nodes**2) / 2) / math.sqrt(2 * math.pi)


@functools.lru_cache(maxsize=16)
def _pieces_rule(degree: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre nodes in [0, 1] and weights."""
    nodes, weights = np.polynomial.legendre.leggauss(degree)
    return (nodes + 1) / 2, weights / 2
