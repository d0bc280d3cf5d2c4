"""Tiles of a kernel put together: arrays, kernels or trees of them, as `kernel_fn` answers."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from poster_jax.kernels.kernel import Kernel

__all__ = ["check_tile", "gather_on_device", "gather_on_host", "parts"]

_FIELDS = tuple(f.name for f in dataclasses.fields(Kernel))
_KINDS = {"nngp": "pair", "ntk": "pair", "cov1": "first", "mask1": "first"}
_KINDS |= {"cov2": "second", "mask2": "second", "x1_is_x2": "same"}


def gather_on_host(work: Any, device: Any) -> Any:
    """The kernel of all tiles of `work`, each written to its place in the host's memory."""
    grid, example = work.grid, None
    whole: dict[str, list[np.ndarray]] = {}
    flags: list[list[Any]] = []

    def write(kind: str, arrays: list[Any], *places: tuple[slice, ...]) -> None:
        if kind not in whole:
            shape = {"pair": grid.sizes, "first": grid.sizes[:1], "second": grid.sizes[1:]}[kind]
            whole[kind] = [np.empty(shape + a.shape[len(shape) :], a.dtype) for a in arrays]
        for array, tile in zip(whole[kind], map(np.asarray, arrays), strict=True):
            for k, place in enumerate(places):
                tile = tile.T if k else tile
                array[place] = tile[tuple(slice(s.stop - s.start) for s in place)]

    for (i, j), result in work.run():
        example = result if i == j == 0 else example
        found, rows, columns = parts(result), grid.span(0, i), grid.span(1, j)
        mirrored = [(columns, rows)] if grid.half and i != j else []
        write("pair", found["pair"], (rows, columns), *mirrored)
        if j == (i if grid.own else 0):
            write("first", found["first"], (rows,))
        if i == 0 and not grid.own:
            write("second", found["second"], (columns,))
        if i == j:
            flags.append(found["same"])
    arrays = jax.device_put(whole, device)
    return rebuild(example, {**arrays, "same": _all(flags, grid)}, grid.sizes)


def gather_on_device(work: Any) -> Any:
    """The same, tiles joined on the device of the first; works on traced ones too."""
    grid, results = work.grid, dict(work.run())
    found = {place: parts(result) for place, result in results.items()}
    rows, columns = map(range, grid.tiles)

    def pair(k: int, i: int, j: int) -> Any:
        if (i, j) in found:
            return found[i, j]["pair"][k]
        return found[j, i]["pair"][k].T

    def join(tiles: list[Any], axis: int) -> Any:
        home = _device_of(tiles[0])
        tiles = tiles if home is None else [jax.device_put(tile, home) for tile in tiles]
        return jnp.concatenate(tiles, axis)

    example = results[0, 0]
    count = {kind: range(len(arrays)) for kind, arrays in parts(example).items()}
    n1, n2 = grid.sizes
    whole = {
        "pair": [
            join([join([pair(k, i, j) for j in columns], 1) for i in rows], 0)[:n1, :n2]
            for k in count["pair"]
        ],
        "first": [
            join([found[i, i if grid.own else 0]["first"][k] for i in rows], 0)[:n1]
            for k in count["first"]
        ],
        "second": [
            join([found[0, j]["second"][k] for j in columns], 0)[:n2] for k in count["second"]
        ],
        "same": _all([found[i, i]["same"] for i in range(min(grid.tiles))], grid),
    }
    return rebuild(example, whole, grid.sizes)


def parts(result: Any) -> dict[str, list[Any]]:
    """The arrays of a tile: of pairs of examples, of the first batch, of the second, and flags."""
    found: dict[str, list[Any]] = {"pair": [], "first": [], "second": [], "same": []}

    def visit(field: str | None, value: Any) -> Any:
        kind = _kind(field, value)
        if kind:
            found[kind].append(value)
        return value

    _walk(visit, result)
    return found


def rebuild(example: Any, whole: dict[str, list[Any]], sizes: tuple[int, int]) -> Any:
    """A tile's answer with the arrays of the whole kernel in the place of its own."""
    queues = {kind: iter(arrays) for kind, arrays in whole.items()}
    axes: list[int] = []
    _walk(lambda field, value: axes.append(int(value)) if field == "batch_axis" else 0, example)
    axis = axes[0] if axes else 0

    def visit(field: str | None, value: Any) -> Any:
        kind = _kind(field, value)
        if kind:
            return next(queues[kind])
        if field in ("shape1", "shape2"):
            shape = [int(size) for size in value]
            shape[axis] = sizes[0 if field == "shape1" else 1]
            return tuple(shape)
        return value

    return _walk(visit, example)


def check_tile(result: Any, size: tuple[int, int]) -> None:
    """ValueError unless the arrays of a tile lead with the examples of both batches."""
    for array in parts(result)["pair"]:
        if tuple(array.shape[:2]) != size:
            raise ValueError(
                "kernel_fn must answer kernels that lead with the examples of x1 and of x2 to be "
                f"computed in tiles; for {size[0]} and {size[1]} it answered {array.shape}."
            )

    def refuse(field: str | None, value: Any) -> None:
        if field == "diagonal_batch" and not value:
            raise NotImplementedError("diagonal_batch must be True for a Kernel in tiles.")

    _walk(refuse, result)


def _walk(visit: Callable[[str | None, Any], Any], tree: Any) -> Any:
    """`tree` with `visit(field of Kernel or None, value)` in the place of every value."""
    if isinstance(tree, Kernel):
        return tree.replace(**{n: visit(n, getattr(tree, n)) for n in _FIELDS})
    if hasattr(tree, "_fields"):
        return type(tree)(*(_walk_field(visit, n, getattr(tree, n)) for n in tree._fields))
    if isinstance(tree, dict):
        return {n: _walk_field(visit, n, value) for n, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(_walk(visit, value) for value in tree)
    return visit(None, tree)


def _walk_field(visit: Callable[[str | None, Any], Any], name: str, value: Any) -> Any:
    return visit(name, value) if name in _FIELDS else _walk(visit, value)


def _all(flags: list[list[Any]], grid: Any) -> list[Any]:
    """Whether the two batches are the same: all tiles of the diagonal must say so."""
    if grid.sizes[0] != grid.sizes[1]:
        return [jnp.asarray(False) for _ in flags[0]]
    home = [_device_of(flag) for flag in flags[0]]
    moved = [
        [flag if d is None else jax.device_put(flag, d) for flag, d in zip(tile, home, strict=True)]
        for tile in flags
    ]
    return [functools.reduce(jnp.logical_and, tile) for tile in zip(*moved, strict=True)]


def _kind(field: str | None, value: Any) -> str | None:
    if field == "x1_is_x2":
        return "same"
    if not hasattr(value, "ndim") or value.ndim == 0:
        return None
    return "pair" if field is None else _KINDS.get(field)


def _device_of(array: Any) -> Any:
    if not isinstance(array, jax.Array) or isinstance(array, jax.core.Tracer):
        return None
    (device,) = array.devices()
    return device
