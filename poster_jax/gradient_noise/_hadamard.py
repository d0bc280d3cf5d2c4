"""The Walsh-Hadamard transform, and single entries of its matrix.

H has the entries (-1)^(number of binary digits that i and j share), its rows are orthogonal, and
n log2 n additions apply all of them.
"""

from typing import Any

import jax
import jax.numpy as jnp

from poster_jax.core.typing import Array, Float, Int, PRNGKey

# Two stages of the transform in one pass over memory: on two CPU cores the fastest of 1 to 4 (a
# pass is then bound by memory; with more, XLA's additions spill). The barrier keeps XLA from fusing
# passes into one that computes shared sums again.
STAGES_A_PASS = 2


def transform(x: Float[Array, "n"]) -> Float[Array, "n"]:
    """`H @ x` for a vector of 2^k numbers; applied twice it is n times the vector."""
    size, done = x.size, 0
    bits = size.bit_length() - 1
    while done < bits:
        stages = min(STAGES_A_PASS, bits - done)
        parts = x.reshape(-1, 2**stages, 2**done)
        columns = [parts[:, i] for i in range(2**stages)]
        for stage in range(stages):
            columns = _stage(columns, 2**stage)
        x = jax.lax.optimization_barrier(jnp.stack(columns, axis=1).reshape(size))
        done += stages
    return x


def _stage(columns: list[Array], distance: int) -> list[Array]:
    out = list(columns)
    for i in range(len(columns)):
        if not i & distance:
            out[i] = columns[i] + columns[i | distance]
            out[i | distance] = columns[i] - columns[i | distance]
    return out


def padded_size(size: int) -> int:
    """The power of two that holds `size` numbers."""
    return 1 << max(0, size - 1).bit_length()


def row_signs(row: Int[Array, ""], size: int, dtype: Any) -> Float[Array, "size"]:
    """The first `size` entries of row `row` of H."""
    shared = row.astype(jnp.uint32) & jnp.arange(size, dtype=jnp.uint32)
    return 1 - 2 * (jax.lax.population_count(shared) & 1).astype(dtype)


def random_signs(key: PRNGKey, size: int, dtype: Any) -> Float[Array, "size"]:
    """Independent signs, 32 from each random word."""
    words = jax.random.bits(key, (-(-size // 32),), jnp.uint32)
    bits = (words[:, None] >> jnp.arange(32, dtype=jnp.uint32)) & 1
    return 1 - 2 * bits.reshape(-1)[:size].astype(dtype)
