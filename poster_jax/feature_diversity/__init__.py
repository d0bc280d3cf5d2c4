"""Must the features of a network differ when training begins?

Equal features with equal readers get equal gradients: a network of copies stays one, and is no
wider than its kinds of features (`symmetric_reduction` gives that narrow network exactly). Any
noise breaks the symmetry, after a time that is logarithmic in its size. `duplicate_features` and
`tie_output` start a layer with u kinds of features and a share of noise, `ConstNet` a residual
network with one kind, `LeakyNet` a plain network whose layers keep or erase diversity; the measures
say how diverse weights and activations are, and `stability` how fast copies part.

Poster: "Is Feature Diversity Necessary in Neural Networks Initialization?", Blumenfeld, Gilboa,
Soudry, NeurIPS 2019 workshop SEDL (arXiv 1912.05137); then ICML 2020 (arXiv 2007.01038).
"""

from poster_jax.feature_diversity.const_net import ConstNet, const_net
from poster_jax.feature_diversity.duplication import duplicate_features, tie_output
from poster_jax.feature_diversity.initialisers import averaging_init, identity_init, mixed_init
from poster_jax.feature_diversity.leaky_net import PATTERNS, LeakyNet, num_averaging
from poster_jax.feature_diversity.measures import (
    breaking_time,
    effective_width,
    feature_diversity,
    weight_correlation,
)
from poster_jax.feature_diversity.rounding import rounding_noise
from poster_jax.feature_diversity.stability import (
    antisymmetric_hessian,
    copy_coupling,
    growth_rate,
    predicted_breaking_time,
)
from poster_jax.feature_diversity.symmetry import (
    SymmetricReduction,
    scale_gradients,
    symmetric_reduction,
    symmetrise,
    symmetry_leak,
)

__all__ = [
    "PATTERNS",
    "ConstNet",
    "LeakyNet",
    "SymmetricReduction",
    "antisymmetric_hessian",
    "averaging_init",
    "breaking_time",
    "const_net",
    "copy_coupling",
    "duplicate_features",
    "effective_width",
    "feature_diversity",
    "growth_rate",
    "identity_init",
    "mixed_init",
    "num_averaging",
    "predicted_breaking_time",
    "rounding_noise",
    "scale_gradients",
    "symmetric_reduction",
    "symmetrise",
    "symmetry_leak",
    "tie_output",
    "weight_correlation",
]
