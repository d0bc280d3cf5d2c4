"""tensorflow-datasets' own files, read back against the program that drew them."""

import builtins
import importlib.util
import io
import pathlib
import shlex
import subprocess
import sys

import numpy as np
import PIL.Image
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


def _files(split):
    return [make_tfds.photograph(split, i) for i in range(make_tfds.SIZES[split])]


def _triangles(length, new):
    """(new, length): each new pixel's weights, triangles as wide as a new pixel, or an old one."""
    scale = length / new
    centre, width = (np.arange(new)[:, None] + 0.5) * scale, max(scale, 1)
    weights = np.maximum(0, 1 - abs(np.arange(length) + 0.5 - centre) / width)
    return weights / weights.sum(1, keepdims=True)


def _pixels(file):
    with PIL.Image.open(io.BytesIO(file)) as picture:
        return np.asarray(picture.convert("RGB"), np.float64)


def _square(pixels, side):
    """By hand: the short side resized, the centre cut out, in float64."""
    height, width = (n * side // min(pixels.shape[:2]) for n in pixels.shape[:2])
    rows, columns = _triangles(pixels.shape[0], height), _triangles(pixels.shape[1], width)
    resized = np.einsum("ih,jw,hwc->ijc", rows, columns, pixels)
    top, left = (height - side) // 2, (width - side) // 2
    return resized[top : top + side, left : left + side]


@pytest.mark.parametrize("side", [16, 48])
def test_pictures_of_all_shapes_become_squares_by_a_triangle_filter(side):
    got = data.load("tfds:imagenet2012", side=side, scaling="bytes", data_dir=TFDS)
    assert (got.num_classes, got.input_shape) == (1000, (side, side, 3))
    for part, split in ((got.train, "train"), (got.test, "validation")):
        files, labels = zip(*_files(split), strict=True)
        wanted = np.stack([_square(_pixels(file), side) for file in files])
        assert part[0].dtype == np.uint8
        assert np.ptp(wanted) > 40
        # PIL rounds after each direction.
        np.testing.assert_allclose(part[0], wanted, atol=1.1)
        np.testing.assert_array_equal(part[1], labels)


def test_squares_of_fewer_pictures_are_those_of_all():
    squares = {"side": 8, "scaling": "bytes", "data_dir": TFDS}
    whole, few = (data.load("tfds:imagenet2012", num_train=n, **squares) for n in (None, 4))
    chosen = np.random.RandomState(0).permutation(20)[:4]
    np.testing.assert_array_equal(few.train[0], whole.train[0][chosen])
    np.testing.assert_array_equal(few.train[1], whole.train[1][chosen])


def test_a_side_is_for_pictures_of_one_shape_too():
    stored, squares = (
        data.load("tfds:cifar100", side=side, scaling="none", data_dir=TFDS) for side in (None, 12)
    )
    assert stored.num_classes == 100
    assert max(stored.train[1]) > 50
    wanted = np.stack([_square(x, 12) for x in np.asarray(stored.train[0], np.float64)])
    np.testing.assert_allclose(squares.train[0], wanted, atol=1.1)
    assert squares.train[0].dtype == np.float32


def test_bytes_are_a_quarter_of_the_floats():
    stored, scaled = (
        data.load("tfds:cifar10", scaling=scaling, data_dir=TFDS) for scaling in ("bytes", "none")
    )
    assert scaled.train[0].nbytes == 4 * stored.train[0].nbytes
    np.testing.assert_array_equal(stored.train[0], scaled.train[0])


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
        ("mnist", {"side": 0}, "side must be"),
        (
            "imagenet2012",
            {},
            r"one shape, got 'tfds:imagenet2012' with .*: side=64 makes one array of them, of "
            r"0.000319 GB, side=224 one of 0.00391 GB\.$",
        ),
        ("imagenet2012", {"side": 8, "splits": ("train", "test")}, "splits must hold labelled"),
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
