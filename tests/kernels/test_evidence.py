"""Marginal likelihood and leave-one-out against scipy's densities and against leaving one out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from poster_jax.kernels import predict, stax

pytestmark = pytest.mark.slow  # in favour of a quick `make test`

RNG = np.random.default_rng(0)


def kernel(n):
    half = RNG.normal(size=(n, n + 3))
    return half @ half.T / n


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("absolute", [True, False])
def test_likelihood_is_the_density_of_the_targets(absolute):
    k, y = kernel(6), RNG.normal(size=(6, 3))
    noisy = k + 0.2 * np.eye(6) * (1 if absolute else np.trace(k) / 6)
    expected = scipy.stats.multivariate_normal(np.zeros(6), noisy).logpdf(y.T).sum()
    ours = predict.log_marginal_likelihood(k, y, 0.2, absolute)
    np.testing.assert_allclose(ours, expected, rtol=1e-12)
    flat = scipy.stats.multivariate_normal(np.zeros(6), noisy).logpdf(y[:, 0])
    ours = predict.log_marginal_likelihood(k, y[:, 0], 0.2, absolute, trace_axes=())
    np.testing.assert_allclose(ours, flat, rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_leaving_one_out_is_inference_from_the_others():
    k, y = kernel(6), RNG.normal(size=(6, 2))
    mean, variance = predict.leave_one_out(k, y, 0.1, True)
    assert variance.shape == (6,)
    for i in range(6):
        rest = np.delete(np.arange(6), i)
        infer = predict.gp_inference(k[np.ix_(rest, rest)], y[rest], 0.1, True)
        expected = infer("nngp", k[[i]][:, rest], k[[i]][:, [i]])
        np.testing.assert_allclose(mean[i], expected.mean[0], rtol=1e-11)
        np.testing.assert_allclose(variance[i], expected.covariance[0, 0] + 0.1, rtol=1e-11)


@pytest.mark.usefixtures("x64")
def test_an_example_leaves_with_all_its_outputs():
    full = kernel(8).reshape(4, 2, 4, 2).transpose(0, 2, 1, 3)  # 4 examples of 2 outputs
    y = RNG.normal(size=(4, 2))
    mean, covariance = predict.leave_one_out(full, y, trace_axes=())
    assert covariance.shape == (4, 2, 2)
    for i in range(4):
        rest = np.delete(np.arange(4), i)
        infer = predict.gp_inference(full[np.ix_(rest, rest)], y[rest], trace_axes=())
        expected = infer("nngp", full[[i]][:, rest], full[[i]][:, [i]])
        np.testing.assert_allclose(mean[i], expected.mean[0], rtol=1e-10)
        np.testing.assert_allclose(covariance[i], expected.covariance[0, 0], rtol=1e-10)


@pytest.mark.usefixtures("x64")
def test_likelihood_has_the_slope_of_its_differences_in_traced_hyper_parameters():
    x, y = jnp.asarray(RNG.normal(size=(7, 3))), jnp.asarray(RNG.normal(size=(7, 1)))

    @jax.jit
    def likelihood(theta):
        w_std, b_std, noise = jnp.exp(theta)
        layers = [stax.Dense(1, w_std, b_std), stax.Relu()] * 2 + [stax.Dense(1, w_std, b_std)]
        _, _, kernel_fn = stax.serial(*layers)
        return predict.log_marginal_likelihood(kernel_fn(x, None, "nngp"), y, noise)

    theta = jnp.log(jnp.array([1.2, 0.3, 0.1]))
    slope = jax.grad(likelihood)(theta)
    step = 1e-5
    for i in range(3):
        shift = step * jnp.eye(3)[i]
        numeric = (likelihood(theta + shift) - likelihood(theta - shift)) / (2 * step)
        np.testing.assert_allclose(slope[i], numeric, rtol=1e-7)


BAD = {
    "must be positive definite": lambda: predict.log_marginal_likelihood(
        np.ones((2, 2)) - 2 * np.eye(2), np.ones((2, 1))
    ),
    "must be finite": lambda: predict.leave_one_out(np.eye(2) * np.nan, np.ones((2, 1))),
    "k_train_train must have every kept axis": lambda: predict.log_marginal_likelihood(
        np.eye(3), np.ones((2, 1))
    ),
    "trace_axes must not hold 0": lambda: predict.leave_one_out(
        np.eye(2), np.ones((2, 2)), trace_axes=0
    ),
}


@pytest.mark.bad_input
@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_refused_in_one_sentence(message):
    with pytest.raises(ValueError, match=message):
        BAD[message]()
