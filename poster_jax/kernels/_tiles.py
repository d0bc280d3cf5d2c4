"""A kernel cut into tiles of rows and columns.

Inputs are padded with copies of their last example to a whole number of equal tiles, so that one
compiled program serves all of them whatever the sizes; what the copies gave is cut off again.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from poster_jax.core.checks import num_examples
from poster_jax.core.devices import DATA_AXIS
from poster_jax.kernels._whole import check_tile, parts
from poster_jax.kernels.kernel import Kernel

__all__ = [
    "Arguments",
    "Grid",
    "Inputs",
    "Kernels",
    "Program",
    "Work",
    "grid_of",
    "is_kernel",
    "is_symmetric",
]


class Grid(NamedTuple):
    """Which tiles there are.

    Attributes:
      sizes: examples of the first and of the second batch.
      tiles: numbers of tiles along each.
      size: examples of one tile along each.
      own: whether the second batch is the first, so that diagonal tiles are kernels of one batch.
      half: whether a tile below the diagonal is the mirror image of the one above it.
    """

    sizes: tuple[int, int]
    tiles: tuple[int, int]
    size: tuple[int, int]
    own: bool
    half: bool

    def places(self) -> Iterator[tuple[int, int]]:
        """The tiles to compute, row by row."""
        rows, columns = self.tiles
        return ((i, j) for i in range(rows) for j in range(i if self.half else 0, columns))

    def span(self, side: int, index: int) -> slice:
        """Which examples of a side a tile covers, padding left out."""
        start = index * self.size[side]
        return slice(start, min(start + self.size[side], self.sizes[side]))


def grid_of(source: Any, batch_size: int, num_devices: int) -> Grid:
    """Equal tiles of at most `batch_size` examples a side; 0 gives every device one share."""
    n1, n2 = source.sizes
    share = -(-n1 // num_devices)
    limits = (batch_size, batch_size)
    if batch_size == 0:
        # Square tiles where both batches may be the same: the diagonal then lies in few of them.
        limits = (share, share if n1 == n2 and num_devices > 1 else n2)
    tiles = [-(-n // min(n, limit)) for n, limit in zip((n1, n2), limits, strict=True)]
    size = [-(-n // count) for n, count in zip((n1, n2), tiles, strict=True)]
    tiles = [-(-n // step) for n, step in zip((n1, n2), size, strict=True)]
    return Grid((n1, n2), tuple(tiles), tuple(size), source.own, False)


class Inputs:
    """Tiles of two batches of inputs; where `takes_none`, of one batch on the diagonal."""

    def __init__(self, x1: Any, x2: Any, takes_none: bool):
        self.own = not jax.tree.leaves(x2)
        self._takes_none = takes_none
        self._x = (x1, x1 if self.own else x2)
        self.sizes = (num_examples(x1, "x1"), num_examples(self._x[1], "x2"))

    def tile(self, grid: Grid, i: int, j: int) -> tuple[Any, Any]:
        """Both batches of one tile; None for the second where it is the first."""
        first = padded(self._x[0], grid.size[0], i)
        if self.own and i == j:
            return first, None if self._takes_none else first
        return first, padded(self._x[1], grid.size[1], j)


class Kernels:
    """Tiles of a kernel that further layers are applied to."""

    def __init__(self, kernels: Any):
        self._kernels = kernels
        leaves = jax.tree.leaves(kernels, is_leaf=_is_one_kernel)
        self.own = all(kernel.cov2 is None for kernel in leaves)
        self.sizes = tuple(leaves[0].nngp.shape[:2])

    def tile(self, grid: Grid, i: int, j: int) -> tuple[Any, Any]:
        """The kernel of one tile, and None."""
        rows, columns = (
            np.minimum(np.arange(k * size, (k + 1) * size), n - 1)
            for k, size, n in zip((i, j), grid.size, grid.sizes, strict=True)
        )

        def cut(kernel: Kernel) -> Kernel:
            part = kernel.slice(rows, slice(None)).slice(slice(None), columns)
            if not self.own:
                return part
            if i == j:
                return part.replace(cov2=None, mask2=None)
            return part.replace(x1_is_x2=jnp.asarray(False))

        return jax.tree.map(cut, self._kernels, is_leaf=_is_one_kernel), None


class Arguments(NamedTuple):
    """What `kernel_fn` is called with beside the two batches.

    Attributes:
      leaves: arrays and plain values, flattened.
      treedef: their structure as `(args, kwargs)`.
      pairs: keywords that hold one tree of arrays for each batch.
      keys: a random key for either side, or None.
    """

    leaves: list[Any]
    treedef: Any
    pairs: dict[str, tuple[Any, Any]]
    keys: tuple[Any, Any] | None

    @classmethod
    def split(cls, args: Any, kwargs: dict[str, Any], sizes: tuple[int, int]) -> "Arguments":
        """Sorts the arguments of a call on batches of the given sizes."""
        pairs = {k: v for k, v in kwargs.items() if _is_pair(k, v, sizes)}
        rng = kwargs.get("rng")
        keys = rng if isinstance(rng, tuple) or rng is None else tuple(jax.random.split(rng))
        rest = {k: v for k, v in kwargs.items() if k not in pairs and (k != "rng" or keys is None)}
        leaves, treedef = jax.tree.flatten((args, rest))
        return cls(leaves, treedef, pairs, keys)

    def arrays(self) -> list[Any]:
        """What a compiled program is handed at each call."""
        return [v for v in self.leaves if _is_array(v)]

    def static(self) -> tuple[Any, ...]:
        """What it depends on otherwise."""
        plain = tuple(None if _is_array(v) else v for v in self.leaves)
        return (self.treedef, plain)

    def rebuild(self, arrays: list[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """`(args, kwargs)` with other arrays in the place of ours."""
        queue = iter(arrays)
        leaves = [next(queue) if _is_array(v) else v for v in self.leaves]
        return jax.tree.unflatten(self.treedef, leaves)


class Program:
    """`kernel_fn` compiled for tiles; one program for each set of plain arguments, kept."""

    def __init__(self, kernel_fn: Callable[..., Any]):
        self._kernel_fn = kernel_fn
        self._compiled: dict[Any, Any] = {}

    def of(self, arguments: Arguments, mesh: Mesh | None) -> Callable[..., Any]:
        """`run((x1, x2, pairs), arrays)`, where `x1` may be a `Kernel`.

        With a mesh every input leads with one tile for each device, and so does the answer.
        """
        key = (*arguments.static(), mesh)
        if key not in self._compiled:
            self._compiled[key] = jax.jit(self._over(mesh, self._call(arguments)))
        return self._compiled[key]

    def _call(self, arguments: Arguments) -> Callable[..., Any]:
        def call(tile: tuple[Any, Any, dict[str, Any]], arrays: list[Any]) -> Any:
            x1, x2, pairs = tile
            args, kwargs = arguments.rebuild(arrays)
            batches = (x1,) if is_kernel(x1) else (x1, x2)
            return self._kernel_fn(*batches, *args, **kwargs, **pairs)

        return call

    def _over(self, mesh: Mesh | None, call: Callable[..., Any]) -> Callable[..., Any]:
        if mesh is None:
            return call

        def on_each_device(tiles: Any, arrays: list[Any]) -> Any:
            result = call(jax.tree.map(lambda leaf: leaf[0], tiles), arrays)
            return jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], result)

        spread, everywhere = PartitionSpec(DATA_AXIS), PartitionSpec()
        return jax.shard_map(
            on_each_device,
            mesh=mesh,
            in_specs=(spread, everywhere),
            out_specs=spread,
            check_vma=False,
        )


class Work:
    """All tiles of one call, computed as they are iterated over."""

    def __init__(
        self,
        program: Program,
        source: Any,
        grid: Grid,
        arguments: Arguments,
        devices: list[Any] | None,
    ):
        several = devices is not None and len(devices) > 1
        self._mesh = Mesh(np.array(devices), (DATA_AXIS,)) if several else None
        self._device = devices[0] if devices else None
        self._count = len(devices) if devices else 1
        self.grid, self._source, self._pairs = grid, source, arguments.pairs
        self._keys = _tile_keys(arguments, grid)
        self._run = program.of(arguments, self._mesh)
        self._arrays = self._place(arguments.arrays(), PartitionSpec())

    def leave_out_mirror_images(self) -> None:
        """Leaves out the tiles below the diagonal, of a symmetric kernel of one batch."""
        if self.grid.own and self._keys is None:
            half = all(array.ndim == 2 for array in parts(self.example())["pair"])
            self.grid = self.grid._replace(half=half)

    def example(self) -> Any:
        """The answer for one tile, shapes and dtypes only."""
        result = jax.eval_shape(self._run, self._inputs([(0, 0)]), self._arrays)
        if self._mesh is None:
            return result
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), result)

    def run(self, places: Iterable[tuple[int, int]] | None = None) -> Iterator[Any]:
        """Answers ((i, j), result) for the given tiles or all, keeping every device busy."""
        waiting: deque[Any] = deque()
        for group in self._groups(self.grid.places() if places is None else places):
            waiting.append((group, self._run(self._inputs(group), self._arrays)))
            if len(waiting) > 2:
                yield from self._results(*waiting.popleft())
        for group, result in waiting:
            yield from self._results(group, result)

    def _groups(self, places: Iterable[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
        """As many tiles as devices at once, those on the diagonal by themselves."""
        open_groups: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
        for place in places:
            group = open_groups[place[0] == place[1]]
            group.append(place)
            if len(group) == self._count:
                yield list(group)
                group.clear()
        yield from (group for group in open_groups.values() if group)

    def _results(self, group: list[tuple[int, int]], result: Any) -> Iterator[Any]:
        for k, place in enumerate(group):
            part = result
            if self._mesh is not None:
                part = jax.tree.map(lambda leaf: leaf.addressable_shards[k].data[0], result)  # noqa: B023
            check_tile(part, self.grid.size)
            yield place, part

    def _inputs(self, group: list[tuple[int, int]]) -> Any:
        tiles = [self._tile(i, j) for i, j in group]
        if self._mesh is None:
            return self._place(tiles[0], PartitionSpec())
        tiles += tiles[-1:] * (self._count - len(tiles))  # idle devices repeat the last one
        stacked = jax.tree.map(lambda *leaves: _stack(leaves), *tiles)
        return self._place(stacked, PartitionSpec(DATA_AXIS))

    def _tile(self, i: int, j: int) -> tuple[Any, Any, dict[str, Any]]:
        size = self.grid.size
        pairs: dict[str, Any] = {
            name: (padded(first, size[0], i), padded(second, size[1], j))
            for name, (first, second) in self._pairs.items()
        }
        if self._keys:
            pairs["rng"] = (self._keys[0][i], self._keys[1][j])
        return (*self._source.tile(self.grid, i, j), pairs)

    def _place(self, tree: Any, spec: PartitionSpec) -> Any:
        if self._mesh is not None:
            return jax.device_put(tree, NamedSharding(self._mesh, spec))
        return tree if self._device is None else jax.device_put(tree, self._device)


def _stack(leaves: tuple[Any, ...]) -> Any:
    plain = all(isinstance(leaf, np.ndarray) for leaf in leaves)
    return (np if plain else jnp).stack(leaves)


def padded(tree: Any, size: int, index: int) -> Any:
    """Examples number `index * size` and on, `size` of them, the last one repeated at the end."""

    def take(leaf: Any) -> Any:
        part = leaf[index * size : (index + 1) * size]
        lack = size - part.shape[0]
        if lack == 0:
            return part
        widths = [(0, lack)] + [(0, 0)] * (part.ndim - 1)
        return (np if isinstance(part, np.ndarray) else jnp).pad(part, widths, mode="edge")

    return jax.tree.map(take, tree)


def is_symmetric(kernel_fn: Any) -> bool:
    """Whether `kernel_fn(x2, x1)` is known to be the mirror image of `kernel_fn(x1, x2)`.

    Known of closed forms, which carry requirements, and of empirical kernels.
    """
    known = getattr(kernel_fn, "input_requirements", None) or getattr(kernel_fn, "symmetric", False)
    return bool(known)


def is_kernel(tree: Any) -> bool:
    """Whether the leaves of `tree` are kernels."""
    leaves = jax.tree.leaves(tree, is_leaf=_is_one_kernel)
    return bool(leaves) and all(map(_is_one_kernel, leaves))


def _is_one_kernel(tree: Any) -> bool:
    return isinstance(tree, Kernel)


def _tile_keys(arguments: Arguments, grid: Grid) -> tuple[Any, Any] | None:
    if arguments.keys is None:
        return None
    first, second = arguments.keys
    return jax.random.split(first, grid.tiles[0]), jax.random.split(second, grid.tiles[1])


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _is_pair(name: str, value: Any, sizes: tuple[int, int]) -> bool:
    """Whether a keyword holds one tree of arrays for each batch, led by its examples."""
    if name in ("params", "rng") or not (isinstance(value, tuple) and len(value) == 2):
        return False
    for side, size in zip(value, sizes, strict=True):
        leaves = jax.tree.leaves(side)
        if not leaves or any(not _is_array(v) or v.shape[:1] != (size,) for v in leaves):
            return False
    return True
