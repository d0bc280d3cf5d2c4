"""Kernels of many pairs in tiles that stay in the cache, and half of them where x2 is x1.

A layer reads and writes every covariance a few times. Whole arrays of all pairs would travel to
memory and back each time; a tile of few pairs goes through all layers while the cache holds it, and
memory for the layers is needed for one tile only. The tiles are a loop inside one compiled program,
so that derivatives and `jit` pass through.

Source: this library.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["TILE_ENTRIES", "in_tiles", "tile_sizes"]

# Covariances of one tile, by backend: a few arrays of them fit into the caches of a core (CPU), or
# keep all of an accelerator busy.
TILE_ENTRIES = {"cpu": 1 << 17, "other": 1 << 26}
_FEWEST = 4  # examples of a side


def tile_sizes(x1: Any, x2: Any, asked: Mapping[str, Any]) -> tuple[int, int] | None:
    """How many examples of each side make a tile; None where the arrays are to stay whole.

    Args:
      x1: (n1, positions and channels).
      x2: (n2, ...), or None.
      asked: what the layers need: `batch_axis`, `channel_axis` (None: all but the examples are
        channels), `diagonal_batch`, `diagonal_spatial`.
    """
    if asked["batch_axis"] % x1.ndim != 0 or not asked["diagonal_batch"]:
        return None
    positions = 1
    if asked["channel_axis"] is not None:
        channel_axis = asked["channel_axis"] % x1.ndim
        positions = math.prod(n for i, n in enumerate(x1.shape) if i not in (0, channel_axis))
    entries = positions if asked["diagonal_spatial"] else positions**2
    backend = jax.default_backend()
    limit = TILE_ENTRIES.get(backend, TILE_ENTRIES["other"])
    n1, n2 = x1.shape[0], x1.shape[0] if x2 is None else x2.shape[0]
    if n1 * n2 * entries < 2 * limit or n1 * n2 == 1:
        return None
    # A tile also computes what belongs to one example: the fewer pairs, the more of that.
    side = max(math.isqrt(limit // entries), _FEWEST)
    first = _even(n1, side)
    # What one side leaves of a tile, the other one takes: (few examples) x (many) is a tile too.
    second = first if x2 is None else _even(n2, max(limit // (entries * first), 1))
    return first, second


def _even(n: int, side: int) -> int:
    """The size of equal parts of n of at most `side`."""
    return -(-n // -(-n // min(side, n)))


def in_tiles(fn: Callable[[Any, Any], Any], x1: Any, x2: Any, size: tuple[int, int]) -> Any:
    """`fn(x1, x2)`, of arrays that lead with the examples of both, tile by tile.

    Args:
      fn: answers a tree of arrays (n1, n2, ...); where these have no further axes and `x2` is None,
        its mirror image is taken for tiles below the diagonal.
      x1: (n1, ...).
      x2: (n2, ...), or None for `x1`.
      size: examples of a tile on either side.

    Returns:
      The tree; `fn(x1, x2)` itself where its arrays do not lead so.
    """
    own = x2 is None
    first, second = _cut(x1, size[0]), _cut(x1 if own else x2, size[1])
    like = jax.eval_shape(fn, first[0], second[0])
    if any(a.shape[:2] != size for a in jax.tree.leaves(like)):
        return fn(x1, x2)
    half = own and all(a.ndim == 2 for a in jax.tree.leaves(like))
    t1, t2 = len(first), len(second)
    places = np.array([(i, j) for i in range(t1) for j in range(i if half else 0, t2)])
    tiles = jax.lax.map(lambda place: fn(first[place[0]], second[place[1]]), places)
    n1, n2 = x1.shape[0], (x1 if own else x2).shape[0]
    join = _join_mirrored if half else _join
    return jax.tree.map(lambda x: join(x, t1, t2)[:n1, :n2], tiles)


def _cut(x: Any, size: int) -> Any:
    """(tiles, size, ...), the last example repeated at the end."""
    lack = -x.shape[0] % size
    x = jnp.pad(x, [(0, lack)] + [(0, 0)] * (x.ndim - 1), mode="edge") if lack else jnp.asarray(x)
    return x.reshape(-1, size, *x.shape[1:])


def _join(x: Any, t1: int, t2: int) -> Any:
    """(t1 t2, b1, b2, ...) as (t1 b1, t2 b2, ...)."""
    _, b1, b2, *rest = x.shape
    x = jnp.swapaxes(x.reshape(t1, t2, b1, b2, *rest), 1, 2)
    return x.reshape(t1 * b1, t2 * b2, *rest)


def _join_mirrored(x: Any, t1: int, t2: int) -> Any:
    """The same of the tiles on and above the diagonal, row by row."""
    row, column = np.indices((t1, t2))
    low, high = np.minimum(row, column), np.maximum(row, column)
    index = low * t1 - low * (low - 1) // 2 + high - low
    b = x.shape[1]
    above = jnp.swapaxes(x[index], 1, 2)
    below = jnp.transpose(x[index], (0, 3, 1, 2))
    upper = jnp.asarray(row <= column)[:, None, :, None]
    return jnp.where(upper, above, below).reshape(t1 * b, t2 * b)
