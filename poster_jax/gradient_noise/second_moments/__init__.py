"""The covariance of gradient noise: its size, its spectrum, and how it lies to the curvature."""

from poster_jax.gradient_noise.second_moments.alignment import (
    NoiseAlignment,
    effective_rank,
    noise_alignment,
    subspace_overlap,
)
from poster_jax.gradient_noise.second_moments.covariance import (
    NoiseCovariance,
    noise_covariance_operator,
)
from poster_jax.gradient_noise.second_moments.noise_scale import (
    NoiseScale,
    noise_scale,
    noise_scale_from_norms,
)
from poster_jax.gradient_noise.second_moments.spectrum import (
    PowerLaw,
    fit_power_law,
    stored_spectrum,
)

__all__ = [
    "NoiseAlignment",
    "NoiseCovariance",
    "NoiseScale",
    "PowerLaw",
    "effective_rank",
    "fit_power_law",
    "noise_alignment",
    "noise_covariance_operator",
    "noise_scale",
    "noise_scale_from_norms",
    "stored_spectrum",
    "subspace_overlap",
]
