"""Real data by name: `load("digits")`, embedded, and `load("tfds:cifar10")` for the rest.

Nothing is downloaded here, and scikit-learn and tensorflow-datasets are imported only when a set of
theirs is asked for. Your own arrays become a `Dataset` by `from_arrays`.
"""

from poster_jax.core.data.dataset import Dataset, from_arrays, subset
from poster_jax.core.data.labels import noisy_labels, one_hot, with_label_noise
from poster_jax.core.data.loading import load
from poster_jax.core.data.scaling import rescale, standardise

__all__ = [
    "Dataset",
    "from_arrays",
    "load",
    "noisy_labels",
    "one_hot",
    "rescale",
    "standardise",
    "subset",
    "with_label_noise",
]
