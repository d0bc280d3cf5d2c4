"""How do networks trained on images of several sizes do at each size, and what does it cost?

`size_regime` gives the batch and the copies of each size, `regime_cost` what an epoch of it costs,
`smooth_gradients` equalises the steps of the sizes.

Poster: "Mix & Match: training convnets with mixed image sizes for improved accuracy, speed and
scale resiliency", Hoffer et al., NeurIPS 2019 workshop SEDL.
"""

from poster_jax.mixed_sizes.presets import CIFAR, IMAGENET_144, IMAGENET_224, SizeMixture
from poster_jax.mixed_sizes.regime import RegimeCost, SizeConfig, regime_cost, size_regime
from poster_jax.mixed_sizes.smoothing import SmoothingState, smooth_gradients

__all__ = [
    "CIFAR",
    "IMAGENET_144",
    "IMAGENET_224",
    "RegimeCost",
    "SizeConfig",
    "SizeMixture",
    "SmoothingState",
    "regime_cost",
    "size_regime",
    "smooth_gradients",
]
