"""The quadrature integrates what theory says; the density is that of known random matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from poster_jax.curvature import hessian_operator, matrix_operator, spectral_density


def _moments(density, powers):
    weights, nodes = np.asarray(density.weights, float), np.asarray(density.nodes, float)
    return np.array([(weights * nodes**k).sum(axis=1) for k in powers])


def test_moments_up_to_the_degree_of_the_rule_are_exact_for_each_probe(x64, tools, key):
    """m steps integrate degree 2 m - 1; the probes are drawn again from the same key."""
    from poster_jax.curvature._flat import flatten
    from poster_jax.curvature._probes import sample

    matrix = tools.rotated(np.linspace(-1, 1, 60))
    op = matrix_operator(jnp.asarray(matrix))
    density = spectral_density(op, key, num_lanczos=4, num_probes=3)
    for i, probe_key in enumerate(jax.random.split(key, 3)):
        z = np.asarray(sample(probe_key, "sphere", 1, flatten(op))[0])
        z = z / np.linalg.norm(z)
        exact = [z @ np.linalg.matrix_power(matrix, k) @ z for k in range(8)]
        np.testing.assert_allclose(_moments(density, range(8))[:, i], exact, atol=1e-13)


def test_moments_are_traces_of_powers(problem, tools):
    op = hessian_operator(problem.loss_fn, problem.params, problem.batch)
    density = spectral_density(op, jax.random.key(0), num_lanczos=8, num_probes=400, block_size=50)
    hessian = tools.numpy_hessian(problem)
    samples = _moments(density, range(5))
    for k, row in enumerate(samples):
        exact = np.trace(np.linalg.matrix_power(hessian, k)) / len(hessian)
        stderr = row.std(ddof=1) / np.sqrt(len(row))
        assert abs(row.mean() - exact) < 4 * stderr + 1e-5


def test_density_integrates_to_one_and_weights_sum_to_one(problem, key):
    op = hessian_operator(problem.loss_fn, problem.params, problem.batch)
    density = spectral_density(op, key, num_lanczos=20, num_probes=3)
    np.testing.assert_allclose(np.trapezoid(density.density, density.grid), 1, atol=1e-4)
    np.testing.assert_allclose(density.weights.sum(axis=1), 1, atol=1e-5)
    assert (np.asarray(density.weights) >= 0).all()
    assert (np.asarray(density.density) >= 0).all()


def test_wigner_semicircle(key):
    n = 600
    a = np.random.default_rng(0).normal(size=(n, n))
    op = matrix_operator(jnp.asarray((a + a.T) / np.sqrt(2 * n), jnp.float32))
    grid = jnp.linspace(-1.7, 1.7, 60)
    density = spectral_density(op, key, num_lanczos=40, num_probes=8, grid=grid, width=0.03)
    semicircle = np.sqrt(4 - np.asarray(grid) ** 2) / (2 * np.pi)
    np.testing.assert_allclose(density.density, semicircle, atol=0.035)  # heights 0.17 to 0.32
    assert density.nodes.min() > -2.2
    assert density.nodes.max() < 2.2


def test_marchenko_pastur(key):
    n, p = 1200, 600
    x = np.random.default_rng(0).normal(size=(n, p))
    op = matrix_operator(jnp.asarray(x.T @ x / n, jnp.float32))
    ratio = p / n
    low, high = (1 - ratio**0.5) ** 2, (1 + ratio**0.5) ** 2
    grid = jnp.linspace(low + 0.15, high - 0.2, 60)
    density = spectral_density(op, key, num_lanczos=50, num_probes=8, grid=grid, width=0.02)
    at = np.asarray(grid)
    law = np.sqrt((high - at) * (at - low)) / (2 * np.pi * ratio * at)
    np.testing.assert_allclose(density.density, law, atol=0.07)  # heights 0.2 to 0.9


def test_fraction_above_a_value_counts_outliers(tools, key):
    spectrum = np.concatenate([np.full(40, 8.0), np.random.default_rng(0).uniform(0, 1, 160)])
    op = matrix_operator(jnp.asarray(tools.rotated(spectrum), jnp.float32))
    density = spectral_density(op, key, num_lanczos=15, num_probes=200, block_size=50)
    above = (np.asarray(density.weights) * (np.asarray(density.nodes) > 4)).sum(axis=1)
    assert abs(above.mean() - 0.2) < 4 * above.std(ddof=1) / np.sqrt(200)


@pytest.mark.parametrize(
    ("spectrum", "top"),
    [(np.ones(30), 1.0), (np.zeros(30), 0.0), (np.array([5.0] + [0] * 29), 5.0)],
)
def test_a_closed_krylov_space_is_no_nan(spectrum, top, tools, key):
    """matfree's tridiagonalisation gives NaN here."""
    op = matrix_operator(jnp.asarray(tools.rotated(spectrum), jnp.float32))
    density = spectral_density(op, key, num_lanczos=10, num_probes=4)
    assert np.isfinite(density.density).all()
    np.testing.assert_allclose(density.weights.sum(axis=1), 1, atol=1e-5)
    carried = np.asarray(density.nodes)[np.asarray(density.weights) > 1e-4]
    np.testing.assert_allclose(carried.max(), top, atol=1e-5)


def test_block_size_changes_nothing(problem, key):
    op = hessian_operator(problem.loss_fn, problem.params, problem.batch)
    one = spectral_density(op, key, num_lanczos=6, num_probes=5)
    three = spectral_density(op, key, num_lanczos=6, num_probes=5, block_size=3)
    np.testing.assert_allclose(_moments(one, range(4)), _moments(three, range(4)), atol=1e-4)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("change", "error", "names"),
    [
        ({"op": None}, TypeError, "op"),
        ({"key": None}, TypeError, "key"),
        ({"num_lanczos": 0}, ValueError, "num_lanczos"),
        ({"num_lanczos": 11}, ValueError, "dimension of the operator, 10"),
        ({"num_probes": 0}, ValueError, "num_probes"),
        ({"width": 0.0}, ValueError, "width"),
        ({"width": -1.0}, ValueError, "width"),
        ({"grid": 1}, ValueError, "grid"),
        ({"grid": jnp.ones((2, 2))}, ValueError, "grid"),
        ({"grid": jnp.array([1.0, 0.0])}, ValueError, "increasing"),
        ({"grid": jnp.array([0.0, jnp.inf])}, ValueError, "finite"),
        ({"probe": "normal"}, ValueError, "probe"),
        ({"block_size": 0}, ValueError, "block_size"),
    ],
)
def test_bad_input(change, error, names, key):
    given = {"op": matrix_operator(jnp.eye(10)), "key": key, "num_lanczos": 4} | change
    with pytest.raises(error, match=names):
        spectral_density(given.pop("op"), given.pop("key"), **given)
