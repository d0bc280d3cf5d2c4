"""Kernels larger than memory: tiles written to numpy files, resumed after a kill, read lazily.

A kernel is a folder: one `.npy` file for each of its names, which any program can map into memory,
one byte a tile that says whether it is finished, and `kernel.json`, which says of what inputs.
Until the last tile is finished the arrays are called `.npy.partial`, so that nobody reads them.
"""

import hashlib
import json
import os
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from poster_jax.core.checks import check_callable, check_count, is_traced
from poster_jax.kernels._get import answer, requested
from poster_jax.kernels._progress import silent
from poster_jax.kernels._tiles import Arguments, Grid, Inputs, Program, Work, grid_of, is_symmetric
from poster_jax.kernels._whole import parts
from poster_jax.kernels.batch import local_devices

__all__ = ["kernel_to_disk", "open_kernel"]

_SECONDS_BETWEEN_SYNCS = 1.0


def kernel_to_disk(
    path: str | os.PathLike[str],
    kernel_fn: Callable[..., Any],
    x1: Any,
    x2: Any = None,
    get: str | tuple[str, ...] = "ntk",
    *args: Any,
    batch_size: int = 1024,
    device_count: int = -1,
    progress: Callable[..., Any] | None = None,
    **kwargs: Any,
) -> Any:
    """Computes a kernel in tiles into a folder; a second call goes on where the first was killed.

    Memory holds the inputs and a few tiles. A closed form or an empirical kernel of one batch is
    computed on and above the diagonal and written on both sides of it. Several processes
    (`jax.distributed`) with a common folder share the tiles.

    Args:
      path: the folder; made when it is not there.
      kernel_fn: `kernel_fn(x1, x2, get, *args, **kwargs)`.
      x1: the first batch, arrays of JAX or numpy (mapped ones too).
      x2: the second batch; None: the first again.
      get: "nngp", "ntk", or a tuple of both.
      *args: handed on, as in `batch`.
      batch_size: examples of each side in one tile.
      device_count: as in `batch`.
      progress: a context manager `progress(description, total, completed)` that yields
        `update(completed)`, such as the library's progress bar.
      **kwargs: handed on, as in `batch`.

    Returns:
      As `open_kernel`.

    Raises:
      ValueError: the folder holds a kernel of other inputs, of other arrays among the arguments, or
        of another `kernel_fn`; the answer of `kernel_fn` is not one array for every name, or not
        finite. TypeError inside `jit`.

    Source: this library.

    Example:
      >>> import tempfile
      >>> from poster_jax.kernels import stax
      >>> _, _, kernel_fn = stax.serial(stax.Dense(1), stax.Relu(), stax.Dense(1))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     ntk = kernel_to_disk(folder, kernel_fn, np.ones((7, 3)), batch_size=2)
      ...     print(type(ntk).__name__, ntk.shape)
      memmap (7, 7)
    """
    check_callable("kernel_fn", kernel_fn)
    check_count("batch_size", batch_size)
    if is_traced((x1, x2, args, kwargs)):
        raise TypeError("kernel_to_disk must be called outside jit: a file cannot be traced.")
    devices = local_devices(device_count)
    source = Inputs(x1, x2, is_symmetric(kernel_fn))
    arguments = Arguments.split((get, *args), kwargs, source.sizes)
    grid = grid_of(source, batch_size, len(devices))
    work = Work(Program(kernel_fn), source, grid, arguments, devices)
    if is_symmetric(kernel_fn):
        work.leave_out_mirror_images()
    arrays = _arrays(get, work.example())
    folder = _Folder(pathlib.Path(path), work.grid, arrays)
    identity = _identity(work.grid, arrays, get, (x1, x2), arguments.arrays())
    corner = _corner(kernel_fn, source, arguments)
    if jax.process_index() == 0:
        folder.claim(identity, corner)
    _wait_for_all("kernel folder made")
    if jax.process_index() > 0:
        folder.claim(identity, corner)
    missing = folder.missing()
    _wait_for_all("kernel tiles counted")  # before any is written: all must deal from one list
    share = missing[jax.process_index() :: jax.process_count()]
    _write(folder, work, share, len(missing), progress)
    folder.finish()
    return open_kernel(path)


def open_kernel(path: str | os.PathLike[str]) -> Any:
    """A finished kernel as numpy arrays that are read from disk where they are looked at.

    Args:
      path: the folder that `kernel_to_disk` wrote.

    Returns:
      A read-only `numpy.memmap` when one kernel was asked for by name, else a namedtuple of them.

    Raises:
      ValueError: there is no kernel in the folder, or some of its tiles are missing.

    Source: this library.

    Example:
      `ntk = open_kernel("out/ntk")` maps a kernel; `ntk[:100]` reads a hundred rows.
    """
    path = pathlib.Path(path)
    if not (path / "kernel.json").exists():
        raise ValueError(f"path must be a folder written by kernel_to_disk, got {str(path)!r}.")
    get = json.loads((path / "kernel.json").read_text())["get"]
    names = requested(get if isinstance(get, str) else tuple(get), ())
    if any(not (path / f"{name}.npy").exists() for name in names):
        done = np.fromfile(path / "tiles.done", np.uint8)
        raise ValueError(
            f"the kernel in {str(path)!r} is not finished: {int((done == 1).sum())} of "
            f"{int((done < 2).sum())} tiles are. Call kernel_to_disk again to go on."
        )
    maps = {name: np.load(path / f"{name}.npy", mmap_mode="r") for name in names}
    return answer("StoredKernel", get if isinstance(get, str) else tuple(get), maps)


class _Folder:
    """The files of one kernel while it is written."""

    def __init__(self, path: pathlib.Path, grid: Grid, arrays: dict[str, Any]):
        self.path, self._grid, self._arrays = path, grid, arrays
        self._files: dict[str, tuple[int, int]] = {}  # name -> descriptor, start of the data

    def claim(self, identity: dict[str, Any], corner: list[Any]) -> None:
        """Makes the files, or checks that those there are of the same kernel."""
        self.path.mkdir(parents=True, exist_ok=True)
        said = self.path / "kernel.json"
        if said.exists():
            known = json.loads(said.read_text())
            theirs = known.pop("corner")
            same = known == identity and np.allclose(theirs, corner, rtol=1e-3, atol=1e-30)
            if not same:
                raise ValueError(
                    f"path {str(self.path)!r} holds a kernel of other inputs, another batch_size "
                    "or another kernel_fn; choose a new folder or remove this one."
                )
            return
        for name, array in self._arrays.items():
            shape = (*self._grid.sizes, *array.shape[2:])
            np.lib.format.open_memmap(self._partial(name), "w+", array.dtype, shape)
        # 2 stands for a tile that is not computed: its mirror image is.
        marks = np.full(self._grid.tiles, 2, np.uint8)
        for place in self._grid.places():
            marks[place] = 0
        marks.tofile(self.path / "tiles.done")
        unfinished = said.with_suffix(".new")
        unfinished.write_text(json.dumps({**identity, "corner": corner}))
        unfinished.replace(said)  # last and at once: a kill before leaves nothing that counts

    def missing(self) -> list[tuple[int, int]]:
        """Tiles that are not finished."""
        marks = np.fromfile(self.path / "tiles.done", np.uint8).reshape(self._grid.tiles)
        return [place for place in self._grid.places() if marks[place] == 0]

    def write(self, place: tuple[int, int], tiles: list[np.ndarray]) -> None:
        """Puts the arrays of one tile, and their mirror images, into the files."""
        rows, columns = self._grid.span(0, place[0]), self._grid.span(1, place[1])
        for name, tile in zip(self._arrays, tiles, strict=True):
            tile = tile[: rows.stop - rows.start, : columns.stop - columns.start]
            self._put(name, rows, columns, tile)
            if self._grid.half and place[0] != place[1]:
                self._put(name, columns, rows, tile.T)

    def mark(self, places: list[tuple[int, int]]) -> None:
        """Notes tiles as finished, once their entries have reached the disk."""
        for descriptor, _ in self._files.values():
            os.fsync(descriptor)
        with open(self.path / "tiles.done", "r+b", buffering=0) as marks:
            for i, j in places:
                marks.seek(i * self._grid.tiles[1] + j)
                marks.write(b"\x01")

    def finish(self) -> None:
        """Gives the arrays their names when all tiles of all processes are there."""
        for descriptor, _ in self._files.values():
            os.close(descriptor)
        self._files = {}
        _wait_for_all("kernel tiles written")
        if jax.process_index() == 0 and not self.missing():
            for name in self._arrays:
                if self._partial(name).exists():
                    self._partial(name).replace(self.path / f"{name}.npy")
        _wait_for_all("kernel finished")

    def _partial(self, name: str) -> pathlib.Path:
        return self.path / f"{name}.npy.partial"

    def _put(self, name: str, rows: slice, columns: slice, tile: np.ndarray) -> None:
        # Written, not mapped: mapped pages would count as memory until the system takes them.
        if name not in self._files:
            start = np.load(self._partial(name), mmap_mode="r").offset
            self._files[name] = (os.open(self._partial(name), os.O_RDWR), start)
        descriptor, start = self._files[name]
        entry = tile.dtype.itemsize * int(np.prod(tile.shape[2:]))
        for k, line in enumerate(np.ascontiguousarray(tile)):
            at = ((rows.start + k) * self._grid.sizes[1] + columns.start) * entry
            _write_all(descriptor, memoryview(line).cast("B"), start + at)


def _write(
    folder: _Folder,
    work: Work,
    share: list[tuple[int, int]],
    num_missing: int,
    progress: Callable[..., Any] | None,
) -> None:
    total = sum(1 for _ in work.grid.places())
    finished, waiting, last = total - num_missing, [], time.monotonic()

    def run(update: Callable[[int], Any]) -> None:
        nonlocal finished, waiting, last
        for place, result in work.run(share):
            tiles = [np.asarray(array) for array in parts(result)["pair"]]
            _check_tiles(work.grid, place, tiles)
            folder.write(place, tiles)
            waiting.append(place)
            if time.monotonic() - last > _SECONDS_BETWEEN_SYNCS:
                folder.mark(waiting)
                finished, waiting, last = finished + len(waiting), [], time.monotonic()
                update(finished)
        folder.mark(waiting)
        update(finished + len(waiting))

    with (progress or silent)("tiles", total, finished) as update:
        run(update)


def _check_tiles(grid: Grid, place: tuple[int, int], tiles: list[np.ndarray]) -> None:
    """ValueError when a tile holds NaN or infinity, which every later solve would spread."""
    if all(np.isfinite(tile).all() for tile in tiles):
        return
    rows, columns = grid.span(0, place[0]), grid.span(1, place[1])
    raise ValueError(
        f"kernel_fn must answer finite kernels, got NaN or infinity for the examples {rows.start} "
        f"to {rows.stop} of x1 with {columns.start} to {columns.stop} of x2."
    )


def _arrays(get: Any, example: Any) -> dict[str, Any]:
    names, found = requested(get, ()), parts(example)["pair"]
    if not names or len(found) != len(names):
        raise ValueError(
            f"get must name kernels of which kernel_fn answers one array each, got {get!r} and "
            f"{len(found)} arrays."
        )
    return dict(zip(names, found, strict=True))


def _identity(
    grid: Grid, arrays: dict[str, Any], get: Any, batches: Any, others: list[Any]
) -> dict[str, Any]:
    """What must be the same for a second call to go on; as json gives it back."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(batches):
        digest.update(str((leaf.shape, leaf.dtype)).encode())
        for start in range(0, len(leaf), 4096):
            digest.update(np.ascontiguousarray(leaf[start : start + 4096]).tobytes())
    for leaf in others:
        digest.update(str((leaf.shape, leaf.dtype)).encode())
        is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        digest.update(np.ascontiguousarray(jax.random.key_data(leaf) if is_key else leaf).tobytes())
    return {
        "get": get if isinstance(get, str) else list(requested(get, ())),
        "inputs": digest.hexdigest(),
        "grid": [list(grid.sizes), list(grid.size), grid.own, grid.half],
        "arrays": {name: [list(a.shape[2:]), str(a.dtype)] for name, a in arrays.items()},
    }


def _corner(kernel_fn: Callable[..., Any], source: Inputs, arguments: Arguments) -> list[float]:
    """The kernels of the first example, by which another `kernel_fn` is told."""
    single = grid_of(source, 1, 1)
    work = Work(Program(kernel_fn), source, single, arguments, jax.local_devices()[:1])
    ((_, result),) = work.run([(0, 0)])
    return [float(np.asarray(array, float).mean()) for array in parts(result)["pair"]]


def _write_all(descriptor: int, data: memoryview, at: int) -> None:
    while len(data):
        written = os.pwrite(descriptor, data, at)
        data, at = data[written:], at + written


def _wait_for_all(name: str) -> None:
    if jax.process_count() > 1:
        from jax.experimental.multihost_utils import sync_global_devices

        sync_global_devices(name)
