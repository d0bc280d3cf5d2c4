"""Predictions of trained networks in closed form, from their kernels.

A network whose kernel stays constant while it trains (infinitely wide, or linearised) learns by a
linear differential equation on its outputs: df/dt = -K grad L(f). On the squared error it is solved
in the eigenbasis of K; any other loss is integrated numerically. Kernels larger than memory are
solved with as they lie on disk.
"""

from poster_jax.kernels.predict.ensemble import gradient_descent_mse_ensemble
from poster_jax.kernels.predict.evidence import leave_one_out, log_marginal_likelihood
from poster_jax.kernels.predict.inference import Gaussian, gp_inference
from poster_jax.kernels.predict.mse import gradient_descent_mse
from poster_jax.kernels.predict.ode import ODEState, gradient_descent
from poster_jax.kernels.predict.rate import max_learning_rate
from poster_jax.kernels.predict.streamed import (
    Solution,
    conjugate_gradient_solve,
    streamed_product,
)
from poster_jax.kernels.predict.tiled_cholesky import cholesky_solve_from_disk, cholesky_to_disk

__all__ = [
    "Gaussian",
    "ODEState",
    "Solution",
    "cholesky_solve_from_disk",
    "cholesky_to_disk",
    "conjugate_gradient_solve",
    "gp_inference",
    "gradient_descent",
    "gradient_descent_mse",
    "gradient_descent_mse_ensemble",
    "leave_one_out",
    "log_marginal_likelihood",
    "max_learning_rate",
    "streamed_product",
]
