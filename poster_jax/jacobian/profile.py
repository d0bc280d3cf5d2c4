"""Whether gradients vanish or explode on their way back through the layers.

With h_l the outputs of layer l and g_l = dLoss / dh_l, backpropagation is g_(l-1) = J_l' g_l, so

    prod_l s_min(J_l)^2  <=  ||g_0||^2 / ||g_L||^2  <=  prod_l s_max(J_l)^2,

with s_min the least stretch of J_l', 0 where a layer has more outputs than inputs. Where
||J_l J_l' - I||_2 <= eps_l < 1 it follows that the ratio lies within prod(1 - eps_l) and
prod(1 + eps_l): what the penalty of orthogonality holds together.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from poster_jax.core.checks import check_callable
from poster_jax.core.typing import Array, Float, Params
from poster_jax.jacobian._layer import LayerFn, check_layer
from poster_jax.jacobian._linear_map import explicit_svd, linear_map
from poster_jax.jacobian.network import StackedLayers, layer_counts

__all__ = ["SandwichBound", "gradient_norm_profile", "gradient_ratio", "sandwich_bound"]

Layers = Sequence[LayerFn | StackedLayers] | LayerFn


class SandwichBound(NamedTuple):
    """Between which factors L layers keep a squared gradient norm, at each of B examples.

    Attributes:
      lower: (B,); the least that ||g_0||^2 / ||g_L||^2 can be, the product of `smallest` squared.
      upper: (B,); the most, the product of `largest` squared. A product that leaves the range of
        its dtype becomes 0 or infinity, and bounds still.
      smallest: (L, B); the least stretch of a gradient by J_l', 0 with more outputs than inputs.
      largest: (L, B); the largest singular value of J_l.
      deviation: (L, B); eps_l = ||J_l J_l' - I||_2, the larger of 1 - smallest^2 and largest^2 - 1.
        prod(1 + eps_l) bounds from above too, and prod(max(0, 1 - eps_l)) from below, less tightly.
    """

    lower: Any
    upper: Any
    smallest: Any
    largest: Any
    deviation: Any


def gradient_norm_profile(
    layers: Layers,
    params: Params,
    loss_of_output: Callable[[Any], Any],
    x: Any,
) -> Float[Array, "layers"]:
    """The norms of the loss's gradients at each layer's outputs, from one backward pass.

    A zero is added to the outputs of every layer, and the loss is differentiated by these zeros.

    Args:
      layers: tuple of `layer_fn(params_l, x) -> h` and `StackedLayers`, which run under `lax.scan`,
        so that the time to compile does not grow with depth; one function counts as one layer.
      params: tuple of as many pytrees; of one function its params.
      loss_of_output: `loss_of_output(h) -> scalar` of the outputs (B, ...) of the last layer.
      x: (B, ...) examples, floating point.

    Returns:
      (L,) the norm of dLoss / dh_l over the whole batch, the outputs of the first layer first. Not
      lost where its square would leave the range of the dtype.

    Raises:
      ValueError: no layers, params not one a layer, a layer that does not fit its inputs, a loss
        that is no floating point scalar.
      TypeError: a layer or loss_of_output is no function, layers or params are no tuple, x is no
        floating point array.

    Source: Choe, Jeong, Carbonell 2019 ask for it; the form is this library's.

    Example:
      >>> double = lambda w, x: w * x
      >>> gradient_norm_profile((double,) * 3, (2.0,) * 3, jnp.sum, jnp.ones((1, 1))).tolist()
      [4.0, 2.0, 1.0]
    """
    layers, params, shapes = _checked(layers, params, x)
    check_callable("loss_of_output", loss_of_output)
    loss = jax.eval_shape(loss_of_output, shapes[-1])
    if getattr(loss, "shape", None) != () or not jnp.issubdtype(loss.dtype, jnp.floating):
        raise ValueError(f"loss_of_output must return one floating point scalar, got {loss}.")
    return _profile(layers, loss_of_output, shapes, params, jnp.asarray(x))


def gradient_ratio(profile: Float[Array, "... layers"]) -> Float[Array, "..."]:
    """By how many orders of magnitude gradients grow on the way back to the first layer.

    Args:
      profile: (..., L) of `gradient_norm_profile`.

    Returns:
      (...) rho = log10(g_1 / g_L): 0 is constant, below 0 gradients vanish, above they explode.
      Infinite or NaN where a norm is 0.

    Raises:
      ValueError: profile has no layer axis or no layer.
      TypeError: profile is no floating point array.

    Source: Choe, Jeong, Carbonell 2019; the figure is this library's.

    Example:
      >>> float(gradient_ratio(jnp.array([10.0, 5.0, 1.0])))
      1.0
    """
    if not hasattr(profile, "dtype") or not jnp.issubdtype(profile.dtype, jnp.floating):
        kind = getattr(profile, "dtype", type(profile).__name__)
        raise TypeError(f"profile must be a floating point array, got {kind}.")
    if profile.ndim == 0 or profile.shape[-1] == 0:
        raise ValueError(f"profile must have the shape (..., layers), got {profile.shape}.")
    # The difference of logarithms: the ratio itself may leave the range of its dtype.
    return jnp.log10(profile[..., 0]) - jnp.log10(profile[..., -1])


def sandwich_bound(layers: Layers, params: Params, x: Any) -> SandwichBound:
    """Between which factors the layers' Jacobians keep the norm of any gradient.

    The loss does not matter: it holds for every gradient at the outputs. The explicit Jacobian of
    one layer and one example is held at a time, and decomposed.

    Args:
      layers: as in `gradient_norm_profile`, examples uncoupled.
      params: as in `gradient_norm_profile`.
      x: (B, ...) examples, floating point.

    Returns:
      SandwichBound, in float32 at least.

    Raises:
      ValueError: no layers, params not one a layer, a layer that does not fit its inputs.
      TypeError: a layer is no function, layers or params are no tuple, x is no floating point
        array.

    Source: singular values bound products, applied to g_(l-1) = J_l' g_l; this library.

    Example:
      >>> linear = lambda w, x: x @ w
      >>> w = jnp.diag(jnp.array([1.0, 2.0]))
      >>> bound = sandwich_bound((linear, linear), (w, w), jnp.ones((1, 2)))
      >>> float(bound.lower[0]), float(bound.upper[0])
      (1.0, 16.0)
    """
    layers, params, _ = _checked(layers, params, x)
    smallest, largest = _extremes(layers, params, jnp.asarray(x))
    deviation = jnp.maximum(1 - smallest**2, largest**2 - 1)
    lower, upper = (jnp.prod(a**2, axis=0) for a in (smallest, largest))
    return SandwichBound(lower, upper, smallest, largest, deviation)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _profile(
    layers: tuple[Any, ...],
    loss_of_output: Callable[[Any], Any],
    shapes: tuple[jax.ShapeDtypeStruct, ...],
    params: tuple[Params, ...],
    x: Array,
) -> Array:
    def loss(zeros: list[Array]) -> Array:
        h = x
        for layer_fn, own, zero in zip(layers, params, zeros, strict=True):
            if isinstance(layer_fn, StackedLayers):
                step = lambda h, at, fn=layer_fn.layer_fn: (fn(at[0], h) + at[1], None)  # noqa: E731
                h, _ = jax.lax.scan(step, h, (own, zero))
            else:
                h = layer_fn(own, h) + zero[0]
        return loss_of_output(h)

    zeros = [
        jnp.zeros((getattr(layer_fn, "num_layers", 1), *h.shape), h.dtype)
        for layer_fn, h in zip(layers, shapes, strict=True)
    ]
    return jnp.concatenate([jax.vmap(_norm)(g) for g in jax.grad(loss)(zeros)])


def _norm(gradient: Array) -> Array:
    """Scaled by its largest entry: the square of a vanishing gradient is 0 in float32."""
    size = jnp.abs(gradient).max()
    return size * jnp.sqrt(((gradient / jnp.where(size > 0, size, 1)) ** 2).sum())


@partial(jax.jit, static_argnums=0)
def _extremes(layers: tuple[Any, ...], params: tuple[Params, ...], x: Array) -> tuple[Array, Array]:
    """Least and largest singular values (L, B) of the layers' transposed Jacobians."""

    def measure(layer_fn: LayerFn, own: Params, h: Array) -> tuple[Array, tuple[Array, Array]]:
        return layer_fn(own, h), _extremes_of_layer(layer_fn, own, h)

    h, found = x, []
    for layer_fn, own in zip(layers, params, strict=True):
        if isinstance(layer_fn, StackedLayers):
            step = lambda h, own, fn=layer_fn.layer_fn: measure(fn, own, h)  # noqa: E731
            h, extremes = jax.lax.scan(step, h, own)
        else:
            h, extremes = measure(layer_fn, own, h)
            extremes = jax.tree.map(lambda a: a[None], extremes)
        found.append(extremes)
    smallest, largest = (jnp.concatenate(part) for part in zip(*found, strict=True))
    return smallest, largest


def _extremes_of_layer(layer_fn: LayerFn, params: Params, x: Array) -> tuple[Array, Array]:
    out = jax.eval_shape(layer_fn, params, x)
    more_outputs = math.prod(out.shape) > x.size

    def one(example: Array) -> tuple[Array, Array]:
        _, _, values, _ = explicit_svd(linear_map(layer_fn, params, example))
        # Some gradients at the outputs then do not reach the inputs at all.
        return jnp.where(more_outputs, 0, values[-1]), values[0]

    return jax.lax.map(one, x)


def _checked(
    layers: Layers, params: Params, x: Any
) -> tuple[tuple[Any, ...], tuple[Params, ...], tuple[jax.ShapeDtypeStruct, ...]]:
    """Layers and params as tuples, and what each layer gives (a stack: each of its layers)."""
    if isinstance(layers, StackedLayers) or callable(layers):
        layers, params = (layers,), (params,)
    for name, value in (("layers", layers), ("params", params)):
        if not isinstance(value, tuple | list):
            raise TypeError(f"{name} must be a tuple, one a layer, got {type(value).__name__}.")
    layers, params = tuple(layers), tuple(params)
    layer_counts(layers, params)
    check_layer(lambda _, x: x, (), x, "x")

    # Traced, since between layers there are shapes and no values.
    def outputs(x: Array) -> list[Array]:
        found = []
        for i, (layer_fn, own) in enumerate(zip(layers, params, strict=True)):
            name = f"layers[{i}]"
            if isinstance(layer_fn, StackedLayers):
                first = jax.tree.map(lambda leaf: leaf[0], own)
                out = check_layer(layer_fn.layer_fn, first, x, name)
                if (out.shape, out.dtype) != (x.shape, x.dtype):
                    raise ValueError(
                        f"{name}, a stack, must keep the shape and dtype of its inputs, {x.dtype} "
                        f"{x.shape}, got {out.dtype} {out.shape}."
                    )
            else:
                out = check_layer(layer_fn, own, x, name)
            x = jnp.zeros(out.shape, out.dtype)
            found.append(x)
        return found

    return layers, params, tuple(jax.eval_shape(outputs, jnp.asarray(x)))
