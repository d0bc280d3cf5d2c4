"""Real sets that come with scikit-learn: no download, no files."""

from typing import Any, NamedTuple

import numpy as np

from poster_jax.core.data.dataset import check_part

# Training examples of each set; the rest is its test part. 1,000 of the digits as in the card of
# relative flatness, about two thirds of the others.
EMBEDDED = {"breast_cancer": 400, "digits": 1000, "iris": 100, "wine": 120}


class Raw(NamedTuple):
    """Numbers as they are stored, before any scaling.

    Attributes:
      train: `(x, y)`, numpy arrays.
      test: the same.
      class_names: one a class.
      value_range: smallest and largest possible value of x; None when unknown.
    """

    train: tuple[Any, Any]
    test: tuple[Any, Any]
    class_names: tuple[str, ...]
    value_range: tuple[float, float] | None


def read_embedded(name: str, *, num_train: int | None, num_test: int | None, seed: int) -> Raw:
    """A set of `EMBEDDED`, shuffled by seed and cut; fewer examples are the first ones of a part.

    Images come as (height, width, 1), tables as (features,).
    """
    from sklearn import datasets

    bunch = getattr(datasets, f"load_{name}")()
    x, y = (bunch.images[..., None] if name == "digits" else bunch.data), bunch.target
    # The stream of RandomState is frozen by numpy's policy: a split is the same for ever.
    order = np.random.RandomState(seed).permutation(len(y))
    rows = {"num_train": order[: EMBEDDED[name]], "num_test": order[EMBEDDED[name] :]}
    for part, wanted in {"num_train": num_train, "num_test": num_test}.items():
        if wanted is not None:
            rows[part] = rows[part][: check_part(part, wanted, len(rows[part]))]
    return Raw(
        train=(x[rows["num_train"]], y[rows["num_train"]]),
        test=(x[rows["num_test"]], y[rows["num_test"]]),
        class_names=tuple(str(c) for c in bunch.target_names),
        value_range=(0.0, 16.0) if name == "digits" else None,
    )
