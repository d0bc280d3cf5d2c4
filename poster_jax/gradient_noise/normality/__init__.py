"""Does a sample come from a normal distribution of unknown mean and variance?

One test a file, each over any number of samples at once. Where the samples are all equal the
statistic is NaN: nothing can be said about their shape, and whoever averages must count them.
"""

from poster_jax.gradient_noise.normality._samples import NormalityTest

__all__ = ["NormalityTest"]
