"""Which axes of a kernel are summed, kept once or kept twice, as labels for `einsum`.

Outputs on the first side have labels 0, 1, ..., on the second side further ones; a traced axis has
one label that the answer lacks, a diagonal one label that it keeps.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from poster_jax.core.typing import Array
from poster_jax.kernels._axes import canonical_axes

__all__ = ["Labels", "labels_of"]

_ENTRY = 1000  # the label of entries of a parameter, beyond those of any outputs


class Labels(NamedTuple):
    """Labels of one output leaf.

    Attributes:
      left: of the axes of the first side's outputs.
      right: of the second side's.
      kernel: of the answer, in its order.
      shape: of the answer.
      num_traced: how many entries are summed along the traced axes; the answer is divided by it.
    """

    left: list[int]
    right: list[int]
    kernel: list[int]
    shape: tuple[int, ...]
    num_traced: int

    def examples_first(self, labels: list[int], axis: int | None) -> list[int]:
        """`labels` in the order of arrays whose axis of examples was moved to the front."""
        if axis is None:
            return labels
        return [labels[axis], *labels[:axis], *labels[axis + 1 :]]

    def contract(self, *operands: Any) -> Array:
        """`einsum` of arrays and their labels, in the order of least work, over the traced size."""
        out = jnp.einsum(*operands, self.kernel, optimize="optimal", precision="highest")
        return out / self.num_traced

    def product(self, a: Array, left: list[int], b: Array, right: list[int]) -> Array:
        """`contract` of arrays (outputs..., entries) labelled `left` and `right`, over entries.

        As one product of two matrices where no axis is a diagonal: a product with several rows of
        axes is not recognised as such by the compiler, and takes up to twice as long.
        """
        if any(x in right and x in self.kernel for x in left):
            return self.contract(a, [*left, _ENTRY], b, [*right, _ENTRY])
        traced = [x for x in left if x in right]

        def matrix(x: Array, labels: list[int]) -> tuple[Array, list[int], list[int]]:
            free = [d for d, label in enumerate(labels) if label not in traced]
            order = [*free, *(labels.index(label) for label in traced), x.ndim - 1]
            shape = [x.shape[d] for d in free]
            flat = x.transpose(order).reshape(math.prod(shape), -1)
            return flat, [labels[d] for d in free], shape

        rows, row_labels, row_shape = matrix(a, left)
        columns, column_labels, column_shape = matrix(b, right)
        out = jax.lax.dot_general(rows, columns, (((1,), (1,)), ((), ())), precision="highest")
        names = row_labels + column_labels
        order = [names.index(label) for label in self.kernel]
        return out.reshape(row_shape + column_shape).transpose(order) / self.num_traced


def labels_of(
    first: Any, second: Any, trace_axes: int | Sequence[int], diagonal_axes: int | Sequence[int]
) -> Labels:
    """Labels for the kernel of outputs shaped like `first` with outputs shaped like `second`."""
    ndim = len(first.shape)
    traced = canonical_axes("trace_axes", trace_axes, ndim)
    diagonal = canonical_axes("diagonal_axes", diagonal_axes, ndim)
    if set(traced) & set(diagonal):
        raise ValueError(
            f"trace_axes and diagonal_axes must not share an axis, got {traced} and {diagonal}."
        )
    if len(second.shape) != ndim or any(
        first.shape[a] != second.shape[a] for a in traced + diagonal
    ):
        raise ValueError(
            f"f(params, x1) and f(params, x2) must agree along trace_axes {traced} and "
            f"diagonal_axes {diagonal}, got the shapes {first.shape} and {second.shape}."
        )
    left = list(range(ndim))
    right = [a if a in traced + diagonal else ndim + a for a in range(ndim)]
    kernel, shape = [], []
    for a in range(ndim):
        if a in traced:
            continue
        kernel += [left[a]] if a in diagonal else [left[a], right[a]]
        shape += [first.shape[a]] if a in diagonal else [first.shape[a], second.shape[a]]
    size = math.prod(first.shape[a] for a in traced)
    return Labels(left, right, kernel, tuple(shape), size)
