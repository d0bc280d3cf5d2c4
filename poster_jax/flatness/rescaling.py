"""Rescalings of a ReLU network that change its weights and not its function.

Two layers with a positively homogeneous activation between them (ReLU, leaky ReLU, linear, max and
average pooling) compute the same function when the first is divided by c > 0 and the second
multiplied by it; the whole layer at once (`rescale_layers`) or one neuron (`rescale_neurons`). Loss
and gap stay, the Hessian does not: a measure of flatness that moves under them says nothing.

Which leaf feeds which is told by paths, in order; shapes that do not chain raise.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from poster_jax.core.checks import (
    check_batch,
    check_choice,
    check_params,
    check_positive,
    is_traced,
)
from poster_jax.core.paths import get_path, set_path
from poster_jax.core.typing import Array, Float, Params
from poster_jax.flatness.features import feature_scales
from poster_jax.flatness.layout import check_kernel, input_axis_of

__all__ = ["normalize_features", "rescale_layers", "rescale_neurons"]

FLATTEN = ("channels_last", "channels_first")


def rescale_layers(
    params: Params,
    factors: Float[Array, "layers"] | Sequence[float],
    *,
    layers: Sequence[str],
    biases: Sequence[str | None] | None = None,
    neuron_axis: int = -1,
    input_axis: int | None = None,
) -> Params:
    """The same function with layer l multiplied by `factors[l]`: `W_l -> factors[l] W_l`.

    The bias of layer l is multiplied by `factors[0] ... factors[l]`, since what reaches it has been
    scaled by all layers before. The product of all factors must be 1.

    Args:
      params: pytree of the network.
      factors: (layers,); positive, with product 1.
      layers: paths of the kernels, in the order in which the data meet them, with none left out
        between the first and the last (give those that stay the factor 1). A leaf with one axis
        (the scale of a normalisation layer) counts as a layer that keeps its width.
      biases: for each layer the path of its bias (or shift), or None where it has none. None says
        that no layer but the last has one: a bias that is left out breaks the invariance.
      neuron_axis: axis of a kernel that runs over its neurons: -1 for (in, out) and HWIO (Flax,
        Haiku), 0 for (out, in) and OIHW (Equinox, torch).
      input_axis: axis of a kernel that runs over its inputs; None means the one beside the neurons,
        -2 for neuron_axis=-1 and 1 for neuron_axis=0.

    Returns:
      A pytree like `params`.

    Raises:
      ValueError: a path that names nothing; layers that do not chain (the width of one divides the
        inputs of the next, so that a flattened convolution may feed a dense layer); factors that
        are not positive or have another product than 1.

    Source: Petzka et al. 2019 (arXiv 1912.00058): layer-wise reparameterisation.
      Caution: batch normalisation in evaluation mode is affine with fixed statistics, so that the
      layer before it cannot be rescaled; its own scale and shift can (list them as the layer).

    Example:
      >>> params = {"a": jnp.ones((3, 2)), "b": jnp.ones(2), "c": jnp.ones((2, 1))}
      >>> new = rescale_layers(params, [4.0, 0.25], layers=["a", "c"], biases=["b", None])
      >>> float(new["a"][0, 0]), float(new["b"][0]), float(new["c"][0, 0])
      (4.0, 4.0, 0.25)
    """
    check_params(params)
    factors = _check_factors(factors, len(layers))
    biases = [None] * len(layers) if biases is None else list(biases)
    if len(biases) != len(layers):
        raise ValueError(
            f"biases must have one entry a layer, {len(layers)} (None where a layer has none), got "
            f"{len(biases)}."
        )
    _check_chain(params, layers, neuron_axis, input_axis)
    reached = jnp.cumprod(factors)
    for index, (layer, bias) in enumerate(zip(layers, biases, strict=True)):
        kernel = get_path(params, layer)
        params = set_path(params, layer, kernel * factors[index].astype(kernel.dtype))
        if bias is not None:
            shift = get_path(params, bias)
            params = set_path(params, bias, shift * reached[index].astype(shift.dtype))
    return params


def rescale_neurons(
    params: Params,
    factors: Float[Array, "neurons"],
    *,
    previous: Sequence[str],
    layer: str,
    neuron_axis: int = -1,
    input_axis: int | None = None,
    flatten: str | None = None,
) -> Params:
    """The same function with neuron t of the previous layer divided by `factors[t]`.

    What neuron t sends on is divided by c_t, and the weights of `layer` that read it (column t, and
    for a convolution every kernel position of input channel t) are multiplied by c_t.

    Args:
      params: pytree of the network.
      factors: (neurons,); positive, one for each neuron (output channel) of the previous layer.
      previous: paths of everything that the previous layer adds up, most often its kernel and its
        bias; with batch normalisation between the layers, its scale and shift instead.
      layer: path of the kernel that reads the neurons.
      neuron_axis: axis over neurons of a kernel, as in `rescale_layers`; also of `layer`.
      input_axis: axis of `layer` over its inputs, as in `rescale_layers`.
      flatten: how positions and channels were flattened on the way from a convolution to a dense
        layer: "channels_last" when the channel runs fastest (NHWC: Flax, Haiku), "channels_first"
        when it runs slowest (NCHW: Equinox, torch). None says that there was no flattening, and
        then `layer` has one input a neuron.

    Returns:
      A pytree like `params`.

    Raises:
      ValueError: a path that names nothing, factors of another number than the neurons or not
        positive, a layer whose inputs do not fit the neurons, an unknown `flatten`.

    Source: Petzka et al. 2021 (arXiv 2001.00939): neuron-wise reparameterisation.

    Example:
      >>> params = {"a": jnp.ones((3, 2)), "b": jnp.ones(2), "c": jnp.ones((2, 1))}
      >>> new = rescale_neurons(params, jnp.array([2.0, 4.0]), previous=["a", "b"], layer="c")
      >>> new["a"][0].tolist(), new["b"].tolist(), new["c"][:, 0].tolist()
      ([0.5, 0.25], [0.5, 0.25], [2.0, 4.0])
    """
    check_params(params)
    factors = jnp.asarray(factors)
    if factors.ndim != 1:
        raise ValueError(f"factors must have shape (neurons,), got {factors.shape}.")
    check_positive("factors", factors)
    if isinstance(previous, str) or not previous:
        raise ValueError(f"previous must list at least one path, got {previous!r}.")
    for path in previous:
        leaf = get_path(params, path)
        axis = neuron_axis if leaf.ndim > 1 else 0
        if leaf.ndim == 0 or leaf.shape[axis] != factors.size:
            raise ValueError(
                f"factors must have one entry for each neuron of {path!r}, which has shape "
                f"{leaf.shape} with neurons on axis {axis}, got {factors.size}."
            )
        params = set_path(params, path, leaf / _along(factors, leaf.ndim, axis, leaf.dtype))
    kernel = get_path(params, layer)
    check_kernel(f"layer {layer!r}", kernel, neuron_axis)
    axis = input_axis_of(kernel, neuron_axis, input_axis)
    columns = _repeat_over_positions(factors, kernel.shape[axis], layer, flatten)
    return set_path(params, layer, kernel * _along(columns, kernel.ndim, axis, kernel.dtype))


def normalize_features(
    params: Params,
    features: Float[Array, "examples ..."],
    *,
    previous: Sequence[str],
    layer: str,
    neuron_axis: int = -1,
    input_axis: int | None = None,
    flatten: str | None = None,
) -> Params:
    """The same function with every feature of a layer brought to standard deviation 1.

    Neuron t of the previous layer is divided by the standard deviation of what it sends on, over
    examples and, for a convolution, positions; the layer's weights make up for it. Two networks
    that differ by a rescaling of neurons become the same network.

    Args:
      params: pytree of the network.
      features: (examples, ..., channels), what `layer` reads on the training set: `layer_features`.
      previous: as in `rescale_neurons`.
      layer: as in `rescale_neurons`.
      neuron_axis: as in `rescale_neurons`.
      input_axis: as in `rescale_neurons`.
      flatten: as in `rescale_neurons`; a channel then has one scale for all its positions.

    Returns:
      A pytree like `params`. A neuron that is zero on all examples stays as it is, since another
      data set may wake it: its weights in `layer` then enter <w_s, w_s'> with an arbitrary scale.
      To leave them out, measure with `feature_scales=` instead; that needs no previous layer.

    Raises:
      ValueError: as `rescale_neurons`, or features that do not fit.

    Source: Petzka et al. 2021 (arXiv 2001.00939); see `feature_scales`.

    Example:
      >>> params = {"a": jnp.ones((1, 2)), "b": jnp.ones((2, 1))}
      >>> features = jnp.array([[0.0, 0.0], [4.0, 2.0]])
      >>> new = normalize_features(params, features, previous=["a"], layer="b")
      >>> new["a"].tolist(), new["b"].tolist()
      ([[0.5, 1.0]], [[2.0], [1.0]])
    """
    check_batch(features, "features")
    if isinstance(previous, str) or not previous:
        raise ValueError(f"previous must list at least one path, got {previous!r}.")
    first = get_path(params, previous[0])
    num_neurons = first.shape[neuron_axis if first.ndim > 1 else 0]
    if flatten is not None:
        check_choice("flatten", flatten, FLATTEN)
        if features.shape[-1] % num_neurons:
            raise ValueError(
                f"features must have a multiple of {num_neurons} entries, one for each neuron of "
                f"{previous[0]!r} and position, got {features.shape}."
            )
        if flatten == "channels_last":
            features = features.reshape(-1, num_neurons)
        else:
            positions = features.shape[-1] // num_neurons
            features = jnp.swapaxes(features.reshape(-1, num_neurons, positions), 1, 2)
    scales = feature_scales(features)
    return rescale_neurons(
        params,
        jnp.where(scales > 0, scales, 1),
        previous=previous,
        layer=layer,
        neuron_axis=neuron_axis,
        input_axis=input_axis,
        flatten=flatten,
    )


def _repeat_over_positions(
    factors: Float[Array, "neurons"], num_inputs: int, layer: str, flatten: str | None
) -> Float[Array, "inputs"]:
    """One factor an input of `layer` from one a neuron: each neuron feeds `positions` inputs."""
    if flatten is None:
        if factors.size != num_inputs:
            raise ValueError(
                f"layer {layer!r} must have one input a neuron, {factors.size}, got {num_inputs}. "
                f"After a flattened convolution say flatten={FLATTEN[0]!r} or {FLATTEN[1]!r}."
            )
        return factors
    check_choice("flatten", flatten, FLATTEN)
    if num_inputs % factors.size:
        raise ValueError(
            f"layer {layer!r} must have a multiple of {factors.size} inputs, one for each neuron "
            f"and position, got {num_inputs}."
        )
    positions = num_inputs // factors.size
    if flatten == "channels_last":
        return jnp.tile(factors, positions)
    return jnp.repeat(factors, positions)


def _along(values: Array, ndim: int, axis: int, dtype: jnp.dtype) -> Array:
    shape = [1] * ndim
    shape[axis] = values.size
    return values.astype(dtype).reshape(shape)


def _check_factors(factors: Sequence[float] | Array, num_layers: int) -> Array:
    factors = jnp.asarray(factors)
    if num_layers == 0 or factors.shape != (num_layers,):
        raise ValueError(
            f"factors must have shape (layers,), one entry for each of {num_layers} layers, got "
            f"{factors.shape}."
        )
    check_positive("factors", factors)
    if not is_traced(factors):
        # float32 factors over six decades multiply to 1 within a few hundred units of rounding.
        log_product = float(np.sum(np.log(np.asarray(factors, np.float64))))
        if abs(log_product) > 1e-4:
            raise ValueError(
                f"factors must have the product 1, so that the function stays, got "
                f"{np.exp(log_product):.6g}."
            )
    return factors if jnp.issubdtype(factors.dtype, jnp.floating) else factors.astype(float)


def _check_chain(
    params: Params, layers: Sequence[str], neuron_axis: int, input_axis: int | None
) -> None:
    width, before = None, ""
    for layer in layers:
        leaf = get_path(params, layer)
        if not hasattr(leaf, "shape"):
            raise ValueError(f"layers must be paths of single leaves, {layer!r} holds several.")
        if leaf.ndim == 1:
            inputs = outputs = leaf.size
        else:
            check_kernel(f"layer {layer!r}", leaf, neuron_axis)
            inputs = leaf.shape[input_axis_of(leaf, neuron_axis, input_axis)]
            outputs = leaf.shape[neuron_axis]
        if width is not None and inputs % width:
            raise ValueError(
                f"layers must chain: {before!r} has {width} neurons, {layer!r} reads {inputs} "
                f"inputs, which is no multiple."
            )
        width, before = outputs, layer
