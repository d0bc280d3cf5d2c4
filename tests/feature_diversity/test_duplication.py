"""Copies to the bit at s2 = 0, the law itself at s2 = 1, and what the readers of copies do."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from poster_jax import feature_diversity as fd


def test_without_noise_copies_are_equal_to_the_bit_for_every_traced_u(key):
    make = jax.jit(jax.vmap(lambda u: fd.duplicate_features(key, (7, 24), num_unique=u)))
    unique = np.array([1, 2, 3, 5, 24])
    kernels = np.asarray(make(jnp.asarray(unique)))
    for u, kernel in zip(unique, kernels, strict=True):
        assert (kernel == kernel[:, np.arange(24) % u]).all()
        assert len(np.unique(kernel, axis=1).T) == u
    # The first u features do not depend on u.
    assert (kernels[:, :, 0] == kernels[0, :, 0]).all()


def test_the_variance_is_that_of_the_law_whatever_the_share_of_noise(key):
    keys, shape = jax.random.split(key, 300), (50, 8)
    noises, kinds = np.array([1.0, 0.3, 0.0]), np.array([1, 2, 8])

    @jax.jit
    def draw(noises, kinds):
        one = lambda k, noise, u: fd.duplicate_features(k, shape, num_unique=u, noise=noise)  # noqa: E731
        return jax.vmap(jax.vmap(one, (0, None, None)), (None, 0, 0))(keys, noises, kinds)

    for noise, u, kernels in zip(noises, kinds, np.asarray(draw(noises, kinds)), strict=True):
        # One weight of each draw at two places, which are copies unless there are 8 kinds.
        a, b = kernels[:, :, 0].ravel().astype(float), kernels[:, :, 4].ravel()
        assert abs(a.var() * 50 - 1) < 4 * np.sqrt(2 / a.size)
        assert abs(np.mean(a * b) * 50 - (1 - noise) * (u <= 4)) < 4 / np.sqrt(a.size)
        if noise == 1:  # the law's fourth moment: LeCun's normal is cut at two deviations
            cut = scipy.stats.truncnorm(-2, 2)
            theirs = cut.moment(4) / cut.moment(2) ** 2
            assert abs(np.mean(a**4) / a.var() ** 2 - theirs) < 0.15


def test_the_readers_of_copies(key):
    weights = jax.random.normal(key, (6, 2))
    tie = partial(fd.tie_output, weights, num_unique=4)
    assert not np.any(tie(mode="zero"))
    np.testing.assert_array_equal(tie(mode="duplicated"), weights[jnp.array([0, 1, 2, 3, 0, 1])])
    np.testing.assert_array_equal(tie(mode="independent"), weights)


def test_copies_with_independent_readers_part_at_the_first_step(two_layers, examples, key, x64):
    """grad_i - grad_j = M (v_i - v_j), M of `copy_coupling`; with equal readers exactly 0."""
    x, y = examples
    kernel = fd.duplicate_features(key, (5, 6), num_unique=2, dtype=jnp.float64)
    drawn = jax.random.normal(jax.random.fold_in(key, 1), (6, 3), jnp.float64)
    bias, shift = np.full(6, 0.1), np.zeros(3)
    for mode in ("independent", "duplicated"):
        readout = fd.tie_output(drawn, num_unique=2, mode=mode)
        params = [np.asarray(kernel), bias, np.asarray(readout), shift]
        hidden, logits = two_layers.forward(params, x)
        g = jax.nn.softmax(logits) - jax.nn.one_hot(y, 3)
        coupling = fd.copy_coupling(jnp.asarray(x), jnp.asarray(hidden), g)
        by_hand = two_layers.gradients(params, x, y)
        for i, j in ((0, 2), (1, 5)):
            found = np.append(by_hand[0][:, i] - by_hand[0][:, j], by_hand[1][i] - by_hand[1][j])
            expected = coupling[i] @ (readout[i] - readout[j])
            np.testing.assert_allclose(found, expected, atol=1e-14)
            assert (np.abs(found).max() > 1e-3) == (mode == "independent")


def test_rounding_noise_is_relative_keyed_and_new_at_every_step(key):
    optimizer = fd.rounding_noise(key, scale=2.0**-20)
    gradients = {"a": jnp.full(1000, 3.0), "b": jnp.zeros(4)}

    @jax.jit
    def two_steps():
        state = optimizer.init(gradients)
        first, state = optimizer.update(gradients, state)
        return first, optimizer.update(gradients, state)[0]

    first, second = two_steps()
    change = np.asarray(first["a"], float) / 3 - 1
    assert np.abs(change).max() <= 2.0**-20 + 2.0**-23
    assert abs(change.std() * 2.0**20 - 3**-0.5) < 0.1
    assert (first["a"] != second["a"]).any()
    assert not first["b"].any()
    assert (two_steps()[0]["a"] == first["a"]).all()
    still = fd.rounding_noise(key, scale=0.0)
    assert (still.update(gradients, still.init(gradients))[0]["a"] == 3).all()


@pytest.mark.bad_input
def test_bad_input_is_refused_in_one_sentence(key):
    with pytest.raises(ValueError, match="num_unique must be at most the number of features, 4"):
        fd.duplicate_features(key, (3, 4), num_unique=5)
    with pytest.raises(ValueError, match="num_unique must be at least 1, got 0"):
        fd.tie_output(jnp.ones((4, 2)), num_unique=jnp.array(0), mode="zero")
    with pytest.raises(ValueError, match=r"noise must lie between 0 and 1, got 1\.5"):
        fd.duplicate_features(key, (3, 4), num_unique=1, noise=1.5)
    with pytest.raises(ValueError, match="Did you mean 'duplicated'"):
        fd.tie_output(jnp.ones((4, 2)), num_unique=2, mode="duplicate")
    with pytest.raises(TypeError, match="law must be a function, got 'normal'"):
        fd.duplicate_features(key, (3, 4), num_unique=1, law="normal")
    with pytest.raises(ValueError, match="scale must be finite and at least 0, got -1"):
        fd.rounding_noise(key, scale=-1)
    with pytest.raises(TypeError, match="key must be a PRNG key"):
        fd.rounding_noise(3)
