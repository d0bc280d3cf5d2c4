"""How does a network's Jacobian treat the gradients and signals that pass through it?

Each layer's Jacobian J = dh/dx contains its nonlinearity. `orthogonality_penalty` measures
||J J' - I||_F^2, `norm_preservation_penalty` what happens to the norm of a gradient,
`tied_autoencoder_loss` the same along the data; `network_penalty` adds them up over layers.

Poster: "On Orthogonal Jacobian Regularization in Deep Neural Networks", Choe, Jeong, Carbonell,
NeurIPS 2019 workshop SEDL.
"""

from poster_jax.jacobian._layer import NamedLayer
from poster_jax.jacobian._penalty import Penalty
from poster_jax.jacobian.autoencoder import tied_autoencoder_loss
from poster_jax.jacobian.convolution import circular_convolution_penalty, convolution_orthogonality
from poster_jax.jacobian.decay import orthogonality_decay_schedule
from poster_jax.jacobian.initialisers import delta_orthogonal, gaussian, orthogonal
from poster_jax.jacobian.mean_field import MeanFieldSpectrum, mean_field_spectrum
from poster_jax.jacobian.network import (
    NetworkPenalty,
    StackedLayers,
    network_penalty,
    regularised_loss,
)
from poster_jax.jacobian.norm_preservation import (
    dense_norm_preservation_penalty,
    norm_preservation_penalty,
)
from poster_jax.jacobian.orthogonality import dense_orthogonality_penalty, orthogonality_penalty
from poster_jax.jacobian.profile import (
    SandwichBound,
    gradient_norm_profile,
    gradient_ratio,
    sandwich_bound,
)
from poster_jax.jacobian.spectrum import SingularValues, singular_values, spectral_moments
from poster_jax.jacobian.split import split_equinox, split_linen, split_nnx
from poster_jax.jacobian.weights import (
    double_soft_orthogonality,
    mutual_coherence,
    parseval_retraction,
    soft_orthogonality,
    spectral_restricted_isometry,
)
from poster_jax.jacobian.whole_network import jacobian_norm_penalty, off_diagonal_penalty

__all__ = [
    "MeanFieldSpectrum",
    "NamedLayer",
    "NetworkPenalty",
    "Penalty",
    "SandwichBound",
    "SingularValues",
    "StackedLayers",
    "circular_convolution_penalty",
    "convolution_orthogonality",
    "delta_orthogonal",
    "dense_norm_preservation_penalty",
    "dense_orthogonality_penalty",
    "double_soft_orthogonality",
    "gaussian",
    "gradient_norm_profile",
    "gradient_ratio",
    "jacobian_norm_penalty",
    "mean_field_spectrum",
    "mutual_coherence",
    "network_penalty",
    "norm_preservation_penalty",
    "off_diagonal_penalty",
    "orthogonal",
    "orthogonality_decay_schedule",
    "orthogonality_penalty",
    "parseval_retraction",
    "regularised_loss",
    "sandwich_bound",
    "singular_values",
    "soft_orthogonality",
    "spectral_moments",
    "spectral_restricted_isometry",
    "split_equinox",
    "split_linen",
    "split_nnx",
    "tied_autoencoder_loss",
]
