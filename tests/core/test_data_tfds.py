"""tensorflow-datasets' own files, read back against the program that drew them."""

import builtins
import importlib.util
import pathlib
import shlex
import subprocess
import sys

import numpy as np
import pytest

from poster_jax.core import data

HERE = pathlib.Path(__file__).parents[1] / "data"
TFDS = HERE / "tfds"
_spec = importlib.util.spec_from_file_location("make_tfds", HERE / "make_tfds.py")
make_tfds = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(make_tfds)


def _drawn(split, shape):
    pairs = [make_tfds.picture(split, i, shape) for i in range(make_tfds.SIZES[split])]
    return np.stack([x for x, _ in pairs]).astype(np.float64), np.array([y for _, y in pairs])


@pytest.mark.parametrize(("name", "shape"), [("mnist", (28, 28, 1)), ("cifar10", (32, 32, 3))])
def test_every_pixel_and_label_is_read(name, shape):
    got = data.load(f"tfds:{name}", scaling="none", data_dir=TFDS)
    for part, split in ((got.train, "train"), (got.test, "test")):
        x, y = _drawn(split, shape)
        np.testing.assert_array_equal(part[0], x)
        np.testing.assert_array_equal(part[1], y)
    assert (got.name, got.num_classes, got.input_shape) == (f"tfds:{name}", 10, shape)


def test_class_names_are_those_of_the_set():
    got = data.load("tfds:cifar10", data_dir=TFDS)
    assert got.class_names == tuple(make_tfds.CIFAR10)


def test_standardised_a_channel_at_a_time_by_the_training_part():
    got = data.load("tfds:cifar10", data_dir=TFDS)
    (x, _), (test, _) = _drawn("train", (32, 32, 3)), _drawn("test", (32, 32, 3))
    mean, std = x.mean((0, 1, 2)), x.std((0, 1, 2))
    assert np.ptp(mean) > 1  # else the channels could not be told apart
    np.testing.assert_allclose(got.test[0], (test - mean) / std, rtol=1e-5, atol=1e-5)


def test_bytes_to_minus_one_and_one():
    got = data.load("tfds:cifar10", scaling="symmetric", data_dir=TFDS)
    np.testing.assert_allclose(got.train[0], _drawn("train", (32, 32, 3))[0] / 127.5 - 1, atol=1e-6)


def test_versions_and_configs_are_found_by_name():
    a, b = (data.load(f"tfds:{n}", data_dir=TFDS) for n in ("mnist", "mnist:3.0.1"))
    np.testing.assert_array_equal(a.train[0], b.train[0])
    parts = {"splits": ("train[:15]", "train[15:]"), "data_dir": TFDS, "scaling": "none"}
    slash, colon = (data.load(f"tfds:bars{c}", **parts) for c in ("/coarse", ":coarse"))
    np.testing.assert_array_equal(slash.train[0], colon.train[0])
    np.testing.assert_array_equal(slash.test[0], _drawn("train", (8, 8, 3))[0][15:])


def test_subsets_are_drawn_without_replacement_and_nest():
    whole = data.load("tfds:mnist", scaling="none", data_dir=TFDS)
    kwargs = {"scaling": "none", "data_dir": TFDS, "num_test": 3}
    few, more = (data.load("tfds:mnist", num_train=n, **kwargs) for n in (5, 12))
    np.testing.assert_array_equal(few.train[0], more.train[0][:5])
    assert len(few.test[1]) == 3
    rows = [int(np.flatnonzero((whole.train[0] == x).all((1, 2, 3)))[0]) for x in more.train[0]]
    assert len(set(rows)) == 12
    assert rows != sorted(rows)
    other = data.load("tfds:mnist", num_train=12, seed=1, **kwargs)
    assert not np.array_equal(other.train[0], more.train[0])


def test_the_environment_names_the_folder(monkeypatch):
    """In a process of its own: tensorflow-datasets reads the variable when it is imported."""
    code = "from poster_jax.core import data; print(len(data.load('tfds:mnist').train[1]))"
    monkeypatch.setenv("TFDS_DATA_DIR", str(TFDS))
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "20"


@pytest.mark.bad_input
def test_a_set_that_is_not_there_gives_the_command_that_prepares_it(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        data.load("tfds:mnist", data_dir=tmp_path)
    message = str(caught.value)
    assert message.startswith(f"'tfds:mnist' is not prepared under {tmp_path}; prepare it by: pip")
    assert "\n" not in message
    # What stands after "python -c" is a program, and it names the set, the format and the folder.
    program = shlex.split(message.split("&& ")[1])[2]
    compile(program, "command", "exec")
    for part in ("builder('mnist'", "file_format='array_record'", f"data_dir='{tmp_path}'"):
        assert part in program


@pytest.mark.bad_input
def test_a_set_in_a_format_without_random_access_gives_the_command():
    with pytest.raises(FileNotFoundError, match=r"in the format tfrecord.*array_record") as caught:
        data.load("tfds:mnist", data_dir=HERE / "tfds_tfrecord")
    assert "\n" not in str(caught.value)


@pytest.mark.bad_input
@pytest.mark.parametrize("missing", ["tensorflow_datasets", "array_record", "PIL"])
def test_a_missing_package_gives_the_extra_that_brings_it(monkeypatch, missing):
    theirs = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] == missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return theirs(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(
        ImportError, match=rf"{missing}.* is missing: pip install 'poster_jax\[tfds"
    ):
        data.load("tfds:mnist", data_dir=TFDS)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("bars/coarse", {}, r"splits must be given for 'tfds:bars/coarse'.*\['train'\]"),
        ("mnist", {"splits": "train"}, "splits must be a pair"),
        ("mnist", {"splits": ("train", "dev")}, "splits must be parts of those .*got 'dev'"),
        ("mnist", {"num_train": 21}, "num_train must be at most 20"),
        ("mnist", {"num_test": 11}, "num_test must be at most 10"),
    ],
)
def test_bad_arguments_are_named(name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        data.load(f"tfds:{name}", data_dir=TFDS, **kwargs)


def test_the_variable_is_read_at_every_call(monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="is not prepared under"):
        data.load("tfds:mnist")
    monkeypatch.setenv("TFDS_DATA_DIR", str(TFDS))
    assert len(data.load("tfds:mnist").train[0]) == 20
