"""How far is a layer from keeping the norm of a random gradient that passes through it?

    N(x) = E (||J' v||^2 - ||v||^2)^2 / (m + 2),    v ~ N(0, I_m),
         = ((tr M)^2 + 2 ||M||_F^2) / (m + 2),      M = J J' - I.

It vanishes where R = ||M||_F^2 does, but asks first for the trace. A ReLU layer with half of its
units active cannot have M = 0: R is least when the active rows have norm 1 and half of every
gradient is lost, N when they have squared norm (2 m + 4) / (m + 4), nearly 2 (He's scale), so that
on average nothing is. Dividing by m + 2 gives N the unit of R.
"""

from typing import Any

import jax
import jax.numpy as jnp

from poster_jax.core.checks import check_choice
from poster_jax.core.typing import Params, PRNGKey
from poster_jax.jacobian._gram import deviation
from poster_jax.jacobian._layer import LayerFn, check_uncoupled, linearise
from poster_jax.jacobian._penalty import (
    SIDES,
    Penalty,
    check_probing,
    draw_probes,
    from_probes,
    squared_norms,
    without_probes,
)
from poster_jax.jacobian.orthogonality import dense_deviation

__all__ = ["dense_norm_preservation_penalty", "norm_preservation_penalty"]

METHODS = ("probes", "exact")


def norm_preservation_penalty(
    layer_fn: LayerFn,
    params: Params,
    x: Any,
    key: PRNGKey | None = None,
    *,
    method: str = "probes",
    side: str = "rows",
    num_probes: int = 1,
    distribution: str = "gaussian",
    coupled: bool = False,
    stop_gradient_input: bool = False,
) -> Penalty:
    """How much the squared norm of a random gradient changes on its way back through a layer.

    Equation: `N(x) = E (||J'v||^2 - ||v||^2)^2 / (m + 2) = ((tr M)^2 + 2 ||M||_F^2) / (m + 2)` for
    Gaussian v, `M = J J' - I_m`. The form to take for ReLU, where `orthogonality_penalty` shrinks
    gradients (see the module's docstring).

    Args:
      layer_fn: `layer_fn(params, x) -> h`, a batch (B, ...) to a batch (B, ...).
      params: any pytree; may be empty.
      x: (B, ...) floats, the inputs of the layer.
      key: PRNG key of the probes; None for method "exact".
      method: "probes", one vjp each; "exact", from min(m, n) rows of J an example.
      side: "rows", gradients on their way back; "columns", perturbations on their way forward:
        E (||J u||^2 - ||u||^2)^2 / (n + 2), one jvp a probe. Unlike R's, the two differ by more
        than a constant where m != n.
      num_probes: probes an example; the linearisation is shared by all.
      distribution: "gaussian", or "sphere" (radius sqrt(m); the square is then divided by m, which
        makes it unbiased for the same N at less variance).
      coupled: J is that of the whole batch, (B m, B n), M its J J' - I, and value
        ((tr M)^2 + 2 ||M||_F^2) / (B m + 2) / B: the right definition where examples depend on each
        other. It is one number for the batch, and every example's share the same; it weighs
        ||M||_F^2 about B times less beside (tr M)^2 than `coupled=False` does.
      stop_gradient_input: as in `orthogonality_penalty`.

    Returns:
      Penalty: value scalar, per_example (B,), standard_error scalar, of the dtype of h.

    Raises:
      ValueError: an unknown choice, "rademacher" probes (they do not see unequal row norms),
        num_probes below 1, params and x that do not fit, or a layer that couples its examples
        without `coupled` (seen where values can be read, so not under `jit`).
      TypeError: layer_fn is no function, x no float array, key is missing or no key.

    Source: this library; the expectation is the fourth moment of a Gaussian.

    Example:
      >>> layer = lambda w, x: x @ w
      >>> found = norm_preservation_penalty(layer, jnp.eye(4), jnp.ones((5, 4)), jax.random.key(0))
      >>> float(found.value)  # the identity keeps every norm
      0.0
    """
    check_choice("method", method, METHODS)
    check_choice("side", side, SIDES)
    if distribution == "rademacher":
        raise ValueError(
            "distribution must be 'gaussian' or 'sphere' here, got 'rademacher': with all "
            "|v_i| = 1 the penalty vanishes for every diagonal J J' of the right trace, however "
            "unequal its rows."
        )
    if method != "exact":
        check_probing(key, num_probes, distribution)
    layer = linearise(layer_fn, params, x, stop_gradient_input=stop_gradient_input)
    if not coupled:
        check_uncoupled(layer)
    size = len(layer.x)
    dim = (layer.num_outputs if side == "rows" else layer.num_inputs) * (size if coupled else 1)
    if method == "exact":
        squared, trace = deviation(layer, side, coupled=coupled)
        if coupled:
            squared, trace = (jnp.full(size, a.sum()) for a in (squared, trace))
        exact = (trace**2 + 2 * squared) / (dim + 2)
        return without_probes(exact / size if coupled else exact)
    space, product = (layer.h, layer.vjp) if side == "rows" else (layer.x, layer.jvp)
    probes = draw_probes(key, num_probes, space, distribution, coupled=coupled)
    change = squared_norms(jax.vmap(product)(probes)) - squared_norms(probes)
    if coupled:
        change = jnp.broadcast_to(change.sum(axis=1, keepdims=True), change.shape)
    # On the sphere the expectation is dim / (dim + 2) of the Gaussian one.
    divisor = (dim + 2 if distribution == "gaussian" else dim) * (size if coupled else 1)
    return from_probes(change**2 / divisor, coupled=coupled)


def dense_norm_preservation_penalty(weight: Any, derivative: Any, *, side: str = "rows") -> Penalty:
    """`norm_preservation_penalty` of a dense layer h = phi(W x + b), exactly, without a Jacobian.

    Args:
      weight: W (m, n), a row for each output; the transpose of a Flax kernel.
      derivative: (B, m), phi'(W x_b + b) of every example.
      side: "rows" or "columns", as in `norm_preservation_penalty`.

    Returns:
      Penalty, its standard error 0; costs what `dense_orthogonality_penalty` does.

    Raises:
      ValueError: shapes that do not fit, values that are not finite, an unknown side.
      TypeError: weight or derivative are no float arrays.

    Source: this library, from the definition.

    Example:
      >>> derivative = jnp.array([[1.0, 0.0]])
      >>> found = dense_norm_preservation_penalty(jnp.sqrt(2.0) * jnp.eye(2), derivative)
      >>> round(float(found.value), 4)  # squared norms 2 and 0: tr M = 0, ||M||^2 = 2
      1.0
    """
    found = dense_deviation(weight, derivative, side)
    dim = jnp.shape(weight)[0 if side == "rows" else 1]
    squares = found.trace**2
    value = (squares.mean() + 2 * found.mean_squared_norm) / (dim + 2)
    return without_probes((squares + 2 * found.squared_norm) / (dim + 2))._replace(value=value)
