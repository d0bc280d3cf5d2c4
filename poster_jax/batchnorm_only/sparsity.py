"""Which features a trained network has switched off, and what it loses without them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from poster_jax.batchnorm_only.groups import parameter_groups
from poster_jax.core import batching
from poster_jax.core.checks import check_callable, check_key, check_positive
from poster_jax.core.paths import leaf_paths
from poster_jax.core.typing import Array, Params, PRNGKey

__all__ = ["Sparsity", "batchnorm_sparsity", "dead_features", "gammas", "prune_features"]


class Sparsity(NamedTuple):
    """How many gammas are near zero.

    Attributes:
      fraction: (thresholds,) or (), of all gammas those with |gamma| below the threshold.
      per_layer: (layers,) or (thresholds, layers), of each layer's; in the order of `gammas`.
    """

    fraction: Any
    per_layer: Any


def gammas(params: Params) -> dict[str, Any]:
    """BatchNorm's scales by path, in the order of the tree.

    Args:
      params: of a Flax network.

    Returns:
      {"Block_0/BatchNorm_0/scale": (channels,), ...}; of scanned layers (layers, channels).

    Raises:
      ValueError: there are none.

    Source: Frankle, Schwab, Morcos 2019 (arXiv 2003.00152), section 4.

    Example:
      >>> list(gammas({"BatchNorm_0": {"scale": jnp.ones(3), "bias": jnp.zeros(3)}}))
      ['BatchNorm_0/scale']
    """
    found = {
        path: leaf
        for path, leaf in zip(leaf_paths(params), jax.tree.leaves(params), strict=True)
        if path.rpartition("/")[2] == "scale"
    }
    if not found:
        raise ValueError("params must have leaves called 'scale', BatchNorm's gamma, got none.")
    return found


def batchnorm_sparsity(params: Params, *, threshold: Any = 0.01) -> Sparsity:
    """The share of features that BatchNorm has disabled: |gamma| < threshold.

    Args:
      params: of a Flax network.
      threshold: above 0; a number, or (T,) for a curve.

    Returns:
      Sparsity.

    Raises:
      ValueError: no BatchNorm, or a threshold not above 0.

    Source: Frankle, Schwab, Morcos 2019 (arXiv 2003.00152), section 5, figure 6.

    Example:
      >>> params = {"BatchNorm_0": {"scale": jnp.array([0.001, 1.0]), "bias": jnp.zeros(2)}}
      >>> float(batchnorm_sparsity(params).fraction)
      0.5
    """
    check_positive("threshold", threshold)
    limit = jnp.asarray(threshold)[..., None]
    rows = [row for scale in gammas(params).values() for row in scale.reshape(-1, scale.shape[-1])]
    below = [(jnp.abs(row) < limit).sum(axis=-1) for row in rows]
    sizes = jnp.array([row.size for row in rows])
    counts = jnp.stack(below, axis=-1)
    return Sparsity(counts.sum(axis=-1) / sizes.sum(), counts / sizes)


def prune_features(
    params: Params, key: PRNGKey | None = None, *, threshold: Any = 0.01, at_random: bool = False
) -> Params:
    """`params` with the gammas below a threshold at 0, or as many others in each layer at random.

    The feature is then off for good only where beta is 0 or negative before a ReLU; set beta to 0
    too, and it carries nothing: that is what is done here.

    Args:
      params: of a Flax network.
      key: PRNG key of the random choice.
      threshold: above 0; may be traced.
      at_random: whether features of any gamma go, as many in each layer as are below.

    Returns:
      Pytree like params, gamma and beta 0 at the pruned features.

    Raises:
      ValueError: no BatchNorm; at_random without a key.

    Source: Frankle, Schwab, Morcos 2019 (arXiv 2003.00152), section 5.

    Example:
      >>> params = {"BatchNorm_0": {"scale": jnp.array([0.001, 1.0]), "bias": jnp.ones(2)}}
      >>> prune_features(params)["BatchNorm_0"]["bias"].tolist()
      [0.0, 1.0]
    """
    check_positive("threshold", threshold)
    if at_random:
        check_key("key", key)
    scales = gammas(params)
    off = {path: jnp.abs(scale) < threshold for path, scale in scales.items()}
    if at_random:
        keys = jax.random.split(key, len(off))
        off = {
            path: _shuffled(k, where) for k, (path, where) in zip(keys, off.items(), strict=True)
        }
    parents = {path.rpartition("/")[0]: where for path, where in off.items()}
    groups = jax.tree.leaves(parameter_groups(params))
    leaves, structure = jax.tree.flatten(params)
    kept = [
        jnp.where(parents[path.rpartition("/")[0]], 0, leaf) if group == "batchnorm" else leaf
        for path, leaf, group in zip(leaf_paths(params), leaves, groups, strict=True)
    ]
    return structure.unflatten(kept)


def _shuffled(key: PRNGKey, where: Array) -> Array:
    """As many True in every row, at random places."""
    return jax.random.permutation(key, where, axis=-1, independent=True)


def dead_features(
    activations_fn: Callable[[Params, Any], Any],
    params: Params,
    x: Any,
    *,
    microbatch: int | None = None,
) -> Any:
    """Which features are 0 on all examples and positions, which is what being off means.

    Args:
      activations_fn: `activations_fn(params, x)` gives the activations behind the ReLUs, a pytree
        of arrays (B, ..., channels).
      params: its first argument.
      x: (N, ...) examples.
      microbatch: examples at once; None: all.

    Returns:
      Pytree like the activations of bools (channels,).

    Raises:
      TypeError: activations_fn is no function.

    Source: Frankle, Schwab, Morcos 2019 (arXiv 2003.00152), section 5.

    Example:
      >>> relu = lambda w, x: jnp.maximum(x * w, 0)
      >>> dead_features(relu, jnp.array([1.0, -1.0]), jnp.ones((5, 2))).tolist()
      [False, True]
    """
    check_callable("activations_fn", activations_fn)

    def largest(x: Any) -> Any:
        flat = lambda a: jnp.abs(a).reshape(a.shape[0], -1, a.shape[-1]).max(axis=1)  # noqa: E731
        return jax.tree.map(flat, activations_fn(params, x))

    found = batching.map_over_batch(largest, x, microbatch=microbatch)
    return jax.tree.map(lambda a: a.max(axis=0) == 0, found)
