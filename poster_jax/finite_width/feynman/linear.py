r"""Correlators of deep linear networks, exactly, as polynomials in one over the widths.

For f(x) = n_L^{-1/2} V' n_{L-1}^{-1/2} W_{L-1} ... n_1^{-1/2} W_1 U x with standard normal entries,
Wick's theorem pairs the m tensors once in each of the L + 1 weight layers, and a contraction of the
tensors i and j is a pair (i, j) in one of the layers:

$$C = \sum_{(\pi_0, \dots, \pi_L)} w(\pi) \prod_{(i,j) \in \pi_0} x_i \cdot x_j
      \prod_{h=1}^{L} n_h^{\mathrm{loops}(\pi_{h-1}, \pi_h) - m/2}$$

over perfect matchings pi_l of the tensors; w counts the ways to give every contraction a layer of
its own in which its pair is matched. The sum is taken layer by layer: the state is a matching and
the contractions that have found a layer. ((m-1)!!)^2 2^|E| L products instead of ((m-1)!!)^(L+1).
"""

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import reduce
from numbers import Rational
from operator import mul
from typing import Any

import numpy as np

from poster_jax.core.checks import check_count
from poster_jax.finite_width.feynman._matchings import matchings, num_loops, pair_numbers
from poster_jax.finite_width.feynman._partitions import cumulant
from poster_jax.finite_width.feynman.correlator import Correlator
from poster_jax.finite_width.feynman.polynomial import Polynomial

__all__ = ["gram_of", "linear_polynomial"]

_State = tuple[int, ...]
"""How many contractions of each pair of tensors have found a layer."""


def linear_polynomial(
    correlator: Correlator,
    *,
    depth: int,
    widths: str | Sequence[str] = "n",
    gram: Any = None,
) -> Polynomial:
    """The exact value of a correlator of a deep linear network at every width.

    Args:
      correlator: of `correlator(...)`.
      depth: hidden layers L, at least 1.
      widths: name of the common width, or the name of each hidden layer's, input side first; equal
        names are equal widths.
      gram: products x_i . x_j of the inputs: a matrix over `correlator.distinct_inputs`, in their
        order, of integers, Fractions or floats (taken exactly). None: all inputs are one unit
        vector.

    Returns:
      Polynomial in one over the widths with Fractions as coefficients.

    Raises:
      ValueError: depth below 1, names that do not fit it, a Gram matrix that does not fit the
        inputs, or more than 12 tensors.
      TypeError: another kind of argument.

    Source: Dyer and Gur-Ari 2019 (arXiv 1909.11304), section 3 (deep linear networks); the sum over
      matchings with its weight w, and the transfer over layers: this library.

    Example:
      >>> from poster_jax.finite_width.feynman import correlator
      >>> print(linear_polynomial(correlator("f df.ddf.df"), depth=2))
      8/n + 10/n^2
      >>> print(linear_polynomial(correlator("(df.df)^2"), depth=2, widths=("a", "b")))
      9 + 10/b + 10/a + 16/(a b)
    """
    check_correlator(correlator)
    depth = check_count("depth", depth)
    names = _width_names(widths, depth)
    products = gram_of(correlator, gram)
    if correlator.num_tensors > 12:
        raise ValueError(
            f"correlator must have at most 12 tensors, got {correlator.num_tensors}: the matchings "
            "grow as (m - 1)!!."
        )
    if not correlator.connected:
        return _mean(correlator, depth, names, products)
    clusters = correlator.cluster_graph().clusters

    def product_of_means(blocks: Any) -> Polynomial:
        parts = (correlator.part(sum((clusters[c] for c in block), ())) for block in blocks)
        return reduce(mul, (_mean(part, depth, names, products) for part in parts))

    return cumulant(len(clusters), product_of_means)


def check_correlator(correlator: Any) -> None:
    """TypeError unless it is a Correlator."""
    if not isinstance(correlator, Correlator):
        raise TypeError(
            'correlator must be a Correlator such as correlator("f df.ddf.df"), got '
            f"{correlator!r}."
        )


def gram_of(correlator: Correlator, gram: Any) -> Mapping[tuple[str, str], Fraction]:
    """Products of the inputs by their names, as Fractions; None makes all of them 1."""
    inputs = correlator.distinct_inputs
    if gram is None:
        return {pair: Fraction(1) for pair in itertools.product(inputs, inputs)}
    rows = [list(row) for row in gram]
    if [len(row) for row in rows] != [len(inputs)] * len(inputs):
        raise ValueError(
            f"gram must be a matrix over the inputs {inputs}, {len(inputs)} x {len(inputs)}, got "
            f"rows of lengths {[len(row) for row in rows]}."
        )
    exact = [[_fraction(value) for value in row] for row in rows]
    if exact != [list(column) for column in zip(*exact, strict=True)]:
        raise ValueError("gram must be symmetric: it holds the products x_i . x_j.")
    return {(x, y): exact[i][j] for i, x in enumerate(inputs) for j, y in enumerate(inputs)}


def _fraction(value: Any) -> Fraction:
    if isinstance(value, Rational):
        return Fraction(value)
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"gram must be finite, got {number}.")
    return Fraction(number)


def _width_names(widths: str | Sequence[str], depth: int) -> tuple[str, ...]:
    names = (widths,) * depth if isinstance(widths, str) else tuple(widths)
    if len(names) != depth or not all(isinstance(n, str) and n.isidentifier() for n in names):
        raise ValueError(
            f"widths must be one name, or one for each of the {depth} hidden layers, got "
            f"{widths!r}."
        )
    return names


def _mean(
    correlator: Correlator,
    depth: int,
    names: tuple[str, ...],
    products: Mapping[tuple[str, str], Fraction],
) -> Polynomial:
    m, distinct = correlator.num_tensors, tuple(dict.fromkeys(names))
    if m % 2:
        return Polynomial(distinct, {})
    used = {
        pair: products[pair] for pair in itertools.product(correlator.distinct_inputs, repeat=2)
    }
    scale = math.lcm(*(value.denominator for value in used.values()))
    first = [
        math.prod(
            int(used[correlator.inputs[i], correlator.inputs[j]] * scale) for i, j in matching
        )
        for matching in matchings(m)
    ]
    # No coefficient is larger: every contraction has at most L + 1 layers to choose from.
    bound = sum(map(abs, first)) * len(first) ** depth
    bound *= (depth + 1) ** len(correlator.contractions)
    residues, modulus = None, 1
    for prime in _moduli(len(first), bound):
        found = _transfer(correlator, depth, names, np.array([v % prime for v in first]), prime)
        residues = _combine(residues, modulus, found, prime)
        modulus *= prime
    terms = {}
    for powers, value in np.ndenumerate(residues):
        signed = value if 2 * value < modulus else value - modulus
        terms[powers] = Fraction(signed, scale ** (m // 2))
    return Polynomial(distinct, terms)


def _moduli(count: int, bound: int) -> list[int]:
    """Coprime numbers whose product exceeds 2 bound, small enough for exact products in float64."""
    found, candidate = [], min(2**40, 2**52 // count)
    while math.prod(found) <= 2 * bound:
        candidate -= 1
        if all(math.gcd(candidate, other) == 1 for other in found):
            found.append(candidate)
    return found


def _combine(old: np.ndarray | None, old_modulus: int, new: np.ndarray, modulus: int) -> np.ndarray:
    """Chinese remainders, in Python's integers."""
    new = new.astype(object)
    if old is None:
        return new
    inverse = pow(old_modulus, -1, modulus)
    return old + old_modulus * ((new - old) * inverse % modulus)


def _transfer(
    correlator: Correlator, depth: int, names: tuple[str, ...], first: np.ndarray, modulus: int
) -> np.ndarray:
    """The coefficients modulo a number: an axis of powers for each different width."""
    half, count = correlator.num_tensors // 2, len(first)
    needed = Counter(correlator.contractions)
    pairs, target = tuple(needed), tuple(needed.values())
    holds = pair_numbers(correlator.num_tensors)
    held = np.array([holds[:, i, j] for i, j in pairs]).reshape(len(pairs), count)
    steps = [
        step
        for step in itertools.product((0, 1), repeat=len(pairs))
        if max(_degrees(pairs, step, correlator.num_tensors)) <= 1
    ]
    masks = {step: held[np.array(step, bool)].all(0) for step in steps}
    distinct = tuple(dict.fromkeys(names))
    shape = (1,) * len(distinct)
    states: dict[_State, np.ndarray] = {(0,) * len(pairs): first.reshape(*shape, count)}
    states = _give_layer(states, steps, masks, pairs, target, depth, modulus)
    for layer, name in enumerate(names, start=1):
        axis = distinct.index(name)
        states = _close_loops(states, axis, half, correlator.num_tensors, modulus)
        states = _give_layer(states, steps, masks, pairs, target, depth - layer, modulus)
    total = states.get(target)
    if total is None:
        return np.zeros(shape, np.int64)
    return total.sum(-1) % modulus  # fewer than 2^14 terms below 2^40


def _give_layer(
    states: dict[_State, np.ndarray],
    steps: list[_State],
    masks: dict[_State, np.ndarray],
    pairs: tuple[tuple[int, int], ...],
    target: _State,
    layers_left: int,
    modulus: int,
) -> dict[_State, np.ndarray]:
    """Some of the contractions take this layer: at most one of each pair, where it is matched.

    A tensor is differentiated at most once in a layer; a state that leaves more to do than the
    layers left allow is dropped.
    """
    found: dict[_State, np.ndarray] = {}
    num_tensors = 1 + max((j for _, j in pairs), default=0)
    for state, values in states.items():
        for step in steps:
            new = tuple(a + b for a, b in zip(state, step, strict=True))
            left = tuple(a - b for a, b in zip(target, new, strict=True))
            if min(left, default=0) < 0:
                continue
            if max(_degrees(pairs, left, num_tensors)) > layers_left:
                continue
            ways = math.prod(t - s for t, s, b in zip(target, state, step, strict=True) if b)
            given = np.where(masks[step], values, 0) * ways % modulus
            found[new] = (found[new] + given) % modulus if new in found else given
    return found


def _close_loops(
    states: dict[_State, np.ndarray], axis: int, half: int, num_tensors: int, modulus: int
) -> dict[_State, np.ndarray]:
    """Multiplies by n^(loops(p, q) - m/2) and sums over p, for all states at once."""
    if not states:
        return states
    stacked = np.stack(list(states.values()))
    axis += 1
    shape = list(stacked.shape)
    shape[axis] += half - 1
    total = np.zeros(shape, np.int64)
    left = stacked.astype(np.float64)
    counts = num_loops(num_tensors)
    block = max(1, 2**24 // len(counts))  # columns at once: 128 MiB
    for start in range(0, len(counts), block):
        columns = slice(start, start + block)
        for loops in range(1, half + 1):
            # Below 2^52: exact in float64, whatever the order of the sum.
            summed = left @ (counts[:, columns] == loops).astype(np.float64)
            power = half - loops
            place = [slice(None)] * stacked.ndim
            place[axis], place[-1] = slice(power, power + stacked.shape[axis]), columns
            total[tuple(place)] += summed.astype(np.int64) % modulus
    return dict(zip(states, total % modulus, strict=True))


def _degrees(pairs: tuple[tuple[int, int], ...], counts: _State, num_tensors: int) -> list[int]:
    degrees = [0] * num_tensors
    for (i, j), count in zip(pairs, counts, strict=True):
        degrees[i] += count
        degrees[j] += count
    return degrees
