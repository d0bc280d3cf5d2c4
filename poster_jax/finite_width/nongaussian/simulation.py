"""Random networks of finite width, as the covariances that they give their next layer.

Given G of one layer its neurons are independent Gaussians, so that a network is a chain of draws
z = B xi with B B' = G: no weights are drawn where the inputs are fewer than the neurons below. The
law is exactly that of networks with Gaussian weights.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from poster_jax.core.checks import check_count, check_key
from poster_jax.core.precision import full_precision
from poster_jax.finite_width.nongaussian._quadrature import zero_pivot_cholesky
from poster_jax.finite_width.nongaussian.activation import Activation
from poster_jax.finite_width.nongaussian.kernel import resolve
from poster_jax.finite_width.nongaussian.network import Network
from poster_jax.finite_width.nongaussian.recursion import as_matrix

__all__ = ["chain", "group_size", "sample_covariances", "sample_flow"]

# Numbers that one group of networks holds in its widest layer.
_GROUP = 2**21


@full_precision
def sample_covariances(
    phi: Network | str | Callable[..., Any] | Activation,
    x: Any,
    key: Any,
    *,
    num_samples: int,
    widths: int | Sequence[int] | None = None,
    depth: int | None = None,
    C_W: Any = None,
    C_b: Any = None,
) -> Any:
    """G of random networks: the covariance over inputs of the outputs given all layers below.

    Its mean is K + G1 / n + ..., its covariance V / n + ...: the oracle of `finite_width_kernel`,
    and what `exact_posterior` averages over.

    Args:
      phi: as in `finite_width_kernel`.
      x: (N, features) inputs.
      key: PRNG key.
      num_samples: networks; they are drawn in groups, so that memory is that of the answer.
      widths: as in `finite_width_kernel`.
      depth: as there.
      C_W: as there.
      C_b: as there.

    Returns:
      (num_samples, N, N).

    Raises:
      ValueError: as `finite_width_kernel` (but any width may be simulated); num_samples below 1.
      TypeError: key is no PRNG key.

    Source: Yaida 2019 (arXiv 1910.00019); Neal 1996 for the conditional independence.

    Example:
      >>> key = jax.random.key(0)
      >>> net = {"widths": 20, "depth": 1, "C_W": 2.0}
      >>> G = sample_covariances("relu", jnp.ones((1, 3)), key, num_samples=2000, **net)
      >>> G.shape, bool(abs(G.mean() - 2.0) < 0.1)
      ((2000, 1, 1), True)
    """
    return _sample(phi, x, key, num_samples, widths, depth, C_W, C_b)[:, -1]


@full_precision
def sample_flow(
    phi: Network | str | Callable[..., Any] | Activation,
    x: Any,
    key: Any,
    *,
    num_samples: int,
    widths: int | Sequence[int] | None = None,
    depth: int | None = None,
    C_W: Any = None,
    C_b: Any = None,
) -> Any:
    """G of random networks after every hidden layer.

    Args:
      phi: as in `sample_covariances`.
      x: as there.
      key: as there.
      num_samples: as there.
      widths: as there.
      depth: as there.
      C_W: as there.
      C_b: as there.

    Returns:
      (num_samples, depth, N, N): entry l - 1 is what hidden layer l feeds.

    Raises:
      ValueError, TypeError: as `sample_covariances`.

    Source: as `sample_covariances`.

    Example:
      >>> key = jax.random.key(0)
      >>> sample_flow("tanh", jnp.ones((2, 3)), key, num_samples=4, widths=5, depth=3).shape
      (4, 3, 2, 2)
    """
    return _sample(phi, x, key, num_samples, widths, depth, C_W, C_b)


def _sample(
    phi: Any, x: Any, key: Any, num: int, widths: Any, depth: Any, C_W: Any, C_b: Any
) -> Any:
    check_key("key", key)
    num = check_count("num_samples", num)
    net, sizes = resolve(phi, widths, depth, C_W, C_b, any_width=True)
    x = as_matrix("x", x)
    variances = tuple(jnp.asarray(v, x.dtype) for v in (net.C_W, net.C_b))
    group = group_size(num, sizes, x.shape[0])
    return _compiled(x, key, variances, net.activations, sizes, num, group)


@partial(jax.jit, static_argnums=(3, 4, 5, 6))
def _compiled(
    x: Any, key: Any, variances: Any, activations: Any, sizes: Any, num: int, group: int
) -> Any:
    groups = -(-num // group)
    keys = jax.random.split(key, groups)
    found = jax.lax.map(lambda key: chain(x, key, variances, activations, sizes, group), keys)
    return found.reshape(groups * group, *found.shape[2:])[:num]


def group_size(num: int, sizes: tuple[int, ...], inputs: int) -> int:
    """How many of `num` networks are drawn side by side."""
    return max(2, min(num, _GROUP // (max(sizes) * max(inputs, 8))))


def chain(
    x: Any, key: Any, variances: Any, activations: Any, sizes: tuple[int, ...], num: int
) -> Any:
    """(num, depth, N, N) of `num` networks."""
    C_W, C_b = variances
    depth = len(sizes)

    def layer(values, place, phi, width):
        now, then = ((C_W[p], C_b[p]) for p in (place, place + 1))
        root = _root(values, *now)
        shape = (num, root.shape[-1], width)
        noise = jax.random.normal(jax.random.fold_in(key, place), shape, x.dtype)
        values = phi.fn(root @ noise)
        return values, _covariance(values, *then)

    values, first = layer(jnp.broadcast_to(x, (num, *x.shape)), 0, activations[0], sizes[0])
    if len(set(sizes)) == len(set(activations)) == 1:  # a loop compiles once

        def step(values, place):
            return layer(values, place, activations[0], sizes[0])

        _, rest = jax.lax.scan(step, values, jnp.arange(1, depth))
        return jnp.moveaxis(jnp.concatenate([first[None], rest]), 0, 1)
    found = [first]
    for place in range(1, depth):
        values, cov = layer(values, place, activations[place], sizes[place])
        found.append(cov)
    return jnp.stack(found, 1)


def _covariance(values: Any, C_W: Any, C_b: Any) -> Any:
    return C_b + C_W / values.shape[-1] * values @ jnp.swapaxes(values, -1, -2)


def _root(values: Any, C_W: Any, C_b: Any) -> Any:
    """B with B B' = G: a triangle for few inputs, else bias and features themselves.

    With the second the noise is what the network's own biases and weights are; a triangle of many
    inputs costs more than the draws that it saves.
    """
    num, features = values.shape[-2:]
    if num <= min(features + 1, max(8, features // 3)):
        return zero_pivot_cholesky(_covariance(values, C_W, C_b))
    ones = jnp.broadcast_to(jnp.sqrt(C_b), (*values.shape[:-1], 1))
    return jnp.concatenate([ones, jnp.sqrt(C_W / features) * values], -1)
