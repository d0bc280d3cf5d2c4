"""What a data set is: training and test examples with their labels, checked once."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from poster_jax.core.checks import check_batch, check_count, check_key
from poster_jax.core.typing import Array, Float, Int, PRNGKey

__all__ = ["Dataset", "from_arrays", "subset"]


class Dataset(NamedTuple):
    """Examples with class labels, in a training and a test part.

    Attributes:
      name: as given to `load`.
      train: `(x, y)`: x float32 (uint8 as "bytes") (examples, *input_shape), y int32 (examples,).
      test: the same.
      num_classes: labels run from 0 to num_classes - 1.
      input_shape: of one example: (height, width, channels) or (features,).
      class_names: one a class.
    """

    name: str
    train: tuple[Float[Array, "examples ..."], Int[Array, " examples"]]
    test: tuple[Float[Array, "examples ..."], Int[Array, " examples"]]
    num_classes: int
    input_shape: tuple[int, ...]
    class_names: tuple[str, ...]


def from_arrays(
    name: str,
    train: tuple[Any, Any],
    test: tuple[Any, Any],
    *,
    class_names: Sequence[str] | None = None,
    dtype: Any = np.float32,
) -> Dataset:
    """A Dataset of your own arrays, as they are: nothing is scaled or shuffled.

    Args:
      name: how to call it.
      train: `(x, y)`, numbers (examples, ...) and integer labels (examples,).
      test: the same, with examples of the same shape.
      class_names: one a class; None counts "0", "1", ... up to the largest label of `train`.
      dtype: of the examples; np.uint8 keeps bytes at a quarter of the memory.

    Returns:
      A Dataset with examples of `dtype` and int32 labels, on the default device.

    Raises:
      ValueError: parts that are empty or disagree in shape or length, values that are not finite,
        labels that are negative or beyond the classes.
      TypeError: labels are no integers.

    Source: this library.

    Example:
      >>> data = from_arrays("two", (np.eye(2), [0, 1]), (np.eye(2), [1, 0]))
      >>> data.num_classes, data.input_shape, data.train[1].dtype
      (2, (2,), dtype('int32'))
    """
    labels = np.asarray(train[1])
    if class_names is None:
        class_names = [str(i) for i in range(int(labels.max(initial=0)) + 1)]
    parts = {}
    for part, (x, y) in {"train": train, "test": test}.items():
        x, y = np.asarray(x, dtype), np.asarray(y)
        if not np.issubdtype(y.dtype, np.integer):
            raise TypeError(f"{part} labels must be integers, got {y.dtype}.")
        if y.ndim != 1 or x.ndim < 2:
            raise ValueError(
                f"{part} must be examples (examples, ...) and labels (examples,), got shapes "
                f"{x.shape} and {y.shape}."
            )
        check_batch((x, y), part)
        if y.min() < 0 or y.max() >= len(class_names):
            raise ValueError(
                f"{part} labels must lie from 0 to {len(class_names) - 1}, got values from "
                f"{y.min()} to {y.max()}."
            )
        parts[part] = (x, y.astype(np.int32))
    shapes = {part: x.shape[1:] for part, (x, _) in parts.items()}
    if shapes["train"] != shapes["test"]:
        raise ValueError(f"train and test must hold examples of one shape, got {shapes}.")
    return Dataset(
        name=name,
        train=jax.tree.map(jnp.asarray, parts["train"]),
        test=jax.tree.map(jnp.asarray, parts["test"]),
        num_classes=len(class_names),
        input_shape=shapes["train"],
        class_names=tuple(class_names),
    )


def subset(dataset: Dataset, key: PRNGKey, *, num_train: int) -> Dataset:
    """The same data set with fewer training examples, drawn without replacement.

    Smaller subsets of one key are parts of the larger ones. The scaling stays that of the whole
    training part; `load(..., num_train=...)` scales by the subset.

    Args:
      dataset: a Dataset.
      key: which examples.
      num_train: how many, at most as many as there are.

    Returns:
      A Dataset with the same test part.

    Raises:
      ValueError: num_train is below 1 or above the number of training examples.
      TypeError: num_train is no integer, key is no key.

    Source: this library.

    Example:
      >>> from poster_jax.core.data import load
      >>> subset(load("iris"), jax.random.key(0), num_train=30).train[0].shape
      (30, 4)
    """
    check_key("key", key)
    x, y = dataset.train
    num_train = check_part("num_train", num_train, len(y))
    rows = jax.random.permutation(key, len(y))[:num_train]
    return dataset._replace(train=(x[rows], y[rows]))


def check_part(name: str, value: Any, available: int) -> int:
    """`value`, or ValueError unless it lies from 1 to `available`."""
    if check_count(name, value) > available:
        raise ValueError(
            f"{name} must be at most {available}, the examples there are, got {value}."
        )
    return int(value)
