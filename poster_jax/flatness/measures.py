r"""The measures of flatness, each a trace or a largest eigenvalue of the layer's Hessian.

W (d, m) has the neurons w_s as rows, H_{s,s'} (m, m) is the block of the Hessian between the
weights of neurons s and s'. Writing T_{s,s'} = Tr H_{s,s'} and W = (w_1, ..., w_d):

| measure | equation | operator |
| --- | --- | --- |
| `layer_trace` | |W|^2 Tr H | H |
| `layer_max_eigenvalue` | |W|^2 lambda_max(H) | H |
| `neuronwise_trace` | sum_{s,s'} <w_s, w_s'> T_{s,s'} | (L x I)^T H (L x I), L L^T = W W^T |
| `neuronwise_max_eigenvalue` | sum_s |w_s|^2 lambda_max(H_{s,s}) | each H_{s,s} |
| `columnwise_trace` | sum_{t,s,s'} W_{st} W_{s't} d^2E/dW_{st}dW_{s't} | D^T H D, D r = W diag(r) |

So one Hessian-vector product is one probe of any of the traces, and every estimator of
`poster_jax.curvature` serves: pass it as `estimator`. `trace` needs the least memory; `xtrace` and
`hutchpp_trace` take the few directions that carry most of a trained layer's curvature exactly (on
the digits' MLP the same 64 products gave a third to a tenth of the standard error).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from poster_jax import curvature
from poster_jax.core.checks import check_count, check_key, check_positive
from poster_jax.core.linalg import qr
from poster_jax.core.typing import Array, Estimate, PRNGKey
from poster_jax.flatness.layer import LayerHessian, along

__all__ = [
    "columnwise_trace",
    "layer_max_eigenvalue",
    "layer_trace",
    "neuronwise_max_eigenvalue",
    "neuronwise_trace",
    "normalized_layer_trace",
]


def neuronwise_trace(
    hessian: LayerHessian,
    key: PRNGKey,
    *,
    num_probes: int,
    estimator: Callable[..., Estimate] = curvature.trace,
) -> Estimate:
    r"""Relative flatness: $\kappa^\phi_{Tr} = \sum_{s,s'} \langle w_s, w_{s'}\rangle Tr(H_{s,s'})$.

    With $LL^T = WW^T$ and random signs R, $\kappa = E[vec(LR)^T H vec(LR)]$: one product a probe.

    Args:
      hessian: of the layer.
      key: PRNG key of the probes.
      num_probes: Hessian-vector products to spend.
      estimator: `curvature.trace`, `curvature.hutchpp_trace` or `curvature.xtrace`.

    Returns:
      Estimate of a scalar; negative values are possible away from a minimum.

    Raises:
      ValueError, TypeError: num_probes below 1, no LayerHessian, no key.

    Source: Petzka et al. 2021 (arXiv 2001.00939), definition of relative flatness; the estimator:
      this library. Invariant under rescaling of layers and of the layer's own neurons, not of the
      neurons before it: normalise the features for that, or take `columnwise_trace`.

    Example:
      >>> from poster_jax.flatness import hessian_of_layer
      >>> def loss_fn(params, x): return 0.5 * jnp.mean(jnp.sum((x @ params["kernel"]) ** 2, 1))
      >>> params, x = {"kernel": 3.0 * jnp.ones((1, 1))}, jnp.ones((5, 1))
      >>> hessian = hessian_of_layer(loss_fn, params, x, layer="kernel")
      >>> float(neuronwise_trace(hessian, jax.random.key(0), num_probes=2).mean)
      9.0
    """
    weights = _check(hessian, key, num_probes)
    # The factor from a QR of W^T: min(neurons, inputs) columns, no squared condition number, and
    # continuous in W, so that one key gives one estimate on both sides of a rescaling. (The
    # eigenbasis of W W^T is as good and flips its signs; W itself as a factor is only longer.)
    factor = qr(weights.T)[1].T
    zero = jnp.zeros((factor.shape[1], weights.shape[1]), weights.dtype)
    operator = along(hessian.operator, _mix_neurons, zero, factor)
    return estimator(operator, key, num_probes=num_probes)


def columnwise_trace(
    hessian: LayerHessian,
    key: PRNGKey,
    *,
    num_probes: int,
    estimator: Callable[..., Estimate] = curvature.trace,
) -> Estimate:
    r"""Relative flatness with the inputs kept apart: $\sum_t W_{:,t}^T A_t W_{:,t}$.

    $A_t$ (d, d) is the Hessian by the weights that read input t. It pairs each weight with the
    weights of the same input only, so that a rescaling of any neuron, before or in the layer,
    leaves it as it is, without a normalisation.

    Args:
      hessian: of the layer.
      key: PRNG key of the probes.
      num_probes: Hessian-vector products to spend.
      estimator: as in `neuronwise_trace`; here the traced operator has one dimension an input.

    Returns:
      Estimate of a scalar.

    Raises:
      ValueError, TypeError: num_probes below 1, no LayerHessian, no key.

    Source: this library: with random signs r, $E[vec(W diag(r))^T H vec(W diag(r))]$.

    Example:
      >>> from poster_jax.flatness import hessian_of_layer
      >>> def loss_fn(params, x): return 0.5 * jnp.mean(jnp.sum((x @ params["kernel"]) ** 2, 1))
      >>> params, x = {"kernel": 2.0 * jnp.ones((3, 2))}, jnp.ones((5, 3))
      >>> hessian = hessian_of_layer(loss_fn, params, x, layer="kernel")
      >>> found = columnwise_trace(hessian, jax.random.key(0), num_probes=500)
      >>> abs(float(found.mean) - 24.0) < 4 * float(found.stderr)  # |W|^2 times mean x_t^2
      True
    """
    weights = _check(hessian, key, num_probes)
    zero = jnp.zeros(weights.shape[1], weights.dtype)
    operator = along(hessian.operator, _scale_columns, zero, weights)
    return estimator(operator, key, num_probes=num_probes)


def layer_trace(
    hessian: LayerHessian,
    key: PRNGKey,
    *,
    num_probes: int,
    estimator: Callable[..., Estimate] = curvature.trace,
) -> Estimate:
    r"""The layer's trace made invariant under rescaling of layers: $\|W\|_F^2\, Tr(H)$.

    Args:
      hessian: of the layer.
      key: PRNG key of the probes.
      num_probes: Hessian-vector products to spend.
      estimator: as in `neuronwise_trace`.

    Returns:
      Estimate of a scalar.

    Raises:
      ValueError, TypeError: num_probes below 1, no LayerHessian, no key.

    Source: Petzka et al. 2019 (arXiv 1912.00058).

    Example:
      >>> from poster_jax.flatness import hessian_of_layer
      >>> def loss_fn(params, x): return 0.5 * jnp.mean((x @ params["kernel"]) ** 2)
      >>> params, x = {"kernel": jnp.ones((1, 1))}, jnp.array([[3.0]])
      >>> hessian = hessian_of_layer(loss_fn, params, x, layer="kernel")
      >>> float(layer_trace(hessian, jax.random.key(0), num_probes=2).mean)
      9.0
    """
    weights = _check(hessian, key, num_probes)
    found = estimator(hessian.operator, key, num_probes=num_probes)
    return _times(found, jnp.sum(jnp.square(weights)))


def normalized_layer_trace(
    hessian: LayerHessian,
    key: PRNGKey,
    *,
    num_probes: int,
    estimator: Callable[..., Estimate] = curvature.trace,
) -> Estimate:
    r"""The mean curvature of the layer instead of the sum: $\|W\|_F^2\, Tr(H) / (dm)$.

    Args:
      hessian: of the layer.
      key: PRNG key of the probes.
      num_probes: Hessian-vector products to spend.
      estimator: as in `neuronwise_trace`.

    Returns:
      Estimate of a scalar.

    Raises:
      ValueError, TypeError: num_probes below 1, no LayerHessian, no key.

    Source: Petzka et al. 2019, whose code takes the trace divided by the number of weights.

    Example:
      >>> from poster_jax.flatness import hessian_of_layer
      >>> def loss_fn(params, x): return 0.5 * jnp.mean((x @ params["kernel"]) ** 2)
      >>> params, x = {"kernel": jnp.ones((2, 1))}, jnp.array([[3.0, 0.0]])
      >>> hessian = hessian_of_layer(loss_fn, params, x, layer="kernel")
      >>> float(normalized_layer_trace(hessian, jax.random.key(0), num_probes=2).mean)
      9.0
    """
    found = layer_trace(hessian, key, num_probes=num_probes, estimator=estimator)
    return _times(found, 1 / hessian.weights.size)


def layer_max_eigenvalue(
    hessian: LayerHessian, key: PRNGKey, *, tol: float = 1e-5, max_iters: int | None = None
) -> Estimate:
    r"""The layer's largest eigenvalue made invariant: $\|W\|_F^2\, \lambda_{max}(H)$.

    Args:
      hessian: of the layer.
      key: PRNG key of the starting vector.
      tol: relative residual at which the search stops, as in `curvature.top_eigenpairs`.
      max_iters: most products of the search.

    Returns:
      Estimate of a scalar. Nothing is sampled: `stderr` is |W|^2 times the residual, a bound of the
      distance to an eigenvalue, and `num_samples` counts products.

    Raises:
      ValueError, TypeError: no LayerHessian, no key, tol not positive, max_iters below 1.

    Source: Petzka et al. 2019 (arXiv 1912.00058).

    Example:
      >>> from poster_jax.flatness import hessian_of_layer
      >>> def loss_fn(params, x): return 0.5 * jnp.mean((x @ params["kernel"]) ** 2)
      >>> params, x = {"kernel": jnp.ones((2, 1))}, jnp.array([[3.0, 0.0], [0.0, 1.0]])
      >>> hessian = hessian_of_layer(loss_fn, params, x, layer="kernel")
      >>> round(float(layer_max_eigenvalue(hessian, jax.random.key(0)).mean), 3)
      9.0
    """
    weights = _check(hessian, key)
    pairs = curvature.top_eigenpairs(hessian.operator, key, k=1, tol=tol, max_iters=max_iters)
    found = Estimate(pairs.values[0], pairs.residuals[0], pairs.num_products)
    return _times(found, jnp.sum(jnp.square(weights)))


def neuronwise_max_eigenvalue(
    hessian: LayerHessian,
    key: PRNGKey,
    *,
    tol: float = 1e-5,
    max_iters: int | None = None,
    neurons_at_once: int = 8,
) -> Estimate:
    r"""Each neuron's largest eigenvalue, weighted: $\sum_s \|w_s\|^2 \lambda_{max}(H_{s,s})$.

    One search a neuron, on the diagonal blocks alone; blocks between neurons do not enter.

    Args:
      hessian: of the layer.
      key: PRNG key of the starting vectors.
      tol: relative residual at which a search stops.
      max_iters: most products of one search.
      neurons_at_once: searches that run side by side (memory); the result does not depend on it.

    Returns:
      Estimate of a scalar; `stderr` bounds the error as in `layer_max_eigenvalue`, `num_samples`
      counts the products of all searches.

    Raises:
      ValueError, TypeError: no LayerHessian, no key, tol not positive, counts below 1.

    Source: Petzka et al. 2021 (arXiv 2001.00939).

    Example:
      >>> from poster_jax.flatness import hessian_of_layer
      >>> def loss_fn(params, x): return 0.5 * jnp.mean(jnp.sum((x @ params["kernel"]) ** 2, 1))
      >>> params, x = {"kernel": jnp.ones((2, 3))}, jnp.array([[3.0, 0.0], [0.0, 1.0]])
      >>> hessian = hessian_of_layer(loss_fn, params, x, layer="kernel")
      >>> round(float(neuronwise_max_eigenvalue(hessian, jax.random.key(0)).mean), 2)  # 3 * 2 * 4.5
      27.0
    """
    weights = _check(hessian, key)
    check_positive("tol", tol)
    check_count("neurons_at_once", neurons_at_once)
    return _neuronwise_max_eigenvalue(
        hessian, key, tol, max_iters, min(neurons_at_once, len(weights))
    )


@partial(jax.jit, static_argnums=(2, 3, 4))
def _neuronwise_max_eigenvalue(
    hessian: LayerHessian, key: PRNGKey, tol: float, max_iters: int | None, at_once: int
) -> Estimate:
    weights = hessian.weights
    zero = jnp.zeros(weights.shape[1], weights.dtype)

    def search(neuron: tuple[Array, PRNGKey]) -> tuple[Array, Array, Array]:
        one_hot, key = neuron
        block = along(hessian.operator, _one_neuron, zero, one_hot)
        pairs = curvature.top_eigenpairs(block, key, k=1, tol=tol, max_iters=max_iters)
        return pairs.values[0], pairs.residuals[0], pairs.num_products

    neurons = (jnp.eye(len(weights), dtype=weights.dtype), jax.random.split(key, len(weights)))
    values, residuals, products = jax.lax.map(search, neurons, batch_size=at_once)
    squared = jnp.sum(jnp.square(weights), axis=1)
    return Estimate((squared * values).sum(), (squared * residuals).sum(), products.sum())


def _mix_neurons(_: None, factor: Array, signs: Array) -> Array:
    return jnp.matmul(factor, signs, precision="highest")


def _scale_columns(_: None, weights: Array, signs: Array) -> Array:
    return weights * signs


def _one_neuron(_: None, one_hot: Array, row: Array) -> Array:
    return one_hot[:, None] * row


def _times(estimate: Estimate, factor: Any) -> Estimate:
    return estimate._replace(mean=estimate.mean * factor, stderr=estimate.stderr * factor)


def _check(hessian: Any, key: Any, num_probes: Any = 1) -> Array:
    if not isinstance(hessian, LayerHessian):
        raise TypeError(
            "hessian must be a LayerHessian such as hessian_of_layer(loss_fn, params, batch, "
            f"layer='Dense_0/kernel'), got {type(hessian).__name__}."
        )
    if hessian.operator.like.shape != hessian.weights.shape:
        raise ValueError(
            f"hessian.operator must act on arrays like its weights, {hessian.weights.shape}, got "
            f"{hessian.operator.like.shape}."
        )
    check_key("key", key)
    check_count("num_probes", num_probes, hint="The standard error needs at least 2.")
    return hessian.weights
