"""The covariances of `lax.dot_general` of activations with a constant array.

Every axis gets a name. An axis of the activations occurs twice in a covariance, as its left and its
right copy, and the constant is applied to both; one einsum then does it.
"""

import itertools
from typing import Any

import jax.numpy as jnp

__all__ = ["contract"]


def contract(kernel: Any, other1: Any, other2: Any, is_lhs: bool, dimension_numbers: Any) -> Any:
    """`kernel` after the activations' product with `other1` (first batch) and `other2` (second)."""
    if other1 is not None and other2 is not None and other1.ndim != other2.ndim:
        raise NotImplementedError(
            "The factors of the two batches must have equally many axes, got "
            f"{other1.ndim} and {other2.ndim}."
        )
    ndim = len(kernel.shape1)
    other_ndim = (other2 if other1 is None else other1).ndim
    inputs = [f"x{i}" for i in range(ndim)]
    batch, channel = inputs[kernel.batch_axis], inputs[kernel.channel_axis]
    other, summed, shared = _names(inputs, other_ndim, is_lhs, dimension_numbers)
    if channel in other:
        raise ValueError(
            f"dimension_numbers must not name the channel axis {kernel.channel_axis}, which is "
            f"infinite, got {dimension_numbers}."
        )
    free_inputs = [name for name in inputs if name not in summed + shared]
    free_other = [name for name in other if name not in inputs]
    out = shared + (free_other + free_inputs if is_lhs else free_inputs + free_other)

    def dot(x, batch_ndim):
        # Names with one copy in this covariance: nothing to tell left from right.
        single = {batch} if batch_ndim == 1 else set()
        single |= set(inputs + other) - {batch} if kernel.diagonal_spatial else set()
        copies = {
            name: ([name] if name in single else [name, name + "'"]) for name in inputs + other
        }
        spatial = [name for name in inputs if name not in (batch, channel)]
        positions = [name for name in out if name not in (batch, channel)]
        # cov1 meets only the first factor, cov2 only the second; `dot` is called with the pair.
        x, left, right = x
        operands = [x, _flat(copies, [batch, *spatial])]
        if left is not None:
            operands += [left, [copies[name][0] for name in other]]
        if right is not None:
            operands += [right, [copies[name][-1] for name in other]]
        result = _flat(copies, [batch] * (batch in out) + positions)
        return _einsum(operands, result)

    def maybe(x, batch_ndim, left, right):
        if x is None or jnp.ndim(x) == 0 or (left is None and right is None):
            return x
        return dot((x, left, right), batch_ndim)

    return kernel.replace(
        nngp=maybe(kernel.nngp, 2, other1, other2),
        ntk=maybe(kernel.ntk, 2, other1, other2),
        cov1=maybe(kernel.cov1, kernel.cov_ndim, other1, other1),
        cov2=maybe(kernel.cov2, kernel.cov_ndim, other2, other2),
        # A batch axis that was summed away leaves no position; nothing can follow such a layer.
        batch_axis=out.index(batch) if batch in out else kernel.batch_axis,
        channel_axis=out.index(channel),
    )


def _names(inputs: list[str], other_ndim: int, is_lhs: bool, dimension_numbers: Any) -> Any:
    (lhs_sum, rhs_sum), (lhs_batch, rhs_batch) = dimension_numbers
    own_sum, other_sum = (rhs_sum, lhs_sum) if is_lhs else (lhs_sum, rhs_sum)
    own_batch, other_batch = (rhs_batch, lhs_batch) if is_lhs else (lhs_batch, rhs_batch)
    other = [f"o{i}" for i in range(other_ndim)]
    for mine, theirs in zip((*own_sum, *own_batch), (*other_sum, *other_batch), strict=True):
        other[theirs] = inputs[mine]
    return other, [inputs[i] for i in own_sum], [inputs[i] for i in own_batch]


def _flat(copies: dict[str, list[str]], names: list[str]) -> list[str]:
    return list(itertools.chain.from_iterable(copies[name] for name in names))


def _einsum(operands: list[Any], result: list[str]) -> Any:
    numbers: dict[str, int] = {}

    def number(names):
        return [numbers.setdefault(name, len(numbers)) for name in names]

    numbered = [number(term) if i % 2 else term for i, term in enumerate(operands)]
    return jnp.einsum(*numbered, number(result), optimize=True)
