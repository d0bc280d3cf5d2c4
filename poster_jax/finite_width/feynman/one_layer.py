r"""Correlators of networks with one hidden layer, exactly in 1/n, for any activation.

f(x) = n^{-1/2} sum_k V_k phi(u_k . x). All tensors of one cluster sit on one neuron, and different
neurons are independent, so that with the clusters c of the cluster graph

$$C = n^{-m/2} \sum_P n (n-1) \cdots (n - |P| + 1) \prod_{B \in P}
      E_{V,u}\Big[\prod_{c \in B} \text{expression of } c \text{ on one neuron}\Big]$$

over partitions P of the clusters. Each contraction acts on V or on u; on u it brings x_i . x_j.
"""

import functools
import itertools
import math
from collections.abc import Callable
from fractions import Fraction
from functools import reduce
from operator import mul
from typing import Any

import jax
import numpy as np

from poster_jax.core.checks import check_callable, check_count
from poster_jax.finite_width.feynman._gaussian import gaussian_rule, has_kink
from poster_jax.finite_width.feynman._partitions import cumulant, set_partitions
from poster_jax.finite_width.feynman.correlator import Correlator
from poster_jax.finite_width.feynman.linear import check_correlator, gram_of
from poster_jax.finite_width.feynman.polynomial import Polynomial

__all__ = ["one_layer_polynomial"]


def one_layer_polynomial(
    correlator: Correlator,
    activation: Callable[[Any], Any],
    *,
    gram: Any = None,
    num_nodes: int = 100,
) -> Polynomial:
    """The value of a correlator of a network with one hidden layer at every width.

    Args:
      correlator: of `correlator(...)`.
      activation: phi, differentiable by JAX; smooth, or with one kink or jump of a derivative, at
        zero, such as `jax.nn.relu`. Derivatives are those that JAX takes: of relu the second is 0.
      gram: as in `linear_polynomial`: over `correlator.distinct_inputs`, None for one unit vector.
      num_nodes: of the quadrature, along each of the at most 3 independent inputs (with a kink: at
        most 2).

    Returns:
      Polynomial in 1/n with floats as coefficients. Take another `num_nodes` to see their error;
      on unit inputs 1e-10 for tanh at 100 nodes, and that of float64 at 150.

    Raises:
      ValueError: a Gram matrix that does not fit or is not positive semidefinite, more independent
        inputs than the quadrature takes.
      TypeError: another kind of argument.

    Source: Dyer and Gur-Ari 2019 (arXiv 1909.11304), section 4 (one hidden layer); the sum over
      partitions: this library.

    Example:
      >>> from poster_jax.finite_width.feynman import correlator
      >>> print(one_layer_polynomial(correlator("(df.df)^2"), lambda z: z))
      4 + 4/n
      >>> print(one_layer_polynomial(correlator("f^4"), jax.nn.relu))
      0.75 + 3.75/n
    """
    check_correlator(correlator)
    check_callable("activation", activation)
    num_nodes = check_count("num_nodes", num_nodes)
    products = gram_of(correlator, gram)
    clusters = correlator.cluster_graph().clusters
    neuron = _Neuron(correlator, activation, products, num_nodes)

    def mean(kept: tuple[int, ...]) -> Polynomial:
        """Of the product of some clusters."""
        total = Polynomial(("n",), {})
        num_tensors = sum(len(clusters[c]) for c in kept)
        if num_tensors % 2:
            return total
        for partition in set_partitions(len(kept)):
            blocks = [sum((clusters[kept[at]] for at in block), ()) for block in partition]
            value = math.prod(neuron.mean(block) for block in blocks)
            total = total + _falling(len(blocks), num_tensors // 2) * value
        return total

    if not correlator.connected:
        return mean(tuple(range(len(clusters))))
    return cumulant(len(clusters), lambda blocks: reduce(mul, map(mean, blocks)))


def _falling(count: int, half: int) -> Polynomial:
    """n (n-1) .. (n-count+1) / n^half."""
    coefficients = np.array([1])
    for taken in range(count):
        coefficients = np.convolve(coefficients, [1, -taken])  # of n^k, highest first
    return Polynomial(
        ("n",), {(half - count + k,): Fraction(int(c)) for k, c in enumerate(coefficients) if c}
    )


@functools.lru_cache(maxsize=128)
def _derivative(activation: Callable, order: int) -> Callable:
    """At (inputs, nodes), compiled once for all correlators."""
    for _ in range(order):
        activation = jax.grad(activation)
    return jax.jit(jax.vmap(jax.vmap(activation)))


class _Neuron:
    """Means over the weights (V, u) of one neuron, by Gaussian quadrature over u . x."""

    def __init__(
        self, correlator: Correlator, activation: Callable, products: Any, num_nodes: int
    ) -> None:
        self.correlator, self.products = correlator, products
        self.place = {name: at for at, name in enumerate(correlator.distinct_inputs)}
        gram = np.array(
            [[float(products[x, y]) for y in self.place] for x in self.place], np.float64
        )
        with jax.enable_x64(True):
            values, self.weights = gaussian_rule(
                gram, num_nodes=num_nodes, kink=has_kink(activation)
            )
            self.derivatives = [
                np.asarray(_derivative(activation, order)(values), np.float64)
                for order in range(max(correlator.orders) + 1)
            ]

    def mean(self, tensors: tuple[int, ...]) -> float:
        """E of the product of some whole clusters, all on this neuron."""
        edges = [pair for pair in self.correlator.contractions if pair[0] in tensors]
        total = 0.0
        for on_v in itertools.product((False, True), repeat=len(edges)):
            by_v = dict.fromkeys(tensors, 0)
            by_u = dict.fromkeys(tensors, 0)
            factor = 1.0
            for (i, j), acts_on_v in zip(edges, on_v, strict=True):
                for tensor in (i, j):
                    (by_v if acts_on_v else by_u)[tensor] += 1
                if not acts_on_v:
                    inputs = self.correlator.inputs
                    factor *= float(self.products[inputs[i], inputs[j]])
            if max(by_v.values()) > 1:
                continue  # f is linear in V
            power = len(tensors) - sum(by_v.values())
            if power % 2 == 0:
                total += factor * math.prod(range(1, power, 2)) * self._mean_over_u(by_u)
        return total

    def _mean_over_u(self, orders: dict[int, int]) -> float:
        product = self.weights
        for tensor, order in orders.items():
            product = product * self.derivatives[order][self.place[self.correlator.inputs[tensor]]]
        return float(product.sum())
