"""How flat is a minimum, in a way that rescaling the weights cannot fool?

A ReLU network computes the same function when one layer is divided by c and the next multiplied by
it; the trace and the largest eigenvalue of its Hessian change by c^2. Relative flatness

    kappa = sum_{s,s'} <w_s, w_s'> Tr(H_{s,s'})

weighs the Hessian of a layer with the weights themselves and stays. In one call:

    relative_flatness(loss_fn, params, batch, key, layer="Dense_2/kernel", num_probes=64)

Any other measure is a function of `hessian_of_layer(...)`.

Poster: "A Reparameterization-Invariant Flatness Measure for Deep Neural Networks", Petzka, Adilova,
Kamp, Sminchisescu, NeurIPS 2019 workshop, arXiv 1912.00058; then "Relative Flatness and
Generalization", NeurIPS 2021, arXiv 2001.00939.
"""

from poster_jax.flatness.comparison import (
    PacBayesSigma,
    expected_sharpness,
    fisher_rao_norm,
    fisher_rao_norm_of_params,
    keskar_sharpness,
    pac_bayes_bound,
    pac_bayes_sigma,
    sam_sharpness,
    squared_norm,
)
from poster_jax.flatness.features import feature_scales, layer_features
from poster_jax.flatness.last_layer import (
    hessian_of_last_layer,
    last_layer_relative_flatness,
    last_layer_trace,
    least_squares_relative_flatness,
)
from poster_jax.flatness.layer import LayerHessian, hessian_of_layer, layer_hessian_from_operator
from poster_jax.flatness.measures import (
    columnwise_trace,
    layer_max_eigenvalue,
    layer_trace,
    neuronwise_max_eigenvalue,
    neuronwise_trace,
    normalized_layer_trace,
)
from poster_jax.flatness.random_rescaling import (
    Rescaled,
    measure_under_rescaling,
    random_layer_factors,
)
from poster_jax.flatness.relative_flatness import (
    LayerFlatness,
    kernel_paths,
    relative_flatness,
    relative_flatness_all_layers,
)
from poster_jax.flatness.rescaling import normalize_features, rescale_layers, rescale_neurons
from poster_jax.flatness.robustness import feature_robustness

__all__ = [
    "LayerFlatness",
    "LayerHessian",
    "PacBayesSigma",
    "Rescaled",
    "columnwise_trace",
    "expected_sharpness",
    "feature_robustness",
    "feature_scales",
    "fisher_rao_norm",
    "fisher_rao_norm_of_params",
    "hessian_of_last_layer",
    "hessian_of_layer",
    "kernel_paths",
    "keskar_sharpness",
    "last_layer_relative_flatness",
    "last_layer_trace",
    "layer_features",
    "layer_hessian_from_operator",
    "layer_max_eigenvalue",
    "layer_trace",
    "least_squares_relative_flatness",
    "measure_under_rescaling",
    "neuronwise_max_eigenvalue",
    "neuronwise_trace",
    "normalize_features",
    "normalized_layer_trace",
    "pac_bayes_bound",
    "pac_bayes_sigma",
    "random_layer_factors",
    "relative_flatness",
    "relative_flatness_all_layers",
    "rescale_layers",
    "rescale_neurons",
    "sam_sharpness",
    "squared_norm",
]
