"""How does a network's Jacobian treat the gradients and signals that pass through it?

Each layer's Jacobian J = dh/dx contains its nonlinearity. `orthogonality_penalty` measures
||J J' - I||_F^2, `norm_preservation_penalty` what happens to the norm of a gradient,
`tied_autoencoder_loss` the same along the data; `network_penalty` adds them up over layers.

Poster: "On Orthogonal Jacobian Regularization in Deep Neural Networks", Choe, Jeong, Carbonell,
NeurIPS 2019 workshop SEDL.
"""

from poster_jax.jacobian._penalty import Penalty
from poster_jax.jacobian.autoencoder import tied_autoencoder_loss
from poster_jax.jacobian.convolution import circular_convolution_penalty, convolution_orthogonality
from poster_jax.jacobian.decay import orthogonality_decay_schedule
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
from poster_jax.jacobian.split import split_linen
from poster_jax.jacobian.weights import (
    double_soft_orthogonality,
    mutual_coherence,
    parseval_retraction,
    soft_orthogonality,
    spectral_restricted_isometry,
)
from poster_jax.jacobian.whole_network import jacobian_norm_penalty, off_diagonal_penalty

__all__ = [
    "NetworkPenalty",
    "Penalty",
    "StackedLayers",
    "circular_convolution_penalty",
    "convolution_orthogonality",
    "dense_norm_preservation_penalty",
    "dense_orthogonality_penalty",
    "double_soft_orthogonality",
    "jacobian_norm_penalty",
    "mutual_coherence",
    "network_penalty",
    "norm_preservation_penalty",
    "off_diagonal_penalty",
    "orthogonality_decay_schedule",
    "orthogonality_penalty",
    "parseval_retraction",
    "regularised_loss",
    "soft_orthogonality",
    "spectral_restricted_isometry",
    "split_linen",
    "tied_autoencoder_loss",
]
