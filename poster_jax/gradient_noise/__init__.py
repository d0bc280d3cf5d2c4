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
from poster_jax.gradient_noise.during_training import (
    NoiseObserver,
    NoiseRecord,
    RecordState,
    noise_observer,
    record_noise,
)
from poster_jax.gradient_noise.gaussianity import (
    CriticalBatchSize,
    DirectionsTest,
    Gaussianity,
    critical_batch_size,
    gaussianity,
)
from poster_jax.gradient_noise.normality import (
    NormalityTest,
    anderson_darling,
    anderson_darling_critical_values,
    dagostino_k2,
    epps_pulley,
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
from poster_jax.gradient_noise.surrogates import (
    gaussian_of_same_covariance,
    gaussian_of_same_variances,
)
from poster_jax.gradient_noise.tail_index import (
    coordinate_tail_index,
    divisor_block,
    hill_tail_index,
    pooled_tail_index,
    sample_stable,
    stable_tail_index,
)

__all__ = [
    "CriticalBatchSize",
    "Directions",
    "DirectionsTest",
    "Gaussianity",
    "NoiseAlignment",
    "NoiseCovariance",
    "NoiseObserver",
    "NoiseRecord",
    "NoiseScale",
    "NormalityTest",
    "PowerLaw",
    "ProjectionPlan",
    "RecordState",
    "anderson_darling",
    "anderson_darling_critical_values",
    "batch_projections",
    "coordinate_tail_index",
    "critical_batch_size",
    "dagostino_k2",
    "directions_along",
    "divisor_block",
    "draw_batches",
    "effective_rank",
    "epps_pulley",
    "excess_kurtosis",
    "fit_power_law",
    "gaussian_of_same_covariance",
    "gaussian_of_same_variances",
    "gaussianity",
    "hill_tail_index",
    "jarque_bera",
    "minibatch_projections",
    "noise_alignment",
    "noise_covariance_operator",
    "noise_observer",
    "noise_projections",
    "noise_scale",
    "noise_scale_from_norms",
    "normality_tests",
    "per_example_projections",
    "plan_projections",
    "pooled_tail_index",
    "random_directions",
    "record_noise",
    "resample_projections",
    "royston_coefficients",
    "sample_stable",
    "shapiro_wilk",
    "skewness",
    "stable_tail_index",
    "stored_spectrum",
    "subspace_overlap",
]
