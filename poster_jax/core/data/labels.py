"""Class labels: as vectors, and with some of them made wrong on purpose."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from poster_jax.core.checks import check_count, check_fraction, check_key, is_traced
from poster_jax.core.data.dataset import Dataset
from poster_jax.core.typing import Array, Float, Int, PRNGKey

__all__ = ["noisy_labels", "one_hot", "with_label_noise"]


def one_hot(labels: Int[Array, "..."], num_classes: int) -> Float[Array, "... classes"]:
    """Labels as vectors with a 1 at the class and 0 elsewhere.

    Args:
      labels: integers from 0 to num_classes - 1.
      num_classes: length of the vectors.

    Returns:
      Floats (..., num_classes). A traced label that is no class becomes a vector of zeros.

    Raises:
      ValueError: a label is negative or too large.
      TypeError: labels are no integers.

    Source: `jax.nn.one_hot`.

    Example:
      >>> one_hot(jnp.array([2, 0]), 3).tolist()
      [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    """
    _check_labels(labels, check_count("num_classes", num_classes))
    return jax.nn.one_hot(labels, num_classes, dtype=jnp.result_type(float))


def noisy_labels(
    labels: Int[Array, " examples"], key: PRNGKey, *, fraction: Any, num_classes: int
) -> Int[Array, " examples"]:
    """Labels of which a fraction is wrong: replaced by one of the other classes, all alike.

    The number of wrong labels is `fraction * examples` rounded, not a draw. For one key, the
    wrong labels of a smaller fraction are among those of a larger one.

    Args:
      labels: integers from 0 to num_classes - 1.
      key: which examples, and which class instead.
      fraction: in [0, 1]; may be traced, so that a population can differ in it.
      num_classes: at least 2.

    Returns:
      Labels of the same shape and dtype.

    Raises:
      ValueError: fraction lies outside [0, 1], fewer than 2 classes, a label is no class.
      TypeError: labels are no integers, key is no key.

    Source: this library. Papers that replace by any class, the right one included, make
    `fraction * (1 - 1 / num_classes)` of the labels wrong.

    Example:
      >>> clean = jnp.zeros(100, jnp.int32)
      >>> noisy = noisy_labels(clean, jax.random.key(0), fraction=0.2, num_classes=10)
      >>> int((noisy != clean).sum())
      20
    """
    check_key("key", key)
    check_fraction("fraction", fraction)
    _check_labels(labels, check_count("num_classes", num_classes, minimum=2))
    which, what = jax.random.split(key)
    place = jax.random.permutation(which, labels.shape[0])
    other = labels + jax.random.randint(what, labels.shape, 1, num_classes, labels.dtype)
    wrong = place < jnp.round(fraction * labels.shape[0])
    return jnp.where(wrong, other % num_classes, labels)


def with_label_noise(dataset: Dataset, key: PRNGKey, *, fraction: Any) -> Dataset:
    """The same data set with a fraction of the training labels wrong; the test part stays.

    Args:
      dataset: a Dataset.
      key: as in `noisy_labels`.
      fraction: in [0, 1].

    Returns:
      A Dataset.

    Raises:
      ValueError, TypeError: as in `noisy_labels`.

    Source: this library.

    Example:
      >>> from poster_jax.core.data import load
      >>> iris = load("iris")
      >>> noisy = with_label_noise(iris, jax.random.key(0), fraction=0.1)
      >>> int((noisy.train[1] != iris.train[1]).sum())
      10
    """
    x, y = dataset.train
    y = noisy_labels(y, key, fraction=fraction, num_classes=dataset.num_classes)
    return dataset._replace(train=(x, y))


def _check_labels(labels: Any, num_classes: int) -> None:
    dtype = getattr(labels, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.integer):
        raise TypeError(f"labels must be an integer array, got {dtype or type(labels).__name__}.")
    if is_traced(labels) or not labels.size:
        return
    values = np.asarray(labels)  # jnp would trace, even on an array whose values are there
    low, high = values.min(), values.max()
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"labels must lie from 0 to {num_classes - 1}, got values from {low} to {high}."
        )
