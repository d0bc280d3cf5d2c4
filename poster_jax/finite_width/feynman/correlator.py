"""Correlation functions of a network and its derivatives, declared rather than coded.

With T_{mu_1..mu_k}(x) = d^k f(x) / d theta_mu_1 .. d theta_mu_k, a correlator is

    C = sum over contracted indices of E_theta[ T(x_1) ... T(x_m) ]

in which every derivative index is contracted with one index of another tensor. Its cluster graph
has the m tensors as vertices and the contractions as edges, and bounds how C falls with width.
"""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from poster_jax.core.checks import check_count
from poster_jax.finite_width.feynman._parser import parse

__all__ = ["ClusterGraph", "Correlator", "correlator"]


class ClusterGraph(NamedTuple):
    """The connected components of a correlator.

    Attributes:
      clusters: tensors of each component, by number, in the order of their first.
      num_even: components of an even number of tensors, n_e.
      num_odd: of an odd number, n_o.
    """

    clusters: tuple[tuple[int, ...], ...]
    num_even: int
    num_odd: int


@dataclasses.dataclass(frozen=True)
class Correlator:
    """What is averaged over networks; hashable, so that it may be static under `jit`.

    Attributes:
      inputs: name of the input of each tensor, `("x1", "x2")`.
      contractions: pairs of tensors that share an index, `((0, 1),)`; a pair may occur repeatedly.
        The order of a tensor's derivative is the number of pairs in which it occurs.
      connected: False for the mean of the product; True for the joint cumulant of the clusters,
        which is the part of the mean that no product of means of fewer clusters explains (two
        equal clusters: their variance).

    Raises:
      ValueError: no tensor, or a pair that names no tensor or one tensor twice.
      TypeError: inputs or contractions of another kind.

    Example:
      >>> print(Correlator(("x1", "x2"), ((0, 1),)))
      df[a](x1) df[a](x2)
    """

    inputs: tuple[str, ...]
    contractions: tuple[tuple[int, int], ...] = ()
    connected: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.inputs, str) or not all(isinstance(x, str) for x in self.inputs):
            raise TypeError(
                f"inputs must be a sequence of names, one a tensor, got {self.inputs!r}."
            )
        if not self.inputs:
            raise ValueError("inputs must name the input of at least one tensor, got none.")
        pairs = []
        for pair in self.contractions:
            if not isinstance(pair, Sequence) or len(pair) != 2:
                raise TypeError(
                    f"contractions must be pairs of tensors such as (0, 1), got {pair!r}: an index "
                    "is contracted exactly once."
                )
            i, j = sorted(check_count("contractions", tensor, minimum=0) for tensor in pair)
            if j >= len(self.inputs) or i == j:
                raise ValueError(
                    "contractions must pair two different tensors of "
                    f"0..{len(self.inputs) - 1}, got {tuple(pair)}."
                )
            pairs.append((i, j))
        object.__setattr__(self, "inputs", tuple(self.inputs))
        object.__setattr__(self, "contractions", tuple(sorted(pairs)))

    @property
    def num_tensors(self) -> int:
        """How many derivative tensors stand in the product, m."""
        return len(self.inputs)

    @property
    def orders(self) -> tuple[int, ...]:
        """How often each tensor is differentiated."""
        count = Counter(tensor for pair in self.contractions for tensor in pair)
        return tuple(count[tensor] for tensor in range(self.num_tensors))

    @property
    def distinct_inputs(self) -> tuple[str, ...]:
        """The names of the inputs, each once, in the order of their first."""
        return tuple(dict.fromkeys(self.inputs))

    def cluster_graph(self) -> ClusterGraph:
        """Which tensors hang together.

        Returns:
          ClusterGraph.

        Source: Dyer and Gur-Ari 2019 (arXiv 1909.11304), definition of the cluster graph.

        Example:
          >>> correlator("f(x1) df(x2).ddf(x3).df(x4)").cluster_graph()
          ClusterGraph(clusters=((0,), (1, 2, 3)), num_even=0, num_odd=2)
        """
        label = list(range(self.num_tensors))
        for i, j in self.contractions:
            old, new = max(label[i], label[j]), min(label[i], label[j])
            label = [new if one == old else one for one in label]
        clusters = tuple(
            tuple(t for t in range(self.num_tensors) if label[t] == first)
            for first in dict.fromkeys(label)
        )
        num_odd = sum(len(cluster) % 2 for cluster in clusters)
        return ClusterGraph(clusters, len(clusters) - num_odd, num_odd)

    def exponent_bound(self) -> Fraction:
        """The s of the conjecture C = O(n^s): n_e + n_o / 2 - m / 2.

        A connected correlator counts as one cluster, since every diagram of it joins them all: its
        s is 1 - m / 2 for even m.

        Returns:
          Fraction.

        Source: Dyer and Gur-Ari 2019 (arXiv 1909.11304), conjecture 1; the connected case follows
          from the diagrams of `linear_polynomial`.

        Example:
          >>> correlator("f df.ddf.df").exponent_bound()
          Fraction(-1, 1)
          >>> correlator("(df.df)^2").exponent_bound()
          Fraction(0, 1)
          >>> correlator("(df.df)^2", connected=True).exponent_bound()  # a variance
          Fraction(-1, 1)
        """
        graph = self.cluster_graph()
        num_even, num_odd = graph.num_even, graph.num_odd
        if self.connected:
            num_even, num_odd = 1 - self.num_tensors % 2, self.num_tensors % 2
        return Fraction(2 * num_even + num_odd - self.num_tensors, 2)

    def part(self, tensors: Sequence[int]) -> "Correlator":
        """The mean of the product of some whole clusters, as a correlator of its own.

        Args:
          tensors: numbers of the tensors, all those of their clusters.

        Returns:
          Correlator, not connected.

        Raises:
          ValueError: a contraction leads out of the chosen tensors.

        Source: this library.

        Example:
          >>> print(correlator("f(x1) df(x2).df(x3)").part([1, 2]))
          df[a](x2) df[a](x3)
        """
        place = {tensor: at for at, tensor in enumerate(sorted(tensors))}
        inside = [pair for pair in self.contractions if set(pair) & set(place)]
        if any(not set(pair) <= set(place) for pair in inside):
            raise ValueError(f"tensors must hold whole clusters, got {sorted(tensors)}.")
        return Correlator(
            tuple(self.inputs[tensor] for tensor in sorted(tensors)),
            tuple((place[i], place[j]) for i, j in inside),
        )

    def __str__(self) -> str:
        names = [_letter(number) for number in range(len(self.contractions))]
        words = []
        for tensor, (x, order) in enumerate(zip(self.inputs, self.orders, strict=True)):
            own = [n for n, pair in zip(names, self.contractions, strict=True) if tensor in pair]
            words.append("d" * order + "f" + (f"[{','.join(own)}]" if own else "") + f"({x})")
        text = " ".join(words)
        return f"<{text}>_connected" if self.connected else text


def correlator(spec: str, *, connected: bool = False) -> Correlator:
    """A correlation function from the way in which one writes it.

    Factors stand beside each other, with powers: `"f(x1)^2 df(x1).df(x2)"`. A tensor is `f`, `df`,
    `ddf`, ... with the name of its input, which is "x" where none is given. Contractions are

    * a dot between neighbours: `df(a).ddf(b).df(c)`; a chain whose two ends each have one index
      left, `ddf.ddf`, closes into a trace;
    * a colon for two indices: `ddf(a):ddf(b)`;
    * vectors put into a tensor: `dddf(a; df(b), df(c), df.ddf)`;
    * named indices: `ddf[i,j](a) df[i](b) df[j](c)`.

    Args:
      spec: the text.
      connected: the joint cumulant of the clusters instead of the mean of their product.

    Returns:
      Correlator.

    Raises:
      ValueError: text that is no correlator, an index that is contracted with nothing, twice, or
        with its own tensor.
      TypeError: spec is no text.

    Source: Dyer and Gur-Ari 2019 (arXiv 1909.11304), section 2; the notation is this library's.

    Example:
      >>> correlator("f(x1) f(x2) df(x1).df(x2)")
      Correlator(inputs=('x1', 'x2', 'x1', 'x2'), contractions=((2, 3),), connected=False)
      >>> correlator("dddf(df, df, df)").orders
      (3, 1, 1, 1)
    """
    if not isinstance(spec, str):
        raise TypeError(f'spec must be a text such as "f(x) df(x).df(x)", got {spec!r}.')
    inputs, contractions = parse(spec)
    return Correlator(inputs, contractions, connected)


def _letter(number: int) -> str:
    return "abcdefghijklmnopqrstuvwxyz"[number] if number < 26 else f"i{number}"
