"""One layer's weights and its Hessian, in the form in which every measure is written.

A measure is a trace or a largest eigenvalue of B^T H B for some linear map B into the layer's
weights. No new product is needed for that: B^T H B is the Hessian of `x -> loss(W + B x)` at x = 0,
so any operator of `poster_jax.curvature` (Hessian, Gauss-Newton, Fisher; microbatched, sharded) is
moved along B by moving its function.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from poster_jax.core.checks import check_positive
from poster_jax.core.paths import get_path, set_path
from poster_jax.core.typing import Array, Batch, Float, LossFn, Params
from poster_jax.curvature import LinearOperator, block_operator
from poster_jax.flatness.layout import as_kernel, as_matrix, check_kernel, input_axis_of

__all__ = ["LayerHessian", "hessian_of_layer", "layer_hessian_from_operator"]


class LayerHessian(NamedTuple):
    """What a measure needs to know of a layer.

    Attributes:
      weights: (neurons, inputs); W of the equations, with rows w_s. After a normalisation of the
        features, the weights of the normalised network.
      operator: the Hessian with respect to them, a LinearOperator on (neurons, inputs) arrays.
    """

    weights: Float[Array, "neurons inputs"]
    operator: LinearOperator


def hessian_of_layer(
    loss_fn: LossFn,
    params: Params,
    batch: Batch,
    *,
    layer: str,
    neuron_axis: int = -1,
    input_axis: int | None = None,
    feature_scales: Float[Array, "channels"] | None = None,
    microbatch: int | None = None,
    mesh: Mesh | None = None,
) -> LayerHessian:
    """The weights of one layer and the loss's Hessian by them, all other parameters held fixed.

    Args:
      loss_fn: `loss_fn(params, batch) -> scalar`, the mean over the batch; batch normalisation in
        evaluation mode. A weight decay term in it (`losses.with_weight_decay`) is counted.
      params: pytree of the network.
      batch: pytree with a leading axis of N examples; the training set.
      layer: path of the kernel, such as "Dense_2/kernel"; biases are not part of it.
      neuron_axis: axis of the kernel over its neurons (output channels): -1 for (in, out) and HWIO
        (Flax, Haiku), 0 for (out, in) and OIHW (Equinox, torch).
      input_axis: axis over its inputs (input channels); None means the one beside the neurons, -2
        for neuron_axis=-1 and 1 for neuron_axis=0.
      feature_scales: one scale an input (channel), as `feature_scales` gives; the result is then
        that of the network whose features are divided by them. None leaves the network as it is.
      microbatch: examples taken at once; None takes all.
      mesh: spreads the examples over the devices of its axis "data".

    Returns:
      LayerHessian.

    Raises:
      ValueError: a path that names no kernel, a `neuron_axis` that it does not have, scales of
        another number than its inputs, params or batch empty, not finite or not fitting `loss_fn`.
      TypeError: a wrong kind of argument.

    Source: Petzka et al. 2021 (arXiv 2001.00939), definition of relative flatness. Caution: a
      grouped convolution's neurons read different inputs, and the measures, which compare inputs
      across neurons, do not fit it.

    Example:
      >>> def loss_fn(params, x): return 0.5 * jnp.mean((x @ params["kernel"]) ** 2)
      >>> params = {"kernel": jnp.ones((3, 2))}
      >>> found = hessian_of_layer(loss_fn, params, jnp.ones((5, 3)), layer="kernel")
      >>> found.weights.shape, found.operator.dim
      ((2, 3), 6)
    """
    operator = block_operator(loss_fn, params, batch, path=layer, microbatch=microbatch, mesh=mesh)
    return layer_hessian_from_operator(
        operator,
        neuron_axis=neuron_axis,
        input_axis=input_axis,
        feature_scales=feature_scales,
    )


def layer_hessian_from_operator(
    operator: LinearOperator,
    *,
    neuron_axis: int = -1,
    input_axis: int | None = None,
    feature_scales: Float[Array, "channels"] | None = None,
) -> LayerHessian:
    """The same for any curvature of a layer: Gauss-Newton, Fisher, empirical Fisher.

    Args:
      operator: on one kernel, such as `gauss_newton_operator(...).restrict("Dense_2/kernel")`.
      neuron_axis: as in `hessian_of_layer`.
      input_axis: as in `hessian_of_layer`.
      feature_scales: as in `hessian_of_layer`.

    Returns:
      LayerHessian.

    Raises:
      ValueError: the operator does not act on one kernel, axes or scales that do not fit it.

    Source: this library.

    Example:
      >>> from poster_jax.curvature import fisher_operator
      >>> def apply_fn(params, x): return x @ params["kernel"]
      >>> batch = (jnp.ones((5, 3)), jnp.zeros(5, int))
      >>> op = fisher_operator(apply_fn, {"kernel": jnp.ones((3, 2))}, batch)
      >>> layer_hessian_from_operator(op.restrict("kernel")).weights.shape
      (2, 3)
    """
    kernel = operator.like
    check_kernel("layer", kernel, neuron_axis)
    weights = as_matrix(kernel, neuron_axis)
    scales = None
    if feature_scales is not None:
        axis = input_axis_of(kernel, neuron_axis, input_axis)
        scales = _columns(feature_scales, kernel, axis, neuron_axis)
        weights = weights * scales
    moved = along(
        operator,
        _to_kernel,
        jnp.zeros_like(weights),
        None
        if scales is None
        else jnp.where(scales == 0, 0, 1 / jnp.where(scales == 0, 1, scales)),
        settings=(kernel.shape, neuron_axis),
    )
    return LayerHessian(weights, moved)


def along(
    operator: LinearOperator,
    embed: Callable[..., Array],
    zero: Array,
    arrays: Any,
    *,
    settings: Any = None,
) -> LinearOperator:
    """B^T H B for the linear map `B x = embed(settings, arrays, x)` into the operator's domain.

    `embed` is a module's own function and `settings` hashable, so that equal calls compile once.
    """
    return dataclasses.replace(
        operator,
        params={"base": operator.params, "free": zero, "map": arrays},
        fn=_Along(operator.fn, operator.path, embed, settings),
        path="free",
    )


@dataclasses.dataclass(frozen=True)
class _Along:
    """`fn` at the base point moved by the embedded free vector."""

    fn: Callable[..., Any]
    path: str | None
    embed: Callable[..., Array]
    settings: Any

    def __call__(self, params: dict, *args: Any) -> Any:
        base = params["base"]
        step = self.embed(self.settings, params["map"], params["free"])
        if self.path is None:
            return self.fn(jax.tree.map(jnp.add, base, step), *args)
        return self.fn(set_path(base, self.path, get_path(base, self.path) + step), *args)


def _to_kernel(settings: tuple, inverse_scales: Array | None, matrix: Array) -> Array:
    shape, neuron_axis = settings
    return as_kernel(
        matrix if inverse_scales is None else matrix * inverse_scales, shape, neuron_axis
    )


def _columns(scales: Any, kernel: Array, axis: int, neuron_axis: int) -> Array:
    """One scale a column of the matrix, from one an input channel."""
    scales = jnp.asarray(scales)
    if scales.shape != (kernel.shape[axis],):
        raise ValueError(
            f"feature_scales must have shape ({kernel.shape[axis]},), one entry for each input of "
            f"the kernel {kernel.shape} along axis {axis}, got {scales.shape}."
        )
    check_positive("feature_scales", scales, zero_allowed=True)
    shape = [1] * kernel.ndim
    shape[axis] = scales.size
    spread = jnp.broadcast_to(scales.astype(kernel.dtype).reshape(shape), kernel.shape)
    return as_matrix(spread, neuron_axis)[0]
