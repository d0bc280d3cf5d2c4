"""Kernels of random networks tend to the closed forms, at the rates that theory gives."""

import jax
import numpy as np
import pytest

from poster_jax.kernels import stax
from poster_jax.kernels.empirical import empirical_kernel_fn
from poster_jax.kernels.monte_carlo import monte_carlo_kernel_fn

pytestmark = pytest.mark.slow  # in favour of a quick `make test`

X1, X2 = np.random.default_rng(0).normal(size=(2, 4, 6)).astype(np.float32)


def network(width):
    return stax.serial(
        stax.Dense(width, W_std=1.5, b_std=0.1), stax.Relu(), stax.Dense(width), stax.Relu(),
        stax.Dense(1, W_std=1.2),
    )  # fmt: skip


def test_estimate_is_the_mean_over_the_draws():
    init_fn, apply_fn, _ = network(8)
    key = jax.random.key(1)
    estimate = monte_carlo_kernel_fn(init_fn, apply_fn, key, 3, batch_size=3, device_count=0)(
        X1, X2
    )
    assert estimate._fields == ("nngp", "ntk")
    kernel_fn, total = empirical_kernel_fn(apply_fn), 0
    for _ in range(3):
        key, split = jax.random.split(key)
        init_key, _ = jax.random.split(split)
        total += np.asarray(kernel_fn(X1, X2, "ntk", init_fn(init_key, X1.shape)[1])) / 3
    np.testing.assert_allclose(estimate.ntk, total, rtol=1e-5)


@pytest.mark.slow
def test_error_falls_with_the_root_of_the_number_of_draws():
    init_fn, apply_fn, kernel_fn = network(128)
    exact = kernel_fn(X1, X2, "nngp")
    counts = [4, 16, 64, 256]
    errors = []
    for seed in range(6):
        generator = monte_carlo_kernel_fn(
            init_fn, apply_fn, jax.random.key(seed), counts, device_count=0
        )(X1, X2, "nngp")
        errors.append([np.linalg.norm(k - exact) for k in generator])
    slope = np.polyfit(np.log(counts), np.log(np.mean(np.square(errors), 0)) / 2, 1)[0]
    assert abs(slope + 0.5) < 0.12


def test_generator_yields_in_increasing_order_and_once_each():
    init_fn, apply_fn, _ = network(4)
    fn = monte_carlo_kernel_fn(init_fn, apply_fn, jax.random.PRNGKey(0), (3, 1, 3), vmap_axes=0)
    kernels = list(fn(X1, None, "ntk"))
    assert len(kernels) == 2
    single = monte_carlo_kernel_fn(init_fn, apply_fn, jax.random.PRNGKey(0), 1)(X1, None, "ntk")
    np.testing.assert_allclose(kernels[0], single, rtol=1e-6)


@pytest.mark.bad_input
def test_bad_input_is_refused_in_one_sentence():
    init_fn, apply_fn, _ = network(4)
    key = jax.random.key(0)
    for n_samples, error, message in (
        (0, ValueError, "n_samples must be at least 1"),
        ((1, -2), ValueError, "n_samples must be at least 1"),
        ((1, 0.5), ValueError, "n_samples must hold integers"),
        (2.0, TypeError, "n_samples must be an integer or several"),
    ):
        with pytest.raises(error, match=message):
            monte_carlo_kernel_fn(init_fn, apply_fn, key, n_samples)
    with pytest.raises(TypeError, match="key must be a PRNG key"):
        monte_carlo_kernel_fn(init_fn, apply_fn, 0, 1)
