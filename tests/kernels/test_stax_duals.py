"""Duals of all nonlinearities against quadrature, against mpmath, and against Price's theorem.

A dual is read from a layer by feeding it a kernel with NTK 1: it answers E[phi phi], E[phi' phi'].
Smooth functions are integrated by 200 Gauss-Hermite points a side. Functions with a kink at 0 are
homogeneous, phi(t x) = t^n phi(x), so that in polar coordinates the radius integrates to 2^n n!
and the angle splits at the kinks into smooth pieces.
"""

import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from poster_jax.kernels import Kernel, stax

COSINES = np.array([[1.0, -1.0, 0.99, -0.3], [0.0, 0.5, -0.95, 0.8]])
V1, V2 = np.array([0.3, 1.7]), np.array([0.5, 2.2, 1.0, 0.04])
K = COSINES * np.sqrt(V1[:, None] * V2)


def dual(layer, k=K, v1=V1, v2=V2):
    """E[phi phi], E[phi' phi'], and the derivative of the first in k."""

    def both(k):
        kernel = Kernel(
            nngp=k, ntk=jnp.ones_like(k), cov1=jnp.asarray(v1), cov2=jnp.asarray(v2),
            x1_is_x2=False, is_gaussian=True, is_reversed=False, is_input=False,
            diagonal_batch=True, diagonal_spatial=False, shape1=(len(v1), 8), shape2=(len(v2), 8),
            batch_axis=0, channel_axis=1,
        )  # fmt: skip
        out = layer[2](kernel)
        return out.nngp, out.ntk, out.cov1

    @jax.jit
    def all_of_it(k):
        (value, slope, own), tangents = jax.jvp(both, (k,), (jnp.ones_like(k),))
        return value, slope, tangents[0], own

    return map(np.asarray, all_of_it(jnp.asarray(k)))


def hermite(f):
    """E[f(u) f(w)] over K by 200 x 200 points."""
    x, weights = np.polynomial.hermite_e.hermegauss(200)
    weights = weights / np.sqrt(2 * np.pi)
    r1, r2 = np.sqrt(V1), np.sqrt(V2)
    sines = np.sqrt(1 - COSINES**2)
    u = f(r1[:, None, None, None] * x[:, None])
    w = f(r2[:, None, None] * (COSINES[..., None, None] * x[:, None] + sines[..., None, None] * x))
    return np.einsum("abij,i,j->ab", u * w, weights, weights)


def polar(f, degree):
    """The same for f(t x) = t^degree f(x), t > 0, kinked at 0."""
    x, weights = np.polynomial.legendre.leggauss(30)
    out = np.zeros_like(K)
    for i, j in np.ndindex(*K.shape):
        theta = np.arccos(COSINES[i, j])
        turns = [np.pi / 2, -np.pi / 2, theta + np.pi / 2, theta - np.pi / 2]
        kinks = np.sort(np.mod(turns, 2 * np.pi))
        for start, stop in zip(kinks, [*kinks[1:], kinks[0] + 2 * np.pi], strict=True):
            a = (start + stop) / 2 + (stop - start) / 2 * x
            product = f(np.sqrt(V1[i]) * np.cos(a)) * f(np.sqrt(V2[j]) * np.cos(a - theta))
            out[i, j] += (stop - start) / 2 * weights @ product
    return out * 2**degree * math.factorial(degree) / (2 * np.pi)


def gauss(x):
    return np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)


def polynomial(*coef):
    f = np.polynomial.Polynomial(coef)
    return f, f.deriv()


def hermite_polynomial(n):
    f = np.polynomial.HermiteE([0] * n + [1]) / math.sqrt(math.factorial(n))
    return f, f.deriv()


# name -> (layer, phi, phi')
SMOOTH = {
    "erf": (stax.Erf(1.3, 0.7, 0.2), lambda x: 1.3 * special.erf(0.7 * x) + 0.2,
        lambda x: 1.3 * 0.7 * 2 / np.sqrt(np.pi) * np.exp(-((0.7 * x) ** 2))),
    "sigmoid_like": (stax.Sigmoid_like(), lambda x: special.erf(x / 2.4020563531719796) / 2 + 0.5,
        lambda x: np.exp(-((x / 2.4020563531719796) ** 2)) / np.sqrt(np.pi) / 2.4020563531719796),
    "gelu": (stax.Gelu(), lambda x: x * special.ndtr(x), lambda x: special.ndtr(x) + x * gauss(x)),
    "sin": (stax.Sin(1.2, 0.8, 0.4), lambda x: 1.2 * np.sin(0.8 * x + 0.4),
        lambda x: 1.2 * 0.8 * np.cos(0.8 * x + 0.4)),
    "cos": (stax.Cos(1.2, 0.8, 0.4), lambda x: 1.2 * np.cos(0.8 * x + 0.4),
        lambda x: -1.2 * 0.8 * np.sin(0.8 * x + 0.4)),
    "rbf": (stax.Rbf(0.6), lambda x: np.sqrt(2) * np.sin(np.sqrt(1.2) * x + np.pi / 4),
        lambda x: np.sqrt(2.4) * np.cos(np.sqrt(1.2) * x + np.pi / 4)),
    "exp": (stax.Exp(0.7, 0.6), lambda x: 0.7 * np.exp(0.6 * x), lambda x: 0.42 * np.exp(0.6 * x)),
    "gaussian": (stax.Gaussian(1.4, -0.7), lambda x: 1.4 * np.exp(-0.7 * x**2),
        lambda x: -1.96 * x * np.exp(-0.7 * x**2)),
    "gabor": (stax.Gabor(), lambda x: np.exp(-(x**2)) * np.sin(x),
        lambda x: np.exp(-(x**2)) * (np.cos(x) - 2 * x * np.sin(x))),
    "polynomial": (stax.Polynomial([0.3, -0.5, 0.2, 0.1]), *polynomial(0.3, -0.5, 0.2, 0.1)),
    **{f"monomial{n}": (stax.Monomial(n), *polynomial(*np.eye(n + 1)[n])) for n in range(6)},
    "numerical": (stax.ElementwiseNumerical(jnp.tanh, 25), np.tanh, lambda x: 1 / np.cosh(x) ** 2),
}  # fmt: skip


def ab_relu(a, b):
    return (lambda x: np.where(x > 0, b, a) * x, 1, lambda x: np.where(x > 0, b, a), 0)


def rectified(n):
    def f(x, n=n):
        return np.where(x > 0, x**n, 0.0)

    return f, n, (lambda x: n * f(x, n - 1)) if n else None, max(n - 1, 0)


# name -> (layer, phi, degree of phi, phi' (None: 0), degree of phi')
KINKED = {
    "abrelu": (stax.ABRelu(-0.4, 0.9), *ab_relu(-0.4, 0.9)),
    "relu": (stax.Relu(), *ab_relu(0, 1)),
    "leaky": (stax.LeakyRelu(0.2), *ab_relu(0.2, 1)),
    "abs": (stax.Abs(), *ab_relu(-1, 1)),
    "sign": (stax.Sign(), np.sign, 0, None, 0),
    **{f"rectified{n}": (stax.RectifiedMonomial(n), *rectified(n)) for n in range(4)},
}


@pytest.mark.parametrize("name", SMOOTH)
def test_smooth_dual_equals_200_point_quadrature(name, x64):
    """To rounding; the quadrature of the layer "numerical" has 25 points only, tanh poles."""
    layer, f, df = SMOOTH[name]
    value, slope, derivative, own = dual(layer)
    tolerance = 2e-3 if name == "numerical" else 2e-12
    np.testing.assert_allclose(value, hermite(f), rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(slope, hermite(df), rtol=tolerance, atol=tolerance)
    if name != "numerical":
        np.testing.assert_allclose(derivative, slope, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(own[0], _own(f, V1[0]), rtol=tolerance)


def _own(f, v):
    x, weights = np.polynomial.hermite_e.hermegauss(200)
    return weights @ f(np.sqrt(v) * x) ** 2 / np.sqrt(2 * np.pi)


@pytest.mark.parametrize("name", KINKED)
def test_kinked_dual_equals_quadrature_in_the_angle(name, x64):
    """sqrt(1e-16) is the error of an angle at cos = +-1, which the slope of a rectifier is."""
    layer, f, degree, df, slope_degree = KINKED[name]
    value, slope, derivative, own = dual(layer)
    slope_want = np.zeros_like(K) if df is None else polar(df, slope_degree)
    at_ends = np.abs(COSINES) == 1
    tolerance = np.where(at_ends, 3e-8, 1e-13)
    assert np.all(np.abs(slope - slope_want) <= tolerance * (1 + np.abs(slope_want)))
    value_tolerance = tolerance if name in ("sign", "rectified0") else 1e-13
    assert np.all(np.abs(value - polar(f, degree)) <= value_tolerance * (1 + np.abs(value)))
    inside = ~at_ends
    if (
        df is not None
    ):  # Sign and the step have a Dirac for derivative, an NTK of zero by convention
        np.testing.assert_allclose(derivative[inside], slope[inside], rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(own[0], polar_own(f, V1[0], degree), rtol=1e-13)


def polar_own(f, v, degree):
    """E[f(u)^2] = (f(1)^2 + f(-1)^2)/2 E|u|^2n."""
    moment = special.factorial2(2 * degree - 1) if degree else 1
    return (f(np.array(1.0)) ** 2 + f(np.array(-1.0)) ** 2) / 2 * moment * v**degree


def test_hermite_dual_at_unit_variance(x64):
    k = np.array([[0.9, -0.4, 0.1]])
    with pytest.warns(UserWarning, match="variance 1"):
        value, slope, *_ = dual(stax.Hermite(3), k, np.ones(1), np.ones(3))
    np.testing.assert_allclose(value, k**3, rtol=1e-14)
    np.testing.assert_allclose(slope, 3 * k**2, rtol=1e-14)


def test_exp_normalized_has_the_slope_of_its_value(x64):
    value, slope, derivative, own = dual(stax.ExpNormalized(1.3, -0.8))
    product = np.sqrt(V1[:, None] * V2)
    np.testing.assert_allclose(value, product * np.exp(1.3 * (COSINES - 0.8)), rtol=1e-13)
    np.testing.assert_allclose(derivative, slope, rtol=1e-13)
    np.testing.assert_allclose(own, V1 * np.exp(1.3 * 0.2), rtol=1e-13)


def test_elementwise_takes_its_slope_from_its_dual(x64):
    """Price's theorem by automatic differentiation, and a user's own slope where given."""
    erf = stax.Erf()

    def fn(k, v1, v2):
        return 2 / np.pi * jnp.arcsin(2 * k / jnp.sqrt((1 + 2 * v1) * (1 + 2 * v2)))

    value, slope, *_ = dual(erf)
    got_value, got_slope, *_ = dual(stax.Elementwise(nngp_fn=fn))
    np.testing.assert_allclose(got_value, value, rtol=1e-13)
    np.testing.assert_allclose(got_slope, slope, rtol=1e-12)
    given = stax.Elementwise(nngp_fn=fn, d_nngp_fn=lambda k, v1, v2: k + v1 + 2 * v2)
    _, got_slope, *_ = dual(given)
    np.testing.assert_allclose(got_slope, K + V1[:, None] + 2 * V2, rtol=1e-14)


FIGURES = json.loads(
    (pathlib.Path(__file__).parents[1] / "oracles" / "dual_figures.json").read_text()
)


@pytest.mark.parametrize("name", ["relu", "erf", "gelu"])
def test_closed_form_equals_mpmath(name, x64):
    """1e-12, at cos = +-1, within 1e-12 of it, and at zero variance; some figures are near 0."""
    rows = np.array([row[1:] for row in FIGURES if row[0] == name])
    k, v1, v2, want_value, want_slope = rows.T
    layer = {"relu": stax.Relu(), "erf": stax.Erf(), "gelu": stax.Gelu()}[name]
    value, slope, *_ = dual(layer, np.diag(k), v1, v2)
    scale = {"relu": np.sqrt(v1 * v2), "erf": 1, "gelu": np.sqrt(v1 * v2)}[name]
    assert np.all(np.abs(np.diag(value) - want_value) <= 1e-12 * scale)
    assert np.all(np.abs(np.diag(slope) - want_slope) <= 1e-12 * np.maximum(want_slope, 1e-3))
