"""Set partitions, and the joint cumulant as a sum over them."""

import functools
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

__all__ = ["Partition", "cumulant", "set_partitions"]

Partition = tuple[tuple[int, ...], ...]


@functools.lru_cache(maxsize=32)
def set_partitions(size: int) -> tuple[Partition, ...]:
    """All partitions of 0..size-1 into blocks."""
    return tuple(tuple(map(tuple, blocks)) for blocks in _partitions(tuple(range(size))))


def _partitions(items: Sequence[int]) -> Iterator[list[list[int]]]:
    if not items:
        yield []
        return
    *rest, last = items
    for blocks in _partitions(rest):
        for at in range(len(blocks)):
            yield [[*block, last] if at == k else block for k, block in enumerate(blocks)]
        yield [*blocks, [last]]


def cumulant(size: int, product_of_means: Callable[[Partition], Any]) -> Any:
    """sum_P (-1)^(|P|-1) (|P|-1)! prod_{B in P} E[prod_{i in B} X_i] over partitions P.

    `product_of_means(P)` is the product over the blocks: exact, or an estimate of it.
    """
    terms = [
        product_of_means(P) * ((-1) ** (len(P) - 1) * math.factorial(len(P) - 1))
        for P in set_partitions(size)
    ]
    return functools.reduce(operator.add, terms)
