"""The closed form of the mean correlation against the whole matrix; diversity by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from poster_jax import feature_diversity as fd


def brute_force(rows):
    """The mean of np.corrcoef off the diagonal, an undefined entry counted as 1."""
    with np.errstate(invalid="ignore", divide="ignore"):
        matrix = np.corrcoef(rows)
    off = ~np.eye(len(rows), dtype=bool)
    return np.where(np.isnan(matrix), 1, matrix)[off].mean()


@pytest.mark.parametrize("shape", [(3, 3, 5, 7), (20, 6)], ids=str)
@pytest.mark.parametrize("num_constant", [0, 2])
def test_the_closed_form_is_the_mean_of_the_whole_matrix(shape, num_constant, key, x64):
    kernel = jax.random.normal(key, shape, jnp.float64) + 0.3
    kernel = kernel.at[..., :num_constant].set(0.75)  # whose mean is exact: no variance but 0
    array = np.asarray(kernel)
    rows = {"out": np.moveaxis(array, -1, 0), "in": np.moveaxis(array, -2, 0)}
    if len(shape) == 4:
        rows["both"] = np.moveaxis(array, (-2, -1), (0, 1)).reshape(-1, 3, 3)
    for axis, of in rows.items():
        expected = brute_force(of.reshape(len(of), -1))
        found = fd.weight_correlation(kernel, axis=axis)
        assert float(found) == pytest.approx(expected, abs=1e-12), axis


def test_identical_and_constant_rows_correlate_fully(key):
    row = jax.random.normal(key, (3, 3, 4, 1))
    assert float(fd.weight_correlation(jnp.tile(row, 6))) == pytest.approx(1, abs=1e-6)
    assert float(fd.weight_correlation(jnp.zeros((3, 3, 4, 6)))) == 1
    assert float(fd.weight_correlation(row)) == 1
    # Opposite pairs: half of a row's partners are opposite, and half less itself alike.
    found = fd.weight_correlation(jnp.concatenate([row, row, -row, -row], -1))
    assert float(found) == pytest.approx(-1 / 3, abs=1e-6)


def test_few_of_many_rows_give_about_the_same(key):
    kernel = jax.random.normal(key, (3, 3, 30, 40)) + 0.5 * jnp.arange(9.0).reshape(3, 3, 1, 1)
    whole = fd.weight_correlation(kernel, axis="both")
    part = fd.weight_correlation(kernel, axis="both", max_rows=300, key=key)
    assert float(whole) > 0.3
    assert float(part) == pytest.approx(float(whole), abs=0.05)
    assert float(part) != float(whole)


def test_diversity_is_the_share_that_channels_do_not_have_in_common(key):
    h = np.asarray(jax.random.normal(key, (4, 5, 5, 3)), float) + 1
    expected = np.mean((h - h.mean(-1, keepdims=True)) ** 2) / np.mean(h**2)
    assert float(fd.feature_diversity(jnp.asarray(h))) == pytest.approx(expected, rel=1e-5)
    swapped = jnp.asarray(np.moveaxis(h, -1, 1))
    assert float(fd.feature_diversity(swapped, channel_axis=1)) == pytest.approx(expected, rel=1e-5)
    # A third of copies is no float; their mean still leaves nothing.
    assert float(fd.feature_diversity(jnp.full((7, 3), 0.1))) == 0
    assert float(fd.feature_diversity(jnp.zeros((2, 3)))) == 0
    assert float(fd.feature_diversity(jnp.array([[1.0, -1.0]]))) == 1


@pytest.mark.parametrize("num", [4, 50])
def test_the_effective_width_is_that_of_the_covariance(num, key, x64):
    h = np.asarray(jax.random.normal(key, (num, 6), jnp.float64)) * np.arange(1, 7)
    values = np.linalg.eigvalsh(np.cov(h.T))
    expected = values.sum() ** 2 / (values**2).sum()
    assert float(fd.effective_width(jnp.asarray(h))) == pytest.approx(expected, rel=1e-10)
    assert float(fd.effective_width(jnp.ones((4, 3)))) == 0


def test_the_time_is_the_first_above_the_threshold_also_in_a_population():
    runs = jnp.array([[0.0, 0.02, 0.005, 0.5], [0.0, 0.0, 0.01, 0.01], [0.3, 0.0, 0.0, 0.0]])
    assert jax.vmap(fd.breaking_time)(runs).tolist() == [1, -1, 0]
    assert int(fd.breaking_time(runs[0], threshold=0.1)) == 3


@pytest.mark.bad_input
def test_bad_input_is_refused_in_one_sentence(key):
    kernel = jnp.ones((3, 3, 40, 40))
    with pytest.raises(ValueError, match="axis must be one of"):
        fd.weight_correlation(kernel, axis="rows")
    with pytest.raises(ValueError, match="key must be given to draw 100 of 1600 rows, got None"):
        fd.weight_correlation(kernel, axis="both", max_rows=100)
    with pytest.raises(ValueError, match=r"kernel must be \(window..., inputs, outputs\), got"):
        fd.weight_correlation(jnp.ones((4, 4)), axis="both")
    with pytest.raises(ValueError, match="channel_axis must be an axis of activations of shape"):
        fd.feature_diversity(jnp.ones((2, 3)), channel_axis=2)
    with pytest.raises(ValueError, match="threshold must be finite and above 0, got 0"):
        fd.breaking_time(jnp.ones(3), threshold=0)
