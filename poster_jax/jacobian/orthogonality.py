"""How far is a layer from preserving every gradient that passes through it?

    R(x) = ||J J' - I||_F^2,      J = dh/dx = D W,  D = diag(phi'(W x + b))  for a dense layer.

J contains the nonlinearity, in which R differs from weight regularisers (||W W' - I||). With
M = J J' - I and probes E v v' = I, ||M v||^2 and (u' M v)^2 are unbiased for R: products with J and
J' suffice. For a dense layer R has a closed form: with S = d * d (B, m) and G = W W',

    R(x_b) = sum_{i != j} s_i s_j G_ij^2 + sum_i (s_i G_ii - 1)^2 .
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from poster_jax.core.checks import check_choice, check_finite
from poster_jax.core.typing import Array, Params, PRNGKey
from poster_jax.jacobian._gram import deviation
from poster_jax.jacobian._layer import LayerFn, Linearised, check_uncoupled, linearise
from poster_jax.jacobian._penalty import (
    SIDES,
    Penalty,
    check_probing,
    draw_probes,
    from_probes,
    squared_norms,
    without_probes,
)

__all__ = ["dense_orthogonality_penalty", "orthogonality_penalty"]

METHODS = ("hutchinson", "exact", "bilinear")


def orthogonality_penalty(
    layer_fn: LayerFn,
    params: Params,
    x: Any,
    key: PRNGKey | None = None,
    *,
    method: str = "hutchinson",
    side: str = "rows",
    num_probes: int = 1,
    distribution: str = "rademacher",
    coupled: bool = False,
    stop_gradient_input: bool = False,
) -> Penalty:
    """How far the Jacobian of a layer, at each example, is from having orthonormal rows.

    Equation: `R(x) = ||J J' - I_m||_F^2`, `J = dh/dx` (m, n), averaged over the batch. 0 means that
    backpropagation through the layer keeps the norm of every gradient; the floor is m - rank(J),
    for ReLU at least the number of inactive units (`norm_preservation_penalty` has none there).

    Which method: a dense layer has a closed form, `dense_orthogonality_penalty`, cheaper than one
    probe for m up to about B. "hutchinson" costs a forward pass, one vjp and one jvp a probe.
    "bilinear" needs vjps alone (for a layer with a `custom_vjp`, which has no jvp); its variance is
    several times larger. "exact" holds min(m, n) rows of J an example.

    Args:
      layer_fn: `layer_fn(params, x) -> h`, a batch (B, ...) to a batch (B, ...).
      params: any pytree; may be empty.
      x: (B, ...) floats, the inputs of the layer.
      key: PRNG key of the probes; None for method "exact".
      method: "hutchinson", mean of ||M v||^2 with M = J J' - I; "bilinear", mean of (u' M v)^2;
        "exact", no probes.
      side: "rows", J J' = I_m; "columns", J'J = I_n. They differ by the constant n - m, so that
        probes are drawn on the smaller side ("bilinear": always the outputs') and it is added.
      num_probes: probes an example; the linearisation is shared by all.
      distribution: "rademacher" (never more variance than "gaussian"), "gaussian" or "sphere"
        (radius sqrt(m)).
      coupled: J is that of the whole batch, (B m, B n), and value ||J J' - I||_F^2 / B: the right
        definition where examples depend on each other (batch norm in training mode), and the same
        number where they do not. "bilinear" then gives every example the same share.
      stop_gradient_input: whether the gradient stays in this layer and does not reach earlier ones
        through x. For piecewise linear activations it does not matter.

    Returns:
      Penalty: value scalar, per_example (B,), standard_error scalar, of the dtype of h. Its
      gradient (the probes held fixed) is unbiased too.

    Raises:
      ValueError: an unknown choice, num_probes below 1, params and x that do not fit, or a layer
        that couples its examples without `coupled` (seen where values can be read; under `jit`
        the value of "hutchinson" is right all the same).
      TypeError: layer_fn is no function, x no float array, key is missing or no key.

    Source: Choe, Jeong, Carbonell 2019, "On Orthogonal Jacobian Regularization in Deep Neural
      Networks" (NeurIPS workshop SEDL), of which the abstract alone is known; the estimators are
      this library's, derived and checked against brute force.

    Example:
      >>> layer = lambda w, x: x @ w  # twice the identity: J J' - I = 3 I
      >>> found = orthogonality_penalty(layer, 2 * jnp.eye(4), jnp.ones((5, 4)), jax.random.key(0))
      >>> float(found.value), found.per_example.shape
      (36.0, (5,))
    """
    check_choice("method", method, METHODS)
    check_choice("side", side, SIDES)
    if method != "exact":
        check_probing(key, num_probes, distribution)
    layer = linearise(layer_fn, params, x, stop_gradient_input=stop_gradient_input)
    if not coupled:
        check_uncoupled(layer)
    if method == "exact":
        return without_probes(deviation(layer, side, coupled=coupled).squared_norm)
    estimate = _hutchinson if method == "hutchinson" else _bilinear
    return estimate(layer, key, side, num_probes, distribution, coupled)


def dense_orthogonality_penalty(weight: Any, derivative: Any, *, side: str = "rows") -> Penalty:
    """`orthogonality_penalty` of a dense layer h = phi(W x + b), exactly and without a Jacobian.

    Costs 2 m^2 n operations once, 2 B m^2 for the batch: m / B + m / n of the layer's forward pass.
    With the gradient twice that for a smooth activation, 1.5 times for a piecewise linear one.

    Args:
      weight: W (m, n), a row for each output; the transpose of a Flax kernel.
      derivative: (B, m), phi'(W x_b + b) of every example.
      side: "rows" or "columns", as in `orthogonality_penalty`.

    Returns:
      Penalty, its standard error 0. As a sum of squares it is exact near 0 in float32 too, where
      the textbook form s'(G*G)s - 2 s.diag(G) + m would cancel.

    Raises:
      ValueError: shapes that do not fit, values that are not finite, an unknown side.
      TypeError: weight or derivative are no float arrays.

    Source: this library, from the definition.

    Example:
      >>> found = dense_orthogonality_penalty(jnp.eye(3), jnp.array([[1.0, 1.0, 0.0]]))
      >>> float(found.value)  # one unit of three is off
      1.0
    """
    found = dense_deviation(weight, derivative, side)
    return without_probes(found.squared_norm)._replace(value=found.mean_squared_norm)


class DenseDeviation(NamedTuple):
    """Of M = J J' - I (or J'J - I) of a dense layer.

    Attributes:
      squared_norm: (B,) of ||M||_F^2.
      mean_squared_norm: scalar, its mean, by another way: what is not asked for is not computed.
      trace: (B,) of tr M.
    """

    squared_norm: Array
    mean_squared_norm: Array
    trace: Array


def dense_deviation(weight: Any, derivative: Any, side: str) -> DenseDeviation:
    """How far each example's Gram matrix is from I, without a Jacobian."""
    check_choice("side", side, SIDES)
    _check_dense(weight, derivative)
    weight, derivative = jnp.asarray(weight), jnp.asarray(derivative)
    m, n = weight.shape
    s = derivative**2
    gram = _gram(weight)
    diagonal = jnp.diagonal(gram)
    between = jnp.where(jnp.eye(m, dtype=bool), 0, gram) ** 2
    own = s * diagonal - 1
    squares = (own**2).sum(axis=1)
    larger = 0 if side == "rows" else n - m
    return DenseDeviation(
        squared_norm=_quadratic_forms(s, between) + squares + larger,
        mean_squared_norm=_mean_quadratic_form(s, between) + squares.mean() + larger,
        trace=own.sum(axis=1) - larger,
    )


# The rules below use that the matrices are symmetric, which automatic differentiation cannot know:
# half the products of the first gradient, a third of the second's, are saved.


@jax.custom_jvp
def _gram(weight: Array) -> Array:
    """W W'."""
    return jnp.matmul(weight, weight.T, precision="highest")


@_gram.defjvp
def _(primals: Any, tangents: Any) -> tuple[Array, Array]:
    half = jnp.matmul(tangents[0], primals[0].T, precision="highest")
    return _gram(primals[0]), half + half.T


@jax.custom_jvp
def _quadratic_forms(s: Array, symmetric: Array) -> Array:
    """s_b' C s_b (B,) for a symmetric C whose every change is symmetric too."""
    return (s * jnp.matmul(s, symmetric, precision="highest")).sum(axis=1)


@_quadratic_forms.defjvp
def _(primals: Any, tangents: Any) -> tuple[Array, Array]:
    (s, symmetric), (ds, change) = primals, tangents
    product = jnp.matmul(s, symmetric, precision="highest")
    by_matrix = (s * jnp.matmul(s, change, precision="highest")).sum(axis=1)
    return (s * product).sum(axis=1), 2 * (ds * product).sum(axis=1) + by_matrix


@jax.custom_jvp
def _mean_quadratic_form(s: Array, symmetric: Array) -> Array:
    """mean_b s_b' C s_b as sum(C * (S'S / B)): the gradient by C is there already."""
    return (symmetric * _second_moments(s)).sum()


def _mean_quadratic_form_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    (s, symmetric), (ds, change) = primals, tangents
    moments = _second_moments(s)
    value = (symmetric * moments).sum()
    tangent = jnp.zeros_like(value)
    # Of a piecewise linear activation phi' does not move, and a third of the work is saved.
    if not isinstance(ds, SymbolicZero):
        product = jnp.matmul(s, symmetric, precision="highest")
        tangent += 2 * (ds * product).sum() / len(s)
    if not isinstance(change, SymbolicZero):
        tangent += (change * moments).sum()
    return value, tangent


_mean_quadratic_form.defjvp(_mean_quadratic_form_jvp, symbolic_zeros=True)


def _second_moments(s: Array) -> Array:
    return jnp.matmul(s.T, s, precision="highest") / len(s)


def _hutchinson(
    layer: Linearised, key: Any, side: str, num_probes: int, distribution: str, coupled: bool
) -> Penalty:
    m, n = layer.num_outputs, layer.num_inputs
    if m < n or (m == n and side == "rows"):
        space, there, back = layer.h, layer.vjp, layer.jvp
    else:
        space, there, back = layer.x, layer.jvp, layer.vjp
    probes = draw_probes(key, num_probes, space, distribution, coupled=coupled)
    moved = jax.vmap(lambda v: back(there(v)) - v)(probes)
    larger = (m if side == "rows" else n) - min(m, n)
    return from_probes(squared_norms(moved) + larger, coupled=coupled)


def _bilinear(
    layer: Linearised, key: Any, side: str, num_probes: int, distribution: str, coupled: bool
) -> Penalty:
    # Both of a pair in one call: twice the probes, and not two programs.
    probes = draw_probes(key, 2 * num_probes, layer.h, distribution, coupled=coupled)
    pulled = jax.vmap(layer.vjp)(probes)
    products = _inner(pulled[0::2], pulled[1::2]) - _inner(probes[0::2], probes[1::2])
    if coupled:
        size = len(layer.x)
        total = products.sum(axis=1, keepdims=True) ** 2
        estimates = jnp.broadcast_to(total / size, (num_probes, size))
    else:
        estimates = products**2
    larger = 0 if side == "rows" else layer.num_inputs - layer.num_outputs
    return from_probes(estimates + larger, coupled=coupled)


def _inner(a: Array, b: Array) -> Array:
    return (a * b).reshape(*a.shape[:2], -1).sum(axis=-1)


def _check_dense(weight: Any, derivative: Any) -> None:
    for name, array in (("weight", weight), ("derivative", derivative)):
        if not hasattr(array, "dtype") or not jnp.issubdtype(array.dtype, jnp.floating):
            got = getattr(array, "dtype", type(array).__name__)
            raise TypeError(f"{name} must be a floating point array, got {got}.")
        check_finite(name, array)
    if weight.ndim != 2:
        raise ValueError(f"weight must have shape (m, n), got {tuple(weight.shape)}.")
    m = weight.shape[0]
    if derivative.ndim != 2 or derivative.shape[1] != m or not derivative.shape[0]:
        raise ValueError(
            f"derivative must have shape (B, {m}), one phi' for each example and row of weight, "
            f"got {tuple(derivative.shape)}."
        )
