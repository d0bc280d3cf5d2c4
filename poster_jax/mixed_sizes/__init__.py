"""How do networks trained on images of several sizes do at each size, and what does it cost?

`size_regime` gives the batch and the copies of each size, `regime_cost` what an epoch of it costs;
`resize_batch` and `augment_duplicates` make the images;
`epoch_plan` deals the examples out to the sizes; `smooth_gradients` equalises the lengths of steps;
`train_mixed` trains, `fit_mixed` is the same as a pure function;
`size_sweep` measures accuracy at each size.

Poster: "Mix & Match: training convnets with mixed image sizes for improved accuracy, speed and
scale resiliency", Hoffer et al., NeurIPS 2019 workshop SEDL.
"""

from poster_jax.mixed_sizes.images import augment_duplicates, resize_batch
from poster_jax.mixed_sizes.plan import EpochPlan, epoch_plan, epoch_steps
from poster_jax.mixed_sizes.presets import CIFAR, IMAGENET_144, IMAGENET_224, SizeMixture
from poster_jax.mixed_sizes.regime import RegimeCost, SizeConfig, regime_cost, size_regime
from poster_jax.mixed_sizes.smoothing import (
    GradientNorms,
    SmoothingState,
    gradient_norms,
    smooth_gradients,
)
from poster_jax.mixed_sizes.sweep import SizeSweep, size_sweep
from poster_jax.mixed_sizes.training import (
    MixedFit,
    continue_mixed,
    fit_mixed,
    step_flops,
    train_mixed,
)

__all__ = [
    "CIFAR",
    "IMAGENET_144",
    "IMAGENET_224",
    "EpochPlan",
    "GradientNorms",
    "MixedFit",
    "RegimeCost",
    "SizeConfig",
    "SizeMixture",
    "SizeSweep",
    "SmoothingState",
    "augment_duplicates",
    "continue_mixed",
    "epoch_plan",
    "epoch_steps",
    "fit_mixed",
    "gradient_norms",
    "regime_cost",
    "resize_batch",
    "size_regime",
    "size_sweep",
    "smooth_gradients",
    "step_flops",
    "train_mixed",
]
