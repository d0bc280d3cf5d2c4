"""The mean-field spectrum against integrals of scipy, closed forms, and networks drawn in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import scipy.special
import scipy.stats

from poster_jax.jacobian.mean_field import mean_field_spectrum


def identity(z):
    return z


def gelu(z):
    return jax.nn.gelu(z, approximate=False)


NUMPY = {
    identity: (lambda z: z, np.ones_like),
    jax.nn.relu: (lambda z: np.maximum(z, 0), lambda z: (z > 0) * 1.0),
    jnp.tanh: (np.tanh, lambda z: 1 - np.tanh(z) ** 2),
    gelu: (
        lambda z: z * scipy.special.ndtr(z),
        lambda z: scipy.special.ndtr(z) + z * scipy.stats.norm.pdf(z),
    ),
}


def normal_mean(fn, q):
    density = lambda z: fn(np.sqrt(q) * z) * scipy.stats.norm.pdf(z)  # noqa: E731
    return sum(scipy.integrate.quad(density, *ab, epsabs=1e-13)[0] for ab in ((-10, 0), (0, 10)))


def drawn_spectra(phi, kind, *, width, num, sigma_w, sigma_b, depth, q_star):
    """Mean and variance over mean squared of eig(J J'), averaged over `num` random networks.

    (2, depth): after one layer, two, ...
    """
    value, slope = NUMPY[phi]
    rng = np.random.default_rng(0)
    found = np.zeros((num, 2, depth))
    for network in found:
        h = rng.normal(size=width)
        # such that pre-activations have the variance q* from the first layer on
        h *= np.sqrt((q_star - sigma_b**2) / sigma_w**2 * width / (h @ h))
        jacobian = np.eye(width)
        for layer in range(depth):
            w = rng.normal(size=(width, width)) / np.sqrt(width)
            if kind == "orthogonal":
                q, r = np.linalg.qr(w)
                w = q * np.sign(np.diag(r))
            z = sigma_w * w @ h + sigma_b * rng.normal(size=width)
            h, jacobian = value(z), slope(z)[:, None] * (sigma_w * w @ jacobian)
            gram = jacobian @ jacobian.T
            mean, mean_square = np.trace(gram) / width, (gram**2).sum() / width
            network[:, layer] = mean, mean_square / mean**2 - 1
    return found.mean(axis=0)


@pytest.mark.parametrize(("phi", "sigma_w", "sigma_b"), [(jnp.tanh, 1.3, 0.3), (gelu, 1.2, 0.2)])
def test_the_fixed_point_and_the_moments_are_those_of_scipy(phi, sigma_w, sigma_b, x64):
    value, slope = NUMPY[phi]
    gap = lambda q: sigma_w**2 * normal_mean(lambda z: value(z) ** 2, q) + sigma_b**2 - q  # noqa: E731
    q_star = scipy.optimize.brentq(gap, 1e-3, 10, xtol=1e-13)
    found = mean_field_spectrum(phi, sigma_w=sigma_w, sigma_b=sigma_b, depth=3)
    assert bool(found.converged)
    np.testing.assert_allclose(found.q_star, q_star, rtol=1e-11)
    mu_1, mu_2 = (normal_mean(lambda z, k=k: slope(z) ** k, q_star) for k in (2, 4))
    np.testing.assert_allclose([found.mu_1, found.mu_2], [mu_1, mu_2], rtol=1e-11)
    np.testing.assert_allclose(found.mean, (sigma_w**2 * mu_1) ** 3, rtol=1e-11)
    spread = 3 * (mu_2 / mu_1**2 - 1)
    np.testing.assert_allclose(found.variance_orthogonal, spread, rtol=1e-10)
    np.testing.assert_allclose(found.variance_gaussian, spread + 3, rtol=1e-10)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_linear_and_relu_have_closed_forms_at_any_length(dtype):
    """Signals that die, stay or grow: the moments do not depend on q, and the mean says which."""
    with jax.enable_x64(dtype == np.float64):
        tol = 20 * np.finfo(dtype).eps
        sigma_w = np.sqrt(np.array([[0.5], [1.0], [2.0], [3.0]]))
        depth = np.array([1, 2, 5])
        line = mean_field_spectrum(identity, sigma_w=sigma_w, depth=depth)
        assert line.mean.dtype == dtype
        assert line.q_star.shape == line.mean.shape == (4, 3)
        np.testing.assert_allclose(line.mean, sigma_w ** (2 * depth), rtol=tol)
        np.testing.assert_allclose(line.variance_gaussian, [depth] * 4, rtol=tol)
        np.testing.assert_allclose(line.variance_orthogonal, [0 * depth] * 4, atol=5 * tol)
        assert line.q_star[:, 0].tolist() == [0, 1, np.inf, np.inf]
        relu = mean_field_spectrum(jax.nn.relu, sigma_w=sigma_w, depth=depth)
        np.testing.assert_allclose(relu.mean, (sigma_w**2 / 2) ** depth, rtol=tol)
        np.testing.assert_allclose(relu.variance_gaussian, [2 * depth] * 4, rtol=tol)
        np.testing.assert_allclose(relu.variance_orthogonal, [depth] * 4, rtol=tol)
        assert relu.q_star[:, 0].tolist() == [0, 0, 1, np.inf]
        for found in (line, relu):
            assert bool(found.converged.all())


def test_slow_and_endless_fixed_points_are_told(x64):
    """At criticality q shrinks like 1 / depth; biases beside critical ReLU let it grow as depth."""
    critical = mean_field_spectrum(jnp.tanh, sigma_w=1.0, depth=7)
    assert float(critical.q_star) < 1e-13
    np.testing.assert_allclose([critical.mean, critical.variance_orthogonal], [1, 0], atol=1e-12)
    growing = mean_field_spectrum(jax.nn.relu, sigma_w=2**0.5, sigma_b=0.1, depth=1)
    assert np.isinf(growing.q_star)
    assert bool(critical.converged)
    assert bool(growing.converged)
    short = mean_field_spectrum(jnp.tanh, sigma_w=2.0, sigma_b=0.1, depth=7, max_iters=1)
    assert not bool(short.converged)


def test_it_is_a_function_of_traced_numbers(x64):
    at = lambda w, b: mean_field_spectrum(jnp.tanh, sigma_w=w, sigma_b=b, depth=2)  # noqa: E731
    both = jax.jit(jax.vmap(at))(jnp.array([1.3, 2.0]), jnp.array([0.3, 0.1]))
    together = at(jnp.array([1.3, 2.0]), jnp.array([0.3, 0.1]))
    for a, b in zip(both, together, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10)


CASES = [(identity, 1.0, 0.0), (jax.nn.relu, 2**0.5, 0.0), (jnp.tanh, 1.3, 0.3)]


@pytest.mark.parametrize(("phi", "sigma_w", "sigma_b"), CASES, ids=["linear", "relu", "tanh"])
def test_random_networks_have_these_spectra(phi, sigma_w, sigma_b, x64):
    """Width 96, 24 networks: what is left is of the order of depth over width, and of the draw."""
    _compare(phi, sigma_w, sigma_b, depths=[2], width=96, num=24, rtol=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(("phi", "sigma_w", "sigma_b"), CASES, ids=["linear", "relu", "tanh"])
def test_wide_random_networks_have_these_spectra_within_5_percent(phi, sigma_w, sigma_b, x64):
    _compare(phi, sigma_w, sigma_b, depths=[1, 2, 5], width=512, num=6, rtol=0.05)


def _compare(phi, sigma_w, sigma_b, *, depths, width, num, rtol):
    depths = np.array(depths)
    theory = mean_field_spectrum(phi, sigma_w=sigma_w, sigma_b=sigma_b, depth=depths)
    for kind in ("gaussian", "orthogonal"):
        mean, variance = drawn_spectra(
            phi,
            kind,
            width=width,
            num=num,
            sigma_w=sigma_w,
            sigma_b=sigma_b,
            depth=depths.max(),
            q_star=float(theory.q_star.max()),
        )[:, depths - 1]
        expected = getattr(theory, f"variance_{kind}")
        np.testing.assert_allclose(variance, expected, rtol=rtol, atol=1e-12)
        np.testing.assert_allclose(mean, theory.mean, rtol=rtol)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"sigma_w": 0.0, "depth": 1}, ValueError, "sigma_w must be finite and above 0, got 0.0"),
        ({"sigma_w": 1.0, "sigma_b": -1.0, "depth": 1}, ValueError, "sigma_b must be finite and"),
        ({"sigma_w": 1.0, "depth": 0}, ValueError, "depth must be finite and above 0, got 0"),
        ({"sigma_w": 1.0, "depth": 0.5}, ValueError, "depth must be at least 1, got 0.5"),
        ({"sigma_w": 1.0, "depth": 1, "degree": 0}, ValueError, "degree must be at least 1"),
        ({"sigma_w": 1.0, "depth": 1, "max_iters": 0}, ValueError, "max_iters must be at least 1"),
        ({"sigma_w": "wide", "depth": 1}, TypeError, "sigma_w must be a real number"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(options, error, message):
    with pytest.raises(error, match=message):
        mean_field_spectrum(jnp.tanh, **options)
    with pytest.raises(TypeError, match="phi must be a function, got 'tanh'"):
        mean_field_spectrum("tanh", sigma_w=1.0, depth=1)
