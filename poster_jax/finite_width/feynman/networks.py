"""The networks of the poster, as functions of their width."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from poster_jax.core.checks import check_callable, check_count
from poster_jax.core.typing import ApplyFn, Params, PRNGKey

__all__ = ["WidthNetwork", "deep_network"]


class WidthNetwork(NamedTuple):
    """A network at every width.

    Attributes:
      init_fn: `init_fn(key, width) -> params`.
      apply_fn: `apply_fn(params, x) -> outputs`, one output an example.
    """

    init_fn: Callable[[PRNGKey, int], Params]
    apply_fn: ApplyFn


def deep_network(activation: Callable[[Any], Any], *, depth: int, input_dim: int) -> WidthNetwork:
    r"""Fully connected, all hidden layers of one width, every weight standard normal.

    $$f(x) = n^{-1/2} V^\top \phi(n^{-1/2} W_{L-1} \cdots \phi(n^{-1/2} W_1 \phi(U x)))$$

    No biases, and no factor at the inputs: give them a norm of order one.

    Args:
      activation: phi.
      depth: hidden layers L, at least 1.
      input_dim: features of an input.

    Returns:
      WidthNetwork; outputs have shape (examples,). Weights come in the default float type: float64
      where x64 is on.

    Raises:
      ValueError, TypeError: depth or input_dim below 1, activation no function; from `init_fn`, a
        width below 1.

    Source: Dyer and Gur-Ari 2019 (arXiv 1909.11304), equation 1.

    Example:
      >>> init_fn, apply_fn = deep_network(jnp.tanh, depth=2, input_dim=3)
      >>> params = init_fn(jax.random.key(0), 16)
      >>> [leaf.shape for leaf in jax.tree.leaves(params)], apply_fn(params, jnp.ones((5, 3))).shape
      ([(3, 16), (16, 16), (16,)], (5,))
    """
    check_callable("activation", activation)
    depth, input_dim = check_count("depth", depth), check_count("input_dim", input_dim)

    def init_fn(key: PRNGKey, width: int) -> Params:
        width = check_count("width", width)
        shapes = [(input_dim, width), *[(width, width)] * (depth - 1), (width,)]
        sizes = [math.prod(shape) for shape in shapes]
        # One draw for all layers: most of the time to compile a measurement goes into drawing.
        drawn = jax.random.normal(key, (sum(sizes),), jnp.float32).astype(jnp.zeros(()).dtype)
        parts = jnp.split(drawn, np.cumsum(sizes)[:-1])
        return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]

    def apply_fn(params: Params, x: Any) -> Any:
        first, *others = params
        scale = first.shape[1] ** -0.5
        hidden = activation(x @ first)
        for weights in others[:-1]:
            hidden = activation(scale * (hidden @ weights))
        return scale * (hidden @ others[-1])

    return WidthNetwork(init_fn, apply_fn)
