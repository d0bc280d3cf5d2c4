"""`load`: a data set by its name."""

import os
from typing import Any

import numpy as np

from poster_jax.core.checks import check_choice, check_count
from poster_jax.core.data.dataset import Dataset, from_arrays
from poster_jax.core.data.embedded import EMBEDDED, Raw, read_embedded
from poster_jax.core.data.prepared import read_prepared
from poster_jax.core.data.scaling import rescale, standardise

__all__ = ["load"]

PREFIX = "tfds:"
SCALINGS = ("standardise", "symmetric", "unit", "none", "bytes")


def load(
    name: str,
    *,
    num_train: int | None = None,
    num_test: int | None = None,
    seed: int = 0,
    scaling: str = "standardise",
    flat: bool = False,
    data_dir: str | os.PathLike[str] | None = None,
    splits: tuple[str, str] | None = None,
    side: int | None = None,
) -> Dataset:
    """A real data set by name, ready to train on.

    | name | examples | train / test | classes |
    | --- | --- | --- | --- |
    | "digits" | 8x8x1 images, scikit-learn | 1000 / 797 | 10 |
    | "iris" | 4 numbers, scikit-learn | 100 / 50 | 3 |
    | "wine" | 13 numbers, scikit-learn | 120 / 58 | 3 |
    | "breast_cancer" | 30 numbers, scikit-learn | 400 / 169 | 2 |
    | "tfds:NAME[/CONFIG][:VERSION]" | any image or table set of tensorflow-datasets that has class
      labels and is prepared on this machine | its own | its own |

    The first four come with scikit-learn and need no network. A "tfds:" set is read from disk
    without tensorflow; where a package or the set itself is missing, the error says which command
    fetches it. "tfds:NAME:CONFIG" is understood as well.

    Args:
      name: as in the table.
      num_train: training examples; None takes all. Fewer are drawn by `seed`, without replacement,
        and smaller subsets of one seed are parts of larger ones.
      num_test: test examples, in the same way.
      seed: of the shuffling. It decides the split of the embedded sets; those of
        tensorflow-datasets have their own split and order, and the seed only draws subsets.
      scaling: of the inputs, a channel or column at a time. "standardise": mean 0 and standard
        deviation 1 over the training examples that are returned; "symmetric": the range of the
        values to (-1, 1); "unit": to (0, 1); "none": as stored; "bytes": as stored and as uint8,
        a quarter of the memory, for images of "tfds:" sets. The range is that of the pixels (0 to
        255, digits 0 to 16), for tables the extremes of the training examples.
      flat: whether each example becomes one vector.
      data_dir: where tensorflow-datasets keeps its sets; None takes TFDS_DATA_DIR or
        ~/tensorflow_datasets.
      splits: which splits of a "tfds:" set are training and test part, in its own notation, such as
        ("train[:80%]", "train[80%:]"). None takes "train", and "test" or, where that has no
        labels or is not there, "validation".
      side: makes images of a "tfds:" set squares of so many pixels: the short side is resized,
        averaging all pixels that a smaller one covers, and the centre cut out. None takes images
        as they are, which must then have one shape. The whole set becomes one array: the 1.28
        million training images of "tfds:imagenet2012" are 16 GB of bytes at side 64 and 193 GB at
        side 224, with scaling "bytes"; the others need four times as much.

    Returns:
      A Dataset.

    Raises:
      ValueError: an unknown name or scaling, more examples than there are, an argument that the set
        does not take, a set without class labels, or with examples of different shapes and no
        side; the message says how much memory the set would take.
      TypeError: an argument of a wrong kind.
      ImportError: a package is missing; the message says how to install it.
      FileNotFoundError: the set is not prepared; the message is the command that prepares it.

    Source: Alpaydin and Kaynak 1998 (digits, UCI), Fisher 1936 (iris), Aeberhard and Forina 1992
    (wine, UCI), Wolberg et al. 1995 (breast cancer, UCI), all by scikit-learn; tensorflow-datasets.

    Example:
      >>> digits = load("digits")
      >>> digits.train[0].shape, digits.test[0].shape, digits.num_classes
      ((1000, 8, 8, 1), (797, 8, 8, 1), 10)
      >>> load("digits", num_train=100, flat=True).train[0].shape
      (100, 64)
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be a string such as 'digits', got {type(name).__name__}.")
    check_choice("scaling", scaling, SCALINGS)
    check_count("seed", seed, minimum=0)
    side = None if side is None else check_count("side", side)
    counts: dict[str, Any] = {"num_train": num_train, "num_test": num_test, "seed": seed}
    if name.startswith(PREFIX):
        raw = read_prepared(
            name.removeprefix(PREFIX), data_dir=data_dir, splits=splits, side=side, **counts
        )
    else:
        check_choice("name", name, [*EMBEDDED, "tfds:NAME"])
        for argument, value in {"data_dir": data_dir, "splits": splits, "side": side}.items():
            if value is not None:
                raise ValueError(f"{argument} is for 'tfds:' sets, got {value!r} for {name!r}.")
        raw = read_embedded(name, **counts)
    if scaling == "bytes" and raw.train[0].dtype != np.uint8:
        raise ValueError(
            f"scaling 'bytes' is for images stored as bytes, got {raw.train[0].dtype} in {name!r}."
        )
    train, test = _scaled(raw, scaling)
    if flat:
        train, test = (x.reshape(len(x), -1) for x in (train, test))
    return from_arrays(
        name,
        (train, raw.train[1]),
        (test, raw.test[1]),
        class_names=raw.class_names,
        dtype=np.uint8 if scaling == "bytes" else np.float32,
    )


def _scaled(raw: Raw, scaling: str) -> tuple[Any, Any]:
    inputs = (raw.train[0], raw.test[0])
    if scaling == "standardise":
        return standardise(*inputs)
    if scaling == "bytes":
        return inputs
    if scaling == "none":
        return np.asarray(inputs[0], np.float32), np.asarray(inputs[1], np.float32)
    interval = (-1.0, 1.0) if scaling == "symmetric" else (0.0, 1.0)
    return rescale(*inputs, interval=interval, value_range=raw.value_range)
