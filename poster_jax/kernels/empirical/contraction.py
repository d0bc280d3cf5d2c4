"""The NTK of one output leaf: derivatives on one side times derivatives on the other."""

from typing import Any

import jax.numpy as jnp

from poster_jax.core.typing import Array
from poster_jax.kernels.empirical.factors import Derivative
from poster_jax.kernels.empirical.labels import Labels

__all__ = ["contract"]

# Labels of the axes of factors, beyond those of any outputs: entries of a parameter; groups, what
# a weight multiplies, what it answers, and positions on either side.
_ENTRY, _GROUP, _IN, _OUT, _PLACE_1, _PLACE_2 = range(1000, 1006)


def contract(
    first: Derivative,
    second: Derivative,
    labels: Labels,
    axes: tuple[int | None, int | None],
    dtype: Any,
) -> Array:
    """The sum over all parameters of the products of both derivatives.

    Args:
      first: of the outputs on the first batch, examples in front where they were cut.
      second: on the second batch.
      labels: of the axes of both outputs and of the kernel.
      axes: for each side which axis of the outputs the examples were.
      dtype: of the answer when no parameter enters.
    """
    left = labels.examples_first(labels.left, axes[0])
    right = labels.examples_first(labels.right, axes[1])
    terms = [
        labels.contract(first.whole[i], [*left, _ENTRY], second.whole[i], [*right, _ENTRY])
        for i in first.whole
    ]
    for i in first.inputs:
        operands = [
            *_factors(first, i, left, axes[0], _PLACE_1),
            *_factors(second, i, right, axes[1], _PLACE_2),
        ]
        terms.append(labels.contract(*operands))
    return sum(terms[1:], terms[0]) if terms else jnp.zeros(labels.shape, dtype)


def _factors(
    side: Derivative, i: int, outputs: list[int], axis: int | None, place: int
) -> list[Any]:
    examples = [] if axis is None else outputs[:1]
    return [
        *_without_units(side.inputs[i], [*examples, _GROUP, place, _IN], len(examples)),
        *_without_units(side.outputs[i], [*outputs, _GROUP, place, _OUT], len(outputs)),
    ]


def _without_units(array: Array, labels: list[int], kept: int) -> tuple[Array, list[int]]:
    """Drops axes of one entry behind the first `kept`, which would hide plain matrix products."""
    units = [d for d in range(kept, array.ndim) if array.shape[d] == 1]
    return jnp.squeeze(array, units), [x for d, x in enumerate(labels) if d not in units]
