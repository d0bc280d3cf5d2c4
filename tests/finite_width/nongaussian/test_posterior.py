"""Inference at order 1/n against derivatives, importance sampling and one-dimensional integrals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.linalg
from scipy import stats

from poster_jax.finite_width import nongaussian as ng
from poster_jax.kernels import predict

NET = {"depth": 2, "C_W": 1.5, "C_b": 0.1}
Y = np.array([[1.0, -0.5], [-0.5, 0.2], [0.3, 0.9]])


@pytest.fixture
def x(x64):
    return np.random.default_rng(0).normal(size=(5, 4))


@pytest.fixture
def kernel(x):
    return ng.finite_width_kernel("tanh", x, 30, fourth="sampling", num_samples=2**12, **NET)


def gaussian(G, y, noise):
    """Mean, covariance and log evidence of a Gaussian process, plainly."""
    num = y.shape[0]
    S = jnp.linalg.inv(G[:num, :num] + noise * jnp.eye(num))
    mean = G[num:, :num] @ S @ y
    covariance = G[num:, num:] - G[num:, :num] @ S @ G[:num, num:]
    evidence = -0.5 * jnp.sum(y * (S @ y)) + y.shape[1] / 2 * (
        jnp.linalg.slogdet(S)[1] - num * jnp.log(2 * jnp.pi)
    )
    return mean, covariance, evidence


def by_nested_jvps(kernel, y, noise):
    """The same expansion by automatic differentiation along factors of the vertex."""
    K, G1, V = (np.asarray(a) for a in (kernel.K, kernel.G1, ng.expand_vertex(kernel)))
    n, size = float(kernel.width), len(K)
    values, vectors = np.linalg.eigh(V.reshape(size**2, size**2))

    def averages(G):  # of m, v + m m' and e^L, all over e^L at K
        mean, covariance, evidence = gaussian(G, y, noise)
        weight = jnp.exp(evidence - gaussian(K, y, noise)[2])
        square = covariance[None] + jnp.einsum("ti,ui->itu", mean, mean)
        return weight * mean, weight * square, weight

    @jax.jit
    def second(M):
        def along(t):
            return averages(K + t * M)

        _, first = jax.jvp(along, (0.0,), (1.0,))
        _, again = jax.jvp(lambda t: jax.jvp(along, (t,), (1.0,))[1], (0.0,), (1.0,))
        return first, again

    total = jax.tree.map(lambda a: a / n, second(jnp.asarray(G1))[0])
    for value, vector in zip(values, vectors.T, strict=True):
        _, again = second(jnp.asarray(vector.reshape(size, size)))
        total = jax.tree.map(lambda t, a: t + value / (2 * n) * a, total, again)  # noqa: B023
    mean, covariance, evidence = gaussian(K, y, noise)
    square = covariance[None] + jnp.einsum("ti,ui->itu", mean, mean)
    d_mean, d_square = total[0] - mean * total[2], total[1] - square * total[2]
    cross = jnp.einsum("ti,ui->itu", mean, d_mean)
    return (
        mean + d_mean,
        covariance + d_square - cross - jnp.swapaxes(cross, 1, 2),
        evidence + total[2],
    )


@pytest.mark.parametrize("outputs", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_the_closed_form_is_the_expansion_by_automatic_differentiation(kernel, outputs):
    y = Y[:, :outputs]
    found = ng.posterior(kernel, y, noise=0.2)
    for a, b in zip(found[:3], by_nested_jvps(kernel, y, 0.2), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)


def test_infinite_width_is_the_posterior_of_kernels_predict(kernel):
    found = ng.posterior(kernel, Y, noise=0.2)
    K = kernel.K
    predict_fn = predict.gp_inference(K[:3, :3], jnp.asarray(Y), 0.2, True)
    mean, covariance = predict_fn("nngp", K[3:, :3], K[3:, 3:])
    evidence = predict.log_marginal_likelihood(K[:3, :3], jnp.asarray(Y), 0.2, True)
    np.testing.assert_allclose(found.mean_order0, mean, rtol=1e-10)
    np.testing.assert_allclose(found.covariance_order0, covariance, rtol=1e-10)
    assert float(found.log_evidence_order0) == pytest.approx(float(evidence), rel=1e-10)
    far = ng.posterior(kernel.at_widths(10**9), Y, noise=0.2)
    np.testing.assert_allclose(far.mean, mean, rtol=1e-7)


def test_factored_and_dense_vertices_give_the_same(x, kernel):
    factored = ng.finite_width_kernel(
        "tanh", x, 30, form="factored", num_samples=2**12, rank=15, **NET
    )
    for a, b in zip(
        ng.posterior(kernel, Y, noise=0.2)[:3],
        ng.posterior(factored, Y, noise=0.2)[:3],
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-9)


def test_rotating_the_outputs_rotates_the_predictions(kernel):
    angle = 0.7
    R = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    found, turned = (ng.posterior(kernel, y, noise=0.2) for y in (Y, Y @ R))
    np.testing.assert_allclose(turned.mean, found.mean @ R, rtol=1e-10, atol=1e-12)
    assert float(turned.log_evidence) == pytest.approx(float(found.log_evidence), rel=1e-12)
    np.testing.assert_allclose(  # trace over outputs is what a rotation leaves
        turned.covariance.sum(0), found.covariance.sum(0), rtol=1e-9, atol=1e-11
    )


def test_data_drowned_in_noise_leave_the_prior(kernel):
    found = ng.posterior(kernel, Y, noise=1e9)
    prior = np.asarray(kernel.K + kernel.G1 / kernel.width)[3:, 3:]
    np.testing.assert_allclose(found.mean, 0, atol=1e-7)
    np.testing.assert_allclose(found.covariance, np.stack([prior] * 2), atol=1e-7)


@pytest.mark.slow
def test_the_expansion_meets_importance_sampling_at_second_order(x):
    """Errors of the first order fall by four as the width doubles; of the zeroth by two."""
    kernel = ng.finite_width_kernel("tanh", x[:4], 16, **NET, fourth="quadrature")
    errors = []
    for n in (12, 48):
        exact = ng.exact_posterior(
            "tanh", x[:4], Y, jax.random.key(n), noise=0.1, num_samples=40_000, widths=n, **NET
        )
        assert exact.effective_sample_size > 3000
        found = ng.posterior(kernel.at_widths(n / 16), Y, noise=0.1)
        estimates = (exact.mean, exact.variance, exact.log_evidence)
        first = (found.mean, found.variance, found.log_evidence)
        zeroth = (found.mean_order0, np.diag(found.covariance_order0)[:, None] * np.ones((1, 2)),
                  found.log_evidence_order0)  # fmt: skip
        flat = [np.concatenate([np.ravel(p) for p in parts]) for parts in (first, zeroth)]
        truth, error = (
            np.concatenate([np.ravel(getattr(e, part)) for e in estimates])
            for part in ("mean", "stderr")
        )
        errors.append((np.abs(flat[0] - truth), np.abs(flat[1] - truth), error))
    (first, zeroth, noise), (first4, zeroth4, noise4) = errors
    assert np.all(first4 < first / 16 * 1.6 + 4 * (noise4 + noise / 16))
    assert np.all(first4 < 0.35 * zeroth4 + 4 * noise4)
    assert np.linalg.norm(first) < 0.6 * np.linalg.norm(zeroth)


def test_one_training_point_is_a_one_dimensional_integral(x64):
    """Depth 1, linear: G = (C_W^2 / n) x^2 chi^2_n, so that the mixture is over one number."""
    n, noise, y = 9, 0.3, 1.2
    density = stats.chi2(n).pdf

    def average(fn):
        return scipy.integrate.quad(lambda c: fn(c / n) * density(c), 0, 120, epsabs=1e-13)[0]

    # Inputs 1 and 2, of which the second is the test: G = [[1, 2], [2, 4]] g.
    weight = average(lambda g: stats.norm.pdf(y, scale=np.sqrt(g + noise)))
    mean = average(lambda g: 2 * g * y / (g + noise) * stats.norm.pdf(y, 0, np.sqrt(g + noise)))
    found = ng.exact_posterior(
        "linear", np.array([[1.0], [2.0]]), np.array([y]), jax.random.key(0), noise=noise,
        num_samples=40_000, widths=n, depth=1,
    )  # fmt: skip
    assert abs(found.log_evidence.mean - np.log(weight)) < 4 * found.log_evidence.stderr
    assert abs(found.mean.mean[0, 0] - mean / weight) < 4 * found.mean.stderr[0, 0]
    gaps = []
    for scale in (10, 100):
        wide = n * scale
        density = stats.chi2(wide).pdf  # `average` reads both
        exact = np.log(
            scipy.integrate.quad(
                lambda c: stats.norm.pdf(y, scale=np.sqrt(c / wide + noise)) * density(c),  # noqa: B023
                0, 5 * wide + 80, epsabs=1e-14, points=[wide],
            )[0]
        )  # fmt: skip
        kernel = ng.finite_width_kernel("linear", np.array([[1.0], [2.0]]), wide, depth=1)
        gaps.append(
            abs(float(ng.posterior(kernel, np.array([y]), noise=noise).log_evidence) - exact)
        )
    assert gaps[1] < gaps[0] / 80  # 1/n^2 would be 100


def test_resummation_around_the_shifted_kernel_agrees_to_second_order(kernel):
    gaps = []
    for scale in (1, 10):
        wide = kernel.at_widths(scale)
        a, b = (
            ng.posterior(wide, Y, noise=0.2, resummation=r).log_evidence for r in ("none", "shift")
        )
        gaps.append(abs(float(a - b)))
    assert 0 < gaps[1] < gaps[0] / 50


def test_without_test_inputs_the_evidence_is_left(x, kernel):
    """The evidence reads the training inputs alone."""
    alone = ng.finite_width_kernel("tanh", x[:3], 30, fourth="quadrature", **NET)
    found = ng.posterior(alone, Y, noise=0.2)
    assert found.mean.shape == (0, 2)
    assert found.covariance.shape == (2, 0, 0)
    whole = ng.posterior(kernel, Y, noise=0.2)
    assert float(found.log_evidence) == pytest.approx(float(whole.log_evidence), abs=2e-3)
    assert bool(found.in_range)


def test_out_of_range_is_said(kernel):
    with pytest.warns(UserWarning, match="out of its range"):
        found = ng.posterior(kernel.at_widths(0.02), Y, noise=0.01)
    assert not found.in_range
    under_jit = jax.jit(lambda k: ng.posterior(k, jnp.asarray(Y), noise=0.01).in_range)
    assert not under_jit(kernel.at_widths(0.02))
    assert float(found.condition_number) == pytest.approx(
        np.linalg.cond(np.asarray(kernel.K)[:3, :3] + 0.01 * np.eye(3)), rel=1e-8
    )


def test_weights_of_one_network_count_once():
    """Of equal covariances all weights are equal; one far better network takes all."""
    G = jnp.stack([jnp.eye(2)] * 4)
    assert float(ng.weighted_posterior(G, jnp.ones(1), noise=1.0).effective_sample_size) == 4
    G = G.at[0].multiply(1e4).at[1, 0, 0].set(jnp.nan)
    found = ng.weighted_posterior(G, 100 * jnp.ones(1), noise=1.0)
    assert float(found.effective_sample_size) == pytest.approx(1, rel=1e-5)
    assert int(found.num_nonfinite) == 1
