"""Curvature of a loss without ever writing down a matrix: operators, spectra, traces.

Make an operator, then ask it:

    op = hessian_operator(loss_fn, params, batch)
    top_eigenpairs(op, key, k=10).values
    trace(op, key, num_probes=64)

Every question takes every operator: the Hessian, Gauss-Newton, Fisher, a layer's block of them.
"""

from poster_jax.curvature.density import Density, spectral_density
from poster_jax.curvature.eigenpairs import top_eigenpairs
from poster_jax.curvature.entries import diagonal, frobenius_norm
from poster_jax.curvature.gauss_newton import fisher_operator, gauss_newton_operator
from poster_jax.curvature.gradient_moments import empirical_fisher_operator, sampled_fisher_operator
from poster_jax.curvature.hessian import block_operator, hessian_operator
from poster_jax.curvature.operator import LinearOperator, matrix_operator
from poster_jax.curvature.traces import hutchpp_trace, trace, xtrace

__all__ = [
    "Density",
    "LinearOperator",
    "block_operator",
    "diagonal",
    "empirical_fisher_operator",
    "fisher_operator",
    "frobenius_norm",
    "gauss_newton_operator",
    "hessian_operator",
    "hutchpp_trace",
    "matrix_operator",
    "sampled_fisher_operator",
    "spectral_density",
    "top_eigenpairs",
    "trace",
    "xtrace",
]
