"""Which examples does step t see? Drawn on the device, a pure function of key and step.

Every epoch has its own permutation of the N examples, drawn once and cut into `N // batch_size`
full batches. The `N % batch_size` examples at its end are left out of that epoch: every batch has
the same size, so that a step is one program and a loss one mean, and as the permutation is new in
each epoch, each example is left out equally often. With `batch_size=None` (or N) a step sees the
data as they lie.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from poster_jax.core.checks import check_batch, check_count, check_key
from poster_jax.core.typing import Array, Batch, Int, PRNGKey

__all__ = ["epoch_order", "steps_per_epoch"]


def steps_per_epoch(num_examples: int, batch_size: int | None) -> int:
    """How many full batches an epoch has: `num_examples // batch_size`.

    Args:
      num_examples: N.
      batch_size: examples a step; None takes all.

    Returns:
      The number of steps.

    Raises:
      ValueError: batch_size is below 1 or above N.

    Source: this library.

    Example:
      >>> steps_per_epoch(1000, 64)
      15
    """
    check_count("num_examples", num_examples)
    if batch_size is None:
        return 1
    check_count("batch_size", batch_size)
    if batch_size > num_examples:
        raise ValueError(
            f"batch_size must be at most the number of examples, {num_examples}, got {batch_size}."
        )
    return num_examples // batch_size


def epoch_order(key: PRNGKey, epoch: Int[Array, "..."] | int, num_examples: int) -> Int[Array, "n"]:
    """In which order epoch `epoch` visits the examples.

    Args:
      key: the key of the order; networks with the same one see the same batches.
      epoch: counted from 0; may be traced.
      num_examples: N.

    Returns:
      int32 (N,), a permutation; batch b is entries `[b * batch_size, (b + 1) * batch_size)`.

    Source: this library.

    Example:
      >>> sorted(epoch_order(jax.random.key(0), 3, 4).tolist())
      [0, 1, 2, 3]
    """
    # Each word holds random bits above the index: on the CPU, sorting one array of words is five
    # times faster than sorting indices by keys, as jax.random.permutation does (21 against 118
    # microseconds for 1,000 examples; a step of a small network costs 10). Words that tie in their
    # random bits stay in order, so there are enough rounds for a tie in all of them to have odds
    # of N^-3 a pair, jax.random.permutation's own rule.
    index_bits = max(1, (num_examples - 1).bit_length())
    rounds = max(1, math.ceil(3 * math.log2(num_examples) / (32 - index_bits)))
    noise = jax.random.bits(jax.random.fold_in(key, epoch), (rounds, num_examples), jnp.uint32)
    places = jnp.arange(num_examples, dtype=jnp.uint32)
    words = jnp.sort((noise << index_bits) | places) & (2**index_bits - 1)
    order = places
    for word in words:
        order = order[word]
    return order.astype(jnp.int32)


class BatchStream:
    """The batches of a run, a pure function of the order's key and the step.

    Attributes:
      batch_size: examples a batch.
      epoch_steps: batches an epoch.
      example: a batch of the right shapes, for checks.
    """

    def __init__(self, data: Batch, batch_size: int | None, key: PRNGKey) -> None:
        """Looks at the data once; ValueError when they are ragged, empty, or not finite."""
        check_key("batch_key", key)
        self._num_examples = check_batch(data, "data")
        self.epoch_steps = steps_per_epoch(self._num_examples, batch_size)
        self.batch_size = self._num_examples if batch_size is None else batch_size
        self._data = jax.tree.map(jnp.asarray, data)
        self._key = key
        self._whole = self.batch_size == self._num_examples
        self.example = jax.tree.map(lambda a: a[: self.batch_size], self._data)

    def first(self, clock: Any) -> Any:
        """The order of the epoch to which step `clock` belongs; () when nothing is permuted."""
        return () if self._whole else self._order(clock // self.epoch_steps)

    def draw(self, order: Any, clock: Any) -> tuple[Any, Batch]:
        """The order at step `clock`, renewed where an epoch begins, and the batch of that step."""
        if self._whole:
            return order, self._data
        place = clock % self.epoch_steps
        epoch = clock // self.epoch_steps
        order = jax.lax.cond(place == 0, self._order, lambda _: order, epoch)
        rows = jax.lax.dynamic_slice(order, (place * self.batch_size,), (self.batch_size,))
        return order, self.take(rows)

    def epoch(self, epoch: Any) -> Any:
        """The rows of each batch of an epoch, (epoch_steps, batch_size), for `take`."""
        used = self.epoch_steps * self.batch_size
        order = jnp.arange(used) if self._whole else self._order(epoch)[:used]
        return order.reshape(self.epoch_steps, self.batch_size)

    def take(self, rows: Int[Array, "batch_size"]) -> Batch:
        """The examples at `rows`."""
        if self._whole:
            return self._data
        # Rows lie in range by construction: no clamping to compute.
        return jax.tree.map(lambda a: a.at[rows].get(mode="promise_in_bounds"), self._data)

    def _order(self, epoch: Any) -> Any:
        return epoch_order(self._key, epoch, self._num_examples)


def order_key(key: PRNGKey) -> PRNGKey:
    """The key of the order of the examples that belongs to a run's key."""
    # Steps fold in 0, 1, 2, ...: the largest number is never one of them.
    return jax.random.fold_in(key, 2**32 - 1)
