"""Relative flatness of a layer in one call, and of all layers of a network."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from poster_jax import curvature
from poster_jax.core.checks import check_key, check_params
from poster_jax.core.paths import leaf_paths
from poster_jax.core.typing import Array, Batch, Estimate, Float, LossFn, Params, PRNGKey
from poster_jax.flatness.layer import hessian_of_layer
from poster_jax.flatness.measures import neuronwise_trace

__all__ = ["LayerFlatness", "kernel_paths", "relative_flatness", "relative_flatness_all_layers"]


def relative_flatness(
    loss_fn: LossFn,
    params: Params,
    batch: Batch,
    key: PRNGKey,
    *,
    layer: str,
    num_probes: int,
    neuron_axis: int = -1,
    input_axis: int | None = None,
    feature_scales: Float[Array, "channels"] | None = None,
    microbatch: int | None = None,
    mesh: Mesh | None = None,
    estimator: Callable[..., Estimate] = curvature.trace,
) -> Estimate:
    r"""How sharp the minimum is along one layer, in a way that rescaling the weights cannot fool.

    $$\kappa^\phi_{Tr}(W) = \sum_{s,s'} \langle w_s, w_{s'} \rangle\, Tr(H_{s,s'})$$

    with w_s the weights of neuron s and H_{s,s'} the Hessian of the loss between the weights of two
    neurons. Small is flat. It needs `num_probes` Hessian-vector products and never the Hessian.

    Args:
      loss_fn: `loss_fn(params, batch) -> scalar`, the mean over the batch; batch normalisation in
        evaluation mode.
      params: pytree of the network.
      batch: pytree with a leading axis of N examples; the training set.
      key: PRNG key of the probes.
      layer: path of the kernel, such as "Dense_2/kernel".
      num_probes: Hessian-vector products to spend; the standard error falls as its square root.
      neuron_axis: axis of the kernel over its neurons (output channels): -1 for (in, out) and HWIO
        (Flax, Haiku), 0 for (out, in) and OIHW (Equinox, torch).
      input_axis: axis over its inputs; None means the one beside the neurons.
      feature_scales: of `feature_scales(layer_features(...))`; makes the result invariant under
        rescalings of single neurons before the layer too. None measures the network as it is.
      microbatch: examples taken at once; None takes all.
      mesh: spreads the examples over the devices of its axis "data".
      estimator: `curvature.trace`, `curvature.hutchpp_trace` or `curvature.xtrace`.

    Returns:
      Estimate(mean, stderr, num_samples) of a scalar.

    Raises:
      ValueError: a path that names no kernel, num_probes below 1, axes or scales that do not fit,
        params or batch empty, not finite or not fitting `loss_fn`.
      TypeError: a wrong kind of argument.

    Source: Petzka et al. 2021 (arXiv 2001.00939), definition of relative flatness; the estimator:
      this library (see `neuronwise_trace`). Weight decay: take `losses.with_weight_decay(loss_fn,
      strength)`; its strength / 2 |W|^2 adds exactly strength m |W|^2 for m inputs. (For a term
      alpha |W|^2 the authors' code adds 2 alpha |W|^2, without the m that the trace brings.)

    Example:
      >>> def loss_fn(params, batch):
      ...     x, y = batch
      ...     return 0.5 * jnp.mean(jnp.sum((x @ params["kernel"] - y) ** 2, axis=1))
      >>> params, batch = {"kernel": jnp.ones((3, 2))}, (jnp.ones((5, 3)), jnp.zeros((5, 2)))
      >>> key = jax.random.key(0)
      >>> found = relative_flatness(loss_fn, params, batch, key, layer="kernel", num_probes=500)
      >>> abs(float(found.mean) - 18.0) < 4 * float(found.stderr)  # |W|^2 mean |x|^2 = 6 * 3
      True
    """
    hessian = hessian_of_layer(
        loss_fn,
        params,
        batch,
        layer=layer,
        neuron_axis=neuron_axis,
        input_axis=input_axis,
        feature_scales=feature_scales,
        microbatch=microbatch,
        mesh=mesh,
    )
    return neuronwise_trace(hessian, key, num_probes=num_probes, estimator=estimator)


class LayerFlatness(NamedTuple):
    """A measure of every layer and of the network as a whole.

    Attributes:
      per_layer: path -> Estimate.
      sum: Estimate of the sum over layers; the layers' errors are independent.
      max: Estimate of the largest layer, with that layer's error. The largest of several noisy
        numbers is biased upwards: compare it with the errors per layer.
    """

    per_layer: dict[str, Estimate]
    sum: Estimate
    max: Estimate


def relative_flatness_all_layers(
    loss_fn: LossFn,
    params: Params,
    batch: Batch,
    key: PRNGKey,
    *,
    layers: Sequence[str],
    num_probes: int,
    neuron_axis: int = -1,
    input_axis: int | None = None,
    feature_scales: Mapping[str, Float[Array, "channels"]] | None = None,
    microbatch: int | None = None,
    mesh: Mesh | None = None,
    estimator: Callable[..., Estimate] = curvature.trace,
) -> LayerFlatness:
    """Relative flatness of several layers, each with the others held fixed, their sum and maximum.

    Args:
      loss_fn: as in `relative_flatness`.
      params: as in `relative_flatness`.
      batch: as in `relative_flatness`.
      key: PRNG key; every layer has probes of its own.
      layers: paths of the kernels; `kernel_paths(params)` lists all.
      num_probes: Hessian-vector products to spend on each layer.
      neuron_axis: as in `relative_flatness`, the same for all layers.
      input_axis: as in `relative_flatness`.
      feature_scales: path -> scales for the layers to be normalised; None normalises none.
      microbatch: as in `relative_flatness`.
      mesh: as in `relative_flatness`.
      estimator: as in `relative_flatness`.

    Returns:
      LayerFlatness(per_layer, sum, max).

    Raises:
      ValueError: no layers, one named twice, scales for a layer that is not measured, or what
        `relative_flatness` raises.

    Source: Petzka et al. 2021 (arXiv 2001.00939); one layer's value bounds the robustness to
      changes of that layer's features alone, so that no single number is the network's.

    Example:
      >>> def loss_fn(params, x): return jnp.mean(jnp.sum((x @ params["a"] @ params["b"]) ** 2, 1))
      >>> params, x = {"a": jnp.ones((3, 2)), "b": jnp.ones((2, 2))}, jnp.ones((5, 3))
      >>> found = relative_flatness_all_layers(
      ...     loss_fn, params, x, jax.random.key(0), layers=["a", "b"], num_probes=8)
      >>> sorted(found.per_layer), int(found.sum.num_samples)
      (['a', 'b'], 16)
    """
    check_key("key", key)
    if isinstance(layers, str) or not layers or len(set(layers)) < len(layers):
        raise ValueError(f"layers must list different paths, at least one, got {layers!r}.")
    scales = dict(feature_scales or {})
    unknown = sorted(set(scales) - set(layers))
    if unknown:
        raise ValueError(f"feature_scales names layers that are not measured: {unknown}.")
    keys = jax.random.split(key, len(layers))
    per_layer = {
        layer: relative_flatness(
            loss_fn,
            params,
            batch,
            keys[index],
            layer=layer,
            num_probes=num_probes,
            neuron_axis=neuron_axis,
            input_axis=input_axis,
            feature_scales=scales.get(layer),
            microbatch=microbatch,
            mesh=mesh,
            estimator=estimator,
        )
        for index, layer in enumerate(layers)
    }
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *per_layer.values())
    total = Estimate(
        stacked.mean.sum(),
        jnp.sqrt(jnp.sum(jnp.square(stacked.stderr))),
        stacked.num_samples.sum(),
    )
    largest = jax.tree.map(lambda leaf: leaf[jnp.argmax(stacked.mean)], stacked)
    return LayerFlatness(per_layer, total, largest)


def kernel_paths(params: Params) -> tuple[str, ...]:
    """Which leaves can be measured as layers: those with at least two axes, in tree order.

    Args:
      params: pytree of the network.

    Returns:
      Paths. Look at them: an embedding table or the (channels, 1, 1) bias of an Equinox
      convolution is among them, and tree order need not be the order of the network.

    Raises:
      ValueError, TypeError: params hold no floating point array.

    Source: this library.

    Example:
      >>> kernel_paths({"Dense_0": {"bias": jnp.ones(2), "kernel": jnp.ones((3, 2))}})
      ('Dense_0/kernel',)
    """
    check_params(params)
    leaves = jax.tree.leaves(params)
    return tuple(p for p, leaf in zip(leaf_paths(params), leaves, strict=True) if leaf.ndim > 1)
