"""The NTK of one output leaf: derivatives on one side times derivatives on the other."""

import math
from typing import Any

import jax.numpy as jnp

from poster_jax.core.precision import full_precision
from poster_jax.core.typing import Array
from poster_jax.kernels.empirical.factors import Derivative
from poster_jax.kernels.empirical.labels import Labels

__all__ = ["contract"]

# Labels of the axes of factors, beyond those of any outputs: groups, what a weight multiplies, what
# it answers, and positions on either side.
_GROUP, _IN, _OUT, _PLACE_1, _PLACE_2 = range(1000, 1005)


@full_precision
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
    terms = [labels.product(first.whole[i], left, second.whole[i], right) for i in first.whole]
    for i in first.inputs:
        operands = [
            *_factors(first, i, left, axes[0], _PLACE_1),
            *_factors(second, i, right, axes[1], _PLACE_2),
        ]
        if _multiply_out(first, second, i, labels, operands):
            one = _multiplied(first, i, axes[0])
            other = one if second is first else _multiplied(second, i, axes[1])
            terms.append(labels.product(one, left, other, right))
        else:
            terms.append(labels.contract(*operands))
    return sum(terms[1:], terms[0]) if terms else jnp.zeros(labels.shape, dtype)


def _multiply_out(
    first: Derivative, second: Derivative, i: int, labels: Labels, operands: list[Any]
) -> bool:
    """Whether derivatives by every entry, and their products, cost less than any other order."""
    sides = [first] if second is first else [first, second]
    entries = math.prod(first.inputs[i].shape[-1:] + first.outputs[i].shape[-1:])
    cost = 2.0 * entries * sum(math.prod(side.outputs[i].shape[:-1]) for side in sides)
    entries *= first.inputs[i].shape[-3]
    cost += 2.0 * entries * math.prod(labels.shape) * labels.num_traced
    _, order = jnp.einsum_path(*operands, labels.kernel, optimize="optimal")
    return cost <= order.opt_cost


def _multiplied(side: Derivative, i: int, axis: int | None) -> Array:
    """The derivative by parameter i, (outputs..., entries), as `whole` has others."""
    inputs, outputs = side.inputs[i], side.outputs[i]
    examples = () if axis is None else outputs.shape[:1]
    others = outputs.shape[len(examples) : -3]
    num_groups, num_places, num_out = outputs.shape[-3:]
    a = inputs.reshape(-1, num_groups, num_places, inputs.shape[-1])
    b = outputs.reshape(math.prod(examples), math.prod(others), *outputs.shape[-3:])
    # A product for each example, whose rows are outputs and features: already in the order wanted.
    b = b.transpose(0, 2, 1, 4, 3).reshape(b.shape[0], num_groups, -1, num_places)
    product = (b @ a).reshape(b.shape[0], num_groups, math.prod(others), num_out, -1)
    return product.transpose(0, 2, 1, 3, 4).reshape(*examples, *others, -1)


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
