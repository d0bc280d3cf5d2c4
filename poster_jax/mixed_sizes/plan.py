"""Which examples an epoch shows at which size, and in which order."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from poster_jax.core.checks import check_count, check_key
from poster_jax.core.typing import Array, PRNGKey
from poster_jax.mixed_sizes.regime import SizeConfig

__all__ = ["EpochPlan", "epoch_plan", "epoch_steps"]


class EpochPlan(NamedTuple):
    """One epoch; every shape follows from the regime and the number of examples alone.

    Attributes:
      size_index: (steps,) int32, the size of each step, as an index into the regime.
      row: (steps,) int32, which row of that size's table the step takes.
      tables: for each size, (steps at this size, batch_size) int32 indices of examples.
    """

    size_index: Array
    row: Array
    tables: tuple[Array, ...]


def epoch_steps(num_examples: int, regime: Sequence[SizeConfig]) -> tuple[int, ...]:
    """Steps of an epoch at each size: whole batches only.

    Args:
      num_examples: examples of the training set.
      regime: of `size_regime`.

    Returns:
      One int for each size of the regime.

    Raises:
      ValueError: a size's share of the examples does not fill one batch.

    Source: Hoffer et al. 2019, arXiv 1908.08986, as in the authors' code.

    Example:
      >>> epoch_steps(1000, [SizeConfig(16, 0.5, 100, 1), SizeConfig(8, 0.5, 300, 1)])
      (5, 1)
    """
    parts = _parts(num_examples, regime)
    steps = []
    for part, config in zip(parts, regime, strict=True):
        if part < config.batch_size:
            raise ValueError(
                f"num_examples must fill a batch of {config.batch_size} at size {config.size}, "
                f"got {num_examples}, of which {part} are of this size."
            )
        steps.append(part // config.batch_size)
    return tuple(steps)


def epoch_plan(key: PRNGKey, num_examples: int, regime: Sequence[SizeConfig]) -> EpochPlan:
    """Deals the examples out to the sizes and shuffles the batches of all sizes.

    An example is seen at most once an epoch, at one size; last batches that are not full are
    dropped. Pure and of fixed shapes: jit it (num_examples and regime static) or vmap it over keys.

    Args:
      key: a PRNG key; another epoch takes another key.
      num_examples: examples of the training set.
      regime: of `size_regime`.

    Returns:
      An `EpochPlan`.

    Raises:
      ValueError: a size's share of the examples does not fill one batch.

    Source: Hoffer et al. 2019, arXiv 1908.08986, as in the authors' code.

    Example:
      >>> regime = [SizeConfig(16, 0.5, 2, 1), SizeConfig(8, 0.5, 4, 1)]
      >>> plan = epoch_plan(jax.random.key(0), 8, regime)
      >>> plan.size_index.shape, [table.shape for table in plan.tables]
      ((3,), [(2, 2), (1, 4)])
    """
    check_key("key", key)
    steps = epoch_steps(num_examples, regime)
    examples, order = jax.random.split(key)
    shuffled = jax.random.permutation(examples, num_examples).astype(jnp.int32)
    tables, start = [], 0
    for part, count, config in zip(_parts(num_examples, regime), steps, regime, strict=True):
        used = shuffled[start : start + count * config.batch_size]
        tables.append(used.reshape(count, config.batch_size))
        start += part
    sizes = np.repeat(np.arange(len(steps), dtype=np.int32), steps)
    rows = np.concatenate([np.arange(count, dtype=np.int32) for count in steps])
    shuffle = jax.random.permutation(order, len(sizes))
    return EpochPlan(jnp.asarray(sizes)[shuffle], jnp.asarray(rows)[shuffle], tuple(tables))


def _parts(num_examples: int, regime: Sequence[SizeConfig]) -> list[int]:
    """Examples of each size; the last takes the rest."""
    num_examples = check_count("num_examples", num_examples)
    if not regime:
        raise ValueError("regime must hold at least one SizeConfig, got none.")
    parts = [int(config.fraction * num_examples) for config in regime[:-1]]
    return [*parts, num_examples - sum(parts)]
