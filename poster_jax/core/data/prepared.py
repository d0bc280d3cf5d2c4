"""Sets of tensorflow-datasets that are prepared on this machine, read without tensorflow."""

import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np

from poster_jax.core.data.dataset import check_part
from poster_jax.core.data.embedded import Raw
from poster_jax.core.data.squares import central_square, gigabytes
from poster_jax.core.progress import progress_bar

# The formats with random access; the default of tensorflow-datasets, tfrecord, has none.
FORMATS = ("array_record", "parquet")
CHUNK = 256  # examples read at once, so that no more are held decoded than that
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
    side: int | None,
) -> Raw:
    """The two parts of a set as numpy arrays; `load` describes the arguments."""
    name = _their_name(name)
    builder = _builder(name, data_dir)
    x_name, y_name = _input_and_label(name, builder.info)
    features = builder.info.features
    decode = None if side is None else _square(name, features[x_name], side)
    sources = [
        _source(name, builder, split, None if side is None else x_name)
        for split in _splits(name, builder, splits, y_name)
    ]
    counts = {"num_train": num_train, "num_test": num_test}
    rows = [
        _rows(source, count_name, count, seed)
        for source, (count_name, count) in zip(sources, counts.items(), strict=True)
    ]
    remedy = "" if decode else _remedy(features[x_name], sum(map(len, rows)))
    parts = [
        _read(name, source, chosen, x_name, y_name, decode, remedy)
        for source, chosen in zip(sources, rows, strict=True)
    ]
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


def _splits(
    name: str, builder: Any, splits: tuple[str, str] | None, y_name: str
) -> tuple[str, str]:
    if splits is not None:
        if isinstance(splits, str) or len(splits) != 2:
            raise ValueError(f"splits must be a pair (train, test), got {splits!r}.")
        return splits
    there = list(builder.info.splits)
    for test in ("test", "validation"):
        # The test part of some sets, ImageNet's among them, has no labels: -1.
        if "train" in there and test in there and _labelled(builder, test, y_name):
            return "train", test
    example = (f"{there[0]}[:80%]", f"{there[0]}[80%:]")
    raise ValueError(
        f"splits must be given for 'tfds:{name}', such as {example}: it has the splits {there}."
    )


def _labelled(builder: Any, split: str, y_name: str) -> bool:
    return bool(builder.as_data_source(split)[0][y_name] >= 0)


def _source(name: str, builder: Any, split: str, encoded: str | None) -> Any:
    """Random access to a split; the feature `encoded` is left as it is stored."""
    import tensorflow_datasets as tfds

    decoders = None if encoded is None else {encoded: tfds.decode.SkipDecoding()}
    try:
        return builder.as_data_source(split, decoders=decoders)
    except (ValueError, KeyError, AssertionError) as error:
        there = list(builder.info.splits)
        raise ValueError(
            f"splits must be parts of those of 'tfds:{name}', {there}, got {split!r}."
        ) from error


def _rows(source: Any, count_name: str, count: int | None, seed: int) -> list[int]:
    if count is None:
        return list(range(len(source)))
    count = check_part(count_name, count, len(source))
    # The stream of RandomState is frozen by numpy's policy: a subset is the same for ever.
    return np.random.RandomState(seed).permutation(len(source))[:count].tolist()


def _are_pictures(feature: Any) -> bool:
    is_image = type(feature).__name__ == "Image" and feature.np_dtype == np.uint8
    return is_image and feature.shape[-1] in (1, 3)


def _square(name: str, feature: Any, side: int) -> Callable[[bytes], Any]:
    """What decodes a picture of the set."""
    if not _are_pictures(feature):
        kind, dtype = type(feature).__name__, np.dtype(feature.np_dtype).name
        raise ValueError(
            f"side is for images of bytes in 1 or 3 channels, got {side} for 'tfds:{name}' with "
            f"{kind} of {dtype}, shape {tuple(feature.shape)}."
        )
    return partial(central_square, side=side, channels=feature.shape[-1])


def _remedy(feature: Any, num_examples: int) -> str:
    """The end of the sentence that tells that shapes differ."""
    if not _are_pictures(feature):
        return ""
    small, large = (gigabytes(num_examples, side, feature.shape[-1]) for side in (64, 224))
    return f": side=64 makes one array of them, of {small}, side=224 one of {large}"


def _read(
    name: str,
    source: Any,
    rows: list[int],
    x_name: str,
    y_name: str,
    decode: Callable[[Any], Any] | None,
    remedy: str,
) -> tuple[Any, Any]:
    inputs: Any = None
    labels = np.empty(len(rows), np.int64)
    with (
        progress_bar(f"reading {name}", len(rows)) as update,
        ThreadPoolExecutor(os.cpu_count()) as threads,  # PIL decodes side by side
    ):
        for start in range(0, len(rows), CHUNK):
            examples = source.__getitems__(rows[start : start + CHUNK])
            chunk: Any = [example[x_name] for example in examples]
            for place, x in enumerate(threads.map(decode, chunk) if decode else chunk, start):
                if inputs is None:  # a list of all examples would hold the set a second time
                    inputs = np.empty((len(rows), *np.shape(x)), np.asarray(x).dtype)
                if np.shape(x) != inputs.shape[1:]:
                    shapes = sorted({np.shape(x), inputs.shape[1:]})
                    raise ValueError(
                        f"name must be a set whose examples have one shape, got 'tfds:{name}' with "
                        f"{shapes}{remedy}."
                    )
                inputs[place] = x
            labels[start : start + len(examples)] = [example[y_name] for example in examples]
            update(start + len(examples), "")
    if labels.min() < 0:
        raise ValueError(f"splits must hold labelled examples, got some without in 'tfds:{name}'.")
    return inputs, labels
