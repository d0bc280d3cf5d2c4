"""Spectra of kernels against numpy, closed cases, and regressions that were really made."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from poster_jax.kernels import spectrum as spectra


@pytest.fixture(scope="module")
def points():
    """A Gaussian kernel of 300 points in 3 dimensions, and two smooth targets."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 3))
    kernel = np.exp(-((x[:, None] - x[None]) ** 2).sum(-1) / 4)
    return kernel, np.stack([np.sin(x[:, 0]), x[:, 1] * x[:, 2]], axis=1)


def test_values_and_vectors_are_those_of_numpy(points, x64):
    kernel, _ = points
    found = spectra.kernel_spectrum(kernel)
    np.testing.assert_allclose(found.values, np.linalg.eigvalsh(kernel)[::-1], atol=1e-12)
    rebuilt = (found.vectors * found.values) @ found.vectors.T
    np.testing.assert_allclose(rebuilt, kernel, atol=1e-12)


def test_the_effective_dimension_is_the_trace_of_the_predictions(points, x64):
    kernel, _ = points
    values = spectra.kernel_spectrum(kernel).values
    expected = np.trace(kernel @ np.linalg.inv(kernel + 0.1 * np.eye(300)))
    np.testing.assert_allclose(spectra.effective_dimension(values, 0.1), expected, rtol=1e-10)


def test_alignment_is_the_cosine_of_centred_matrices(points, x64):
    kernel, y = points
    centre = np.eye(300) - 1 / 300
    a, b = centre @ kernel @ centre, centre @ y @ y.T @ centre
    expected = np.sum(a * b) / (np.linalg.norm(a) * np.linalg.norm(b))
    np.testing.assert_allclose(spectra.label_alignment(kernel, y), expected, rtol=1e-12)


def test_alignment_sees_neither_scale_nor_offset(points, x64):
    kernel, y = points
    moved = spectra.label_alignment(7 * kernel + 3, 2 * y - 1)
    np.testing.assert_allclose(moved, spectra.label_alignment(kernel, y), rtol=1e-12)


def test_the_learned_share_is_what_gradient_flow_learns_first(points, x64):
    """A projector on the first k directions leaves 1 - share of the targets' squares."""
    kernel, y = points
    found = spectra.kernel_spectrum(kernel)
    share = spectra.learned_share(found, y)
    for k in (1, 10, 300):
        rest = y - found.vectors[:, :k] @ (found.vectors[:, :k].T @ y)
        np.testing.assert_allclose(1 - share[k - 1], np.sum(rest**2) / np.sum(y**2), atol=1e-12)


@pytest.mark.parametrize("ridge", [1.0, 0.05])
def test_the_predicted_curve_is_that_of_regressions(ridge, x64):
    """On Gaussian features, where the theory is exact but for terms of order 1/n: 200 regressions a
    size by numpy, their error over the whole distribution. The sampling adds 2 %."""
    rng = np.random.default_rng(1)
    values, a = 1 / np.arange(1, 201) ** 1.5, rng.normal(size=(200, 2)) / np.arange(1, 201)[:, None]
    # 200 inputs of which each is one function: values times 200, targets times its root.
    spectrum = spectra.KernelSpectrum(200 * values, np.eye(200))
    sizes = np.array([20, 60, 180])
    predicted = spectra.predicted_learning_curve(spectrum, a * 200**0.5, sizes, ridge=ridge)
    for n, error in zip(sizes, predicted, strict=True):
        found = []
        for _ in range(200):
            features = rng.normal(size=(n, 200)) * np.sqrt(values)
            kernel = features @ features.T + ridge * np.eye(n)
            left = a / np.sqrt(values)[:, None]
            left = left - features.T @ np.linalg.solve(kernel, features @ left)
            found.append(np.sum(values[:, None] * left**2))
        assert abs(error / np.mean(found) - 1) < 1 / n + 0.03


def test_the_effective_ridge_solves_its_equation(points, x64):
    values = jnp.asarray(spectra.kernel_spectrum(points[0]).values) / 300
    for n in (0.0, 1.0, 50.0, 1e4):
        k = spectra._effective_ridge(values, n, 0.01)
        np.testing.assert_allclose(k, 0.01 + np.sum(k * values / (k + n * values)), rtol=1e-12)


def test_all_of_it_goes_under_jit_and_derivatives_are_finite(points):
    kernel, y = (jnp.asarray(a[:40], jnp.float32) for a in points)
    kernel = kernel[:, :40]

    def everything(scale):
        found = spectra.kernel_spectrum(scale * kernel)
        curve = spectra.predicted_learning_curve(found, y, jnp.array([5, 10]), ridge=0.1)
        return spectra.effective_dimension(found.values, 0.1) + curve.sum()

    program = jax.jit(everything)
    assert np.isfinite(program(1.0))
    np.testing.assert_allclose(everything(2.0), program(2.0), rtol=1e-4)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: spectra.kernel_spectrum(jnp.ones((2, 3))), "kernel must be"),
        (lambda: spectra.kernel_spectrum(jnp.full((2, 2), jnp.nan)), "kernel"),
        (lambda: spectra.label_alignment(jnp.eye(3), jnp.ones(2)), "targets must be"),
        (lambda: spectra.effective_dimension(jnp.ones(2), 0.0), "ridge must be"),
        (
            lambda: spectra.predicted_learning_curve(
                spectra.kernel_spectrum(jnp.eye(2)), jnp.ones(2), 1, ridge=-1.0
            ),
            "ridge must be",
        ),
    ],
)
def test_bad_input_is_one_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call()
