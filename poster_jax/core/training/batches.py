"""Which examples does step t see? Drawn on the device, a pure function of key and step.

Every epoch has its own permutation of the N examples, drawn once and cut into `N // batch_size`
full batches. The `N % batch_size` examples at its end are left out of that epoch: every batch has
the same size, so that a step is one program and a loss one mean, and as the permutation is new in
each epoch, each example is left out equally often. With `batch_size=None` (or N) a step sees the
data as they lie.
"""

import jax
import jax.numpy as jnp

from poster_jax.core.checks import check_batch, check_count
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


def epoch_order(key: PRNGKey, epoch: Int[Array, ""] | int, num_examples: int) -> Int[Array, "n"]:
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
    return jax.random.permutation(jax.random.fold_in(key, epoch), num_examples)


def check_data(data: Batch, batch_size: int | None) -> tuple[int, int]:
    """(steps per epoch, batch size) of a data set."""
    num_examples = check_batch(data, "data")
    steps = steps_per_epoch(num_examples, batch_size)
    return steps, num_examples if batch_size is None else batch_size


def take(data: Batch, rows: Int[Array, "batch_size"]) -> Batch:
    """The examples at `rows`, which are known to lie in range."""
    return jax.tree.map(lambda a: jnp.asarray(a).at[rows].get(mode="promise_in_bounds"), data)
