"""What an empirical kernel is asked about: two batches, and how to cut them into examples."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from poster_jax.core.checks import check_callable, check_finite
from poster_jax.core.typing import Array, Params

__all__ = ["Side", "sides", "split_kwargs"]


class Side(NamedTuple):
    """One batch seen as a function of the parameters, example by example where it can be cut.

    Attributes:
      fn: `fn(params, mapped) -> list of output leaves` of one example, or of the whole batch where
        nothing is mapped.
      mapped: the leaves of the inputs and keywords that are cut, whole.
      in_axes: along which axis each of them is cut.
      out_axes: for every output leaf its axis of examples; None where the batch stays whole.
      outputs: shape and dtype of every output leaf of the whole batch.
      treedef: the structure of the outputs.
    """

    fn: Callable[[Params, list[Array]], list[Array]]
    mapped: list[Array]
    in_axes: list[int]
    out_axes: list[int | None]
    outputs: list[Any]
    treedef: Any

    def over_examples(self, fn: Callable[[list[Array]], Any]) -> Any:
        """`fn(mapped of one example)` for all of them, stacked along a leading axis."""
        if not self.mapped:
            return fn(self.mapped)
        return jax.vmap(fn, in_axes=(self.in_axes,))(self.mapped)

    def example(self) -> list[Any]:
        """Shapes and dtypes of `mapped` for one example."""
        return [
            jax.ShapeDtypeStruct(x.shape[:a] + x.shape[a + 1 :], x.dtype)
            for x, a in zip(self.mapped, self.in_axes, strict=True)
        ]


def sides(
    f: Callable[..., Any],
    x1: Any,
    x2: Any,
    params: Params,
    vmap_axes: Any,
    kwargs: dict[str, Any],
) -> tuple[Side, Side]:
    """Both batches; the very same object twice when `x2` is None."""
    check_callable("f", f)
    check_finite("x1", x1)
    check_finite("x2", x2)
    check_finite("params", params)
    kwargs1, kwargs2 = split_kwargs(kwargs, x1, x2)
    first = _side(f, x1, params, vmap_axes, kwargs1)
    if is_none(x2):
        return first, first
    second = _side(f, x2, params, vmap_axes, kwargs2)
    if first.treedef != second.treedef:
        raise ValueError(
            f"f(params, x2) must have the structure of f(params, x1) ({first.treedef}), got "
            f"{second.treedef}."
        )
    return first, second


def is_none(x2: Any) -> bool:
    """Whether `x2` is None, or a tree of nothing else: the second batch is the first."""
    return not jax.tree.leaves(x2)


def split_kwargs(kwargs: dict[str, Any], x1: Any, x2: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Keywords for each side: pairs are split, keys made equal exactly where the batches are."""
    first, second = {}, {}
    for name, value in kwargs.items():
        if name == "rng" and not is_none(x2):
            first[name], second[name] = _keys(value, x1, x2)
        elif isinstance(value, tuple) and len(value) == 2:
            first[name], second[name] = value
        else:
            first[name] = second[name] = value
    return first, second


def _keys(key: Any, x1: Any, x2: Any) -> tuple[Any, Any]:
    if key is None:
        return None, None
    if isinstance(key, tuple) and len(key) == 2:
        key1, key2 = key
        other = jnp.where(jnp.all(key1 == key2), jax.random.fold_in(key2, 1), key2)
    else:
        key1, other = key, jax.random.fold_in(key, 1)
    return key1, jnp.where(_same(x1, x2), key1, other)


def _same(x1: Any, x2: Any) -> Any:
    if jax.tree.map(jnp.shape, x1) != jax.tree.map(jnp.shape, x2):
        return False
    equal = jax.tree.map(lambda a, b: jnp.all(jnp.abs(a - b) < 1e-12), x1, x2)
    return jnp.all(jnp.stack(jax.tree.leaves(equal)))


def _side(
    f: Callable[..., Any], x: Any, params: Params, vmap_axes: Any, kwargs: dict[str, Any]
) -> Side:
    def whole(params: Params) -> Any:
        return f(params, x, **kwargs)

    fx = jax.eval_shape(whole, params)
    outputs, treedef = jax.tree.flatten(fx)
    x_axes, out_axes, kw_axes = _axes(vmap_axes, x, fx, kwargs)
    leaves, structure = jax.tree.flatten((x, kwargs))
    axes = x_axes + kw_axes
    cut = [i for i, axis in enumerate(axes) if axis is not None]
    if not cut:
        out_axes = [None] * len(outputs)
    elif None in out_axes:
        raise ValueError(f"vmap_axes must name an axis of every output, got {out_axes}.")

    def fn(params: Params, mapped: list[Array]) -> list[Array]:
        single = list(leaves)
        for i, value in zip(cut, mapped, strict=True):
            single[i] = jnp.expand_dims(value, axes[i])
        x, kwargs = jax.tree.unflatten(structure, single)
        result = jax.tree.leaves(f(params, x, **kwargs))
        return [
            y if axis is None else jnp.squeeze(y, axis)
            for y, axis in zip(result, out_axes, strict=True)
        ]

    mapped = [jnp.asarray(leaves[i]) for i in cut]
    return Side(fn, mapped, [axes[i] for i in cut], out_axes, outputs, treedef)


def _axes(
    vmap_axes: Any, x: Any, fx: Any, kwargs: dict[str, Any]
) -> tuple[list[int | None], list[int | None], list[int | None]]:
    """The axis of examples of every leaf of inputs, outputs and keywords, in their order."""
    if isinstance(vmap_axes, tuple) and len(vmap_axes) == 3:
        x_axes, out_axes, kw_axes = vmap_axes
    else:
        x_axes, out_axes, kw_axes = vmap_axes, vmap_axes, {}
    if isinstance(kw_axes, int):
        kw_axes = dict.fromkeys(kwargs, kw_axes)
    kw_axes = kw_axes or {}
    unknown = set(kw_axes) - set(kwargs)
    if unknown:
        raise ValueError(f"vmap_axes must name given keywords, got {sorted(unknown)}.")
    by_name = {name: _leaf_axes(kw_axes.get(name), value) for name, value in kwargs.items()}
    in_order = [axis for name in sorted(kwargs) for axis in by_name[name]]  # as jax flattens a dict
    return _leaf_axes(x_axes, x), _leaf_axes(out_axes, fx), in_order


def _leaf_axes(axes: Any, tree: Any) -> list[int | None]:
    leaves, treedef = jax.tree.flatten(tree)
    if axes is None or isinstance(axes, int):
        per_leaf = [axes] * len(leaves)
    else:
        per_leaf = treedef.flatten_up_to(axes)
    result: list[int | None] = []
    for axis, leaf in zip(per_leaf, leaves, strict=True):
        ndim = len(getattr(leaf, "shape", ()))
        if axis is not None and not -ndim <= axis < ndim:
            raise ValueError(f"vmap_axes must lie in arrays of {ndim} axes, got {axis}.")
        result.append(None if axis is None else axis % ndim)
    return result
