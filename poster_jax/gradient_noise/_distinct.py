"""Distinct random integers out of a long range, without permuting the range."""

from functools import partial

import jax
import jax.numpy as jnp

from poster_jax.core.typing import Array, Int, PRNGKey

# A multiplication carries upwards only, a shift downwards only: after a few of both, every bit of
# the result depends on every bit of the number.
ROUNDS = 6


@partial(jax.jit, static_argnums=(1, 2))
def distinct_integers(key: PRNGKey, num: int, below: int) -> Int[Array, "num"]:
    """`num` distinct integers from 0 to `below - 1`, in O(num) time and memory.

    The images of 0, 1, 2, ... under a random bijection of the numbers of k bits. An image that is
    not below the bound is mapped again until it is ("cycle walking", Black and Rogaway 2002), which
    leaves a bijection.
    """
    bits = max(1, (below - 1).bit_length())
    mask = jnp.uint32(2**bits - 1)
    numbers = jax.random.bits(key, (ROUNDS, 2), jnp.uint32)

    def mix(x: Array) -> Array:
        for factor, shift in numbers:
            x = (x * (factor | 1) + shift) & mask
            x = x ^ (x >> ((bits + 1) // 2))
        return x

    def again(x: Array) -> Array:
        return jnp.where(x < below, x, mix(x))

    x = mix(jnp.arange(num, dtype=jnp.uint32))
    return jax.lax.while_loop(lambda x: (x >= below).any(), again, x).astype(jnp.int32)
