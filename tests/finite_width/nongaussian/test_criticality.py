"""Critical variances: the textbook's, and susceptibilities as slopes of the recursion."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
from scipy import stats

from poster_jax.finite_width import nongaussian as ng

# Roberts, Yaida & Hanin 2021, chapter 5: C_W, C_b, K*; that of GELU is (3 + sqrt 17) / 2.
KNOWN = {
    "relu": (2.0, 0.0, None),
    "linear": (1.0, 0.0, None),
    "tanh": (1.0, 0.0, 0.0),
    "sin": (1.0, 0.0, 0.0),
    "erf": (np.pi / 4, 0.0, 0.0),
    "silu": (1.98800468, 0.55514317, 14.32017362),
    "gelu": (1.98305826, 0.17292239, (3 + np.sqrt(17)) / 2),
}

critical_initialization = functools.cache(ng.critical_initialization)


@pytest.mark.parametrize("name", KNOWN)
def test_the_critical_points_are_those_of_the_textbook(name):
    found = critical_initialization(name)
    C_W, C_b, K = KNOWN[name]
    assert pytest.approx(C_W, abs=1e-8) == found.C_W
    assert found.C_b == pytest.approx(C_b, abs=1e-8)
    assert np.isnan(found.K) if K is None else pytest.approx(K, abs=1e-7) == found.K


def test_gelu_is_critical_by_scipys_integrals_too():
    """The root of E[phi phi''] with phi'' = (2 - z^2) p(z), p the normal density."""

    def mismatch(K):
        def integrand(x):
            z = np.sqrt(K) * x
            return z * stats.norm.cdf(z) * (2 - z**2) * stats.norm.pdf(z) * stats.norm.pdf(x)

        return scipy.integrate.quad(integrand, -12, 12, epsabs=1e-13)[0]

    root = scipy.optimize.brentq(mismatch, 2, 6, xtol=1e-11)
    assert pytest.approx(root, abs=1e-8) == critical_initialization("gelu").K


@pytest.mark.parametrize("name", ["tanh", "relu", "gelu", "softplus", "erf"])
def test_susceptibilities_are_slopes_of_the_recursion(name, x64):
    C_W, C_b, K, h = 1.3, 0.2, 0.8, 1e-4

    following = jax.jit(lambda state: ng.layer_recursion(state, name, C_W=C_W, C_b=C_b))

    def next_kernel(k11, k12):
        x = np.linalg.cholesky(np.array([[k11, k12], [k12, k11]])) * np.sqrt(2)
        state = ng.first_layer(x, C_W=1.0, C_b=0.0)
        return np.asarray(following(state).K)

    found = ng.susceptibilities(name, jnp.asarray(K), C_W=C_W, C_b=C_b)
    up, down = next_kernel(K + h, 0.1), next_kernel(K - h, 0.1)
    assert float(found.parallel) == pytest.approx((up - down)[0, 0] / (2 * h), rel=1e-6)
    assert float(found.K) == pytest.approx(next_kernel(K, 0.1)[0, 0], rel=1e-9)
    # A difference of two inputs, z1 - z2, has the variance 2 (K - k): its slope at K = k.
    near = next_kernel(K, K - h)
    tolerance = 2e-2 if name == "relu" else 2e-4  # a kink makes it sqrt(h)
    assert float(found.perpendicular) == pytest.approx((near[0, 0] - near[0, 1]) / h, rel=tolerance)


@pytest.mark.parametrize("name", ["softplus", "sigmoid", "exp", "quadratic", "cos"])
def test_no_critical_point_is_said(name):
    with pytest.raises(ValueError, match="phi must have a critical point"):
        ng.critical_initialization(name)


@pytest.mark.parametrize(("name", "least", "most"), [("relu", 5, 5), ("tanh", 0.6, 0.72)])
def test_at_criticality_the_vertex_grows_linearly_in_depth(name, least, most, x64):
    """V / K^2 is 5 a layer for ReLU, and tends to 2/3 a layer for the class of tanh."""
    critical = critical_initialization(name)
    flow = ng.layer_flow(name, np.ones((1, 3)), 10**4, depth=60, C_W=critical.C_W, C_b=critical.C_b)
    relative = np.asarray(flow.V)[:, 0, 0] / np.asarray(flow.K)[:, 0, 0] ** 2
    slope = relative[-1] - relative[-2]
    assert least - 1e-9 <= slope <= most + 1e-9


def test_depth_to_width_is_a_sum():
    assert ng.depth_to_width((10, 20, 20)) == pytest.approx(0.2)
    assert jax.numpy.isfinite(ng.depth_to_width([3]))
