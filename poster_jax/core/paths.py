"""Leaves and subtrees of a parameter pytree by name, whichever library made it.

`"Dense_2/kernel"` names a leaf of a Flax Linen dict, `"layers/0/weight"` one of an Equinox module,
`"mlp/~/linear_0"` a subtree of a Haiku dict (whose own keys contain slashes).
"""

import difflib
from collections.abc import Callable
from typing import Any

import jax

from poster_jax.core.typing import Params

__all__ = ["get_path", "leaf_paths", "restrict", "set_path"]


def leaf_paths(params: Params) -> tuple[str, ...]:
    """Which names the leaves of `params` have, in the order of `jax.tree.leaves`.

    Args:
      params: any pytree.

    Returns:
      One string a leaf, path entries joined by "/".

    Source: this library.

    Example:
      >>> leaf_paths({"Dense_0": {"bias": 1.0, "kernel": 2.0}})
      ('Dense_0/bias', 'Dense_0/kernel')
    """
    return tuple(_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params))


def get_path(params: Params, path: str) -> Any:
    """What stands at `path`: a leaf, or for an inner node the dict of its leaves by remaining path.

    Args:
      params: any pytree.
      path: as `leaf_paths` prints it, or a prefix of several that ends at a "/".

    Returns:
      The leaf; for a prefix, `{rest of path: leaf}`.

    Raises:
      ValueError: nothing stands at `path`; the message lists the nearest paths.

    Source: this library.

    Example:
      >>> get_path({"Dense_0": {"bias": 1.0, "kernel": 2.0}}, "Dense_0/kernel")
      2.0
      >>> get_path({"Dense_0": {"bias": 1.0, "kernel": 2.0}}, "Dense_0")
      {'bias': 1.0, 'kernel': 2.0}
    """
    return _select(params, _matches(params, path))


def set_path(params: Params, path: str, value: Any) -> Params:
    """A copy of `params` with the leaf or subtree at `path` replaced.

    Args:
      params: any pytree.
      path: as in `get_path`.
      value: what `get_path` would return there: a leaf, or a dict of leaves.

    Returns:
      A pytree with the structure of `params`.

    Raises:
      ValueError: nothing stands at `path`, or `value` has other keys than the subtree.

    Source: this library.

    Example:
      >>> set_path({"a": 1.0, "b": 2.0}, "a", 5.0)
      {'a': 5.0, 'b': 2.0}
    """
    matches = _matches(params, path)
    if "" in matches:
        replacement = {matches[""]: value}
    else:
        if not isinstance(value, dict) or set(value) != set(matches):
            raise ValueError(f"value for path {path!r} must be a dict with keys {sorted(matches)}.")
        replacement = {index: value[rest] for rest, index in matches.items()}
    leaves, treedef = jax.tree.flatten(params)
    return jax.tree.unflatten(treedef, [replacement.get(i, x) for i, x in enumerate(leaves)])


def restrict(fn: Callable[..., Any], params: Params, path: str) -> tuple[Callable[..., Any], Any]:
    """`fn(params, ...)` seen as a function of one leaf or subtree, everything else held fixed.

    Args:
      fn: any function whose first argument is like `params` (an `apply_fn`, a `loss_fn`, ...).
      params: the pytree that supplies the fixed leaves.
      path: the leaf or subtree that stays free, as in `get_path`.

    Returns:
      `(restricted, subtree)` with `restricted(subtree, ...) == fn(params, ...)`.

    Raises:
      ValueError: nothing stands at `path`.

    Source: this library.

    Example:
      >>> loss, a = restrict(lambda p, x: p["a"] * x + p["b"], {"a": 3.0, "b": 1.0}, "a")
      >>> loss(a, 2.0), loss(10.0, 2.0)
      (7.0, 21.0)
    """
    subtree = get_path(params, path)

    def restricted(subtree: Any, *args: Any, **kwargs: Any) -> Any:
        return fn(set_path(params, path, subtree), *args, **kwargs)

    return restricted, subtree


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _matches(params: Params, path: str) -> dict[str, int]:
    """Remaining path -> index of the leaf; the key "" alone when `path` names a leaf."""
    if not isinstance(path, str):
        raise TypeError(f"path must be a string such as 'Dense_0/kernel', got {path!r}.")
    names = leaf_paths(params)
    if path in names:
        return {"": names.index(path)}
    prefix = path.rstrip("/") + "/"
    inside = {n[len(prefix) :]: i for i, n in enumerate(names) if n.startswith(prefix)}
    if not inside:
        near = difflib.get_close_matches(path, names, n=3, cutoff=0.3) or names[:3]
        raise ValueError(
            f"path {path!r} names nothing in params of {len(names)} leaves. Nearest: {list(near)}."
        )
    return inside


def _select(params: Params, matches: dict[str, int]) -> Any:
    leaves = jax.tree.leaves(params)
    if "" in matches:
        return leaves[matches[""]]
    return {rest: leaves[index] for rest, index in matches.items()}
