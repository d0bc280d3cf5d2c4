"""Kernel, leading correction and four-point vertex of a network of finite width, in one call."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from poster_jax.core.checks import check_choice
from poster_jax.core.precision import full_precision
from poster_jax.finite_width.nongaussian._fourth import method_of
from poster_jax.finite_width.nongaussian._pairs import from_pairs
from poster_jax.finite_width.nongaussian.activation import Activation
from poster_jax.finite_width.nongaussian.network import (
    Network,
    check_widths,
    depth_to_width,
    network,
)
from poster_jax.finite_width.nongaussian.recursion import (
    LayerState,
    Rules,
    first_layer,
    next_layer,
    rules,
)

__all__ = [
    "FiniteWidthKernel",
    "expand_vertex",
    "finite_width_kernel",
    "layer_flow",
    "prepare",
    "resolve",
]

FORMS = ("dense", "factored")


class FiniteWidthKernel(NamedTuple):
    """The prior of the outputs over N inputs to order 1/n, n the width of the last hidden layer.

    Given all that lies below, outputs are independent Gaussians of covariance G over the inputs;
    E G = K + G1 / n, Cov(G_ab, G_cd) = V_(ab)(cd) / n. The connected four-point function of outputs
    i, j, k, l is (1/n) [d_ij d_kl V_(12)(34) + d_ik d_jl V_(13)(24) + d_il d_jk V_(14)(23)].

    Attributes:
      K: (N, N).
      G1: (N, N).
      V: dense (P, P) over the P = N (N + 1) / 2 pairs a <= b in the order of `numpy.triu_indices`,
        or factors (R, N, N) with V = sum_s D_s x D_s; see `expand_vertex`.
      widths: (depth,) of the hidden layers.
      lost: share of V's trace that compression left out, added up over layers.
    """

    K: Any
    G1: Any
    V: Any
    widths: Any
    lost: Any

    @property
    def width(self) -> Any:
        """n."""
        return self.widths[-1]

    def corrections(self) -> tuple[Any, Any, Any]:
        """(K, G1 / n, V / n); of factors each is divided by sqrt(n)."""
        n = self.width
        return self.K, self.G1 / n, self.V / (n if self.V.ndim == 2 else jnp.sqrt(n))

    def at_widths(self, scale: Any) -> "FiniteWidthKernel":
        """The same network with all widths multiplied: K, G1 and V stay, nothing is recomputed."""
        return self._replace(widths=self.widths * scale)


@full_precision
def finite_width_kernel(
    phi: Network | str | Callable[..., Any] | Activation,
    x: Any,
    widths: int | Sequence[int] | None = None,
    *,
    depth: int | None = None,
    C_W: Any = None,
    C_b: Any = None,
    form: str = "dense",
    fourth: str = "auto",
    degree: int = 80,
    degree_of_four: int = 32,
    num_samples: int = 2**14,
    seed: int = 0,
    rank: int = 256,
) -> FiniteWidthKernel:
    """The prior of a random network at finite width: kernel, its correction, four-point vertex.

    `finite_width_kernel(network, x, width).corrections()` is (K, G1 / n, V / n).

    Args:
      phi: a `Network` (of `network` or `from_stax`), or an activation, as in `activation`.
      x: (N, features) inputs.
      widths: of the hidden layers; one number for all. None takes those of a `Network`.
      depth: number of hidden layers, with an activation.
      C_W: variance of the weights times their number of inputs, with an activation; None: 1.
      C_b: variance of the biases, with an activation; None: 0.
      form: "dense" (V of P^2 entries, to N about 60; beyond, `vertex_to_disk`) or "factored" (R P
        entries).
      fourth: Gaussian expectations of four outputs: "closed", "quadrature", "sampling", or "auto":
        closed or exact where that can be, else sampling. The factored form samples.
      degree: quadrature points a side for two outputs, where no closed form is known.
      degree_of_four: the same for four outputs.
      num_samples: quasi-random neurons; an even number.
      seed: of these: two seeds differ by the error of sampling.
      rank: factors kept from layer to layer.

    Returns:
      FiniteWidthKernel in the dtype of x. In float32 V and G1 are exact to about 1e-5 of their
      largest entries; the correction's own size is what matters then, so float64 is advised.

    Raises:
      ValueError: an unknown activation or choice, a width below 1, variances out of range, x not
        finite, or sum 1 / width above 1, where the expansion says nothing.
      TypeError: a wrong kind of argument.

    Source: Yaida 2019 (arXiv 1910.00019); Roberts, Yaida & Hanin 2021 (arXiv 2106.10165), chapter
      4; factored form: this library.

    Example:
      >>> found = finite_width_kernel("relu", jnp.ones((1, 3)), 64, depth=3, C_W=2.0)
      >>> K, shift, vertex = found.corrections()
      >>> float(K[0, 0]), round(float(vertex[0, 0] / K[0, 0] ** 2) * 64, 3)  # 5 for each layer
      (2.0, 15.0)
    """
    check_choice("form", form, FORMS)
    net, sizes = resolve(phi, widths, depth, C_W, C_b)
    options = rules(
        fourth=fourth, degree=degree, degree_of_four=degree_of_four, num_samples=num_samples,
        seed=seed, rank=rank,
    )  # fmt: skip
    state, _ = _run(net, x, sizes, form == "factored", options)
    V = from_pairs(state.V) if form == "factored" else state.V
    return FiniteWidthKernel(state.K, state.G1, V, jnp.asarray(sizes), state.lost)


@full_precision
def layer_flow(
    phi: Network | str | Callable[..., Any] | Activation,
    x: Any,
    widths: int | Sequence[int] | None = None,
    *,
    depth: int | None = None,
    C_W: Any = None,
    C_b: Any = None,
    **options: Any,
) -> LayerState:
    """What `finite_width_kernel` computes, after every hidden layer: the flow over depth.

    Args:
      phi: as in `finite_width_kernel`; one activation throughout.
      x: as there.
      widths: as there.
      depth: as there.
      C_W: as there.
      C_b: as there.
      **options: of `rules`; the form is dense.

    Returns:
      LayerState with a leading axis of depth: entry l - 1 is what hidden layer l feeds, V and G1 in
      units of 1/n_l.

    Raises:
      ValueError: as `finite_width_kernel`, or activations that differ.

    Source: as `finite_width_kernel`.

    Example:
      >>> flow = layer_flow("linear", jnp.ones((1, 3)), 64, depth=3)
      >>> flow.V[:, 0, 0].tolist()  # 2 a layer
      [2.0, 4.0, 6.0]
    """
    net, sizes = resolve(phi, widths, depth, C_W, C_b)
    if len(set(net.activations)) > 1:
        raise ValueError("phi must have one activation throughout for its flow over depth.")
    _, flow = _run(net, x, sizes, False, rules(**options))
    return flow


@full_precision
def expand_vertex(kernel: FiniteWidthKernel | LayerState) -> Any:
    """The vertex with all its entries, V_(ab)(cd).

    Args:
      kernel: of N inputs; its vertex dense (P, P) or factors (R, N, N).

    Returns:
      (N, N, N, N).

    Source: this library.

    Example:
      >>> expand_vertex(finite_width_kernel("linear", jnp.ones((2, 3)), 8, depth=1)).shape
      (2, 2, 2, 2)
    """
    if kernel.V.ndim == 3:
        return jnp.einsum("rab,rcd->abcd", kernel.V, kernel.V)
    return from_pairs(jnp.moveaxis(from_pairs(kernel.V), 0, -1))


def resolve(
    phi: Any, widths: Any, depth: int | None, C_W: Any, C_b: Any, *, any_width: bool = False
) -> tuple[Network, tuple[int, ...]]:
    """The network and its widths from what a user says; ValueError where that does not fit."""
    if isinstance(phi, Network):
        given = {"depth": depth, "C_W": C_W, "C_b": C_b}
        if any(value is not None for value in given.values()):
            raise ValueError(
                "depth, C_W and C_b must be left out with a Network, which has its own, got "
                f"{[name for name, value in given.items() if value is not None]}."
            )
        net = phi
    else:
        if depth is None:
            raise ValueError("depth must be given with an activation: the number of hidden layers.")
        one, none = (1.0 if C_W is None else C_W), (0.0 if C_b is None else C_b)
        net = network(phi, depth=depth, C_W=one, C_b=none)
    widths = net.widths if widths is None else widths
    if widths is None:
        raise ValueError("widths must be given: phi names none.")
    sizes = check_widths(widths, net.depth)
    if not any_width and depth_to_width(sizes) > 1:
        raise ValueError(
            f"widths must be larger for an expansion in depth / width: the sum of 1 / width over "
            f"hidden layers must be at most 1, got {depth_to_width(sizes):.3g}."
        )
    return net, sizes


def prepare(net: Network, x: Any, widths: tuple[int, ...], method: str) -> tuple[Any, Any]:
    """K of the first layer and (C_W, C_b, ratio) of the others; ValueError for a bad `method`."""
    K = first_layer(x, C_W=net.C_W[0], C_b=net.C_b[0], factored=True).K  # without a dense vertex
    for phi in net.activations:
        method_of(phi, K.shape[0], method)
    ratios = jnp.asarray([new / old for new, old in zip(widths, widths[:1] + widths, strict=False)])
    return K, tuple(jnp.asarray(v, K.dtype) for v in (net.C_W[1:], net.C_b[1:], ratios))


def _run(
    net: Network, x: Any, widths: tuple[int, ...], factored: bool, rule: Rules
) -> tuple[LayerState, Any]:
    K, layers = prepare(net, x, widths, "auto" if factored else rule.fourth)
    return _compiled(K, layers, net.activations, factored, rule)


@partial(jax.jit, static_argnums=(2, 3, 4))
def _compiled(
    K: Any, layers: Any, activations: tuple[Activation, ...], factored: bool, rule: Rules
) -> tuple[LayerState, Any]:
    """All layers: a loop over them where they have one activation, else one after the other."""
    pairs = K.shape[0] * (K.shape[0] + 1) // 2
    # Factors of zero, so that the shape is the same before and after every layer.
    V = jnp.zeros((rule.rank if factored else pairs, pairs), K.dtype)
    state = LayerState(K, jnp.zeros_like(K), V, jnp.zeros((), K.dtype))
    if len(set(activations)) > 1:
        for phi, *layer in zip(activations, *layers, strict=True):
            state = next_layer(state, phi, *layer, factored, rule)
        return state, None

    def step(state, layer):
        state = next_layer(state, activations[0], *layer, factored, rule)
        return state, None if factored else state

    return jax.lax.scan(step, state, layers)
