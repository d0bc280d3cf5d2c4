"""What relative flatness is compared with: norms, sharpness and PAC-Bayes.

Trace and largest eigenvalue of the Hessian, of one layer or of the whole network, are
`poster_jax.curvature.trace` and `top_eigenpairs` of the operator in question.
"""

from poster_jax.flatness.comparison.norms import (
    fisher_rao_norm,
    fisher_rao_norm_of_params,
    squared_norm,
)
from poster_jax.flatness.comparison.pac_bayes import (
    PacBayesSigma,
    pac_bayes_bound,
    pac_bayes_sigma,
)
from poster_jax.flatness.comparison.sharpness import (
    expected_sharpness,
    keskar_sharpness,
    sam_sharpness,
)

__all__ = [
    "PacBayesSigma",
    "expected_sharpness",
    "fisher_rao_norm",
    "fisher_rao_norm_of_params",
    "keskar_sharpness",
    "pac_bayes_bound",
    "pac_bayes_sigma",
    "sam_sharpness",
    "squared_norm",
]
