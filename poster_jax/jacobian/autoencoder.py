"""Does a layer, read backwards with its own weights, return its input?

    A(x) = ||x - J' h(x)||^2,      h = layer_fn(params, x),  J = dh/dx.

For a homogeneous layer (ReLU, leaky ReLU, maxout or pooling, no bias) h = J x, so that
A(x) = ||(I - J'J) x||^2: the reconstruction loss is Hutchinson's estimator of ||J'J - I||_F^2 with
the data as its probe. Where E x x' = I and J is constant the two agree; in general A measures
orthogonality along the data only. Noise e ~ N(0, s^2 I) on x, small enough to stay in a linear
region, adds the rest: E A(x + e) = A(x) + s^2 ||J'J - I||_F^2.
"""

from typing import Any

import jax
import jax.numpy as jnp

from poster_jax.core.checks import (
    check_callable,
    check_choice,
    check_key,
    check_positive,
    is_traced,
)
from poster_jax.core.typing import Params, PRNGKey
from poster_jax.jacobian._layer import LayerFn, check_layer, linearise
from poster_jax.jacobian._penalty import Penalty, without_probes

__all__ = ["tied_autoencoder_loss"]

DECODERS = ("vjp", "transpose")


def tied_autoencoder_loss(
    layer_fn: LayerFn,
    params: Params,
    x: Any,
    key: PRNGKey | None = None,
    *,
    decoder: str = "vjp",
    linear_fn: LayerFn | None = None,
    noise_std: Any = 0.0,
    relative: bool = False,
    stop_gradient_input: bool = True,
) -> Penalty:
    """The loss of reconstructing a layer's input from its output with the same weights.

    Equation: `A(x) = ||x - J' h(x)||^2` ("vjp") or `||x - W' h(x)||^2` ("transpose"). For ReLU
    without bias both are `||(I - J'J) x||^2`: see the module's docstring for what it has to do with
    `orthogonality_penalty(side="columns")`. For leaky ReLU only "vjp" is.

    Args:
      layer_fn: `layer_fn(params, x) -> h`, the encoder, a batch (B, ...) to a batch (B, ...).
      params: any pytree.
      x: (B, ...) floats, the inputs of the layer.
      key: PRNG key of the noise; None without noise.
      decoder: "vjp", the transposed Jacobian, for any layer; "transpose", the transposed weights.
      linear_fn: for "transpose": the layer before its activation, linear_fn(params, x) = W x + b;
        W' is its transposed derivative, so it may be a convolution too.
      noise_std: s above; x + e is what is encoded, and what is to be reconstructed. May be traced.
      relative: divides by ||x||^2, so that shrinking activations is no way to lower it. An input of
        zeros then counts as 0.
      stop_gradient_input: whether x is detached (the default: otherwise earlier layers could lower
        the loss by shrinking x).

    Returns:
      Penalty: value scalar, per_example (B,); its standard_error is 0 without noise, and infinite
      with it (one draw an example).

    Raises:
      ValueError: an unknown decoder, "transpose" without a linear_fn whose outputs are shaped like
        h, noise_std below 0 or not finite, params and x that do not fit.
      TypeError: layer_fn or linear_fn is no function, x no float array, key is missing or no key.

    Source: Choe, Jeong, Carbonell 2019 (NeurIPS workshop SEDL), the abstract's tied-weights
      autoencoder; the identities are derived by this library and checked in its tests.

    Example:
      >>> layer = lambda w, x: jax.nn.relu(x @ w)
      >>> x = jnp.array([[3.0, -4.0]])
      >>> float(tied_autoencoder_loss(layer, jnp.eye(2), x).value)  # the negative input is lost
      16.0
    """
    check_choice("decoder", decoder, DECODERS)
    check_positive("noise_std", noise_std, zero_allowed=True)
    noisy = is_traced(noise_std) or noise_std != 0
    if noisy:
        if key is None:
            raise TypeError("key must be a PRNG key such as jax.random.key(0) for noise, got None.")
        check_key("key", key)
        check_layer(layer_fn, params, x)
        x = x + noise_std * jax.random.normal(key, x.shape, x.dtype)
    layer = linearise(layer_fn, params, x, stop_gradient_input=stop_gradient_input)
    x = layer.x
    decode = layer.vjp if decoder == "vjp" else _transposed(linear_fn, params, x, layer.h.shape)
    decoded = decode(layer.h)
    loss = ((x - decoded) ** 2).reshape(len(x), -1).sum(axis=1)
    if relative:
        size = (x**2).reshape(len(x), -1).sum(axis=1)
        # Both branches of a `where` are differentiated, so that neither may divide by zero.
        loss = jnp.where(size > 0, loss / jnp.where(size > 0, size, 1), 0)
    found = without_probes(loss)
    return found._replace(standard_error=jnp.full_like(found.value, jnp.inf)) if noisy else found


def _transposed(linear_fn: LayerFn | None, params: Params, x: Any, shape: Any) -> Any:
    """`h -> W' h`, the transposed derivative of `linear_fn`."""
    if linear_fn is None:
        raise ValueError(
            "linear_fn must be given for decoder='transpose', linear_fn(params, x) -> W x + b, got "
            "None; decoder='vjp' needs none."
        )
    check_callable("linear_fn", linear_fn)
    z, pull = jax.vjp(lambda y: linear_fn(params, y), x)
    if z.shape != shape:
        raise ValueError(
            f"linear_fn must return the layer before its activation, of shape {shape}, got "
            f"{z.shape}."
        )
    return lambda h: pull(h)[0]
