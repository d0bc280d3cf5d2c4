"""Means and joint cumulants from samples, without bias, through their power sums.

With S(A) = sum over networks of prod_{i in A} X_i, the unbiased estimate of a product of means
E[X_B1] .. E[X_Bk] is a sum over k different networks, which is a combination of products of power
sums; so are the k-statistics, and each of their leave-one-out values. Power sums add up, which
makes a bootstrap over blocks of networks one matrix product.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from poster_jax.finite_width.feynman._partitions import cumulant, set_partitions

__all__ = ["Statistic", "block_sums", "jackknife_error", "power_sums"]

Subset = tuple[int, ...]


class Statistic:
    """The mean of the product of the columns, or their joint cumulant, from power sums.

    Attributes:
      subsets: of columns; the order of the power sums. The first is the empty one: the number.
    """

    def __init__(self, num_columns: int, *, connected: bool) -> None:
        columns = range(num_columns)
        self.connected = connected and num_columns > 1
        self.subsets: tuple[Subset, ...] = (
            tuple(
                itertools.chain.from_iterable(
                    itertools.combinations(columns, k) for k in range(num_columns + 1)
                )
            )
            if self.connected
            else ((), tuple(columns))
        )
        self.place = {subset: k for k, subset in enumerate(self.subsets)}

    def __call__(self, sums: Any) -> Any:
        """(..., subsets) -> (...)."""
        number = sums[..., 0]
        if not self.connected:
            return sums[..., 1] / number
        num_columns = len(self.subsets[-1])

        def product_of_means(blocks: tuple[Subset, ...]) -> Any:
            # Over different networks: sum_Q prod_{C in Q} (-1)^(|C|-1) (|C|-1)! S(union of C).
            total = 0.0
            for merged in set_partitions(len(blocks)):
                term = 1.0
                for group in merged:
                    together = tuple(sorted(i for at in group for i in blocks[at]))
                    sign = (-1) ** (len(group) - 1) * math.factorial(len(group) - 1)
                    term = term * (sign * sums[..., self.place[together]])
                total = total + term
            return total / math.prod(number - taken for taken in range(len(blocks)))

        return cumulant(num_columns, product_of_means)

    @property
    def min_networks(self) -> int:
        """Fewer have no estimate with an error."""
        return 1 + (len(self.subsets[-1]) if self.connected else 1)


def power_sums(statistic: Statistic, samples: np.ndarray) -> np.ndarray:
    """(networks, subsets): the terms of the sums.

    Cumulants do not change when the mean is taken off, and keep their digits so.
    """
    if statistic.connected:
        samples = samples - samples.mean(axis=0)
    return np.stack([samples[:, list(s)].prod(axis=1) for s in statistic.subsets], axis=1)


def jackknife_error(statistic: Callable[[Any], Any], terms: np.ndarray) -> float:
    """The standard error, from the values without one network each."""
    count = len(terms)
    without = statistic(terms.sum(axis=0) - terms)
    return float(np.sqrt((count - 1) * np.mean((without - without.mean()) ** 2)))


def block_sums(terms: np.ndarray, num_blocks: int) -> np.ndarray:
    """(blocks, subsets): sums over equal groups of networks, the last ones longer by one."""
    starts = np.linspace(0, len(terms), min(num_blocks, len(terms)) + 1).astype(int)[:-1]
    return np.add.reduceat(terms, starts, axis=0)
