"""Curvature of a loss without ever writing down a matrix: operators, spectra, traces.

Make an operator, then ask it:

    op = hessian_operator(loss_fn, params, batch)
    top_eigenpairs(op, key, k=10).values
    trace(op, key, num_probes=64)

Every question takes every operator: the Hessian, Gauss-Newton, Fisher, a layer's block of them.
"""

from poster_jax.curvature.eigenpairs import top_eigenpairs
from poster_jax.curvature.hessian import block_operator, hessian_operator
from poster_jax.curvature.operator import LinearOperator, matrix_operator
from poster_jax.curvature.trace import trace

__all__ = [
    "LinearOperator",
    "block_operator",
    "hessian_operator",
    "matrix_operator",
    "top_eigenpairs",
    "trace",
]
