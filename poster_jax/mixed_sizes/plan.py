"""Which examples an epoch shows at which size, and in which order."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from poster_jax.core.checks import check_choice, check_count, check_key
from poster_jax.core.training import epoch_order
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


def epoch_steps(
    num_examples: int,
    regime: Sequence[SizeConfig],
    *,
    sampling: str = "examples",
    passes: int = 1,
) -> tuple[int, ...]:
    """Steps of an epoch at each size: whole batches only.

    Args:
      num_examples: examples of the training set.
      regime: of `size_regime`.
      sampling: what a fraction is a share of: "examples", or "steps", which gives small images
        with large batches more of the examples.
      passes: how often an epoch goes through the training set. More than one lets a small set
        fill the batches of every size.

    Returns:
      One int for each size of the regime.

    Raises:
      ValueError: a size's share does not fill one batch, unknown sampling, or passes below 1.

    Source: Hoffer et al. 2019, arXiv 1908.08986; shares of examples as in the authors' code.

    Example:
      >>> regime = [SizeConfig(16, 0.5, 100, 1), SizeConfig(8, 0.5, 300, 1)]
      >>> epoch_steps(1000, regime), epoch_steps(1000, regime, sampling="steps")
      ((5, 1), (2, 2))
    """
    check_choice("sampling", sampling, ("examples", "steps"))
    parts = _parts(num_examples, regime, sampling, passes)
    steps = []
    for part, config in zip(parts, regime, strict=True):
        if part < config.batch_size:
            raise ValueError(
                f"num_examples must fill a batch of {config.batch_size} at size {config.size}, "
                f"got {num_examples}, of which {part} are of this size; more passes help."
            )
        steps.append(part // config.batch_size)
    return tuple(steps)


def epoch_plan(
    key: PRNGKey,
    num_examples: int,
    regime: Sequence[SizeConfig],
    *,
    epoch: Any = 0,
    size_key: PRNGKey | None = None,
    sampling: str = "examples",
    passes: int = 1,
) -> EpochPlan:
    """Deals the examples out to the sizes and shuffles the batches of all sizes.

    An example is seen at most once a pass, at one size; last batches that are not full are
    dropped. Pure and of fixed shapes: jit it (num_examples and regime static) or vmap it over keys.
    With one size the batches are those of `core.training.fit`.

    Args:
      key: a PRNG key.
      num_examples: examples of the training set.
      regime: of `size_regime`.
      epoch: counted from 0; may be traced.
      size_key: of the order of the sizes alone; None takes it from key.
      sampling: as in `epoch_steps`.
      passes: as in `epoch_steps`.

    Returns:
      An `EpochPlan`.

    Raises:
      ValueError: as `epoch_steps`.

    Source: Hoffer et al. 2019, arXiv 1908.08986, as in the authors' code.

    Example:
      >>> regime = [SizeConfig(16, 0.5, 2, 1), SizeConfig(8, 0.5, 4, 1)]
      >>> plan = epoch_plan(jax.random.key(0), 8, regime)
      >>> plan.size_index.shape, [table.shape for table in plan.tables]
      ((3,), [(2, 2), (1, 4)])
    """
    check_key("key", key)
    steps = epoch_steps(num_examples, regime, sampling=sampling, passes=passes)
    # One sort of all passes: each compiles by itself otherwise.
    order_of = lambda epoch: epoch_order(key, epoch, num_examples)  # noqa: E731
    shuffled = (
        jax.vmap(order_of)(epoch * passes + jnp.arange(passes)).ravel()
        if passes > 1
        else order_of(epoch)
    )
    tables, start = [], 0
    parts = _parts(num_examples, regime, sampling, passes)
    for part, count, config in zip(parts, steps, regime, strict=True):
        used = shuffled[start : start + count * config.batch_size]
        tables.append(used.reshape(count, config.batch_size))
        start += part
    sizes = np.repeat(np.arange(len(steps), dtype=np.int32), steps)
    rows = np.concatenate([np.arange(count, dtype=np.int32) for count in steps])
    if len(steps) == 1:  # examples are shuffled already
        return EpochPlan(jnp.asarray(sizes), jnp.asarray(rows), tuple(tables))
    # Epochs fold in 0, 1, 2, ...: the largest number is never one of them.
    order = jax.random.fold_in(key, 2**32 - 1) if size_key is None else size_key
    shuffle = epoch_order(order, epoch, len(sizes))
    return EpochPlan(jnp.asarray(sizes)[shuffle], jnp.asarray(rows)[shuffle], tuple(tables))


def _parts(
    num_examples: int, regime: Sequence[SizeConfig], sampling: str, passes: int
) -> list[int]:
    """Examples of each size; the last takes the rest."""
    total = check_count("num_examples", num_examples) * check_count("passes", passes)
    if not regime:
        raise ValueError("regime must hold at least one SizeConfig, got none.")
    if sampling == "steps":
        return _shares_of_steps(total, regime)
    parts = [int(config.fraction * total) for config in regime[:-1]]
    return [*parts, total - sum(parts)]


def _shares_of_steps(total: int, regime: Sequence[SizeConfig]) -> list[int]:
    """Examples of each size where steps have the fractions: as many steps as they suffice for."""
    mean_batch = sum(config.fraction * config.batch_size for config in regime)
    for steps in range(int(total / mean_batch), 0, -1):
        counts = [round(config.fraction * steps) for config in regime[:-1]]
        counts.append(steps - sum(counts))
        parts = [count * config.batch_size for count, config in zip(counts, regime, strict=True)]
        if sum(parts) <= total and min(counts) >= 0:
            return parts
    return [0] * len(regime)
