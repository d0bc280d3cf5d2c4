"""Kernels of networks of finite width, at one draw of their parameters.

The NNGP kernel is a product of outputs, f(x1) f(x2)^T; the NTK a product of derivatives by all
parameters, df(x1)/dw (df(x2)/dw)^T. Any function `f(params, x)` of JAX has both.
"""

from poster_jax.kernels.empirical.kernel import empirical_kernel_fn
from poster_jax.kernels.empirical.nngp import empirical_nngp_fn
from poster_jax.kernels.empirical.ntk import NtkImplementation, empirical_ntk_fn
from poster_jax.kernels.empirical.products import empirical_ntk_vp_fn

__all__ = [
    "NtkImplementation",
    "empirical_kernel_fn",
    "empirical_nngp_fn",
    "empirical_ntk_fn",
    "empirical_ntk_vp_fn",
]
