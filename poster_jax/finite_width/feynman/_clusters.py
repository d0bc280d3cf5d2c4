"""The value of one cluster on one network, by derivatives along vectors.

A spanning tree of the cluster is contracted from its leaves: a leaf is the gradient of f, and a
tensor with vectors w_1 .. w_k in all indices but one is the gradient of D_{w_1} .. D_{w_k} f with
the vectors held fixed. A contraction that closes a loop is a sum over all parameters: E[v v'] = 1
puts a random sign vector v into both of its ends. No derivative tensor is ever written down.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from poster_jax.finite_width.feynman.correlator import Correlator

__all__ = ["Plan", "directional", "evaluate", "plan"]

Function = Callable[[Any], Any]
"""Of the parameters, to a scalar."""


class Plan(NamedTuple):
    """How a connected correlator is contracted.

    Attributes:
      cluster: the correlator.
      root: the tensor where the tree ends; with `partner`, the two tensors of the edge where it
        does.
      partner: the other end of that edge, or None.
      children: of each tensor, those whose vectors are put into it.
      loops: contractions outside the tree.
    """

    cluster: Correlator
    root: int
    partner: int | None
    children: tuple[tuple[int, ...], ...]
    loops: tuple[tuple[int, int], ...]


def plan(cluster: Correlator) -> Plan:
    """The way with the lowest derivatives: of third order and higher forward only, at the root."""
    orders = cluster.orders
    root = max(range(cluster.num_tensors), key=lambda tensor: orders[tensor])
    if orders[root] > 2 or cluster.num_tensors == 1:
        children, loops = _tree(cluster, [root])
        return Plan(cluster, root, None, children, loops)
    # A chain or ring: its middle edge, so that two equal halves are computed once.
    best = None
    for edge in dict.fromkeys(cluster.contractions):
        children, loops = _tree(cluster, list(edge))
        size = max(_depth(children, tensor) for tensor in edge)
        if best is None or size < best[0]:
            best = (size, Plan(cluster, *edge, children, loops))
    assert best is not None
    return best[1]


def _tree(
    cluster: Correlator, start: list[int]
) -> tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, int], ...]]:
    left = list(cluster.contractions)
    if len(start) == 2:
        left.remove((min(start), max(start)))
    children: list[list[int]] = [[] for _ in range(cluster.num_tensors)]
    seen, queue = set(start), list(start)
    while queue:
        tensor = queue.pop(0)
        for pair in list(left):
            if tensor in pair:
                (other,) = set(pair) - {tensor}
                if other not in seen:
                    left.remove(pair)
                    children[tensor].append(other)
                    seen.add(other)
                    queue.append(other)
    return tuple(map(tuple, children)), tuple(left)


def _depth(children: tuple[tuple[int, ...], ...], tensor: int) -> int:
    return 1 + max((_depth(children, child) for child in children[tensor]), default=0)


def evaluate(
    how: Plan,
    functions: dict[str, Function],
    params: Any,
    probes: Sequence[Any],
    memory: dict[Any, Any],
    name: Any = None,
) -> Any:
    """The scalar value of the cluster.

    `functions` maps names of inputs to f(., x); `probes` has a vector for each loop; `memory` keeps
    the vectors that several clusters share, those with probes under the `name` of this cluster.
    """

    def entries(tensor: int) -> tuple[list[Any], Any]:
        """The vectors put into a tensor, and a key that is equal when they are."""
        below = [vector(child) for child in how.children[tensor]]
        ends = [k for k, pair in enumerate(how.loops) for end in pair if end == tensor]
        key = (
            how.cluster.inputs[tensor],
            tuple(sorted(repr(k) for _, k in below)),
            tuple((name, k) for k in ends),
        )
        return [v for v, _ in below] + [probes[k] for k in ends], key

    def vector(tensor: int) -> tuple[Any, Any]:
        vectors, key = entries(tensor)
        if key not in memory:
            along = directional(functions[how.cluster.inputs[tensor]], vectors)
            memory[key] = jax.grad(along)(params)
        return memory[key], key

    if how.partner is None:
        vectors, _ = entries(how.root)
        return directional(functions[how.cluster.inputs[how.root]], vectors)(params)
    a, b = vector(how.root)[0], vector(how.partner)[0]
    return sum(jnp.vdot(u, v) for u, v in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def directional(fn: Function, vectors: Sequence[Any]) -> Function:
    """D_{w_1} .. D_{w_k} f as a function of the parameters, the vectors held fixed."""
    for vector in vectors:
        fn = _along(fn, vector)
    return fn


def _along(fn: Function, vector: Any) -> Function:
    return lambda params: jax.jvp(fn, (params,), (vector,))[1]
