"""Noise covariance, noise scale and alignment against explicit matrices in float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from poster_jax.core.devices import data_mesh
from poster_jax.curvature import (
    hessian_operator,
    spectral_density,
    top_eigenpairs,
    trace,
)
from poster_jax.gradient_noise import (
    directions_along,
    effective_rank,
    fit_power_law,
    noise_alignment,
    noise_covariance_operator,
    noise_scale,
    noise_scale_from_norms,
    per_example_projections,
    stored_spectrum,
    subspace_overlap,
)


def quadratic(w, batch):
    """The gradient of example x is w - x: Sigma is the covariance of the x, H the identity."""
    return 0.5 * jnp.mean(jnp.sum((w - batch) ** 2, axis=-1))


def regression(w, batch):
    """The gradient of example (x, y) is (x w - y) x, and H the second moment of the x."""
    x, y = batch
    return 0.5 * jnp.mean((x @ w - y) ** 2)


def make_regression(num, dim, seed=0):
    """Gaussian x with unequal variances; at w = 0 the residuals are Gaussian of variance 1/4."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(num, dim)) * np.linspace(0.5, 2, dim)
    return np.zeros(dim), (x, 0.5 * rng.normal(size=num))


def covariance_of(gradients):
    return np.cov(gradients, rowvar=False, bias=True)


@pytest.mark.parametrize(
    "cut",
    [
        {},
        pytest.param({"microbatch": 7}, marks=pytest.mark.slow),
        pytest.param({"mesh": 8, "microbatch": 2}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_the_operator_is_the_explicit_covariance(net, cut, x64):
    params, batch = net.make_problem()
    if "mesh" in cut:
        cut = {**cut, "mesh": data_mesh(8)}
    op = noise_covariance_operator(net.loss_fn, params, batch, **cut)
    gradients = net.numpy_gradients(params, batch)
    sigma = covariance_of(gradients)
    vector = jax.tree.map(lambda a: jnp.cos(jnp.arange(a.size)).reshape(a.shape), params)
    np.testing.assert_allclose(net.flat(op(vector)), sigma @ net.flat(vector), atol=1e-10)
    np.testing.assert_allclose(net.flat(op.mean), gradients.mean(axis=0), atol=1e-12)
    layer = op.restrict("second")
    inside = np.r_[25 : 25 + 3 + 15]
    part = {"bias": vector["second"]["bias"], "kernel": vector["second"]["kernel"]}
    expected = sigma[np.ix_(inside, inside)] @ net.flat(part)
    np.testing.assert_allclose(net.flat(layer(part)), expected, atol=1e-10)


@pytest.mark.slow
def test_spectrum_by_lanczos_is_that_of_the_centred_gradients(net, key, x64):
    params, batch = net.make_problem()
    op = noise_covariance_operator(net.loss_fn, params, batch)
    gradients = net.numpy_gradients(params, batch)
    centred = gradients - gradients.mean(axis=0)
    expected = np.linalg.svd(centred, compute_uv=False) ** 2 / len(centred)
    pairs = top_eigenpairs(op, key, k=3, tol=1e-8)
    np.testing.assert_allclose(pairs.values, expected[:3], rtol=1e-8)
    density = spectral_density(op, key, num_lanczos=30, num_probes=20)
    total = float((density.weights * density.nodes).sum(axis=1).mean()) * op.dim
    assert abs(total / expected.sum() - 1) < 0.3
    # projections along them have the eigenvalues as variances, and are uncorrelated
    along = per_example_projections(net.loss_fn, params, batch, directions_along(pairs.vectors))
    np.testing.assert_allclose(
        np.cov(np.asarray(along), bias=True), np.diag(expected[:3]), atol=1e-6 * expected[0]
    )
    stored = {"g": jnp.asarray(gradients)}
    np.testing.assert_allclose(stored_spectrum(stored), expected[: len(gradients)], atol=1e-12)


def test_a_large_mean_gradient_does_not_hide_small_noise_in_float32(net):
    rng = np.random.default_rng(0)
    x = (1000 + rng.normal(size=(50, 6))).astype(np.float32)
    w = np.zeros(6, np.float32)
    sigma = covariance_of(x.astype(np.float64))
    op = noise_covariance_operator(quadratic, w, x)
    v = np.linspace(-1, 1, 6).astype(np.float32)
    # gradients of size 1000 are known to 6e-5; a second moment of 1e6 would lose all of Sigma
    np.testing.assert_allclose(op(jnp.asarray(v)), sigma @ v, atol=1e-3)
    np.testing.assert_allclose(noise_scale(quadratic, w, x).trace.mean, np.trace(sigma), rtol=1e-4)


def test_noise_scale_of_a_quadratic_is_exact(x64):
    rng = np.random.default_rng(1)
    x, w = rng.normal(size=(100, 5)) * np.arange(1, 6), rng.normal(size=5)
    total, squared = np.trace(covariance_of(x)), ((w - x.mean(axis=0)) ** 2).sum()
    for cut in ({}, {"microbatch": 7}, {"mesh": data_mesh(8), "microbatch": 3}):
        found = noise_scale(quadratic, w, x, **cut)
        np.testing.assert_allclose(found.trace.mean, total, rtol=1e-10)
        np.testing.assert_allclose(found.squared_norm.mean, squared, rtol=1e-10)
        np.testing.assert_allclose(found.simple.mean, total / squared, rtol=1e-10)
        assert int(found.simple.num_samples) == 0
        assert float(found.simple.stderr) == 0


def test_two_batch_sizes_give_the_noise_scale_without_bias(x64):
    rng = np.random.default_rng(2)
    x, w = rng.normal(size=(400, 5)), np.full(5, 0.5)
    total, squared = np.trace(covariance_of(x)), ((w - x.mean(axis=0)) ** 2).sum()
    draws, b1, b2 = 4000, 4, 16
    large = w - x[rng.integers(0, 400, size=(draws, b2))]
    # nested, as a device's share of a batch is
    n1, n2 = ((large[:, :b].mean(axis=1) ** 2).sum(axis=1) for b in (b1, b2))
    found = noise_scale_from_norms(jnp.asarray(n1), jnp.asarray(n2), small_batch=b1, large_batch=b2)
    for estimate, exact in zip(found, (total / squared, total, squared), strict=True):
        assert abs(float(estimate.mean) - exact) < 3 * float(estimate.stderr)
        assert float(estimate.stderr) < 0.1 * exact
    # the standard error is the spread over repetitions
    one = lambda a, b: noise_scale_from_norms(a, b, small_batch=b1, large_batch=b2)  # noqa: E731
    parts = jax.jit(jax.vmap(one))(n1.reshape(40, -1), n2.reshape(40, -1)).simple.mean
    spread = np.std(np.asarray(parts), ddof=1) / 40**0.5
    assert 0.6 < float(found.simple.stderr) / spread < 1.6


@pytest.mark.slow
def test_linear_regression_with_gaussian_residuals_has_the_closed_form(x64):
    w, (x, y) = make_regression(200_000, 3)
    direction = np.array([[1.0, -1.0, 0.5]])
    s = np.asarray(
        per_example_projections(regression, w, (x, y), directions_along(jnp.asarray(direction)))
    )[0]
    unit = direction[0] / np.linalg.norm(direction)
    # at w = 0: g = -y x; E (y x.u)^2 = E y^2 E (x.u)^2; fourth moment 3 sigma^4 * 3 v^2
    variance = 0.25 * (unit**2 * np.linspace(0.5, 2, 3) ** 2).sum()
    np.testing.assert_allclose(s.var(), variance, rtol=4 * np.sqrt(8 / len(s)))
    np.testing.assert_allclose(s, -y * (x @ unit), atol=1e-12)
    # kurtosis 3 * 3 - 3; its standard error from moments up to the eighth, (105^2) / 9^2 * ...
    kurtosis = scipy.stats.kurtosis(s)
    spread = np.std([scipy.stats.kurtosis(part) for part in np.split(s, 50)], ddof=1) / np.sqrt(50)
    assert abs(kurtosis - 6) < 5 * spread + 0.05
    op = noise_covariance_operator(regression, w, (x, y))
    expected = 0.25 * np.linspace(0.5, 2, 3) ** 2
    found = np.stack([np.asarray(op(jnp.asarray(row))) for row in np.eye(3)])
    # entries are means of 200,000 products with relative spread sqrt(8)
    np.testing.assert_allclose(found, np.diag(expected), atol=5 * np.sqrt(8 / len(s)))


@pytest.mark.slow
def test_alignment_is_that_of_explicit_matrices(key, x64):
    w, (x, y) = make_regression(60, 8, seed=3)
    w = w + 0.3
    gradients = ((x @ w - y)[:, None]) * x
    H, sigma, mean = x.T @ x / 60, covariance_of(gradients), gradients.mean(axis=0)
    product = np.trace(H @ sigma)
    exact = (
        product,
        product / np.linalg.norm(H) / np.linalg.norm(sigma),
        8 * product / np.trace(H) / np.trace(sigma),
        product / (mean @ H @ mean),
    )
    hessian = hessian_operator(regression, w, (x, y))
    covariance = noise_covariance_operator(regression, w, (x, y))
    found = noise_alignment(hessian, covariance, key, num_probes=400)
    for estimate, value in zip(found, exact, strict=True):
        assert abs(float(estimate.mean) - value) < 4 * float(estimate.stderr)
        assert float(estimate.stderr) < 0.1 * value
    rank = effective_rank(covariance, key, num_probes=400)
    expected = np.trace(sigma) ** 2 / (sigma**2).sum()
    assert abs(float(rank.mean) - expected) < 4 * float(rank.stderr)
    assert float(rank.stderr) < 0.1 * expected
    np.testing.assert_allclose(
        trace(covariance, key, num_probes=400).mean, np.trace(sigma), rtol=0.2
    )


@pytest.mark.slow
def test_isotropic_noise_has_gain_one_and_effective_rank_p(key, x64):
    q, _ = np.linalg.qr(np.random.default_rng(5).normal(size=(16, 4)))
    x = np.concatenate([q, -q]) * 3  # mean zero, covariance 9 / 16 * 2 * q q^T with q^T q = 1
    w = np.ones(4)
    covariance = noise_covariance_operator(quadratic, w, x)
    found = noise_alignment(hessian_operator(quadratic, w, x), covariance, key, num_probes=3)
    scale = 9 / 16
    np.testing.assert_allclose(found.trace_product.mean, 4 * scale, rtol=1e-10)
    np.testing.assert_allclose(found.gain.mean, 1, rtol=1e-10)
    np.testing.assert_allclose(found.cosine.mean, 1, rtol=1e-10)
    np.testing.assert_allclose(found.noise_scale.mean, scale, rtol=1e-10)
    rank = effective_rank(covariance, key, num_probes=3)
    np.testing.assert_allclose(rank.mean, 4, rtol=1e-10)
    np.testing.assert_allclose(rank.stderr, 0, atol=1e-10)


def test_overlap_of_subspaces_is_the_mean_squared_cosine(net):
    rng = np.random.default_rng(6)
    u, _ = np.linalg.qr(rng.normal(size=(12, 3)))
    v, _ = np.linalg.qr(rng.normal(size=(12, 2)))
    tree = lambda m: {"a": jnp.asarray(m.T[:, :5]), "b": jnp.asarray(m.T[:, 5:].reshape(-1, 7, 1))}  # noqa: E731
    angles = np.linalg.svd(u.T @ v, compute_uv=False)
    overlap = jax.jit(subspace_overlap)
    np.testing.assert_allclose(overlap(tree(u), tree(v)), (angles**2).mean(), rtol=1e-5)
    np.testing.assert_allclose(overlap(tree(u), tree(u)), 1, rtol=1e-5)


@pytest.mark.parametrize("num_values", [None, 50])
def test_power_law_fit_is_scipys_maximum_likelihood_and_ks_distance(num_values, x64):
    values = scipy.stats.pareto.rvs(1.3, size=200, random_state=7) * 0.01
    law = jax.jit(partial(fit_power_law, num_values=num_values))(values)
    top = np.sort(values)[::-1][:num_values]
    shape, _, scale = scipy.stats.pareto.fit(top, floc=0, fscale=top.min())
    np.testing.assert_allclose(law.exponent, 1 + shape, rtol=1e-6)
    np.testing.assert_allclose(law.rank_exponent, 1 / shape, rtol=1e-6)
    distance = scipy.stats.kstest(top, scipy.stats.pareto(shape, scale=scale).cdf).statistic
    np.testing.assert_allclose(law.ks_distance, distance, rtol=1e-6)
    assert int(law.num_values) == len(top)
    assert abs(float(law.exponent) - 2.3) < 4 * 1.3 / np.sqrt(len(top))
    assert np.isnan(float(fit_power_law(jnp.array([1.0, 0.5, 0.0])).exponent))


@pytest.mark.slow
def test_jit_vmap_over_checkpoints_and_float32(net, key):
    params, batch = net.make_problem(np.float32)

    def ask(params):
        op = noise_covariance_operator(net.loss_fn, params, batch)
        rank = effective_rank(op, key, num_probes=3)
        return noise_scale(net.loss_fn, params, batch), rank, op(params)

    checkpoints = jax.vmap(lambda c: jax.tree.map(lambda a: c * a, params))(jnp.array([1.0, 0.5]))
    scale, rank, product = jax.jit(jax.vmap(ask))(checkpoints)
    half = jax.tree.map(lambda a: 0.5 * a, params)
    gradients = net.numpy_gradients(half, batch)
    np.testing.assert_allclose(scale.trace.mean[1], np.trace(covariance_of(gradients)), rtol=1e-5)
    expected = covariance_of(gradients) @ net.flat(half)
    np.testing.assert_allclose(net.rows_of(product)[1], expected, atol=1e-6)
    assert rank.mean.shape == (2,)
    assert scale.simple.mean.dtype == jnp.float32


@pytest.mark.bad_input
def test_bad_input(net, key):
    params, batch = net.make_problem(np.float32)
    total = lambda p, b: len(b[1]) * net.loss_fn(p, b)  # noqa: E731
    for ask in (noise_covariance_operator, noise_scale):
        with pytest.raises(ValueError, match="a sum must be divided"):
            ask(total, params, batch)
        with pytest.raises(ValueError, match="microbatch must be at least 1"):
            ask(net.loss_fn, params, batch, microbatch=0)
    hessian = hessian_operator(net.loss_fn, params, batch)
    covariance = noise_covariance_operator(net.loss_fn, params, batch)
    with pytest.raises(TypeError, match="covariance must be a NoiseCovariance"):
        noise_alignment(hessian, hessian, key, num_probes=2)
    with pytest.raises(ValueError, match=r"curvature\.like must have the structure"):
        noise_alignment(hessian.restrict("first"), covariance, key, num_probes=2)
    with pytest.raises(ValueError, match="num_probes must be at least 1"):
        effective_rank(covariance, key, num_probes=0)
    with pytest.raises(TypeError, match="op must be a LinearOperator"):
        effective_rank(net.loss_fn, key, num_probes=1)
    ones = jnp.ones(3)
    with pytest.raises(ValueError, match="large_batch must be at least 5"):
        noise_scale_from_norms(ones, ones, small_batch=4, large_batch=4)
    with pytest.raises(ValueError, match="one squared length a draw"):
        noise_scale_from_norms(ones, jnp.ones(4), small_batch=4, large_batch=8)
    with pytest.raises(ValueError, match="num_values must be at most"):
        fit_power_law(ones, num_values=4)
    with pytest.raises(ValueError, match="values must be a vector"):
        fit_power_law(jnp.ones((2, 2)))
