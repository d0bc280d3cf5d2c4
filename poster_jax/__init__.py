"""poster_jax: ask any JAX model the questions of the science of deep learning.

A model is `apply_fn(params, x) -> outputs`, a loss `loss_fn(params, batch) -> scalar`. Each room
(`poster_jax.flatness`, `poster_jax.curvature`, ...) holds the method of one poster, or an engine
that several posters share; rooms are imported when they are first named.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from poster_jax import batchnorm_only as batchnorm_only
    from poster_jax import core as core
    from poster_jax import curvature as curvature
    from poster_jax import feature_diversity as feature_diversity
    from poster_jax import finite_width as finite_width
    from poster_jax import flatness as flatness
    from poster_jax import gradient_noise as gradient_noise
    from poster_jax import jacobian as jacobian
    from poster_jax import kernels as kernels
    from poster_jax import learning_rate as learning_rate
    from poster_jax import mixed_sizes as mixed_sizes

__all__ = [
    "batchnorm_only", "core", "curvature", "feature_diversity", "finite_width", "flatness",
    "gradient_noise", "jacobian", "kernels", "learning_rate", "mixed_sizes",
]  # fmt: skip

try:
    __version__ = version("poster_jax")
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = "0+unknown"


def __getattr__(name: str) -> Any:
    if name in __all__:
        return import_module(f"poster_jax.{name}")
    raise AttributeError(f"module 'poster_jax' has no attribute {name!r}; its rooms are {__all__}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
