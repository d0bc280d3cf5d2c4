"""Networks of different widths in one population: padded with zeros that stay zero.

A padded unit has zero weights in and out. With an activation that maps 0 to 0 the padded network
computes what the narrow one computes, and `mask_updates` keeps the padding at zero whatever the
optimiser does. Normalisation over units (LayerNorm) would count the padding: group by width there.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from poster_jax.core.checks import check_params
from poster_jax.core.training.state import check_optimizer
from poster_jax.core.typing import Params

__all__ = ["mask_updates", "stack_padded", "unpad"]


def stack_padded(members: Sequence[Params]) -> tuple[Params, Params]:
    """Networks of one architecture and several widths as one stacked pytree, and its mask.

    Args:
      members: parameter pytrees of one structure; leaf ranks agree, leaf shapes may differ.

    Returns:
      `(params, mask)`: every leaf has a leading axis len(members) and the largest shape met; the
      mask is 1 where an entry belongs to the network and 0 where it is padding.

    Raises:
      ValueError: no members, or their structures or ranks differ.

    Source: this library.

    Example:
      >>> params, mask = stack_padded([{"w": jnp.ones(2)}, {"w": jnp.ones(3)}])
      >>> params["w"].shape, mask["w"].sum(axis=1).tolist()
      ((2, 3), [2.0, 3.0])
    """
    members = list(members)
    if not members:
        raise ValueError("members must hold at least 1 network, got 0.")
    for index, member in enumerate(members):
        check_params(member, f"members[{index}]")
        ranks = jax.tree.map(jnp.ndim, member)
        if ranks != jax.tree.map(jnp.ndim, members[0]):
            raise ValueError(
                f"members[{index}] must have the structure and leaf ranks of members[0], "
                f"got {ranks}."
            )

    def stack(*leaves: Any) -> Any:
        shape = tuple(max(sizes) for sizes in zip(*(leaf.shape for leaf in leaves), strict=True))
        pad = [[(0, n - m) for n, m in zip(shape, leaf.shape, strict=True)] for leaf in leaves]
        return jnp.stack([jnp.pad(leaf, p) for leaf, p in zip(leaves, pad, strict=True)])

    masks = [jax.tree.map(jnp.ones_like, member) for member in members]
    return jax.tree.map(stack, *members), jax.tree.map(stack, *masks)


def unpad(params: Params, like: Params) -> Params:
    """One padded network cut back to the shapes of `like`.

    Args:
      params: one network of a padded population (no leading axis).
      like: pytree with the narrow shapes, arrays or `jax.ShapeDtypeStruct`s.

    Returns:
      The narrow parameters.

    Source: this library.

    Example:
      >>> unpad({"w": jnp.arange(3)}, {"w": jnp.zeros(2)})["w"].tolist()
      [0, 1]
    """
    return jax.tree.map(lambda p, n: p[tuple(slice(size) for size in n.shape)], params, like)


def mask_updates(
    optimizer: optax.GradientTransformation, mask: Params
) -> optax.GradientTransformationExtraArgs:
    """An optimiser that never moves the entries where the mask is 0.

    Gradients are masked before the optimiser sees them (a global norm counts the kept entries only)
    and its updates after it (weight decay and momentum cannot move the rest).

    Args:
      optimizer: any optax transformation.
      mask: pytree like the parameters, 1 where an entry may move and 0 where not; may be traced.

    Returns:
      An optax transformation.

    Raises:
      TypeError: optimizer is no optax transformation.

    Source: this library.

    Example:
      >>> frozen = mask_updates(optax.sgd(1.0), jnp.array([1.0, 0.0]))
      >>> frozen.update(jnp.ones(2), frozen.init(jnp.ones(2)))[0].tolist()
      [-1.0, 0.0]
    """
    check_optimizer(optimizer)
    inner = optax.with_extra_args_support(optimizer)

    def masked(tree: Any) -> Any:
        return jax.tree.map(lambda m, g: jnp.where(m != 0, g, 0), mask, tree)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        updates, state = inner.update(masked(updates), state, params, **extra)
        return masked(updates), state

    return optax.GradientTransformationExtraArgs(inner.init, update)
