"""Which image sizes, how much of the data each gets, and what that costs."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from poster_jax.core.checks import check_choice, check_count

__all__ = ["RegimeCost", "SizeConfig", "regime_cost", "size_regime"]

_ADAPT = ("batch", "both", "duplicates", "none")


class SizeConfig(NamedTuple):
    """One image size of a regime.

    Attributes:
      size: side of the square images, in pixels.
      fraction: share of the *examples* of an epoch at this size (not of the steps).
      batch_size: distinct examples of a step.
      duplicates: independently augmented copies of each, so a step sees batch_size * duplicates.
    """

    size: int
    fraction: float
    batch_size: int
    duplicates: int


class RegimeCost(NamedTuple):
    """An epoch of a regime in units of an epoch at the base size.

    Attributes:
      pixels: pixels processed; for a convolutional network, computations too.
      steps: optimiser steps.
    """

    pixels: float
    steps: float


def size_regime(
    sizes: Sequence[int],
    fractions: Sequence[float],
    *,
    base_size: int,
    base_batch: int,
    base_duplicates: int = 1,
    adapt: str = "batch",
) -> tuple[SizeConfig, ...]:
    """Batch and copies for each size, so that a step costs about as much at every size.

    With r = (base_size / size)^2 the batch becomes r * base_batch ("batch", B+) or each example is
    repeated r times with fresh augmentation ("duplicates", D+); with "both" each grows by
    base_size / size. Rounding is half to even. Where fewer than half a copy would be left the
    batch shrinks instead.

    Args:
      sizes: sides of the images in pixels, all different.
      fractions: share of the examples of each size; they sum to 1.
      base_size: side at which base_batch and base_duplicates are meant.
      base_batch: distinct examples of a step at base_size.
      base_duplicates: copies of each at base_size.
      adapt: "batch", "duplicates", "both", or "none" (base_size only).

    Returns:
      A `SizeConfig` for each size, in the order given.

    Raises:
      ValueError: sizes and fractions do not fit each other, fractions do not sum to 1, a batch
        would round to nothing, or "none" with another size than base_size.

    Source: Hoffer et al. 2019, arXiv 1908.08986, with the constants of the authors' code.

    Example:
      >>> [(c.batch_size, c.duplicates) for c in size_regime(
      ...     (32, 16), (0.5, 0.5), base_size=32, base_batch=64, adapt="duplicates")]
      [(64, 1), (64, 4)]
    """
    base_size = check_count("base_size", base_size)
    base_batch = check_count("base_batch", base_batch)
    base_duplicates = check_count("base_duplicates", base_duplicates)
    check_choice("adapt", adapt, _ADAPT)
    sizes = [check_count("sizes", size) for size in sizes]
    fractions = [float(fraction) for fraction in fractions]
    if not sizes or len(set(sizes)) != len(sizes) or len(sizes) != len(fractions):
        raise ValueError(
            f"sizes must be different and one for each fraction, got {sizes} and {fractions}."
        )
    if not all(f > 0 for f in fractions) or abs(sum(fractions) - 1) > 1e-6:
        raise ValueError(f"fractions must be above 0 and sum to 1, got {fractions}.")
    if adapt == "none" and sizes != [base_size]:
        raise ValueError(f"sizes must be [{base_size}], the base_size, for 'none', got {sizes}.")
    configs = []
    for size, fraction in zip(sizes, fractions, strict=True):
        ratio = base_size / size if adapt == "both" else (base_size / size) ** 2
        grow_batch = adapt in ("batch", "both")
        grow_copies = adapt in ("duplicates", "both")
        if grow_copies and ratio * base_duplicates < 0.5:
            grow_batch, grow_copies = True, False
        batch = round(ratio * base_batch) if grow_batch else base_batch
        copies = max(1, round(ratio * base_duplicates)) if grow_copies else base_duplicates
        if batch < 1:
            raise ValueError(
                f"base_batch must leave at least one example at size {size}, got {base_batch}."
            )
        configs.append(SizeConfig(size, fraction, batch, copies))
    return tuple(configs)


def regime_cost(
    regime: Sequence[SizeConfig],
    *,
    base_size: int,
    base_batch: int,
    base_duplicates: int = 1,
) -> RegimeCost:
    """Pixels and steps of an epoch, relative to training at the base size only.

    Args:
      regime: of `size_regime`.
      base_size: side of the images compared with, in pixels.
      base_batch: their distinct examples of a step.
      base_duplicates: copies of each.

    Returns:
      `RegimeCost(pixels, steps)`; dropped last batches are not counted.

    Source: Hoffer et al. 2019, arXiv 1908.08986: sum p D s^2 / (D0 S^2) and sum p B0 / B.

    Example:
      >>> regime = size_regime((32, 16), (0.5, 0.5), base_size=32, base_batch=64)
      >>> regime_cost(regime, base_size=32, base_batch=64)
      RegimeCost(pixels=0.625, steps=0.625)
    """
    size, fraction, batch, copies = np.array(list(regime), dtype=float).T
    pixels = (fraction * copies * size**2).sum() / (base_duplicates * base_size**2)
    return RegimeCost(float(pixels), float((fraction * base_batch / batch).sum()))
