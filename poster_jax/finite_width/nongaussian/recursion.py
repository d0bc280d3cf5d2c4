"""From one layer to the next: kernel, its correction, and the vertex.

Given layer l the neurons of layer l+1 are independent Gaussians over the inputs, with the random
covariance G = C_b + (C_W / n_l) sum_j phi(z_j) phi(z_j)'. To first order in 1/n

    E G = K + G1 / n,      Cov(G_ab, G_cd) = V_(ab)(cd) / n,

and integrating one layer out gives the next (r = n_l / n_{l-1}; < > over z of covariance K):

    K  <- C_b + C_W <phi phi'>,
    V  <- C_W^2 { Cov(phi_a phi_b, phi_c phi_d) + r J V J' },
    G1 <- r C_W { J G1 + (1/2) H:V }.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from poster_jax.core.checks import check_choice, check_count, check_finite, check_positive
from poster_jax.core.precision import full_precision
from poster_jax.finite_width.nongaussian._dual import (
    apply_jacobian,
    contract_hessian,
    dual_derivatives,
)
from poster_jax.finite_width.nongaussian._fourth import (
    METHODS,
    covariance_of_products,
    method_of,
    sampled_factors,
)
from poster_jax.finite_width.nongaussian._pairs import from_pairs, to_pairs
from poster_jax.finite_width.nongaussian.activation import Activation, activation
from poster_jax.finite_width.nongaussian.compression import compress

__all__ = [
    "LayerState", "Rules", "as_matrix", "first_layer", "layer_recursion", "next_layer", "rules",
]  # fmt: skip


class LayerState(NamedTuple):
    """What is known of the preactivations of one layer, to order 1/n.

    Attributes:
      K: (N, N) infinite-width covariance.
      G1: (N, N) correction of the mean covariance, times the width of the layer before.
      V: the vertex, times that width: (P, P) over pairs a <= b, or factors (R, P) with
        V = sum_s D_s x D_s, told by `factored`.
      lost: share of the trace of V that compression has left out; 0 when dense.
    """

    K: Any
    G1: Any
    V: Any
    lost: Any


class Rules(NamedTuple):
    """How expectations without a closed form are taken; hashable.

    Attributes:
      fourth: of four outputs: "closed", "quadrature", "sampling", or "auto", the first of these
        that is exact, else sampling.
      degree: points a side for two outputs; 80 leave 1e-10 of tanh's moments at unit variance.
      degree_of_four: points a side for four outputs, to the fourth power.
      num_samples: quasi-random neurons.
      seed: of these; the difference of two seeds is the error of sampling.
      rank: factors that are kept.
    """

    fourth: str = "auto"
    degree: int = 80
    degree_of_four: int = 32
    num_samples: int = 2**14
    seed: int = 0
    rank: int = 256


def rules(
    *,
    fourth: str = "auto",
    degree: int = 80,
    degree_of_four: int = 32,
    num_samples: int = 2**14,
    seed: int = 0,
    rank: int = 256,
) -> Rules:
    """`Rules`, checked; every function that takes them has these keywords.

    Args:
      fourth: "auto", "closed", "quadrature" or "sampling".
      degree: points a side for two outputs.
      degree_of_four: points a side for four.
      num_samples: quasi-random neurons, an even number.
      seed: of these.
      rank: factors kept in factored form.

    Returns:
      Rules.

    Raises:
      ValueError: an unknown choice, a count that is too small, an odd num_samples.
      TypeError: a count that is no integer.

    Source: this library.

    Example:
      >>> rules(fourth="sampling").num_samples
      16384
    """
    check_choice("fourth", fourth, METHODS)
    check_count("degree", degree, minimum=8)
    check_count("degree_of_four", degree_of_four, minimum=8)
    check_count("num_samples", num_samples, minimum=2)
    check_count("seed", seed, minimum=0)
    check_count("rank", rank)
    if num_samples % 2:
        raise ValueError(f"num_samples must be even, got {num_samples}: neurons come in pairs.")
    return Rules(fourth, degree, degree_of_four, num_samples, seed, rank)


@full_precision
def first_layer(x: Any, *, C_W: Any, C_b: Any, factored: bool = False) -> LayerState:
    """The first layer, which is exactly Gaussian: K = C_b + C_W x.x' / n_0, no vertex.

    Args:
      x: (N, n_0) inputs.
      C_W: variance of the weights times the number of inputs.
      C_b: variance of the biases.
      factored: form of the vertex to come.

    Returns:
      LayerState.

    Raises:
      ValueError: x is not finite or no matrix, C_W not positive, C_b negative.

    Source: Yaida 2019 (arXiv 1910.00019).

    Example:
      >>> first_layer(jnp.ones((2, 3)), C_W=1.0, C_b=0.0).K.tolist()
      [[1.0, 1.0], [1.0, 1.0]]
    """
    x = as_matrix("x", x)
    _check_variances(C_W, C_b)
    K = (C_b + C_W / x.shape[1] * (x @ x.T)).astype(x.dtype)
    num_pairs = x.shape[0] * (x.shape[0] + 1) // 2
    V = jnp.zeros((0 if factored else num_pairs, num_pairs), K.dtype)
    return LayerState(K, jnp.zeros_like(K), V, jnp.zeros((), K.dtype))


@full_precision
def layer_recursion(
    state: LayerState,
    phi: str | Callable[..., Any] | Activation,
    *,
    C_W: Any,
    C_b: Any,
    ratio: Any = 1.0,
    factored: bool = False,
    **options: Any,
) -> LayerState:
    """The next layer from this one: neurons of this one are integrated out.

    Args:
      state: of `first_layer` or of this function.
      phi: activation, as in `activation`.
      C_W: variance of the weights times their number of inputs.
      C_b: variance of the biases.
      ratio: n_l / n_{l-1}, the width of this layer over that of the layer before; meets only what
        `state` has of V and G1, so that it does not matter for the first.
      factored: whether `state.V` holds factors (R, P).
      **options: of `rules`.

    Returns:
      LayerState, V and G1 in units of 1/n_l.

    Raises:
      ValueError: variances out of range, an unknown activation, what `rules` raises.

    Source: Yaida 2019 (arXiv 1910.00019); Roberts, Yaida & Hanin 2021 (arXiv 2106.10165), chapter
      4; signs and factors derived and checked by simulation.

    Example:
      >>> state = first_layer(jnp.ones((1, 3)), C_W=2.0, C_b=0.0)
      >>> state = layer_recursion(state, "relu", C_W=2.0, C_b=0.0)
      >>> float(state.K[0, 0]), round(float(state.V[0, 0] / state.K[0, 0] ** 2), 4)  # 5 a layer
      (2.0, 5.0)
    """
    _check_variances(C_W, C_b)
    chosen = activation(phi)
    rule = rules(**options)
    method_of(chosen, state.K.shape[-1], "auto" if factored else rule.fourth)
    return next_layer(state, chosen, C_W, C_b, ratio, factored, rule)


def next_layer(
    state: LayerState, phi: Activation, C_W: Any, C_b: Any, ratio: Any, factored: bool, rule: Rules
) -> LayerState:
    """`layer_recursion` without its checks."""
    K, G1, V, lost = state
    dual = dual_derivatives(phi, K, rule.degree)
    sampling = {"num_samples": rule.num_samples, "seed": rule.seed}
    if factored:
        fresh = sampled_factors(phi, K, dual.value, **sampling)
        curvature = contract_hessian(dual.second, lambda i, j: (V[:, i] * V[:, j]).sum(0))
        carried = jnp.sqrt(ratio) * apply_jacobian(dual.first, V)
        new_V, now_lost = compress(C_W * jnp.concatenate([carried, fresh]), rank=rule.rank)
        lost = lost + now_lost
    else:
        fresh = covariance_of_products(
            phi, K, dual.value, method=rule.fourth, degree=rule.degree_of_four, **sampling
        )
        curvature = contract_hessian(dual.second, lambda i, j: V[i, j])
        carried = apply_jacobian(dual.first, apply_jacobian(dual.first, V).T)
        new_V = C_W**2 * (fresh + ratio * (carried + carried.T) / 2)
    slope = apply_jacobian(dual.first, to_pairs(G1)) + curvature / 2
    return LayerState(
        C_b + C_W * from_pairs(dual.value), ratio * C_W * from_pairs(slope), new_V, lost
    )


def as_matrix(name: str, x: Any) -> Any:
    """`x` as a floating matrix; ValueError where it is none or not finite."""
    if not hasattr(x, "shape") or x.ndim != 2 or 0 in x.shape:
        raise ValueError(
            f"{name} must have shape (inputs, features), at least one of each, got "
            f"{getattr(x, 'shape', type(x).__name__)}."
        )
    check_finite(name, x)
    x = jnp.asarray(x)
    return x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(float)


def _check_variances(C_W: Any, C_b: Any) -> None:
    check_positive("C_W", C_W)
    check_positive("C_b", C_b, zero_allowed=True)
