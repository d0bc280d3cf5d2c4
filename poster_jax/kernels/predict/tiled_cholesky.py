"""The Cholesky factor of a kernel larger than memory, block by block, resumed after a kill."""

import hashlib
import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jax.scipy.linalg
import numpy as np
import scipy.linalg

from poster_jax.core.checks import check_count
from poster_jax.kernels._progress import silent
from poster_jax.kernels.batch import local_devices
from poster_jax.kernels.predict.streamed import check_square, read_block, regularised_diagonal

__all__ = ["cholesky_solve_from_disk", "cholesky_to_disk"]


def cholesky_to_disk(
    path: str | os.PathLike[str],
    k_train_train: Any,
    *,
    diag_reg: float = 0.0,
    diag_reg_absolute_scale: bool = False,
    block_size: int = 2048,
    device_count: int = -1,
    progress: Callable[..., Any] | None = None,
) -> np.ndarray:
    """Factorises `K + diag_reg I = L L^T` with L in a file; a second call goes on where one ended.

    Column block j takes what the blocks before explain off the kernel, and divides by the root of
    the rest. Memory holds two block rows; the blocks of a column are spread over the devices.

    Args:
      path: of the factor, a `.npy` file; called `.partial` beside it until it is whole.
      k_train_train: (n, n), symmetric; a mapped array or any other.
      diag_reg: added to the diagonal, as in `gradient_descent_mse`.
      diag_reg_absolute_scale: as there.
      block_size: columns of one block.
      device_count: how many devices work at once: -1 all, 0 the default one.
      progress: as in `kernel_to_disk`.

    Returns:
      L as a read-only mapped array, (n, n), of the kernel's dtype, zeros above the diagonal.

    Raises:
      ValueError: the kernel is not positive definite; the message names the rows at which it showed
        and asks for `diag_reg`. Or the file is of another kernel.

    Source: Golub and Van Loan, "Matrix Computations", section 4.2 (left-looking block Cholesky).

    Example:
      >>> import tempfile
      >>> kernel = np.eye(5, dtype=np.float32) + 3
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     factor = cholesky_to_disk(f"{folder}/factor.npy", kernel, block_size=2)
      ...     float(factor[0, 0])
      2.0
    """
    check_square(k_train_train)
    check_count("block_size", block_size)
    diagonal = regularised_diagonal(k_train_train, diag_reg, diag_reg_absolute_scale)
    path, devices = pathlib.Path(path), local_devices(device_count)
    n = k_train_train.shape[0]
    blocks = [slice(a, min(a + block_size, n)) for a in range(0, n, block_size)]
    record = _Record(path, k_train_train, diagonal, block_size)
    first = record.open()
    with (progress or silent)("columns", len(blocks), first) as update:
        for j in range(first, len(blocks)):
            factor = np.load(record.partial, mmap_mode="r+")
            _column(factor, k_train_train, diagonal, blocks, j, devices)
            record.finish_column(factor, j + 1)
            del factor  # pages that were written count as memory until they are unmapped
            update(j + 1)
    record.finish()
    return np.load(path, mmap_mode="r")


def cholesky_solve_from_disk(factor: Any, b: Any, *, block_size: int = 1024) -> np.ndarray:
    """Solves `L L^T x = b` with a factor that is read twice, a block at a time.

    Args:
      factor: L, as `cholesky_to_disk` answers it.
      b: (n, columns).
      block_size: rows of one block.

    Returns:
      x, (n, columns), float64; products are of the factor's precision.

    Raises:
      ValueError: the shapes do not fit.

    Source: Golub and Van Loan, section 3.1.

    Example:
      >>> cholesky_solve_from_disk(2 * np.eye(3, dtype=np.float32), np.ones((3, 1)))[:, 0].tolist()
      [0.25, 0.25, 0.25]
    """
    check_square(factor)
    check_count("block_size", block_size)
    x = np.array(b, np.float64)
    n = factor.shape[0]
    if x.ndim != 2 or x.shape[0] != n:
        raise ValueError(f"b must be (n, columns) with n = {n}, got the shape {x.shape}.")
    blocks = [slice(a, min(a + block_size, n)) for a in range(0, n, block_size)]
    for block in blocks:
        row = read_block(factor, block, slice(0, block.stop))
        rest = x[block] - row[:, : block.start] @ x[: block.start]
        x[block] = _substitute(row[:, block.start :], rest, transposed=False)
    for block in reversed(blocks):
        # Rows again, since a column read from a mapped file draws the pages around it: all of them.
        row = read_block(factor, block, slice(0, block.stop))
        x[block] = _substitute(row[:, block.start :], x[block], transposed=True)
        x[: block.start] -= row[:, : block.start].T @ x[block]
    return x


class _Record:
    """The file of a factor while it is written, and how many blocks of columns it holds."""

    def __init__(self, path: pathlib.Path, kernel: Any, diagonal: np.ndarray, block_size: int):
        self._path, self._shape, self._dtype = path, kernel.shape, kernel.dtype
        self.partial = path.with_name(path.name + ".partial")
        self._said = path.with_name(path.name + ".json")
        digest = hashlib.sha256(diagonal.tobytes())
        digest.update(read_block(kernel, slice(0, 1), slice(None)).tobytes())
        self._identity = {"kernel": digest.hexdigest(), "block_size": block_size}

    def open(self) -> int:
        """How many blocks of columns are there; makes the file when it is new."""
        if self._said.exists():
            known = json.loads(self._said.read_text())
            done = known.pop("columns")
            if known != self._identity:
                raise ValueError(
                    f"path {str(self._path)!r} holds the factor of another kernel, diag_reg or "
                    "block_size; choose a new file or remove this one."
                )
            return done
        self._path.parent.mkdir(parents=True, exist_ok=True)
        np.lib.format.open_memmap(self.partial, "w+", self._dtype, self._shape)
        self._write(0)
        return 0

    def finish_column(self, factor: Any, columns: int) -> None:
        """Notes a block of columns, once it has reached the disk."""
        factor.flush()
        self._write(columns)

    def finish(self) -> None:
        """Gives the factor its name, unless it has it."""
        if self.partial.exists():
            self.partial.replace(self._path)

    def _write(self, columns: int) -> None:
        unfinished = self._said.with_suffix(".new")
        unfinished.write_text(json.dumps({**self._identity, "columns": columns}))
        unfinished.replace(self._said)


def _column(
    factor: Any, kernel: Any, diagonal: np.ndarray, blocks: list[slice], j: int, devices: list[Any]
) -> None:
    """Computes the blocks of column j and puts them into the factor."""
    here = blocks[j]
    before = slice(0, here.start)
    left = [jax.device_put(read_block(factor, here, before), device) for device in devices]
    corner = read_block(kernel, here, here)
    np.fill_diagonal(corner, diagonal[here])
    root = _root(corner, left[0])
    if not bool(jnp.isfinite(root).all()):
        raise ValueError(
            "k_train_train must be positive definite: it showed otherwise in the rows "
            f"{here.start} to {here.stop}. A larger diag_reg would make it so."
        )
    roots = [jax.device_put(root, device) for device in devices]
    factor[here, here] = np.asarray(root)
    waiting: list[tuple[slice, Any]] = []
    for number, rows in enumerate(blocks[j + 1 :]):
        worker = number % len(devices)
        block, known = read_block(kernel, rows, here), read_block(factor, rows, before)
        block, known = jax.device_put((block, known), devices[worker])
        waiting.append((rows, _divide(block, known, left[worker], roots[worker])))
        if len(waiting) > len(devices):
            done, result = waiting.pop(0)
            factor[done, here] = np.asarray(result)
    for done, result in waiting:
        factor[done, here] = np.asarray(result)


@jax.jit
def _root(corner: Any, left: Any) -> Any:
    return jnp.linalg.cholesky(corner - _product(left, left))


@jax.jit
def _divide(block: Any, known: Any, left: Any, root: Any) -> Any:
    rest = block - _product(known, left)
    return jax.scipy.linalg.solve_triangular(root, rest.T, lower=True).T


def _product(a: Any, b: Any) -> Any:
    return jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST)


def _substitute(triangle: np.ndarray, b: np.ndarray, *, transposed: bool) -> np.ndarray:
    return scipy.linalg.solve_triangular(
        triangle.astype(np.float64), b, lower=True, trans=1 if transposed else 0
    )
