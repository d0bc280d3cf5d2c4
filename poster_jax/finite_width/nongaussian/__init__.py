"""What prior over functions does a random network of finite width have, and what does it learn?

Given the layers below, the outputs of a network are Gaussian with a random covariance G over the
inputs: the prior is a mixture of Gaussians. To order 1/n it is known in closed form,

    E G = K + G1 / n,      Cov(G_ab, G_cd) = V_(ab)(cd) / n,

and K, G1 and V flow from layer to layer by recursions:

    finite_width_kernel("tanh", x, 64, depth=3, C_W=1.5, C_b=0.1).corrections()

Poster: "Non-Gaussian processes and neural networks at finite widths", Yaida, NeurIPS 2019 workshop
(arXiv 1910.00019); textbook: Roberts, Yaida & Hanin 2021 (arXiv 2106.10165), chapters 4 to 6.
"""

from poster_jax.finite_width.nongaussian.activation import (
    NAMES,
    Activation,
    activation,
    activation_of_layer,
    polynomial,
    rectified,
)
from poster_jax.finite_width.nongaussian.compression import compress
from poster_jax.finite_width.nongaussian.criticality import (
    Criticality,
    Susceptibilities,
    critical_initialization,
    susceptibilities,
)
from poster_jax.finite_width.nongaussian.exact import (
    ExactPosterior,
    exact_posterior,
    weighted_posterior,
)
from poster_jax.finite_width.nongaussian.kernel import (
    FiniteWidthKernel,
    expand_vertex,
    finite_width_kernel,
    layer_flow,
)
from poster_jax.finite_width.nongaussian.network import (
    Network,
    depth_to_width,
    from_stax,
    network,
)
from poster_jax.finite_width.nongaussian.posterior import Posterior, posterior
from poster_jax.finite_width.nongaussian.recursion import (
    LayerState,
    Rules,
    first_layer,
    layer_recursion,
    rules,
)
from poster_jax.finite_width.nongaussian.simulation import sample_covariances, sample_flow
from poster_jax.finite_width.nongaussian.tiles import vertex_to_disk

__all__ = [
    "NAMES",
    "Activation",
    "Criticality",
    "ExactPosterior",
    "FiniteWidthKernel",
    "LayerState",
    "Network",
    "Posterior",
    "Rules",
    "Susceptibilities",
    "activation",
    "activation_of_layer",
    "compress",
    "critical_initialization",
    "depth_to_width",
    "exact_posterior",
    "expand_vertex",
    "finite_width_kernel",
    "first_layer",
    "from_stax",
    "layer_flow",
    "layer_recursion",
    "network",
    "polynomial",
    "posterior",
    "rectified",
    "rules",
    "sample_covariances",
    "sample_flow",
    "susceptibilities",
    "vertex_to_disk",
    "weighted_posterior",
]
