"""Predictions with kernels that lie on disk: products and solves that read rows as they go."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from poster_jax.core.checks import check_count, check_positive
from poster_jax.kernels.batch import local_devices

__all__ = ["Solution", "conjugate_gradient_solve", "read_block", "streamed_product"]

_DIAGONAL_BLOCK = 512
_BLOCK_BYTES = 2**26  # of one block of rows: long enough to keep a device busy


class Solution(NamedTuple):
    """The solution of `(K + diag_reg I) x = b`.

    Attributes:
      weights: x, shaped like b.
      residuals: `||b - (K + diag_reg I) x|| / ||b||` for every column, from one more product.
      num_iterations: products spent.
      converged: for every column whether the residual met the tolerance.
    """

    weights: np.ndarray
    residuals: np.ndarray
    num_iterations: int
    converged: np.ndarray


def streamed_product(kernel: Any, vectors: Any, *, device_count: int = -1) -> np.ndarray:
    """`kernel @ vectors` for a kernel that is read a block of rows at a time.

    With `kernel = k_test_train` and the weights of a solve this is the predicted mean.

    Args:
      kernel: (rows, n), a mapped array such as `open_kernel` gives, or any other.
      vectors: (n, columns).
      device_count: how many devices work at once: -1 all, 0 the default one.

    Returns:
      (rows, columns).

    Raises:
      ValueError: the shapes do not fit.

    Source: this library.

    Example:
      >>> streamed_product(np.eye(3, dtype=np.float32), np.ones((3, 1), np.float32))[:, 0].tolist()
      [1.0, 1.0, 1.0]
    """
    vectors = np.asarray(vectors)
    if len(kernel.shape) != 2 or vectors.shape[:1] != kernel.shape[1:] or vectors.ndim != 2:
        raise ValueError(
            f"vectors must be (n, columns) for a kernel of shape (rows, n), got {vectors.shape} "
            f"for {tuple(kernel.shape)}."
        )
    devices = local_devices(device_count)
    copies = [jax.device_put(vectors.astype(kernel.dtype), device) for device in devices]
    waiting, parts = [], []
    for number, rows in enumerate(_row_blocks(kernel)):
        worker = number % len(devices)
        block = jax.device_put(read_block(kernel, rows, slice(None)), devices[worker])
        waiting.append(_multiply(block, copies[worker]))
        if len(waiting) > len(devices):
            parts.append(np.asarray(waiting.pop(0)))
    return np.concatenate([*parts, *map(np.asarray, waiting)])


def conjugate_gradient_solve(
    k_train_train: Any,
    b: Any,
    *,
    diag_reg: float = 0.0,
    diag_reg_absolute_scale: bool = False,
    tol: float = 1e-5,
    max_iters: int = 1000,
    device_count: int = -1,
) -> Solution:
    """Solves with a training kernel that is read once for every iteration.

    All columns of b share the products. The number of iterations grows with the root of the
    condition number, so a well chosen `diag_reg` saves most of them; for an ill-conditioned kernel
    `cholesky_to_disk` is shorter.

    Args:
      k_train_train: (n, n), symmetric; a mapped array or any other.
      b: (n, columns), such as centred targets.
      diag_reg: added to the diagonal, as in `gradient_descent_mse`.
      diag_reg_absolute_scale: as there.
      tol: of the residual, relative to b.
      max_iters: after how many products to give up.
      device_count: as in `streamed_product`.

    Returns:
      A `Solution`; look at `converged`.

    Raises:
      ValueError: the shapes do not fit, or the kernel turns out not to be positive definite.

    Source: Hestenes and Stiefel 1952, with the diagonal as preconditioner.

    Example:
      >>> kernel = np.eye(3, dtype=np.float32) + 1
      >>> solution = conjugate_gradient_solve(kernel, np.ones((3, 1)))
      >>> solution.weights[:, 0].round(3).tolist(), bool(solution.converged[0])
      ([0.25, 0.25, 0.25], True)
    """
    check_square(k_train_train)
    check_count("max_iters", max_iters)
    check_positive("tol", tol)
    b = np.asarray(b, np.float64)
    diagonal = regularised_diagonal(k_train_train, diag_reg, diag_reg_absolute_scale)
    added = diagonal - read_diagonal(k_train_train)

    def product(v: np.ndarray) -> np.ndarray:
        smooth = streamed_product(k_train_train, v, device_count=device_count)
        return smooth.astype(np.float64) + added[:, None] * v

    norm = np.maximum(np.linalg.norm(b, axis=0), np.finfo(np.float64).tiny)
    x, residual = np.zeros_like(b), b.copy()
    search = residual / diagonal[:, None]
    power = (residual * search).sum(0)
    iterations = 0
    for iterations in range(1, max_iters + 1):
        image = product(search)
        curvature = (search * image).sum(0)
        active = np.linalg.norm(residual, axis=0) > tol * norm
        if (curvature[active] <= 0).any():
            raise ValueError(
                "k_train_train must be positive definite: a direction of negative curvature was "
                f"met in iteration {iterations}; a larger diag_reg would remove it."
            )
        step = np.where(active, power / np.where(active, curvature, 1), 0)
        x, residual = x + step * search, residual - step * image
        scaled = residual / diagonal[:, None]
        power, before = (residual * scaled).sum(0), power
        search = scaled + np.where(active, power / np.where(active, before, 1), 0) * search
        if (np.linalg.norm(residual, axis=0) <= tol * norm).all():
            break
    true = np.linalg.norm(b - product(x), axis=0) / norm
    # The recurrence runs ahead of the true residual by about the rounding of one product.
    return Solution(x, true, iterations + 1, true <= 2 * tol)


def regularised_diagonal(kernel: Any, diag_reg: float, absolute: bool) -> np.ndarray:
    """The diagonal of `kernel + diag_reg I`; ValueError unless it is finite and positive."""
    check_positive("diag_reg", diag_reg, zero_allowed=True)
    diagonal = read_diagonal(kernel)
    diagonal = diagonal + diag_reg * (1.0 if absolute else diagonal.mean())
    if not (np.isfinite(diagonal) & (diagonal > 0)).all():
        raise ValueError("k_train_train must have a finite and positive diagonal, got another.")
    return diagonal


def check_square(kernel: Any) -> None:
    """ValueError unless `kernel` is a square matrix."""
    if len(kernel.shape) != 2 or kernel.shape[0] != kernel.shape[1]:
        raise ValueError(f"k_train_train must be (n, n), got the shape {tuple(kernel.shape)}.")


def read_block(kernel: Any, rows: slice, columns: slice) -> np.ndarray:
    """A copy of a block of a kernel, in memory of its own."""
    if isinstance(kernel, np.memmap):
        # Through a mapping of its own: pages once read would count as memory until unmapped.
        kernel = np.memmap(kernel.filename, kernel.dtype, "r", kernel.offset, kernel.shape)
    return np.array(kernel[rows, columns])


def read_diagonal(kernel: Any) -> np.ndarray:
    """The diagonal in float64, from square blocks.

    Read through one mapping, each entry would draw the pages around it into memory: in a kernel of
    20,000 examples all of them.
    """
    blocks = [slice(a, a + _DIAGONAL_BLOCK) for a in range(0, kernel.shape[0], _DIAGONAL_BLOCK)]
    return np.concatenate([np.diagonal(read_block(kernel, b, b)) for b in blocks]).astype(float)


@jax.jit
def _multiply(block: Any, vectors: Any) -> Any:
    return jnp.matmul(block, vectors, precision=jax.lax.Precision.HIGHEST)


def _row_blocks(kernel: Any) -> Iterator[slice]:
    n, width = kernel.shape
    step = max(1, _BLOCK_BYTES // (width * kernel.dtype.itemsize))
    return (slice(start, min(start + step, n)) for start in range(0, n, step))
