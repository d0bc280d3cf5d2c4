"""Gaussian expectations: closed forms, quadrature and finite differences say the same."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.special

from poster_jax.finite_width import nongaussian as ng
from poster_jax.finite_width.nongaussian import _dual, _fourth, _pairs
from poster_jax.finite_width.nongaussian._quadrature import expect_four, smooth_rule
from poster_jax.kernels import stax

# numpy's own functions, which share nothing with the library's.
NUMPY = {
    "linear": lambda z: z,
    "quadratic": np.square,
    "relu": lambda z: np.maximum(z, 0),
    "abs": np.abs,
    "erf": scipy.special.erf,
    "gelu": lambda z: z * scipy.special.ndtr(z),
    "tanh": np.tanh,
    "silu": lambda z: z * scipy.special.expit(z),
    "sigmoid": scipy.special.expit,
    "softplus": lambda z: np.logaddexp(0, z),
    "exp": np.exp,
    "sin": np.sin,
    "cos": np.cos,
}


# One program for each activation, whichever test asks first.
dual_derivatives = jax.jit(_dual.dual_derivatives, static_argnums=(0, 2))


def test_every_name_is_tested():
    assert set(NUMPY) == set(ng.NAMES)


def double_integral(fn, k, v1, v2):
    """E[fn(u) fn(w)] by adaptive quadrature, cut at the kink of either."""

    def density(x):
        return math.exp(-x * x / 2) / math.sqrt(2 * math.pi)

    along, across = k / np.sqrt(v1), np.sqrt(v2 - k**2 / v1)

    def inner(x):
        kink = -along * x / across
        return scipy.integrate.quad(
            lambda y: fn(along * x + across * y) * density(y),
            -11, 11, points=[kink] if abs(kink) < 11 else None, epsabs=1e-12, epsrel=1e-11,
        )[0]  # fmt: skip

    def outer(x):
        return fn(np.sqrt(v1) * x) * density(x) * inner(x)

    halves = ((-11, 0), (0, 11))
    return sum(scipy.integrate.quad(outer, *h, epsabs=1e-11, epsrel=1e-10)[0] for h in halves)


@pytest.mark.parametrize("name", ng.NAMES)
def test_the_dual_is_the_integral_that_scipy_finds(name, covariance, x64):
    found = dual_derivatives(ng.activation(name), covariance, 80).value
    expected = double_integral(NUMPY[name], *(covariance[i] for i in ((0, 1), (0, 0), (1, 1))))
    assert found[1] == pytest.approx(expected, rel=1e-8, abs=1e-10)


@pytest.mark.parametrize("name", ng.NAMES)
def test_slopes_and_second_derivatives_are_finite_differences_of_the_dual(name, covariance, x64):
    phi = ng.activation(name)
    direction = np.random.default_rng(1).normal(size=covariance.shape)
    direction = direction + direction.T
    pairs = _pairs.to_pairs(direction)

    def at(t):
        return jax.tree.map(np.asarray, dual_derivatives(phi, covariance + t * direction, 80))

    h = 2e-3  # five points: an error of h^4 in both, and of 1e-16 / h^2 in the second
    v = {t: at(t * h).value for t in (-2, -1, 0, 1, 2)}
    first = (8 * (v[1] - v[-1]) - (v[2] - v[-2])) / (12 * h)
    second = (16 * (v[1] + v[-1]) - v[2] - v[-2] - 30 * v[0]) / (12 * h**2)
    here = at(0.0)
    found = _dual.apply_jacobian(here.first, pairs)
    np.testing.assert_allclose(found, first, atol=1e-7 * np.abs(first).max())
    found = _dual.contract_hessian(here.second, lambda i, j: pairs[i] * pairs[j])
    np.testing.assert_allclose(found, second, atol=2e-6 * max(np.abs(second).max(), 1))


@pytest.mark.parametrize("name", ["relu", "abs", "erf", "gelu", "sin", "exp", "quadratic"])
def test_closed_forms_equal_quadrature_of_the_plain_function(name, covariance, x64):
    """Autodiff of the arc-cosine kernel against Hermite weights, and Price's theorem elsewhere."""
    phi = ng.activation(name)
    closed = dual_derivatives(phi, covariance, 80)
    plain = ng.Activation(phi.fn, name, kinked=phi.kinked)
    numeric = dual_derivatives(plain, covariance, 40 if phi.kinked else 110)
    for a, b in zip(map(np.asarray, closed), numeric, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-8 * np.abs(a).max())


def test_the_slope_of_a_leaky_rectifier_is_the_ntk_factor_of_stax(covariance, x64):
    layer = stax.LeakyRelu(0.1)
    phi = ng.activation_of_layer(layer)
    assert phi.homogeneous
    net = stax.serial(stax.Dense(1), layer)
    x = np.linalg.cholesky(covariance) * np.sqrt(3)
    nngp, ntk = map(np.asarray, jax.jit(lambda x: net[2](x, None, ("nngp", "ntk")))(x))
    found = dual_derivatives(phi, covariance, 0)
    np.testing.assert_allclose(_pairs.from_pairs(found.value), nngp, rtol=1e-12)
    slope = ntk / covariance
    off = ~np.eye(3, dtype=bool)
    np.testing.assert_allclose(np.asarray(_pairs.from_pairs(found.first[0]))[off], slope[off], 1e-9)


@pytest.mark.parametrize("name", ["relu", "erf", "tanh", "sin", "quadratic"])
def test_derivatives_are_finite_for_equal_opposite_and_orthogonal_outputs(name, x64):
    x = np.array([[1.0, 0], [1.0, 0], [-1.0, 0], [0, 2.0]])
    found = jax.tree.map(np.asarray, dual_derivatives(ng.activation(name), x @ x.T, 80))
    assert all(np.isfinite(part).all() for part in found)
    same = _pairs.pairs_of(4).inverse
    assert found.value[same[0, 1]] == pytest.approx(float(found.value[same[0, 0]]), rel=1e-7)


@pytest.mark.parametrize("name", ["tanh", "gelu"])
def test_all_inputs_at_once_equal_four_at_a_time(name, covariance, x64):
    phi = ng.activation(name)
    A = dual_derivatives(phi, covariance, 80).value
    options = {"method": "quadrature", "degree": 24, "num_samples": 2, "seed": 0}
    found = jax.jit(lambda K: _fourth.covariance_of_products(phi, K, A, **options))(covariance)
    quadruples, table = _pairs.quadruples_of(3)
    cov = covariance[quadruples[:, :, None], quadruples[:, None, :]]
    four = np.asarray(jax.jit(lambda cov: expect_four(phi.fn, cov, smooth_rule(24)))(cov))
    A = np.asarray(A)
    np.testing.assert_allclose(found, four[table] - A[:, None] * A, atol=3e-5)


@pytest.mark.parametrize("name", ["sin", "cos", "exp", "linear"])
def test_closed_four_point_functions_equal_quadrature(name, covariance, x64):
    phi = ng.activation(name)
    four = np.array([[0, 1, 2, 0], [0, 0, 1, 1], [2, 2, 2, 2], [0, 1, 1, 2]])
    # exp moves the mass by four deviations, and the rule reaches 6.5: so small variances.
    cov = 0.1 * covariance[four[:, :, None], four[:, None, :]]
    found = jax.jit(lambda c: expect_four(phi.fn, c, smooth_rule(40)))(cov)
    np.testing.assert_allclose(jax.jit(phi.fourth)(cov), found, rtol=1e-7)


@pytest.mark.slow
def test_polynomials_are_exact_by_isserlis(covariance, x64):
    """E[(z_a z_b z_c z_d)^2] by the sum over all 105 pairings of eight."""

    def pairings(items):
        if not items:
            yield []
            return
        for index in range(1, len(items)):
            for rest in pairings(items[1:index] + items[index + 1 :]):
                yield [(items[0], items[index]), *rest]

    names = (0, 1, 1, 2)
    exact = sum(
        np.prod([covariance[a, b] for a, b in pairing]) for pairing in pairings(list(names) * 2)
    )
    phi = ng.activation("quadratic")
    A = _dual.dual_derivatives(phi, jnp.asarray(covariance), 0).value
    options = {"method": "auto", "degree": 8, "num_samples": 2, "seed": 0}
    found = _fourth.covariance_of_products(phi, jnp.asarray(covariance), A, **options)
    inverse = _pairs.pairs_of(3).inverse
    p, q = inverse[0, 1], inverse[1, 2]
    assert found[p, q] == pytest.approx(exact - float(A[p] * A[q]), rel=1e-12)


@pytest.mark.parametrize("name", ["tanh", "gelu", "erf", "relu"])
def test_sampling_converges_to_quadrature(name, covariance, x64):
    phi = ng.activation(name)
    A = dual_derivatives(phi, covariance, 80).value

    def take(method, seed=0):
        options = {"method": method, "degree": 24, "num_samples": 2**15, "seed": seed}
        found = jax.jit(lambda K: _fourth.covariance_of_products(phi, K, A, **options))(covariance)
        return np.asarray(found)

    sampled = take("sampling")
    error = 3e-3 * np.abs(sampled).max()  # of z^8 in the mean, the growing ones' worst
    np.testing.assert_allclose(sampled, take("sampling", 1), atol=error)
    if not phi.kinked:
        np.testing.assert_allclose(sampled, take("quadrature"), atol=error)
    assert np.linalg.eigvalsh(sampled).min() > -1e-12
