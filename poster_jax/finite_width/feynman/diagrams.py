"""The double-line diagrams of a correlator of a deep linear network, one by one.

A tensor is a vertex with L + 1 legs, one a weight layer; a diagram joins the legs of each layer in
pairs, by ribbons whose two lines carry the indices of the weights. Between the legs of the layers
h - 1 and h runs the index of hidden layer h: each loop that it closes gives a factor n_h. The lines
that carry the inputs and the output close loops of their own, which give no n. So with V = m
vertices, E = (L + 1) m / 2 ribbons and F loops of both kinds, the diagram is drawn on a surface of
Euler characteristic chi = V - E + F, and is of order

    n^s with s = chi - F_outer - m / 2 <= (number of connected components) - m / 2,

since each component has chi <= 2 and an outer loop of its own: the theorem for linear networks.
"""

import itertools
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

from poster_jax.core.checks import check_count
from poster_jax.finite_width.feynman._matchings import Matching, loops, matchings
from poster_jax.finite_width.feynman.correlator import Correlator
from poster_jax.finite_width.feynman.linear import check_correlator

__all__ = ["Diagram", "automorphisms", "diagrams"]


class Diagram(NamedTuple):
    """One term of the sum over matchings.

    Attributes:
      matchings: of each weight layer, input side first: pairs of tensors.
      faces: of each hidden layer: its loops, each as the tensors on the way. A loop is a factor n.
      outer_faces: loops of the lines of inputs and output; they give no n.
      multiplicity: ways to give each contraction a layer, times the diagrams that a relabelling of
        equal tensors takes to this one (when they are counted together).
      num_components: connected components of the diagram.
      exponent: of the width, sum over hidden layers of (loops - m / 2).
      euler_characteristic: V - E + F with the outer faces: twice the components for planar
        diagrams, one less for each projective plane and two less for each handle.
    """

    matchings: tuple[Matching, ...]
    faces: tuple[tuple[tuple[int, ...], ...], ...]
    outer_faces: tuple[tuple[int, ...], ...]
    multiplicity: int
    num_components: int
    exponent: int
    euler_characteristic: int

    @property
    def genus(self) -> Fraction:
        """Handles of the surface, a projective plane counted as half: (2 c - chi) / 2."""
        return Fraction(2 * self.num_components - self.euler_characteristic, 2)


def diagrams(
    correlator: Correlator, *, depth: int, up_to_symmetry: bool = False
) -> Iterator[Diagram]:
    """Every diagram that contributes to the mean, one by one.

    With all inputs one unit vector, `sum(d.multiplicity * n**d.exponent)` is
    `linear_polynomial(correlator, depth=depth)`. There are up to ((m - 1)!!)^(depth + 1): take this
    to look at them, and `linear_polynomial` for their sum.

    Args:
      correlator: not connected: a cumulant is a combination of several such sums.
      depth: hidden layers, at least 1.
      up_to_symmetry: one diagram of each class under relabellings of the tensors that leave the
        correlator as it is, with the size of the class in its multiplicity; for at most 6 tensors.

    Returns:
      Iterator of Diagram.

    Raises:
      ValueError: depth below 1, a connected correlator, more than 6 tensors up to symmetry.
      TypeError: correlator is none.

    Source: Dyer and Gur-Ari 2019 (arXiv 1909.11304), section 3.2, double-line notation after
      't Hooft 1974.

    Example:
      >>> from poster_jax.finite_width.feynman import correlator
      >>> ntk_squared = correlator("(df.df)^2")
      >>> for d in diagrams(ntk_squared, depth=1, up_to_symmetry=True):
      ...     print(d.multiplicity, d.exponent, d.genus, d.matchings)
      4 0 0 (((0, 1), (2, 3)), ((0, 1), (2, 3)))
      2 -1 0 (((0, 1), (2, 3)), ((0, 2), (1, 3)))
      2 -1 0 (((0, 2), (1, 3)), ((0, 1), (2, 3)))
    """
    check_correlator(correlator)
    depth = check_count("depth", depth)
    if correlator.connected:
        raise ValueError("correlator must not be connected: take the diagrams of its mean.")
    if up_to_symmetry and correlator.num_tensors > 6:
        raise ValueError(
            f"correlator must have at most 6 tensors up to symmetry, got {correlator.num_tensors}."
        )
    return _classes(correlator, depth) if up_to_symmetry else _all(correlator, depth)


def automorphisms(correlator: Correlator) -> list[tuple[int, ...]]:
    """Relabellings of the tensors that leave inputs and contractions as they are.

    Args:
      correlator: of at most some 8 tensors; all m! relabellings are tried.

    Returns:
      Permutations, the image of each tensor.

    Raises:
      TypeError: correlator is none.

    Source: this library.

    Example:
      >>> from poster_jax.finite_width.feynman import correlator
      >>> automorphisms(correlator("f(y) df.ddf.df"))
      [(0, 1, 2, 3), (0, 3, 2, 1)]
    """
    check_correlator(correlator)
    edges = Counter(correlator.contractions)
    kinds = tuple(zip(correlator.inputs, correlator.orders, strict=True))
    return [
        image
        for image in itertools.permutations(range(correlator.num_tensors))
        if all(kinds[image[t]] == kinds[t] for t in range(correlator.num_tensors))
        and Counter(_mapped(edges.elements(), image)) == edges
    ]


def _all(correlator: Correlator, depth: int) -> Iterator[Diagram]:
    needed = Counter(correlator.contractions)
    for chosen in _tuples(correlator, depth, needed):
        held = Counter(pair for matching in chosen for pair in matching)
        multiplicity = 1
        for pair, count in needed.items():
            for taken in range(count):
                multiplicity *= held[pair] - taken
        yield _diagram(chosen, correlator.num_tensors, multiplicity)


def _tuples(correlator: Correlator, depth: int, needed: Counter) -> Iterator[tuple[Matching, ...]]:
    """Matchings of all layers that together hold each contracted pair often enough."""

    def extend(chosen: tuple[Matching, ...], missing: Counter) -> Iterator[tuple[Matching, ...]]:
        layers_left = depth + 1 - len(chosen)
        if max(missing.values(), default=0) > layers_left:
            return
        if layers_left == 0:
            yield chosen
            return
        for matching in matchings(correlator.num_tensors):
            yield from extend((*chosen, matching), missing - Counter(matching))

    return extend((), needed)


def _classes(correlator: Correlator, depth: int) -> Iterator[Diagram]:
    found = {diagram.matchings: diagram for diagram in _all(correlator, depth)}
    group = automorphisms(correlator)
    while found:
        chosen, diagram = next(iter(found.items()))
        orbit = {tuple(_mapped(matching, image) for matching in chosen) for image in group}
        for member in orbit:
            del found[member]
        yield diagram._replace(multiplicity=diagram.multiplicity * len(orbit))


def _mapped(pairs: Iterator | Matching, image: tuple[int, ...]) -> Matching:
    return tuple(sorted(tuple(sorted((image[i], image[j]))) for i, j in pairs))  # type: ignore


def _diagram(chosen: tuple[Matching, ...], num_tensors: int, multiplicity: int) -> Diagram:
    faces = tuple(loops(p, q) for p, q in itertools.pairwise(chosen))
    outer = loops(chosen[-1], chosen[0])
    exponent = sum(map(len, faces)) - (len(chosen) - 1) * num_tensors // 2
    euler = num_tensors // 2 + exponent + len(outer)
    components = _num_components(num_tensors, chosen)
    return Diagram(chosen, faces, outer, multiplicity, components, exponent, euler)


def _num_components(num_tensors: int, chosen: tuple[Matching, ...]) -> int:
    edges = tuple(pair for matching in chosen for pair in matching)
    whole = Correlator(("x",) * num_tensors, edges)
    return len(whole.cluster_graph().clusters)
