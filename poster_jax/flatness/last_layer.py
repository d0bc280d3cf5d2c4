r"""The last layer needs no Hessian-vector product through the network: closed forms.

For logits z = W phi + b under softmax cross-entropy, H = mean_i S_i (x) phi_i phi_i^T with
S = diag(p) - p p^T, whatever the labels. Then T_{s,s'} = mean_i |phi_i|^2 S_{i,s,s'}, and as S
annihilates constants,

    kappa = mean_i |phi_i|^2 sum_{s<s'} p_{is} p_{is'} |w_s - w_{s'}|^2,

a sum of positive terms: nothing cancels, where the textbook form diag(G).p - p^T G p loses its
digits in float32 as soon as the predictions are confident.
"""

import jax
import jax.numpy as jnp

from poster_jax.core.checks import check_batch, check_finite, check_positive
from poster_jax.core.typing import Array, Float, Scalar
from poster_jax.curvature import hessian_operator
from poster_jax.flatness.layer import LayerHessian
from poster_jax.flatness.layout import as_matrix, check_kernel

__all__ = [
    "hessian_of_last_layer",
    "last_layer_relative_flatness",
    "last_layer_trace",
    "least_squares_relative_flatness",
]


def last_layer_relative_flatness(
    features: Float[Array, "examples inputs"],
    logits: Float[Array, "examples classes"],
    kernel: Float[Array, "..."],
    *,
    neuron_axis: int = -1,
    weight_decay: float = 0.0,
) -> Scalar:
    r"""Relative flatness of the last layer under softmax cross-entropy, exactly.

    $$\kappa = \frac1N \sum_i \|\phi_i\|^2 \sum_{s<s'} p_{is} p_{is'} \|w_s - w_{s'}\|^2
      + 2\alpha m \|W\|^2$$

    Args:
      features: (N, m), what the layer reads (`layer_features`).
      logits: (N, d), what it gives, bias included.
      kernel: (m, d) with neuron_axis=-1 (the default), (d, m) with neuron_axis=0.
      neuron_axis: axis of the kernel over the classes.
      weight_decay: alpha of a term alpha |W|^2 in the loss.

    Returns:
      Scalar. For the network with normalised features hand over `features / scales` and the kernel
      with its inputs multiplied by `scales`.

    Raises:
      ValueError: shapes that do not fit, no examples, values that are not finite, weight_decay < 0.

    Source: this library (derivation above) for the measure of Petzka et al. 2021
      (arXiv 2001.00939). With label smoothing the value is the same.

    Example:
      >>> features, logits = jnp.ones((4, 2)), jnp.zeros((4, 2))
      >>> float(last_layer_relative_flatness(features, logits, jnp.eye(2)))  # 2 * 1/4 * 2
      1.0
    """
    weights = _check_last(features, kernel, neuron_axis, logits)
    check_positive("weight_decay", weight_decay, zero_allowed=True)
    p = jax.nn.softmax(logits)
    apart = jnp.sum(jnp.square(weights[:, None] - weights[None]), axis=-1)
    spread = jnp.sum(p * _matmul(p, apart), axis=1) / 2
    kappa = jnp.mean(jnp.sum(jnp.square(features), axis=1) * spread)
    return kappa + 2 * weight_decay * weights.shape[1] * jnp.sum(jnp.square(weights))


def last_layer_trace(
    features: Float[Array, "examples inputs"], logits: Float[Array, "examples classes"]
) -> Scalar:
    r"""Trace of the last layer's Hessian under softmax cross-entropy, exactly.

    $$Tr(H) = \frac1N \sum_i \|\phi_i\|^2 (1 - \|p_i\|^2)$$

    Args:
      features: (N, m), what the layer reads.
      logits: (N, d), what it gives.

    Returns:
      Scalar; times |W|^2 it is `layer_trace`.

    Raises:
      ValueError: shapes that do not fit, no examples, values that are not finite.

    Source: this library.

    Example:
      >>> float(last_layer_trace(jnp.ones((4, 3)), jnp.zeros((4, 2))))  # 3 * (1 - 1/2)
      1.5
    """
    _check_rows(features, logits)
    p = jax.nn.softmax(logits)
    # sum_s p_s (sum of the others): 1 - |p|^2 without the cancellation of a confident prediction.
    others = _matmul(p, 1 - jnp.eye(p.shape[1], dtype=p.dtype))
    return jnp.mean(jnp.sum(jnp.square(features), axis=1) * jnp.sum(p * others, axis=1))


def least_squares_relative_flatness(
    features: Float[Array, "examples inputs"],
    kernel: Float[Array, "..."],
    *,
    neuron_axis: int = -1,
    weight_decay: float = 0.0,
) -> Scalar:
    r"""Relative flatness of a last layer under $\frac12 \|W\phi + b - y\|^2$: the ridge penalty.

    $$\kappa = \|W\|_F^2 \left( \frac1N \sum_i \|\phi_i\|^2 + 2\alpha m \right)$$

    Args:
      features: (N, m), what the layer reads.
      kernel: (m, d) with neuron_axis=-1 (the default), (d, m) with neuron_axis=0.
      neuron_axis: axis of the kernel over the outputs.
      weight_decay: alpha of a term alpha |W|^2 in the loss.

    Returns:
      Scalar.

    Raises:
      ValueError: shapes that do not fit, no examples, values that are not finite, weight_decay < 0.

    Source: Petzka et al. 2021 (arXiv 2001.00939), the remark on ridge regression; a loss without
      the factor 1/2 has twice the Hessian.

    Example:
      >>> float(least_squares_relative_flatness(jnp.ones((4, 3)), 2.0 * jnp.ones((3, 1))))
      36.0
    """
    weights = _check_last(features, kernel, neuron_axis)
    check_positive("weight_decay", weight_decay, zero_allowed=True)
    norms = jnp.mean(jnp.sum(jnp.square(features), axis=1))
    return jnp.sum(jnp.square(weights)) * (norms + 2 * weight_decay * weights.shape[1])


def hessian_of_last_layer(
    features: Float[Array, "examples inputs"],
    logits: Float[Array, "examples classes"],
    kernel: Float[Array, "..."],
    *,
    neuron_axis: int = -1,
) -> LayerHessian:
    """The last layer's Hessian under softmax cross-entropy as an operator, for every other measure.

    A product costs O(N d m), whatever lies before the layer.

    Args:
      features: (N, m), what the layer reads.
      logits: (N, d), what it gives, bias included.
      kernel: (m, d) with neuron_axis=-1 (the default), (d, m) with neuron_axis=0.
      neuron_axis: axis of the kernel over the classes.

    Returns:
      LayerHessian.

    Raises:
      ValueError: shapes that do not fit, no examples, values that are not finite.

    Source: this library: the loss is the log-partition minus a term linear in W, so that
      mean_i log sum_s exp(W phi_i + b)_s has the same Hessian for every labelling.

    Example:
      >>> hessian = hessian_of_last_layer(jnp.ones((4, 3)), jnp.zeros((4, 2)), jnp.ones((3, 2)))
      >>> hessian.operator.dim
      6
    """
    weights = _check_last(features, kernel, neuron_axis, logits)
    offset = logits - _matmul(features, weights.T)
    return LayerHessian(weights, hessian_operator(_mean_log_partition, weights, (features, offset)))


def _mean_log_partition(weights: Array, batch: tuple[Array, Array]) -> Array:
    features, offset = batch
    return jnp.mean(jax.nn.logsumexp(_matmul(features, weights.T) + offset, axis=1))


def _matmul(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision="highest")


def _check_last(
    features: Array, kernel: Array, neuron_axis: int, logits: Array | None = None
) -> Array:
    check_kernel("kernel", kernel, neuron_axis)
    check_finite("kernel", kernel)
    if kernel.ndim != 2:
        raise ValueError(f"kernel must be that of a dense layer, 2 axes, got {kernel.shape}.")
    _check_rows(features, features if logits is None else logits)
    weights = as_matrix(kernel, neuron_axis)
    need = (features.shape[1], weights.shape[0] if logits is None else logits.shape[1])
    if weights.shape != need[::-1]:
        raise ValueError(
            f"kernel must have {need[0]} inputs and {need[1]} neurons to fit features and logits, "
            f"got shape {kernel.shape} with neurons on axis {neuron_axis}."
        )
    return weights


def _check_rows(features: Array, logits: Array) -> None:
    check_batch((features, logits), "(features, logits)")
    if features.ndim != 2 or logits.ndim != 2:
        raise ValueError(
            "features must have shape (examples, inputs) and logits (examples, classes), got "
            f"{features.shape} and {logits.shape}."
        )
