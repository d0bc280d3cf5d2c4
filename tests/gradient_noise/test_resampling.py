"""Every subset and every ordered draw, by enumeration: the moments of mini-batch noise."""

import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from poster_jax.gradient_noise import batch_projections, draw_batches, resample_projections


def test_all_subsets_have_the_covariance_of_draws_without_replacement(x64):
    N, b = 9, 4
    s = np.random.default_rng(0).normal(size=(3, N))
    rows = np.array(list(itertools.combinations(range(N), b)))
    u = np.asarray(batch_projections(jnp.asarray(s), jnp.asarray(rows)))
    np.testing.assert_allclose(u, s[:, rows].mean(axis=2), atol=1e-14)
    sigma = np.cov(s, bias=True)
    np.testing.assert_allclose(np.cov(u, bias=True), sigma * (N - b) / (b * (N - 1)), atol=1e-14)


def test_all_ordered_draws_have_cumulants_that_fall_as_powers_of_the_batch(x64):
    N, b = 5, 3
    s = np.random.default_rng(1).normal(size=(2, N)) ** 3
    rows = np.array(list(itertools.product(range(N), repeat=b)))
    u = np.asarray(batch_projections(jnp.asarray(s), jnp.asarray(rows)))
    for r, cumulant in ((1, _first), (2, _second), (3, _third), (4, _fourth)):
        np.testing.assert_allclose(cumulant(u), cumulant(s) / b ** (r - 1), rtol=1e-12, atol=1e-14)


def _first(x):
    return x.mean(axis=1)


def _second(x):
    return ((x - x.mean(axis=1, keepdims=True)) ** 2).mean(axis=1)


def _third(x):
    return ((x - x.mean(axis=1, keepdims=True)) ** 3).mean(axis=1)


def _fourth(x):
    return ((x - x.mean(axis=1, keepdims=True)) ** 4).mean(axis=1) - 3 * _second(x) ** 2


@pytest.mark.parametrize("replacement", [True, False])
def test_every_batch_is_equally_likely(replacement, key):
    N, b, M = 5, 2, 20_000
    rows = draw_batches(key, num_examples=N, batch_size=b, num_batches=M, replacement=replacement)
    rows = np.asarray(rows)
    assert rows.shape == (M, b)
    counts = np.bincount(N * rows[:, 0] + rows[:, 1], minlength=N * N).reshape(N, N)
    if not replacement:
        assert (np.diag(counts) == 0).all()
        counts = counts[~np.eye(N, dtype=bool)]
    assert counts.size == (N * N if replacement else math.perm(N, b))
    assert scipy.stats.chisquare(counts.ravel()).pvalue > 1e-3


def test_noise_is_exact_relative_to_itself_in_float32(key):
    # a mean 1e4 times the noise, as late in training along the mean gradient
    s = 1e4 + np.random.default_rng(2).normal(size=(2, 500))
    s32 = s.astype(np.float32)
    rows = draw_batches(key, num_examples=500, batch_size=64, num_batches=30)
    u = np.asarray(batch_projections(jnp.asarray(s32), rows), np.float64)
    exact = s32.astype(np.float64)[:, np.asarray(rows)].mean(axis=2)
    # half a unit in the last place of 1e4, and once more for the sum with the mean
    assert np.abs(u - exact).max() <= 2 * np.spacing(np.float32(1e4))


@pytest.mark.slow
def test_blocks_of_batches_change_nothing(key, monkeypatch):
    s = jax.random.normal(key, (3, 40))
    options = {"batch_size": 8, "num_batches": 21}
    assert "scan" not in str(jax.make_jaxpr(partial(resample_projections, **options))(s, key))
    whole = jax.jit(partial(resample_projections, **options))(s, key)
    monkeypatch.setattr("poster_jax.gradient_noise.resampling.BLOCK", 40 * 4)
    in_blocks = jax.make_jaxpr(partial(resample_projections, **options))(s, key)
    assert "scan" in str(in_blocks)
    ours = jax.jit(partial(resample_projections, **options))(s, key)
    np.testing.assert_allclose(ours, whole, atol=1e-6)


@pytest.mark.slow
def test_jit_and_vmap(key):
    s, keys = jax.random.normal(key, (2, 3, 40)), jax.random.split(key, 2)
    resample = lambda s, k: resample_projections(  # noqa: E731
        s, k, batch_size=8, num_batches=6, replacement=False
    )
    ours = jax.jit(jax.vmap(resample))(s, keys)
    np.testing.assert_allclose(ours[1], jax.jit(resample)(s[1], keys[1]), atol=1e-6)


@pytest.mark.bad_input
def test_bad_input(key):
    with pytest.raises(ValueError, match="batch_size must be at most the number of examples, 4"):
        draw_batches(key, num_examples=4, batch_size=5, num_batches=1, replacement=False)
    with pytest.raises(ValueError, match="num_batches must be at least 1"):
        resample_projections(jnp.ones((2, 4)), key, batch_size=2, num_batches=0)
    with pytest.raises(TypeError, match="key must be a PRNG key"):
        resample_projections(jnp.ones((2, 4)), 3, batch_size=2, num_batches=1)
    with pytest.raises(ValueError, match="projections must be"):
        batch_projections(jnp.ones(4), jnp.ones((2, 2), int))
