"""How the strength of a weight regulariser falls during training, as its authors let it fall."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from poster_jax.core.checks import check_count, check_positive
from poster_jax.core.typing import Scalar

__all__ = ["orthogonality_decay_schedule"]


def orthogonality_decay_schedule(
    steps_per_epoch: int,
    *,
    init_value: float = 1e-2,
    epochs: Sequence[int] = (20, 50, 70, 120),
    factors: Sequence[float] = (1e-3, 1e-4, 1e-6, 0.0),
) -> Callable[[Any], Scalar]:
    """The coefficient of SO, DSO, MC or SRIP at a step: constant, then down in jumps, then off.

    Used as a schedule of optax: `loss + schedule(step) * soft_orthogonality(kernel)`.

    Args:
      steps_per_epoch: optimiser steps in one pass over the data, at least 1.
      init_value: the coefficient during the first epochs, at least 0.
      epochs: after how many whole epochs each factor starts to hold; increasing.
      factors: what init_value (not the coefficient before) is multiplied by from there on.

    Returns:
      `schedule(step) -> scalar` float32, `step` an integer from 0, traced or not.

    Raises:
      ValueError: steps_per_epoch below 1, init_value or a factor negative or not finite, epochs not
        increasing or of another length than factors.
      TypeError: steps_per_epoch or one of epochs is no integer.

    Source: VITA-Group/Orthogonality-in-CNNs, Wide-Resnet/train_n.py (200 epochs in all), which
      counts epochs from 1 and changes when their number exceeds 20, 50, 70, 120.

    Example:
      >>> schedule = orthogonality_decay_schedule(391)
      >>> [f"{float(schedule(391 * epoch)):.0e}" for epoch in (0, 20, 50, 70, 120)]
      ['1e-02', '1e-05', '1e-06', '1e-08', '0e+00']
    """
    check_count("steps_per_epoch", steps_per_epoch)
    check_positive("init_value", init_value, zero_allowed=True)
    check_positive("factors", factors, zero_allowed=True)
    for epoch in epochs:
        check_count("epochs", epoch)
    if len(epochs) != len(factors) or any(np.diff(epochs) <= 0):
        raise ValueError(
            "epochs must increase and be as many as factors, got "
            f"{tuple(epochs)} and {tuple(factors)}."
        )
    starts = np.asarray(epochs, np.int32) * steps_per_epoch
    values = init_value * np.asarray([1.0, *factors])

    def schedule(step: Any) -> Scalar:
        return jnp.asarray(values, jnp.float32)[jnp.searchsorted(starts, step, side="right")]

    return schedule
