"""What all tests of normality share: their result, and samples as columns, in order and scaled."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from poster_jax.core.batching import map_over_batch
from poster_jax.core.typing import Array
from poster_jax.gradient_noise.normality._sorting import columns_at_once, sort_columns

__all__ = [
    "Measured",
    "NormalityTest",
    "as_result",
    "check_samples",
    "measure_samples",
    "measure_sorted",
    "standardize",
]


class NormalityTest(NamedTuple):
    """A test of normality of each sample, mean and variance unknown.

    Attributes:
      statistic: of the samples' leading axes; NaN where all of a sample is one number, or where it
        holds a number that is not finite.
      pvalue: likewise; uniform on [0, 1] for normal samples.
    """

    statistic: Any
    pvalue: Any


class Measured(NamedTuple):
    """A test before its statistic has the name and the sign that the literature gives it.

    Attributes:
      departure: larger for samples less normal, without the rounding of a statistic near 1.
      pvalue: as in `NormalityTest`.
    """

    departure: Array
    pvalue: Array


def check_samples(samples: Any, axis: Any, test: str, minimum: int, maximum: int | None) -> Array:
    """Samples in float32 or wider with the sample axis last; says which size `test` needs."""
    if not hasattr(samples, "shape") or not hasattr(samples, "dtype"):
        samples = np.asarray(samples)
    if not jnp.issubdtype(samples.dtype, jnp.floating) and not jnp.issubdtype(
        samples.dtype, jnp.integer
    ):
        raise TypeError(f"samples must be real numbers, got {samples.dtype}.")
    if isinstance(axis, bool) or not isinstance(axis, int | np.integer):
        raise TypeError(f"axis must be an integer, got {axis!r}.")
    ndim = len(samples.shape)
    if not -ndim <= axis < ndim:
        raise ValueError(f"axis must be an axis of samples of shape {samples.shape}, got {axis}.")
    size = samples.shape[axis]
    if size < minimum or (maximum is not None and size > maximum):
        need = f"at least {minimum}" if maximum is None else f"between {minimum} and {maximum}"
        raise ValueError(
            f"samples must hold {need} numbers along axis {axis} for {test}, got {size}."
        )
    if 0 in samples.shape:
        raise ValueError(f"samples must hold at least 1 sample, got the shape {samples.shape}.")
    # float16 holds neither the squares nor the sums of what it holds.
    samples = jnp.asarray(samples)
    return jnp.moveaxis(samples.astype(jnp.promote_types(samples.dtype, jnp.float32)), axis, -1)


def measure_sorted(measures: tuple[Callable[[Array], Any], ...], samples: Array) -> tuple[Any, ...]:
    """Every measure of `standardize(sorted sample)`, (numbers, columns) -> pytree of (columns,)."""
    return _measure(measures, samples, True)


def measure_samples(
    measures: tuple[Callable[[Array], Any], ...], samples: Array
) -> tuple[Any, ...]:
    """The same for measures that do not ask for order."""
    return _measure(measures, samples, False)


@partial(jax.jit, static_argnums=(0, 2))
def _measure(measures: tuple[Callable[[Array], Any], ...], samples: Array, in_order: bool) -> Any:
    *lead, size = samples.shape

    def measure(rows: Array) -> Any:
        columns = rows.T
        if in_order:
            columns = sort_columns(columns)
            low, high = columns[0], columns[-1]
        else:
            low, high = columns.min(axis=0), columns.max(axis=0)
        columns = standardize(columns, low, high)
        return tuple(fn(columns) for fn in measures)

    rows = samples.reshape(-1, size)
    out = map_over_batch(measure, rows, microbatch=columns_at_once(size))
    return jax.tree.map(lambda leaf: leaf.reshape(lead), out)


def standardize(columns: Array, low: Array, high: Array) -> Array:
    """Centred columns with a range of 1: squares of 1e-25 would vanish in float32.

    Taking off one of the numbers first leaves the error of a difference, not of a sum; the mean of
    those differences is small. A range of zero, or one that is not finite, gives NaN.
    """
    differences = (columns - columns[len(columns) // 2]) / (high - low)
    return differences - differences.mean(axis=0)


def as_result(measured: Measured) -> NormalityTest:
    """For tests whose statistic is the departure itself."""
    return NormalityTest(measured.departure, measured.pvalue)
