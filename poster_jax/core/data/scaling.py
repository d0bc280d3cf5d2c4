"""Bringing inputs to a common scale, measured on the training part alone.

Channels of images and columns of tables are scaled one by one: the last axis counts them.
"""

from typing import Any

import numpy as np

__all__ = ["rescale", "standardise"]


def standardise(train: Any, test: Any) -> tuple[Any, Any]:
    """Mean 0 and standard deviation 1 on the training part, for each channel or column.

    Args:
      train: numbers (examples, ..., channels).
      test: the same; scaled by the statistics of `train`.

    Returns:
      `(train, test)` as float32 numpy arrays. A channel that is constant in `train` becomes 0
      there.

    Source: this library.

    Example:
      >>> train, test = standardise(np.array([[1.0], [3.0]]), np.array([[5.0]]))
      >>> train.ravel().tolist(), test.ravel().tolist()
      ([-1.0, 1.0], [3.0])
    """
    axes = tuple(range(np.ndim(train) - 1))
    mean = np.mean(train, axes, dtype=np.float64)
    std = np.std(train, axes, dtype=np.float64)
    return _affine(train, test, mean, np.where(std > 0, std, 1.0))


def rescale(
    train: Any,
    test: Any,
    *,
    interval: tuple[float | int, float | int] = (-1.0, 1.0),
    value_range: tuple[float | int, float | int] | None = None,
) -> tuple[Any, Any]:
    """The range of the values brought to an interval, (-1, 1) by default.

    Args:
      train: numbers (examples, ..., channels).
      test: the same; scaled as `train`.
      interval: where the range goes.
      value_range: smallest and largest possible value, such as (0, 255); None takes the extremes of
        each channel of `train`, beyond which `test` may lie.

    Returns:
      `(train, test)` as float32 numpy arrays.

    Raises:
      ValueError: interval or value_range is not increasing.

    Source: this library; (-1, 1) as in Petzka et al., arXiv 2001.00939, for CIFAR-10.

    Example:
      >>> train, _ = rescale(np.array([[0.0], [255.0]]), np.ones((1, 1)), value_range=(0, 255))
      >>> train.ravel().tolist()
      [-1.0, 1.0]
    """
    for name, pair in {"interval": interval, "value_range": value_range}.items():
        if pair is not None and not pair[0] < pair[1]:
            raise ValueError(f"{name} must be (low, high) with low below high, got {pair}.")
    axes = tuple(range(np.ndim(train) - 1))
    low, high = (np.min(train, axes), np.max(train, axes)) if value_range is None else value_range
    low, width = np.asarray(low, np.float64), np.subtract(high, low, dtype=np.float64)
    scale = np.where(width > 0, width, 1.0) / (interval[1] - interval[0])
    return _affine(train, test, low - interval[0] * scale, scale)


def _affine(train: Any, test: Any, shift: Any, scale: Any) -> tuple[Any, Any]:
    # In float64 a channel at a time would not matter; at once it would double the memory of a
    # large set. float32 loses nothing here: the inputs are bytes or measured to few digits.
    shift, scale = np.asarray(shift, np.float32), np.asarray(scale, np.float32)
    return tuple((np.asarray(part, np.float32) - shift) / scale for part in (train, test))
