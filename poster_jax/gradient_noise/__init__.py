"""Is the noise of stochastic gradients Gaussian?

At one `theta` many mini-batches give many noise vectors u_m. A random vector is Gaussian exactly
when all its projections are, so each of R directions w_r gives M numbers s_rm = <w_r, u_m>, and
each row a test of normality. The rows share the u_m and so are no independent witnesses:
`gaussianity` measures the rejected fraction against Gaussian surrogates of the same covariance.

Poster: "Non-Gaussianity of Stochastic Gradient Noise", Panigrahi, Somani, Goyal, Netrapalli,
NeurIPS 2019 workshop SEDL, arXiv 1910.09626.
"""

from poster_jax.gradient_noise.directions import (
    Directions,
    directions_along,
    random_directions,
)
from poster_jax.gradient_noise.normality import (
    NormalityTest,
    anderson_darling,
    anderson_darling_critical_values,
    dagostino_k2,
    excess_kurtosis,
    jarque_bera,
    normality_tests,
    royston_coefficients,
    shapiro_wilk,
    skewness,
)
from poster_jax.gradient_noise.planning import ProjectionPlan, plan_projections
from poster_jax.gradient_noise.projections import (
    minibatch_projections,
    noise_projections,
    per_example_projections,
)
from poster_jax.gradient_noise.resampling import (
    batch_projections,
    draw_batches,
    resample_projections,
)
from poster_jax.gradient_noise.second_moments import (
    NoiseAlignment,
    NoiseCovariance,
    NoiseScale,
    PowerLaw,
    effective_rank,
    fit_power_law,
    noise_alignment,
    noise_covariance_operator,
    noise_scale,
    noise_scale_from_norms,
    stored_spectrum,
    subspace_overlap,
)

__all__ = [
    "Directions",
    "NoiseAlignment",
    "NoiseCovariance",
    "NoiseScale",
    "NormalityTest",
    "PowerLaw",
    "ProjectionPlan",
    "anderson_darling",
    "anderson_darling_critical_values",
    "batch_projections",
    "dagostino_k2",
    "directions_along",
    "draw_batches",
    "effective_rank",
    "excess_kurtosis",
    "fit_power_law",
    "jarque_bera",
    "minibatch_projections",
    "noise_alignment",
    "noise_covariance_operator",
    "noise_projections",
    "noise_scale",
    "noise_scale_from_norms",
    "normality_tests",
    "per_example_projections",
    "plan_projections",
    "random_directions",
    "resample_projections",
    "royston_coefficients",
    "shapiro_wilk",
    "skewness",
    "stored_spectrum",
    "subspace_overlap",
]
