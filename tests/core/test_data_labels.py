"""Datasets of one's own arrays, subsets of them, labels as vectors and labels made wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from poster_jax.core import data

X, Y = np.arange(24.0).reshape(6, 4), np.array([0, 1, 2, 0, 1, 2])


def test_arrays_become_a_dataset_as_they_are():
    got = data.from_arrays("mine", (X, Y), (X[:2], Y[:2]), class_names=["a", "b", "c", "never"])
    np.testing.assert_array_equal(got.train[0], X)
    assert (got.name, got.num_classes, got.input_shape) == ("mine", 4, (4,))
    assert data.from_arrays("mine", (X, Y), (X, Y)).class_names == ("0", "1", "2")


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("train", "test", "error", "message"),
    [
        ((X, Y.astype(float)), (X, Y), TypeError, "train labels must be integers"),
        ((X, Y), (X, Y + 1), ValueError, "test labels must lie from 0 to 2"),
        ((X, Y - 1), (X, Y), ValueError, "train labels must lie"),
        ((X, Y[:3]), (X, Y), ValueError, "train: leaves must share"),
        ((X[:0], Y[:0]), (X, Y), ValueError, "train must hold at least 1 example"),
        ((np.where(X == 5, np.nan, X), Y), (X, Y), ValueError, r"train\[0\] must be finite, got 1"),
        ((X, Y), (X[:, :2], Y), ValueError, "examples of one shape"),
        ((X, np.eye(3, dtype=int)[Y]), (X, Y), ValueError, r"labels \(examples,\)"),
        ((X[:, 0], Y), (X, Y), ValueError, r"labels \(examples,\)"),
    ],
)
def test_arrays_that_are_no_dataset_are_refused(train, test, error, message):
    with pytest.raises(error, match=message):
        data.from_arrays("mine", train, test)


def test_subsets_keep_pairs_together_and_nest(key):
    digits = data.load("digits")
    few, more = (data.subset(digits, key, num_train=n) for n in (20, 50))
    np.testing.assert_array_equal(few.train[0], more.train[0][:20])
    rows = [int(np.flatnonzero((digits.train[0] == x).all((1, 2, 3)))[0]) for x in more.train[0]]
    assert len(set(rows)) == 50
    np.testing.assert_array_equal(digits.train[1][np.array(rows)], more.train[1])
    np.testing.assert_array_equal(more.test[0], digits.test[0])


@pytest.mark.bad_input
def test_subsets_of_more_than_there_is(key):
    with pytest.raises(ValueError, match="num_train must be at most 100"):
        data.subset(data.load("iris"), key, num_train=101)
    with pytest.raises(TypeError, match="key must be a PRNG key"):
        data.subset(data.load("iris"), 0, num_train=10)


def test_one_hot_against_the_identity_matrix():
    np.testing.assert_array_equal(data.one_hot(jnp.asarray(Y), 3), np.eye(3)[Y])
    np.testing.assert_array_equal(jax.jit(lambda y: data.one_hot(y, 3))(Y), np.eye(3)[Y])


@pytest.mark.parametrize("fraction", [0.0, 0.2, 0.333, 1.0])
def test_exactly_the_fraction_is_wrong(key, fraction):
    clean = data.load("digits").train[1]
    noisy = data.noisy_labels(clean, key, fraction=fraction, num_classes=10)
    assert int((noisy != clean).sum()) == round(fraction * 1000)
    assert noisy.dtype == clean.dtype
    assert 0 <= int(noisy.min()) <= int(noisy.max()) <= 9


def test_wrong_labels_are_uniform_over_the_other_classes(key):
    clean = jnp.full(9000, 4, jnp.int32)
    noisy = np.asarray(data.noisy_labels(clean, key, fraction=1.0, num_classes=10))
    counts = np.bincount(noisy, minlength=10)
    assert counts[4] == 0
    # 1,000 expected of each of nine; 5 standard deviations of a binomial count are 149.
    assert np.abs(counts[np.arange(10) != 4] - 1000).max() < 149


def test_more_noise_keeps_the_wrong_labels_of_less(key):
    clean = data.load("digits").train[1]
    less, more = (data.noisy_labels(clean, key, fraction=f, num_classes=10) for f in (0.1, 0.3))
    wrong = less != clean
    np.testing.assert_array_equal(less[wrong], more[wrong])


def test_a_population_over_fractions_and_keys():
    clean = data.load("iris").train[1]
    fractions, keys = jnp.array([0.0, 0.1, 0.5]), jax.random.split(jax.random.key(1), 3)

    def one(fraction, key):
        return data.noisy_labels(clean, key, fraction=fraction, num_classes=3)

    noisy = jax.jit(jax.vmap(one))(fractions, keys)
    assert (noisy != clean).sum(1).tolist() == [0, 10, 50]
    np.testing.assert_array_equal(noisy[2], one(0.5, keys[2]))


def test_noise_touches_the_training_labels_alone(key):
    iris = data.load("iris")
    noisy = data.with_label_noise(iris, key, fraction=0.5)
    np.testing.assert_array_equal(noisy.train[0], iris.train[0])
    np.testing.assert_array_equal(noisy.test[1], iris.test[1])
    assert int((noisy.train[1] != iris.train[1]).sum()) == 50


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("labels", "kwargs", "error", "message"),
    [
        (Y, {"fraction": 1.2}, ValueError, "fraction must lie between 0 and 1"),
        (Y, {"num_classes": 1}, ValueError, "num_classes must be at least 2"),
        (Y, {"num_classes": 2}, ValueError, "labels must lie from 0 to 1, got values from 0 to 2"),
        (Y * 1.0, {}, TypeError, "labels must be an integer array, got float"),
        ([0, 1], {}, TypeError, "labels must be an integer array, got list"),
    ],
)
def test_bad_noise(key, labels, kwargs, error, message):
    with pytest.raises(error, match=message):
        data.noisy_labels(labels, key, **{"fraction": 0.1, "num_classes": 3, **kwargs})
    with pytest.raises(ValueError, match="labels must lie from 0 to 1"):
        data.one_hot(jnp.array([2]), 2)
