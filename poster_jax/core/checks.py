"""Arguments are looked at here, before anything is compiled; every message names the argument.

Values are read only from concrete arrays: under `jit` and `vmap` a traced value passes, and shapes
and dtypes are still checked.
"""

import difflib
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from poster_jax.core.typing import ApplyFn, Batch, LossFn, Params

__all__ = [
    "check_apply",
    "check_batch",
    "check_callable",
    "check_choice",
    "check_count",
    "check_finite",
    "check_fraction",
    "check_key",
    "check_loss",
    "check_params",
    "check_positive",
    "check_same_structure",
    "is_traced",
    "num_examples",
]


def is_traced(value: Any) -> bool:
    """Whether any leaf of `value` is a tracer, so that its numbers cannot be read."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(value))


def check_count(name: str, value: Any, *, minimum: int = 1, hint: str = "") -> int:
    """Returns `value` as an int; ValueError below `minimum`, TypeError when it is no integer."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be an integer, got {_describe(value)}.{_tail(hint)}")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}.{_tail(hint)}")
    return int(value)


def check_positive(name: str, value: Any, *, zero_allowed: bool = False) -> None:
    """ValueError unless the real number `value` is positive and finite (or zero, where allowed)."""
    array = _real_array(name, value)
    if array is None:
        return
    ok = np.isfinite(array) & ((array >= 0) if zero_allowed else (array > 0))
    if not ok.all():
        need = "at least 0" if zero_allowed else "above 0"
        raise ValueError(f"{name} must be finite and {need}, got {_describe(value)}.")


def check_fraction(name: str, value: Any) -> None:
    """ValueError unless `value` lies in [0, 1]."""
    array = _real_array(name, value)
    if array is not None and not ((array >= 0) & (array <= 1)).all():
        raise ValueError(f"{name} must lie between 0 and 1, got {_describe(value)}.")


def check_choice(name: str, value: Any, choices: Collection[str]) -> None:
    """ValueError unless `value` is one of `choices`; the message suggests the nearest."""
    if value in choices:
        return
    near = difflib.get_close_matches(str(value), list(choices), n=1)
    suggestion = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{name} must be one of {sorted(choices)}, got {value!r}.{suggestion}")


def check_callable(name: str, fn: Any) -> None:
    """TypeError unless `fn` can be called."""
    if not callable(fn):
        raise TypeError(f"{name} must be a function, got {_describe(fn)}.")


def check_key(name: str, key: Any) -> None:
    """TypeError unless `key` is one PRNG key, typed or raw."""
    if isinstance(key, jax.Array):
        typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.ndim == 0
        raw = key.dtype == jnp.uint32 and key.ndim == 1
        if typed or raw:
            return
    raise TypeError(f"{name} must be a PRNG key such as jax.random.key(0), got {_describe(key)}.")


def check_finite(name: str, tree: Any) -> None:
    """ValueError when a concrete floating leaf of `tree` holds NaN or infinity; says where."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if isinstance(leaf, jax.core.Tracer) or not _is_floating(leaf):
            continue
        bad = _num_non_finite(leaf)
        if bad:
            raise ValueError(
                f"{name}{_at(path)} must be finite, got {bad} NaN or infinite entries of "
                f"{jnp.size(leaf)}."
            )


def check_params(params: Params, name: str = "params") -> None:
    """ValueError when `params` has no leaves or is not finite; TypeError for other than floats."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if not leaves:
        raise ValueError(f"{name} must be a pytree of floating point arrays, got no array at all.")
    for path, leaf in leaves:
        if not _is_floating(leaf):
            raise TypeError(
                f"{name}{_at(path)} must be a floating point array, got {_describe(leaf)}."
            )
    check_finite(name, params)


def check_batch(batch: Batch, name: str = "batch") -> int:
    """Returns `num_examples`, and looks at the values too: ValueError when one is not finite."""
    size = num_examples(batch, name)
    check_finite(name, batch)
    return size


def num_examples(batch: Batch, name: str = "batch") -> int:
    """The length of the leading axis; ValueError when leaves disagree, are scalars, or empty."""
    leaves = jax.tree_util.tree_leaves_with_path(batch)
    if not leaves:
        raise ValueError(f"{name} must hold arrays with a leading example axis, got none.")
    sizes = {}
    for path, leaf in leaves:
        if not hasattr(leaf, "shape"):
            raise TypeError(f"{name}{_at(path)} must be an array, got {_describe(leaf)}.")
        if not leaf.shape:
            raise ValueError(f"{name}{_at(path)} must have a leading example axis, got a scalar.")
        sizes[_at(path) or "[0]"] = int(leaf.shape[0])
    if len(set(sizes.values())) > 1:
        raise ValueError(f"{name}: leaves must share the leading example axis, got sizes {sizes}.")
    (size,) = set(sizes.values())
    if size == 0:
        raise ValueError(f"{name} must hold at least 1 example, got 0.")
    return size


def check_same_structure(name: str, tree: Any, like_name: str, like: Any) -> None:
    """ValueError unless `tree` has the tree structure and leaf shapes of `like`."""
    ours, theirs = jax.tree.structure(tree), jax.tree.structure(like)
    if ours != theirs:
        raise ValueError(f"{name} must have the structure of {like_name} ({theirs}), got {ours}.")
    pairs = zip(jax.tree_util.tree_leaves_with_path(tree), jax.tree.leaves(like), strict=True)
    for (path, leaf), other in pairs:
        if jnp.shape(leaf) != jnp.shape(other):
            raise ValueError(
                f"{name}{_at(path)} must have the shape {jnp.shape(other)} of {like_name}, got "
                f"{jnp.shape(leaf)}."
            )


def check_loss(loss_fn: LossFn, params: Params, batch: Batch) -> jnp.dtype:
    """Traces `loss_fn(params, batch)` once and returns its dtype.

    ValueError when params do not fit the model or the result is no floating scalar.
    """
    check_callable("loss_fn", loss_fn)
    check_params(params)
    check_batch(batch)
    out = _trace("loss_fn(params, batch)", loss_fn, params, batch)
    shape = getattr(out, "shape", None)
    if shape != () or not jnp.issubdtype(out.dtype, jnp.floating):
        raise ValueError(
            "loss_fn must return one floating point scalar, the mean over the batch, got "
            f"{_describe(out)}."
        )
    return out.dtype


def check_apply(apply_fn: ApplyFn, params: Params, x: Any) -> Any:
    """Traces `apply_fn(params, x)` once; returns its outputs as a tree of shapes and dtypes."""
    check_callable("apply_fn", apply_fn)
    check_params(params)
    check_batch(x, "x")
    return _trace("apply_fn(params, x)", apply_fn, params, x)


def _trace(call: str, fn: Any, *args: Any) -> Any:
    try:
        return jax.eval_shape(fn, *args)
    except (
        Exception
    ) as error:  # a model may raise anything; the user wants one sentence and its cause
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{call} could not be evaluated: params and data do not fit: {first}"
        ) from error


def _real_array(name: str, value: Any) -> np.ndarray | None:
    if is_traced(value):
        return None
    try:
        array = np.asarray(value, dtype=float)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a real number, got {_describe(value)}.") from None
    return array


def _num_non_finite(leaf: Any) -> int:
    # numpy reads a CPU array in place and compiles nothing; other arrays stay where they are.
    if _on_host(leaf):
        return int(leaf.size - np.isfinite(np.asarray(leaf)).sum())
    with jax.ensure_compile_time_eval():  # a constant of a program that is being traced is read now
        return int(leaf.size - jnp.isfinite(leaf).sum())


def _on_host(leaf: Any) -> bool:
    if not isinstance(leaf, jax.Array):
        return True
    return leaf.is_fully_addressable and all(d.platform == "cpu" for d in leaf.devices())


def _is_floating(leaf: Any) -> bool:
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.floating)


def _at(path: Any) -> str:
    return jax.tree_util.keystr(path)


def _describe(value: Any) -> str:
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype} of shape {tuple(value.shape)}"
    if isinstance(value, bool | int | float | str | None):
        return repr(value)
    return f"{type(value).__name__}"


def _tail(hint: str) -> str:
    return f" {hint}" if hint else ""
