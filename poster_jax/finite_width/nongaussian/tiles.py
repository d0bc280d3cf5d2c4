"""The vertex of many inputs, in tiles on disk.

Every entry of a vertex stands alone. Row (a, b) of the Jacobian J of a layer reads the pairs
(a, b), (a, a) and (b, b), and theirs read no others, so that the layers between l and the last
make one row of three numbers for each pair, T_l, and

    V_(p)(q) = sum_l c_l [T_l Cov_l T_l']_(p)(q),       c_l = C_W,l^2 prod_{m > l} r_m C_W,m^2,

Cov_l the covariance of phi_a phi_b over a neuron of layer l. For the correction of the kernel each
pair needs nine entries of every layer's vertex. The tiles are those of `poster_jax.kernels`, of
which the vertex is one whose inputs are pairs.
"""

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from poster_jax.core.checks import is_traced
from poster_jax.core.precision import full_precision
from poster_jax.finite_width.nongaussian._dual import apply_jacobian, dual_derivatives
from poster_jax.finite_width.nongaussian._fourth import (
    activations,
    centred,
    four_point,
    neurons,
    over_blocks,
    radial,
)
from poster_jax.finite_width.nongaussian._pairs import from_pairs, num_inputs, pairs_of, to_pairs
from poster_jax.finite_width.nongaussian._quadrature import root
from poster_jax.finite_width.nongaussian.activation import Activation
from poster_jax.finite_width.nongaussian.kernel import FiniteWidthKernel, prepare, resolve
from poster_jax.finite_width.nongaussian.network import Network
from poster_jax.finite_width.nongaussian.recursion import Rules, rules
from poster_jax.kernels import kernel_to_disk

__all__ = ["vertex_to_disk"]


class _Layer(NamedTuple):
    """What the tiles need of one layer.

    Attributes:
      K: (N, N) covariance of its neurons.
      factor: (N, N) with factor factor' = K; of no use where four-point functions are closed.
      A: (P,) means of the products of activations.
      transport: (3, P) T_l, from here to the last layer.
      scale: c_l.
    """

    K: Any
    factor: Any
    A: Any
    transport: Any
    scale: Any


@full_precision
def vertex_to_disk(
    path: str | os.PathLike[str],
    phi: Network | str | Callable[..., Any] | Activation,
    x: Any,
    widths: int | Sequence[int] | None = None,
    *,
    depth: int | None = None,
    C_W: Any = None,
    C_b: Any = None,
    batch_size: int = 1024,
    device_count: int = -1,
    progress: Callable[..., Any] | None = None,
    **options: Any,
) -> FiniteWidthKernel:
    """`finite_width_kernel` with a vertex larger than memory; after a kill it goes on.

    Half of the tiles are computed, over all devices, and written as `vertex.npy`, (P, P) over the
    P = N (N + 1) / 2 pairs of inputs: 3.2 GB for 200 inputs in float64. Memory holds a few tiles
    and what is of size P. Entries are those of the dense form.

    Args:
      path: a folder, as in `poster_jax.kernels.kernel_to_disk`.
      phi: as in `finite_width_kernel`.
      x: (N, features) inputs.
      widths: as in `finite_width_kernel`.
      depth: as there.
      C_W: as there.
      C_b: as there.
      batch_size: pairs of inputs on each side of a tile.
      device_count: as in `kernels.batch`.
      progress: as in `kernels.kernel_to_disk`.
      **options: of `rules`.

    Returns:
      FiniteWidthKernel whose V is a read-only `numpy.memmap`; `posterior` reads it row by row.

    Raises:
      ValueError: as `finite_width_kernel`, or the folder holds another vertex. TypeError inside
        `jit`.

    Source: Yaida 2019 (arXiv 1910.00019) for the recursion; entries one by one: this library.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     found = vertex_to_disk(folder, "relu", np.eye(4), 64, depth=3, C_W=2.0)
      ...     print(type(found.V).__name__, found.V.shape)
      memmap (10, 10)
    """
    chosen = rules(**options)
    net, sizes = resolve(phi, widths, depth, C_W, C_b)
    start, layers = prepare(net, x, sizes, chosen.fourth)
    if is_traced((start, layers)):
        raise TypeError("vertex_to_disk must be called outside jit: a file cannot be traced.")
    K, G1, flow = _flow(start, layers, net.activations, chosen)
    pairs = np.arange(len(to_pairs(K)), dtype=np.int32)
    tile = _Tile(net.activations, chosen, jax.tree.map(np.asarray, flow))
    # The inputs are handed on for the folder to be known by: what is computed from them may differ
    # in the last bits on the machine that goes on.
    V = kernel_to_disk(
        path, tile, pairs, None, "vertex", (x, net.C_W, net.C_b, layers),
        batch_size=batch_size, device_count=device_count, progress=progress,
    )  # fmt: skip
    return FiniteWidthKernel(K, G1, V, jnp.asarray(sizes), jnp.zeros((), K.dtype))


@partial(jax.jit, static_argnames=("phis", "rule"))
def _flow(K: Any, layers: Any, phis: tuple[Activation, ...], rule: Rules) -> tuple[Any, Any, Any]:
    """K and G1 of the output, and a `_Layer` for every hidden layer, stacked."""
    passed, jacobians = [], []
    G1 = jnp.zeros_like(K)
    local = jnp.zeros((3, 3, len(to_pairs(K))), K.dtype)  # the vertex among a pair's neighbours
    for phi, C_W, C_b, ratio in zip(phis, *layers, strict=True):
        dual = dual_derivatives(phi, K, rule.degree)
        slope = apply_jacobian(dual.first, to_pairs(G1)) + (dual.second * local).sum((0, 1)) / 2
        G1 = ratio * C_W * from_pairs(slope)
        J = _among_neighbours(dual.first)
        factor = root(K)
        local = ratio * jnp.einsum("ikp,klp,jlp->ijp", J, local, J)
        local = C_W**2 * (local + _fluctuation(phi, K, factor, dual.value, rule))
        passed.append((K, factor, dual.value))
        jacobians.append(J)
        K = C_b + C_W * from_pairs(dual.value)
    transport = jnp.zeros_like(local[0]).at[0].set(1)
    scale = jnp.ones((), K.dtype)
    flow = []
    for layer, J, C_W, ratio in reversed(
        list(zip(passed, jacobians, layers[0], layers[2], strict=True))
    ):
        scale = scale * C_W**2
        flow.append(_Layer(*layer, transport, scale))
        transport, scale = jnp.einsum("kp,klp->lp", transport, J), scale * ratio
    return K, G1, jax.tree.map(lambda *a: jnp.stack(a), *reversed(flow))


def _among_neighbours(first: Any) -> Any:
    """(3, 3, P): rows of J of the pairs (a, b), (a, a), (b, b), in the columns of the same."""
    _, own, other = pairs_of(num_inputs(first.shape[-1])).neighbours
    zero = jnp.zeros_like(first[0])
    return jnp.stack(
        [
            first,
            jnp.stack([zero, first[0, own], zero]),
            jnp.stack([zero, zero, first[0, other]]),
        ]
    )


def _fluctuation(phi: Activation, K: Any, factor: Any, A: Any, rule: Rules) -> Any:
    """(3, 3, P) covariances, over a neuron, of the products of a pair and of its neighbours."""
    num = K.shape[0]
    rows, columns, near, *_ = pairs_of(num)
    points = _neurons(phi, num, rule)
    if points is None:
        found = [
            [_covariance(phi, K, A, near[i], near[j], rule) for j in range(3)] for i in range(3)
        ]
        return jnp.stack([jnp.stack(line) for line in found])

    def add(total, block):
        points, weights = block
        values = activations(phi, points, factor)
        d = centred(phi, values[:, rows] * values[:, columns], A, num)
        return total + _outer(d * jnp.sqrt(weights)[:, None])

    def _outer(d):
        sides = [d, d[:, near[1]], d[:, near[2]]]
        return jnp.stack([jnp.stack([(a * b).sum(0) for b in sides]) for a in sides])

    total = jnp.zeros((3, 3, len(A)), K.dtype) + sum(map(_outer, radial(phi, A, num)))
    return over_blocks(add, total, points, 4 * len(A))


class _Tile(NamedTuple):
    """The vertex as a `kernel_fn` whose inputs are numbers of pairs; `flow` is stacked layers."""

    phis: tuple[Activation, ...]
    rule: Rules
    flow: Any

    @property
    def symmetric(self) -> bool:
        """That of (q, p) is the mirror image."""
        return True

    def __call__(self, p: Any, q: Any, get: str, identity: Any) -> Any:
        """(p, q) of all layers together."""
        del get, identity
        q, flow = p if q is None else q, jax.tree.map(jnp.asarray, self.flow)
        total = jnp.zeros((len(p), len(q)), flow.K.dtype)
        if len(set(self.phis)) == 1:
            tiles = partial(_of_layer, self.phis[0], p=p, q=q, rule=self.rule)
            return jax.lax.scan(lambda t, layer: (t + tiles(layer=layer), None), total, flow)[0]
        for index, phi in enumerate(self.phis):
            layer = jax.tree.map(lambda a, index=index: a[index], flow)
            total = total + _of_layer(phi, layer=layer, p=p, q=q, rule=self.rule)
        return total


def _of_layer(phi: Activation, *, layer: _Layer, p: Any, q: Any, rule: Rules) -> Any:
    """c_l T_l Cov_l T_l' of the pairs p and q."""
    num = layer.K.shape[0]
    rows, columns, near, *_ = map(jnp.asarray, pairs_of(num))
    points = _neurons(phi, num, rule)
    if points is None:

        def add_sides(total, sides):
            i, j = sides
            found = _covariance(phi, layer.K, layer.A, near[i, p], near[j, q], rule, outer=True)
            return total + layer.transport[i, p, None] * found * layer.transport[j, q], None

        sides = jnp.unravel_index(jnp.arange(9), (3, 3))
        total = jnp.zeros((len(p), len(q)), layer.K.dtype)
        return layer.scale * jax.lax.scan(add_sides, total, sides)[0]

    means = apply_jacobian(layer.transport, layer.A)

    def moved(values, which):
        """T_l d_s (pairs, S) from values (N, S)."""
        a, b, t = values[rows[which]], values[columns[which]], layer.transport[:, which, None]
        products = t[0] * a * b + t[1] * a**2 + t[2] * b**2
        return centred(phi, products, means[which, None], num)

    def add(total, block):
        points, weights = block
        values = activations(phi, points, layer.factor).T
        return total + (moved(values, p) * weights) @ moved(values, q).T

    far = [(r[0, p], r[0, q]) for r in radial(phi, means, num)]
    total = jnp.zeros((len(p), len(q)), layer.K.dtype) + sum(a[:, None] * b for a, b in far)
    return layer.scale * over_blocks(add, total, points, 3 * (len(p) + len(q)))


def _covariance(
    phi: Activation, K: Any, A: Any, p: Any, q: Any, rule: Rules, outer: bool = False
) -> Any:
    """Cov(phi_a phi_b, phi_c phi_d) of pairs p and q, one by one or all by all, in closed form."""
    rows, columns, *_ = map(jnp.asarray, pairs_of(K.shape[0]))
    if outer:
        p, q = jnp.broadcast_arrays(p[:, None], q[None])
    four = jnp.stack([rows[p], columns[p], rows[q], columns[q]], -1).reshape(-1, 4)
    cov = K[four[:, :, None], four[:, None, :]]
    mean = four_point(phi, cov, method=rule.fourth, degree=rule.degree_of_four)
    return mean.reshape(p.shape) - A[p] * A[q]


def _neurons(phi: Activation, num: int, rule: Rules) -> Any:
    return neurons(
        phi, num, method=rule.fourth, degree=rule.degree_of_four, num_samples=rule.num_samples,
        seed=rule.seed,
    )  # fmt: skip
