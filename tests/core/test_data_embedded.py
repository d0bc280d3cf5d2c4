"""The sets of scikit-learn: what is in them, how they are split and scaled."""

import sys

import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.datasets

from poster_jax.core import data


@pytest.mark.parametrize(
    ("name", "shape", "sizes", "classes"),
    [
        ("digits", (8, 8, 1), (1000, 797), 10),
        ("iris", (4,), (100, 50), 3),
        ("wine", (13,), (120, 58), 3),
        ("breast_cancer", (30,), (400, 169), 2),
    ],
)
def test_every_example_of_scikit_learn_is_in_one_part_with_its_label(name, shape, sizes, classes):
    got = data.load(name, scaling="none")
    x, y = getattr(sklearn.datasets, f"load_{name}")(return_X_y=True)
    assert (len(got.train[1]), len(got.test[1])) == sizes
    assert (got.input_shape, got.num_classes, len(got.class_names)) == (shape, classes, classes)
    ours = np.concatenate([np.c_[np.reshape(a, (len(b), -1)), b] for a, b in (got.train, got.test)])
    theirs = np.c_[x.astype(np.float32), y].astype(np.float32)
    ours, theirs = (a[np.lexsort(a.T)] for a in (ours.astype(np.float32), theirs))
    np.testing.assert_array_equal(ours, theirs)


def test_dtypes_are_float32_and_int32_in_float64_mode_too(x64):
    got = data.load("digits")
    assert {a.dtype.name for a in (got.train[0], got.test[0])} == {"float32"}
    assert {a.dtype.name for a in (got.train[1], got.test[1])} == {"int32"}


def test_standardised_by_the_training_part_alone():
    train, test = (np.asarray(part[0], np.float64) for part in data.load("wine")[1:3])
    raw = data.load("wine", scaling="none")
    np.testing.assert_allclose(train.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(train.std(0), 1, rtol=1e-6)
    mean, std = np.mean(raw.train[0], 0), np.std(raw.train[0], 0)
    np.testing.assert_allclose(test, (raw.test[0] - mean) / std, rtol=2e-4, atol=1e-4)


def test_images_are_standardised_a_channel_not_a_pixel():
    x = np.asarray(data.load("digits").train[0], np.float64)
    assert abs(x.mean()) < 1e-6
    assert abs(x.std() - 1) < 1e-6
    # The corner is always blank: as a pixel of its own it would be 0 and not the darkest.
    assert np.ptp(x[:, 0, 0]) == 0
    assert x[0, 0, 0, 0] == x.min()


def test_symmetric_and_unit_scale_by_the_range_of_the_pixels():
    stored = data.load("digits", scaling="none").train[0]
    np.testing.assert_allclose(data.load("digits", scaling="unit").train[0], stored / 16, rtol=1e-6)
    symmetric = data.load("digits", scaling="symmetric").train[0]
    np.testing.assert_allclose(symmetric, stored / 8 - 1, atol=1e-6)


def test_tables_are_scaled_by_the_extremes_of_each_column():
    x = np.asarray(data.load("iris", scaling="symmetric").train[0])
    np.testing.assert_allclose((x.min(0), x.max(0)), ([-1] * 4, [1] * 4), atol=1e-6)


def test_a_constant_column_becomes_zero_and_not_nan():
    train, test = data.standardise(np.full((3, 1), 7.0), np.full((2, 1), 8.0))
    assert (train.ravel().tolist(), test.ravel().tolist()) == ([0, 0, 0], [1, 1])
    train, _ = data.rescale(np.full((3, 1), 7.0), np.ones((2, 1)))
    assert np.isfinite(train).all()


def test_the_split_is_the_same_for_ever():
    """These examples stand first; if they change, every figure made on the digits changes."""
    digits = data.load("digits", scaling="none")
    assert digits.train[1][:12].tolist() == [2, 8, 2, 6, 6, 7, 1, 9, 8, 5, 2, 8]
    assert float(digits.train[0][0].sum()) == 338
    np.testing.assert_array_equal(data.load("digits").train[1], digits.train[1])


def test_another_seed_is_another_split():
    a, b = (data.load("digits", seed=seed).train[1] for seed in (0, 1))
    assert (a != b).mean() > 0.5


def test_smaller_parts_are_the_beginning_of_larger_ones_and_the_test_part_stays():
    whole = data.load("digits", scaling="none")
    few = data.load("digits", scaling="none", num_train=10, num_test=20)
    np.testing.assert_array_equal(few.train[0], whole.train[0][:10])
    np.testing.assert_array_equal(few.test[1], whole.test[1][:20])


def test_flat_is_the_same_numbers():
    image, flat = data.load("digits"), data.load("digits", flat=True)
    assert flat.input_shape == (64,)
    np.testing.assert_array_equal(flat.test[0], image.test[0].reshape(797, 64))


def test_importing_data_imports_no_data_library():
    import subprocess

    code = (
        "import sys; from poster_jax.core import data; "
        "print([m for m in ('sklearn', 'tensorflow_datasets', 'PIL') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"name": "digit"}, ValueError, "name must be one of .* Did you mean 'digits'"),
        ({"name": 3}, TypeError, "name must be a string"),
        ({"scaling": "standard"}, ValueError, "scaling must be one of .*'standardise'"),
        ({"num_train": 1001}, ValueError, "num_train must be at most 1000"),
        ({"num_train": 0}, ValueError, "num_train must be at least 1"),
        ({"num_test": 798}, ValueError, "num_test must be at most 797"),
        ({"num_test": 2.0}, TypeError, "num_test must be an integer"),
        ({"seed": -1}, ValueError, "seed must be at least 0"),
        ({"data_dir": "/tmp"}, ValueError, "data_dir is for 'tfds:' sets"),
        ({"splits": ("a", "b")}, ValueError, "splits is for 'tfds:' sets"),
        ({"side": 8}, ValueError, "side is for 'tfds:' sets"),
        ({"side": 8.0}, TypeError, "side must be an integer"),
        ({"scaling": "bytes"}, ValueError, "scaling 'bytes' is for images stored as bytes"),
    ],
)
def test_bad_arguments_are_named(kwargs, error, message):
    with pytest.raises(error, match=message):
        data.load(**{"name": "digits", **kwargs})


@pytest.mark.bad_input
def test_scaling_wants_increasing_ranges():
    with pytest.raises(ValueError, match="interval must be"):
        data.rescale(jnp.ones((2, 1)), jnp.ones((2, 1)), interval=(1.0, 1.0))
    with pytest.raises(ValueError, match="value_range must be"):
        data.rescale(jnp.ones((2, 1)), jnp.ones((2, 1)), value_range=(1.0, 0.0))
