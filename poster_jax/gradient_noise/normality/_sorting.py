"""Many columns sorted at once, on the CPU by a network of comparators across the columns.

XLA's CPU sort calls a comparator a pair, one column after another: 127 microseconds for 1,000
float32. The same comparators for all columns are a minimum and a maximum of two arrays, which are
vector instructions: 11 microseconds a column. Batcher's bitonic merge needs them at fixed places.

Source: Batcher 1968, "Sorting networks and their applications", AFIPS 32.
"""

import jax
import jax.numpy as jnp

from poster_jax.core.typing import Array

__all__ = ["columns_at_once", "sort_columns"]

_TILE = 2**19  # numbers of one tile: its passes run in cache, and each is long enough for all cores
_FEWEST = (
    64  # columns: with fewer, the vectors are short and the program is not worth its compiling
)


def columns_at_once(num_rows: int) -> int:
    """Columns of one tile of a loop over many."""
    return max(_FEWEST, _TILE // _power_of_two(num_rows))


def sort_columns(x: Array) -> Array:
    """Each column of (n, columns) in ascending order; NaN stays in its column, anywhere."""
    n, columns = x.shape
    if columns < _FEWEST or jax.default_backend() != "cpu":
        return jnp.sort(x, axis=0)
    padded = _power_of_two(n)
    x = jnp.pad(x, ((0, padded - n), (0, 0)), constant_values=jnp.inf)
    half = 1
    while half < padded:  # the halves of every run of 2 * half are sorted: merge them
        x = _cross(x, half)
        stride = half // 2
        while stride > 1:
            x = _compare_twice(x, stride)
            stride //= 4
        if stride == 1:
            x = _compare(x, 1)
        half *= 2
    return x[:n]


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


def _exchange(a: Array, b: Array) -> tuple[Array, Array]:
    return jnp.minimum(a, b), jnp.maximum(a, b)


def _cross(x: Array, half: int) -> Array:
    """The first comparators of a merge: the i-th from the start with the i-th from the end."""
    runs = x.reshape(-1, 2, half, x.shape[1])
    low, high = _exchange(runs[:, 0], runs[:, 1, ::-1])
    # The upper half is left reversed: what follows sorts any run that rises and falls once.
    return jnp.stack([low, high], axis=1).reshape(x.shape)


def _compare(x: Array, stride: int) -> Array:
    pairs = x.reshape(-1, 2, stride, x.shape[1])
    return jnp.stack(_exchange(pairs[:, 0], pairs[:, 1]), axis=1).reshape(x.shape)


def _compare_twice(x: Array, stride: int) -> Array:
    """Comparators at `stride`, then at half of it: one pass through memory in place of two."""
    fours = x.reshape(-1, 4, stride // 2, x.shape[1])
    a, c = _exchange(fours[:, 0], fours[:, 2])
    b, d = _exchange(fours[:, 1], fours[:, 3])
    return jnp.stack([*_exchange(a, b), *_exchange(c, d)], axis=1).reshape(x.shape)
