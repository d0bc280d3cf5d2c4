"""Infinitely wide networks as kernels: what does a network compute before it sees any data?

A drop-in successor of Neural Tangents: `from poster_jax import kernels as nt` and
`from poster_jax.kernels import stax`. `stax` builds networks that know their NNGP and NTK in closed
form, the empirical functions compute both for any network, `predict` trains infinitely wide
ensembles in closed form.

Source: Novak et al. 2020, "Neural Tangents: Fast and Easy Infinite Neural Networks in Python"
(arXiv 1912.02803).
"""

from poster_jax.kernels import experimental, predict, spectrum, stax
from poster_jax.kernels.batch import batch
from poster_jax.kernels.disk import kernel_to_disk, open_kernel
from poster_jax.kernels.empirical import (
    NtkImplementation,
    empirical_kernel_fn,
    empirical_nngp_fn,
    empirical_ntk_fn,
    empirical_ntk_vp_fn,
)
from poster_jax.kernels.kernel import Kernel
from poster_jax.kernels.linearize import linearize, taylor_expand
from poster_jax.kernels.monte_carlo import monte_carlo_kernel_fn

__all__ = [
    "Kernel",
    "NtkImplementation",
    "batch",
    "empirical_kernel_fn",
    "empirical_nngp_fn",
    "empirical_ntk_fn",
    "empirical_ntk_vp_fn",
    "experimental",
    "kernel_to_disk",
    "linearize",
    "monte_carlo_kernel_fn",
    "open_kernel",
    "predict",
    "spectrum",
    "stax",
    "taylor_expand",
]
