"""As many parameters as BatchNorm has, but anywhere: random entries of kernels."""

from typing import Any

import jax
import jax.numpy as jnp

from poster_jax.batchnorm_only.groups import parameter_groups
from poster_jax.core.checks import check_count, check_key, check_params
from poster_jax.core.paths import leaf_paths
from poster_jax.core.typing import Array, Params, PRNGKey

__all__ = ["random_parameter_mask"]


def random_parameter_mask(
    params: Params,
    key: PRNGKey,
    *,
    per_channel: int | None = None,
    total: int | None = None,
    channel_axis: int = -1,
    include_output: bool = False,
) -> Params:
    """A random choice of kernel entries, for `core.training.mask_updates`.

    Two per channel are as many as gamma and beta. Entries are drawn without replacement, and anew
    for every kernel. The output layer is left out, which is frozen where BatchNorm alone trains:
    random weights of the features are compared with BatchNorm's parameters of them. Gradients of
    whole kernels are still computed: such a run costs what training everything costs.

    Args:
      params: pytree; leaves called "kernel" of at least two axes are drawn from. Those of five are
        taken for convolutions stacked by `nn.scan`, each with a draw of its own.
      key: PRNG key.
      per_channel: entries of every output channel of every kernel; all, where it has fewer.
      total: or entries of all kernels together.
      channel_axis: of the outputs in each kernel.
      include_output: whether the kernel of the output layer is drawn from as well.

    Returns:
      Pytree like params, 1 where an entry is chosen and 0 elsewhere, in the leaf's dtype.

    Raises:
      ValueError: not exactly one of per_channel and total, a count below 1, a total above what is
        there, or no kernels to draw from.
      TypeError: key is no PRNG key.

    Source: Frankle, Schwab, Morcos 2019 (arXiv 2003.00152), section 3, "random parameters".

    Example:
      >>> params = {"Conv_0": {"kernel": jnp.zeros((3, 3, 4, 5))}}
      >>> mask = random_parameter_mask(params, jax.random.key(0), per_channel=2)
      >>> mask["Conv_0"]["kernel"].sum((0, 1, 2)).tolist()
      [2.0, 2.0, 2.0, 2.0, 2.0]
    """
    check_params(params)
    check_key("key", key)
    if (per_channel is None) == (total is None):
        raise ValueError(
            "one of per_channel and total must be given, got "
            f"per_channel={per_channel}, total={total}."
        )
    leaves, structure = jax.tree.flatten(params)
    rows = zip(leaf_paths(params), leaves, jax.tree.leaves(parameter_groups(params)), strict=True)
    places = [
        place
        for place, (path, leaf, group) in enumerate(rows)
        if path.rpartition("/")[2] == "kernel"
        and leaf.ndim >= 2
        and (include_output or group != "output")
    ]
    if not places:
        raise ValueError(
            "params must have leaves called 'kernel' of at least 2 axes beside the output layer's, "
            "got none."
        )
    masks = [jnp.zeros_like(leaf) for leaf in leaves]
    size = sum(leaves[place].size for place in places)
    if per_channel is not None:
        check_count("per_channel", per_channel)
        # One draw for all kernels: each draw of another shape would take a second to compile.
        lots, start = jax.random.uniform(key, (size,)), 0
        for place in places:
            kernel = leaves[place]
            own = lots[start : start + kernel.size].reshape(kernel.shape)
            masks[place] = _of_channels(own, per_channel, channel_axis).astype(kernel.dtype)
            start += kernel.size
    else:
        check_count("total", total)
        if total > size:
            raise ValueError(f"total must be at most the {size} entries of kernels, got {total}.")
        for place, mask in _of_all(key, {place: leaves[place] for place in places}, total).items():
            masks[place] = mask
    return structure.unflatten(masks)


def _of_channels(lots: Array, count: int, axis: int) -> Array:
    """1 at the `count` largest lots of each channel, equal ones in order; 0 elsewhere."""
    if lots.ndim == 5:
        return jax.vmap(lambda one: _of_channels(one, count, axis))(lots)
    rows = jnp.moveaxis(lots, axis, 0)
    flat = rows.reshape(len(rows), -1)
    _, drawn = jax.lax.top_k(flat, min(count, flat.shape[1]))
    chosen = jnp.zeros_like(flat).at[jnp.arange(len(flat))[:, None], drawn].set(1)
    return jnp.moveaxis(chosen.reshape(rows.shape), 0, axis)


def _of_all(key: PRNGKey, kernels: dict[int, Any], count: int) -> dict[int, Array]:
    size = sum(kernel.size for kernel in kernels.values())
    chosen = jnp.zeros(size).at[jax.random.permutation(key, size)[:count]].set(1)
    found, start = {}, 0
    for place, kernel in kernels.items():
        part = chosen[start : start + kernel.size]
        found[place] = part.reshape(kernel.shape).astype(kernel.dtype)
        start += kernel.size
    return found
