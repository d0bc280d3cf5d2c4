"""Training a part of the parameters: the rest is no argument of the gradient, and costs none.

A loss of the trainable part alone is differentiated by that part alone, so that neither gradients
nor optimiser state of the frozen one exist, and weight decay cannot reach it. Where single entries
of a leaf are to stay, mask the updates instead (`mask_updates`): the whole leaf's gradient is then
still computed.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from poster_jax.core.checks import check_callable
from poster_jax.core.paths import leaf_paths
from poster_jax.core.training.state import StatefulLoss, stateful
from poster_jax.core.typing import Batch, LossFn, Params, PRNGKey

__all__ = ["freeze", "merge", "partition"]


def partition(params: Params, trainable: Callable[[str, Any], bool] | Any) -> tuple[Params, Params]:
    """Parameters as a trainable and a frozen part, each with None where the other has a leaf.

    Args:
      params: pytree of arrays.
      trainable: `trainable(path, leaf) -> bool`, path as `core.paths.leaf_paths` names it
        ("Block_0/BatchNorm_1/scale"); or a pytree like params of bools.

    Returns:
      `(trainable, frozen)`; `merge` puts them together again.

    Raises:
      ValueError: nothing would be trained, or a mask of another structure.
      TypeError: trainable is neither, or holds other than bools.

    Source: this library.

    Example:
      >>> params = {"a": 1.0, "b": {"kernel": 2.0}}
      >>> partition(params, lambda path, leaf: path.endswith("kernel"))
      ({'a': None, 'b': {'kernel': 2.0}}, {'a': 1.0, 'b': {'kernel': None}})
    """
    leaves, structure = jax.tree.flatten(params)
    if callable(trainable):
        chosen = [trainable(p, leaf) for p, leaf in zip(leaf_paths(params), leaves, strict=True)]
    else:
        chosen, other = jax.tree.flatten(trainable)
        if other != structure:
            raise ValueError(
                f"trainable must be a function or a tree like params, {structure}, got {other}."
            )
    for entry in chosen:
        if not isinstance(entry, bool | np.bool_):
            raise TypeError(f"trainable must say True or False of every leaf, got {entry!r}.")
    if not any(chosen):
        raise ValueError(
            f"trainable must name at least 1 of {len(leaves)} leaves, got none. They are: "
            f"{list(leaf_paths(params))[:6]} ..."
        )
    pairs = [(leaf, bool(flag)) for leaf, flag in zip(leaves, chosen, strict=True)]
    mine = [leaf if flag else None for leaf, flag in pairs]
    theirs = [None if flag else leaf for leaf, flag in pairs]
    return structure.unflatten(mine), structure.unflatten(theirs)


def merge(trainable: Params, frozen: Params) -> Params:
    """The parameters of which these are the parts.

    Args:
      trainable: of `partition`, or what training made of it.
      frozen: of the same.

    Returns:
      The whole pytree.

    Raises:
      ValueError: parts of different trees, or a leaf that is in both or neither.

    Source: this library.

    Example:
      >>> merge({"a": None, "b": 2.0}, {"a": 1.0, "b": None})
      {'a': 1.0, 'b': 2.0}
    """
    is_none = lambda x: x is None  # noqa: E731
    mine, structure = jax.tree.flatten(trainable, is_leaf=is_none)
    theirs, other = jax.tree.flatten(frozen, is_leaf=is_none)
    if structure != other or any(
        (a is None) == (b is None) for a, b in zip(mine, theirs, strict=True)
    ):
        raise ValueError(
            "trainable and frozen must be the two parts that `partition` made of one tree, each "
            f"leaf in one of them, got {structure} and {other}."
        )
    return structure.unflatten([b if a is None else a for a, b in zip(mine, theirs, strict=True)])


def freeze(loss_fn: LossFn | StatefulLoss, frozen: Params) -> LossFn | StatefulLoss:
    """`loss_fn` as a function of the trainable part, for `fit` and `jax.grad`.

    Args:
      loss_fn: of the whole params: plain or stateful.
      frozen: of `partition`; its gradient is never asked for.

    Returns:
      A loss of the same kind, whose params are the trainable part.

    Raises:
      TypeError: loss_fn is no loss.

    Source: this library.

    Example:
      >>> trainable, frozen = partition({"a": 3.0, "b": 2.0}, lambda path, leaf: path == "a")
      >>> loss = freeze(lambda p, x: p["a"] * p["b"] * x, frozen)
      >>> jax.grad(loss)(trainable, 1.0)
      {'a': Array(2., dtype=float32, weak_type=True), 'b': None}
    """
    if isinstance(loss_fn, StatefulLoss):
        whole = loss_fn.fn

        def of_part(params: Params, state: Any, batch: Batch, key: PRNGKey) -> tuple[Any, Any]:
            return whole(merge(params, frozen), state, batch, key)

        return stateful(of_part)
    check_callable("loss_fn", loss_fn)
    return lambda params, batch: loss_fn(merge(params, frozen), batch)
