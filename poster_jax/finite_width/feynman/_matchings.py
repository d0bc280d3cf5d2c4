"""Perfect matchings of m vertices (Wick's pairings), and the loops that two of them close."""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np

__all__ = ["Matching", "loops", "matchings", "num_loops", "pair_numbers"]

Matching = tuple[tuple[int, int], ...]
"""Pairs (i, j), i < j, in order of i."""


@lru_cache(maxsize=16)
def matchings(num_vertices: int) -> tuple[Matching, ...]:
    """All (m - 1)!! of them, in lexicographic order; none for odd m."""
    return tuple(_matchings(tuple(range(num_vertices))))


def _matchings(vertices: tuple[int, ...]) -> Iterator[Matching]:
    if not vertices:
        yield ()
        return
    first, rest = vertices[0], vertices[1:]
    for at, partner in enumerate(rest):
        for others in _matchings(rest[:at] + rest[at + 1 :]):
            yield ((first, partner), *others)


def loops(p: Matching, q: Matching) -> tuple[tuple[int, ...], ...]:
    """The cycles of the union: each as the vertices on the way, p's pairs and q's in turn."""
    step_p = dict([*p, *((j, i) for i, j in p)])
    step_q = dict([*q, *((j, i) for i, j in q)])
    left, found = set(step_p), []
    while left:
        loop, vertex = [], min(left)
        while not loop or vertex != loop[0]:
            loop += [vertex, step_p[vertex]]
            vertex = step_q[step_p[vertex]]
        found.append(tuple(loop))
        left -= set(loop)
    return tuple(found)


@lru_cache(maxsize=4)
def num_loops(num_vertices: int) -> np.ndarray:
    """((m-1)!!, (m-1)!!) int8: how many loops each two matchings close.

    A loop of 2 l vertices is two cycles of length l of the permutation p q; the smallest vertex
    that a vertex reaches is found by doubling the number of steps.
    """
    partners = _partners(num_vertices)
    count = len(partners)
    counts = np.zeros((count, count), np.int8)
    vertices = np.arange(num_vertices)
    for row, p in enumerate(partners):
        step = p[partners]  # (count, m): q first, then p
        smallest = np.broadcast_to(vertices, step.shape)
        for _ in range((num_vertices // 2 - 1).bit_length()):  # a loop has at most m / 2 pairs
            smallest = np.minimum(smallest, np.take_along_axis(smallest, step, 1))
            step = np.take_along_axis(step, step, 1)
        counts[row] = (smallest == vertices).sum(1) // 2
    return counts


@lru_cache(maxsize=16)
def pair_numbers(num_vertices: int) -> np.ndarray:
    """((m-1)!!, m, m) bool: which pairs each matching holds."""
    partners = _partners(num_vertices)
    return partners[:, :, None] == np.arange(num_vertices)


def _partners(num_vertices: int) -> np.ndarray:
    found = matchings(num_vertices)
    partners = np.zeros((len(found), num_vertices), np.int8)
    pairs = np.array(found, np.int8).reshape(len(found), -1, 2)
    rows = np.arange(len(found))[:, None]
    partners[rows, pairs[:, :, 0]] = pairs[:, :, 1]
    partners[rows, pairs[:, :, 1]] = pairs[:, :, 0]
    return partners
