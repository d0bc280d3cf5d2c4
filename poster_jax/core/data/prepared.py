"""Sets of tensorflow-datasets that are prepared on this machine, read without tensorflow."""

import os
import re
from typing import Any

import numpy as np

from poster_jax.core.data.dataset import check_part
from poster_jax.core.data.embedded import Raw

# The formats with random access; the default of tensorflow-datasets, tfrecord, has none.
FORMATS = ("array_record", "parquet")
CHUNK = 1024  # examples read at once, so that no more are held decoded than that
INSTALL_READER = "pip install 'poster_jax[tfds]'"
INSTALL_MAKER = "pip install 'poster_jax[tfds-prepare]'"


def read_prepared(
    name: str,
    *,
    num_train: int | None,
    num_test: int | None,
    seed: int,
    data_dir: str | os.PathLike[str] | None,
    splits: tuple[str, str] | None,
) -> Raw:
    """The two parts of a set as numpy arrays; `load` describes the arguments."""
    name = _their_name(name)
    builder = _builder(name, data_dir)
    x_name, y_name = _input_and_label(name, builder.info)
    counts = {"num_train": num_train, "num_test": num_test}
    parts = [
        _read(name, builder, split, x_name, y_name, count_name, count, seed)
        for split, (count_name, count) in zip(
            _splits(name, builder.info, splits), counts.items(), strict=True
        )
    ]
    features = builder.info.features
    is_bytes = features[x_name].np_dtype == np.uint8
    return Raw(
        *parts,
        class_names=tuple(features[y_name].names),
        value_range=(0.0, 255.0) if is_bytes else None,
    )


def _their_name(name: str) -> str:
    """NAME[/CONFIG][:VERSION]; NAME:CONFIG is turned into it."""
    before, colon, after = name.partition(":")
    if colon and not re.match(r"[\d*]", after):
        return f"{before}/{after}"
    return name


def _builder(name: str, data_dir: Any) -> Any:
    try:
        import array_record.python.array_record_module  # noqa: F401
        import importlib_resources  # noqa: F401
        import PIL  # noqa: F401
        import tensorflow_datasets as tfds
        from tensorflow_datasets.core import read_only_builder
    except ImportError as error:
        raise ImportError(
            f"'tfds:{name}' is read by tensorflow-datasets with array_record, importlib_resources "
            f"and pillow, of which {error.name} is missing: {INSTALL_READER}"
        ) from error
    try:
        # From the files alone: the code of a set's own builder may need tensorflow.
        # They read the variable once, when they are imported; it may have been set since.
        where = data_dir or os.environ.get("TFDS_DATA_DIR")
        builder = read_only_builder.builder_from_files(name, data_dir=where)
    except tfds.core.DatasetNotFoundError as error:
        where = where or "~/tensorflow_datasets"
        raise FileNotFoundError(
            f"'tfds:{name}' is not prepared under {where}; prepare it by: "
            f"{_command(name, data_dir)}"
        ) from error
    stored = getattr(builder.info.file_format, "value", None)
    if stored not in FORMATS:
        raise FileNotFoundError(
            f"'tfds:{name}' is prepared at {builder.data_dir} in the format {stored}, which needs "
            f"tensorflow; prepare it in another data_dir by: {_command(name, 'ANOTHER_DATA_DIR')}"
        )
    return builder


def _command(name: str, data_dir: Any) -> str:
    place = "" if data_dir is None else f", data_dir='{os.fspath(data_dir)}'"
    call = f"tfds.builder('{name}', file_format='array_record'{place}).download_and_prepare()"
    return f'{INSTALL_MAKER} && python -c "import tensorflow_datasets as tfds; {call}"'


def _input_and_label(name: str, info: Any) -> tuple[Any, Any]:
    """Names of the input and of the class label among the features of a set."""
    kinds = {feature: type(kind).__name__ for feature, kind in dict(info.features).items()}
    labels = [feature for feature, kind in kinds.items() if kind == "ClassLabel"]
    supervised = info.supervised_keys
    x_name, y_name = supervised if supervised and len(supervised) == 2 else (None, None)
    if x_name is None and len(labels) == 1:
        inputs = [f for f, kind in kinds.items() if kind in ("Image", "Tensor")]
        x_name, y_name = (inputs[0], labels[0]) if len(inputs) == 1 else (None, None)
    if y_name not in labels or kinds.get(x_name) not in ("Image", "Tensor"):
        raise ValueError(
            f"name must be a set with one image or tensor and one class label, got 'tfds:{name}' "
            f"with the features {kinds}."
        )
    return x_name, y_name


def _splits(name: str, info: Any, splits: tuple[str, str] | None) -> tuple[str, str]:
    if splits is not None:
        if isinstance(splits, str) or len(splits) != 2:
            raise ValueError(f"splits must be a pair (train, test), got {splits!r}.")
        return splits
    there = list(info.splits)
    for test in ("test", "validation"):
        if "train" in there and test in there:
            return "train", test
    example = (f"{there[0]}[:80%]", f"{there[0]}[80%:]")
    raise ValueError(
        f"splits must be given for 'tfds:{name}', such as {example}: it has the splits {there}."
    )


def _read(
    name: str,
    builder: Any,
    split: str,
    x_name: str,
    y_name: str,
    count_name: str,
    count: int | None,
    seed: int,
) -> tuple[Any, Any]:
    try:
        source = builder.as_data_source(split)
    except (ValueError, KeyError, AssertionError) as error:
        there = list(builder.info.splits)
        raise ValueError(
            f"splits must be parts of those of 'tfds:{name}', {there}, got {split!r}."
        ) from error
    rows = list(range(len(source)))
    if count is not None:
        # The stream of RandomState is frozen by numpy's policy: a subset is the same for ever.
        count = check_part(count_name, count, len(source))
        rows = np.random.RandomState(seed).permutation(len(source))[:count].tolist()
    inputs, labels = [], []
    for start in range(0, len(rows), CHUNK):
        for example in source.__getitems__(rows[start : start + CHUNK]):
            inputs.append(example[x_name])
            labels.append(example[y_name])
    shapes = {np.shape(x) for x in inputs}
    if len(shapes) != 1:
        raise ValueError(
            f"name must be a set whose examples have one shape, got 'tfds:{name}' with "
            f"{sorted(shapes)[:3]}."
        )
    if min(labels) < 0:
        raise ValueError(f"splits must hold labelled examples, got none in {split!r} of {name!r}.")
    return np.stack(inputs), np.asarray(labels)
