"""Which parameters of a convolutional network are BatchNorm's, the output's, the shortcuts'."""

from typing import Any

import jax

from poster_jax.core.checks import check_params
from poster_jax.core.paths import leaf_paths
from poster_jax.core.typing import Params

__all__ = ["GROUPS", "count_parameters", "parameter_groups", "trains"]

GROUPS = ("batchnorm", "output", "shortcut", "other")


def parameter_groups(params: Params) -> Params:
    """The group of every leaf: "batchnorm", "output", "shortcut" or "other".

    BatchNorm's are the leaves beside one called "scale" (its gamma; "bias" is its beta). The output
    is the last layer with a matrix for a kernel. Shortcuts are the layers called "shortcut" or,
    where there are none, 1x1 convolutions; their BatchNorm counts as BatchNorm.

    Args:
      params: of a Flax network, Linen or NNX: leaves called "kernel", "bias", "scale".

    Returns:
      Pytree like params of strings.

    Raises:
      ValueError, TypeError: params are empty, not finite, or no floats.

    Source: Frankle, Schwab, Morcos 2019 (arXiv 2003.00152), the conditions of section 3.

    Example:
      >>> import jax.numpy as jnp
      >>> from poster_jax.core.models import ResNet, from_linen
      >>> model = from_linen(ResNet(num_blocks=1, projection=True))
      >>> params = model.init(jax.random.key(0), jnp.ones((2, 8, 8, 1)))
      >>> groups = parameter_groups(params)
      >>> groups["Conv_0"], groups["BatchNorm_0"], groups["Dense_0"]["kernel"]
      ({'kernel': 'other'}, {'bias': 'batchnorm', 'scale': 'batchnorm'}, 'output')
    """
    check_params(params)
    leaves, structure = jax.tree.flatten(params)
    paths = leaf_paths(params)
    parents = [path.rpartition("/")[0] for path in paths]
    kernels = {
        parent: leaf.shape
        for parent, path, leaf in zip(parents, paths, leaves, strict=True)
        if path.rpartition("/")[2] == "kernel"
    }
    # By name where there is one: a bottleneck's own convolutions are of 1x1 too.
    shortcuts = {p for p in kernels if p.rpartition("/")[2] == "shortcut"} or {
        p for p, shape in kernels.items() if len(shape) == 4 and shape[:2] == (1, 1)
    }
    normalised = {p for p, path in zip(parents, paths, strict=True) if path.endswith("scale")}
    matrices = sorted((p for p, shape in kernels.items() if len(shape) == 2), key=_natural)
    output = matrices[-1] if matrices else None

    def group(parent: str) -> str:
        if parent in normalised:
            return "batchnorm"
        if parent == output:
            return "output"
        return "shortcut" if parent in shortcuts else "other"

    return structure.unflatten(list(map(group, parents)))


def trains(params: Params, *groups: str) -> Params:
    """Which leaves belong to `groups`, as `core.training.partition` takes it.

    Args:
      params: of a Flax network.
      *groups: of `GROUPS`.

    Returns:
      Pytree like params of bools.

    Raises:
      ValueError: no groups, or one that is not of `GROUPS`.

    Source: as `parameter_groups`.

    Example:
      >>> import jax.numpy as jnp
      >>> params = {"Dense_0": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}
      >>> trains(params, "output")
      {'Dense_0': {'bias': True, 'kernel': True}}
    """
    unknown = [group for group in groups if group not in GROUPS]
    if unknown or not groups:
        raise ValueError(f"groups must be some of {GROUPS}, got {groups}.")
    return jax.tree.map(lambda group: group in groups, parameter_groups(params))


def count_parameters(params: Params) -> dict[str, int]:
    """How many numbers each group has, and all of them.

    Args:
      params: of a Flax network.

    Returns:
      {"total": ..., "batchnorm": ..., "output": ..., "shortcut": ..., "other": ...}.

    Raises:
      ValueError, TypeError: as `parameter_groups`.

    Source: Frankle, Schwab, Morcos 2019 (arXiv 2003.00152), table 1.

    Example:
      >>> import jax.numpy as jnp
      >>> count_parameters({"Dense_0": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}})["total"]
      9
    """
    sizes, groups = jax.tree.leaves(params), jax.tree.leaves(parameter_groups(params))
    counts: dict[str, int] = dict.fromkeys(("total", *GROUPS), 0)
    for leaf, group in zip(sizes, groups, strict=True):
        counts[group] += leaf.size
        counts["total"] += leaf.size
    return counts


def _natural(path: str) -> list[Any]:
    """Dense_10 after Dense_9."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in path.split("_")]
