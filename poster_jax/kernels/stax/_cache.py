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
_VECTOR = 8  # examples side by side in memory


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
    if x2 is None:  # square, for its mirror image; in whole vectors where memory allows it
        vectors = entries * _VECTOR**2 <= 8 * limit
        first = _even(n1, side, vectors)
        return first, first
    second = _even(n2, side, vectors=True)
    return _even(n1, max(limit // (entries * second), 1), vectors=False), second


def _even(n: int, side: int, vectors: bool) -> int:
    """The size of equal parts of n of about `side`, made of whole vectors on request."""
    size = -(-n // -(-n // min(side, n)))
    return min(-(-size // _VECTOR) * _VECTOR, n) if vectors else size


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
    x1, x2 = jnp.asarray(x1), jnp.asarray(x1 if own else x2)
    shape = (x1.shape[0], x2.shape[0])
    like = jax.eval_shape(fn, x1[: size[0]], x2[: size[1]])
    if any(a.shape[:2] != size for a in jax.tree.leaves(like)):
        return fn(x1, None if own else x2)
    half = own and all(a.ndim == 2 for a in jax.tree.leaves(like))
    # The last tile reaches back over the one before it, so that nothing is padded or cut.
    rows, columns = (
        [min(at, n - side) for at in range(0, n, side)] for n, side in zip(shape, size, strict=True)
    )
    places = [(i, j) for i in rows for j in columns if not half or i <= j]

    def fill(out: Any, place: Any) -> tuple[Any, None]:
        i, j = place[0], place[1]
        first, second = (
            jax.lax.dynamic_slice_in_dim(x, at, b)
            for x, at, b in zip((x1, x2), place, size, strict=True)
        )
        tile = fn(first, second)
        if half:
            out = jax.tree.map(lambda a, t: jax.lax.dynamic_update_slice(a, t.T, (j, i)), out, tile)
        return jax.tree.map(
            lambda a, t: jax.lax.dynamic_update_slice(a, t, (i, j) + (0,) * (t.ndim - 2)), out, tile
        ), None

    empty = jax.tree.map(lambda a: jnp.zeros(shape + a.shape[2:], a.dtype), like)
    return jax.lax.scan(fill, empty, np.array(places))[0]
