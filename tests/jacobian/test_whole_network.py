"""Hoffman's and OroJaR's penalties against the materialised Jacobian."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from poster_jax.jacobian import whole_network
from poster_jax.jacobian.whole_network import jacobian_norm_penalty, off_diagonal_penalty


def mlp(params, x):
    """(B, 2, 3) -> (B, m): smooth, with a bias."""
    w1, b1, w2 = params
    return jnp.tanh(x.reshape(len(x), -1) @ w1 + b1) @ w2


def problem(num_out, dtype=float):
    rng = np.random.default_rng(0)
    params = (rng.normal(size=(6, 8)), rng.normal(size=8), rng.normal(size=(8, num_out)))
    x = rng.normal(size=(5, 2, 3))
    return jax.tree.map(lambda a: np.asarray(0.6 * a, dtype), params), np.asarray(x, dtype)


@jax.jit
def jacobians(params, x):
    return jax.vmap(jax.jacrev(lambda x: mlp(params, x[None])[0]))(x).reshape(len(x), -1, 6)


def half_norm(params, x):
    return np.sum(np.asarray(jacobians(params, x)) ** 2, axis=(1, 2)) / 2


def off_diagonal(params, x):
    J = np.asarray(jacobians(params, x))
    gram = J.transpose(0, 2, 1) @ J
    return 2 * np.sum((gram * (1 - np.eye(6))) ** 2, axis=(1, 2))


CASES = {
    "norm": (jacobian_norm_penalty, half_norm),
    "off_diagonal": (off_diagonal_penalty, off_diagonal),
}


@pytest.mark.parametrize("name", list(CASES))
@pytest.mark.parametrize("num_out", [4, 9])  # fewer and more outputs than inputs
def test_exact_is_the_definition_and_so_is_its_gradient(x64, name, num_out):
    penalty, definition = CASES[name]
    params, x = problem(num_out)
    found = penalty(mlp, params, x, method="exact")
    np.testing.assert_allclose(found.per_example, definition(params, x), rtol=1e-12)
    np.testing.assert_allclose(found.value, definition(params, x).mean(), rtol=1e-12)
    assert found.standard_error == 0
    gradient = jax.grad(lambda p, x: penalty(mlp, p, x, method="exact").value, argnums=(0, 1))
    found, step = jax.jit(gradient)(params, x), 1e-6
    for leaf, place in ((0, (1, 2)), (1, (3,)), (2, (2, 1))):
        above, below = (list(map(np.copy, params)) for _ in range(2))
        above[leaf][place] += step
        below[leaf][place] -= step
        change = definition(above, x).mean() - definition(below, x).mean()
        np.testing.assert_allclose(found[0][leaf][place], change / (2 * step), rtol=1e-7)
    moved = np.zeros_like(x)
    moved[2, 1, 1] = step
    change = definition(params, x + moved).mean() - definition(params, x - moved).mean()
    np.testing.assert_allclose(found[1][2, 1, 1], change / (2 * step), rtol=1e-7)


@pytest.mark.slow
def test_one_projection_is_unbiased_with_the_variance_of_the_sphere(x64):
    params, x = problem(4)
    draws = jax.jit(jax.vmap(lambda key: jacobian_norm_penalty(mlp, params, x, key)))
    found = draws(jax.random.split(jax.random.key(1), 40_000))
    J = np.asarray(jacobians(params, x))
    C, gram = 4, J @ J.transpose(0, 2, 1)
    # Var v'Av = 2 C / (C + 2) (tr A^2 - (tr A)^2 / C) for |v|^2 = C; here A = J J' / 2.
    trace = np.trace(gram, axis1=1, axis2=2)
    variance = 2 * C / (C + 2) * (np.sum(gram**2, axis=(1, 2)) - trace**2 / C) / 4
    errors = np.abs(found.per_example.mean(axis=0) - trace / 2)
    assert np.all(errors < 4 * np.sqrt(variance / 40_000))
    # The variance of v'Av has a relative error of about sqrt(3 / 40,000) = 1%.
    np.testing.assert_allclose(found.per_example.var(axis=0), variance, rtol=0.05)
    # Every example has its own vector, so that a batch averages the noise.
    np.testing.assert_allclose(found.value.var(), variance.sum() / 25, rtol=0.05)
    assert np.all(np.isinf(found.standard_error))


def test_two_probes_estimate_the_off_diagonal_without_bias(x64):
    params, x = problem(4)
    draws = jax.jit(jax.vmap(lambda key: off_diagonal_penalty(mlp, params, x, key)))
    found = draws(jax.random.split(jax.random.key(1), 40_000))
    error = found.per_example.std(axis=0) / 200
    assert np.all(np.abs(found.per_example.mean(axis=0) - off_diagonal(params, x)) < 4 * error)
    assert np.all(error < 0.02 * off_diagonal(params, x))  # else the line above says nothing
    assert np.all(np.isinf(found.standard_error))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("penalty", "option"),
    [(jacobian_norm_penalty, "num_projections"), (off_diagonal_penalty, "num_probes")],
)
def test_standard_error_is_the_spread_of_repeated_estimates(x64, penalty, option):
    params, x = problem(4)
    draws = jax.jit(jax.vmap(lambda key: penalty(mlp, params, x, key, **{option: 24})))
    found = draws(jax.random.split(jax.random.key(2), 4000))
    squared = float(jnp.mean(found.standard_error**2))
    # The jackknife's bias upwards is of order 1 / 24; 4,000 draws know a variance to 3%.
    np.testing.assert_allclose(squared / float(found.value.var()), 1.03, atol=0.12)


def test_jackknife_is_leaving_one_out(x64):
    samples = np.random.default_rng(0).normal(size=(7, 5)) ** 2  # 7 probes, 5 examples
    without = [np.delete(samples, k, 0).var(axis=0, ddof=1) for k in range(7)]
    expected = np.sqrt(np.sum(6 * np.var(without, axis=0))) / 5
    deviations = (samples - samples.mean(axis=0)) ** 2
    found = whole_network._jackknife(jnp.asarray(deviations))
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("name", list(CASES))
def test_probes_have_a_gradient_even_where_their_spread_is_zero(x64, name):
    penalty, _ = CASES[name]
    option = {"norm": {"num_projections": 3}, "off_diagonal": {"num_probes": 3}}[name]
    fn = lambda w, x: x @ w  # noqa: E731
    gradient = jax.jit(jax.grad(lambda w: penalty(fn, w, jnp.ones((4, 3)), KEY, **option).value))
    # J = 2 I: every probe gives the same, and sqrt(0) stands in the standard error.
    expected = 2 * np.eye(3) if name == "norm" else np.zeros((3, 3))
    mean = jax.jit(jax.vmap(lambda key: penalty(fn, 2 * jnp.eye(3), jnp.ones((4, 3)), key)))
    values = mean(jax.random.split(KEY, 9)).value
    np.testing.assert_allclose(values, 6 if name == "norm" else 0, rtol=1e-12, atol=1e-12)
    found = gradient(2 * jnp.eye(3))
    assert np.all(np.isfinite(found))
    np.testing.assert_allclose(np.diagonal(found).sum(), np.trace(expected), rtol=1e-12, atol=1e-12)


KEY = jax.random.key(0)


@pytest.mark.parametrize("name", list(CASES))
def test_float32_and_seeds_in_one_vmap(name):
    penalty, definition = CASES[name]
    params, x = problem(4, np.float32)
    several = jax.tree.map(lambda a: np.stack([a, 2 * a]), params)
    found = jax.jit(jax.vmap(lambda p: penalty(mlp, p, x, method="exact").value))(several)
    assert found.dtype == jnp.float32
    with jax.enable_x64(True):
        double = lambda t: jax.tree.map(lambda a: a.astype(float), t)  # noqa: E731
        expected = [
            definition(double(p), double(x)).mean() for p in (params, [2 * a for a in params])
        ]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert penalty(mlp, params, x, KEY).per_example.dtype == jnp.float32


def test_scalar_outputs_need_no_more_than_their_sign(x64):
    w, x = np.arange(1.0, 4.0), np.ones((5, 3))
    found = jacobian_norm_penalty(lambda w, x: x @ w, w, x, KEY)
    np.testing.assert_allclose(found.per_example, 7, rtol=1e-12)


@pytest.mark.bad_input
@pytest.mark.parametrize("penalty", [jacobian_norm_penalty, off_diagonal_penalty])
def test_bad_input_is_named(penalty):
    params, x = problem(4, np.float32)
    for args, kwargs, error, message in [
        ((mlp, params, x), {}, TypeError, "key must be a PRNG key .* got None"),
        ((mlp, params, x, KEY), {"method": "exat"}, ValueError, "Did you mean 'exact'"),
        ((mlp, params, x.astype(int), KEY), {}, TypeError, "x must be a floating point array"),
        ((mlp, params, x * np.nan, KEY), {}, ValueError, "x must be finite"),
        ((mlp, params, x[:, 0], KEY), {}, ValueError, "params and data do not fit"),
        ((None, params, x, KEY), {}, TypeError, "must be a function"),
        ((lambda p, x: (x, x), params, x, KEY), {}, ValueError, "one floating .* got tuple"),
        ((lambda p, x: x[0], params, x, KEY), {}, ValueError, "leading axis is that of x"),
        ((lambda p, x: x - x.mean(0), params, x, KEY), {}, ValueError, "every example alone"),
    ]:
        with pytest.raises(error, match=message):
            penalty(*args, **kwargs)


@pytest.mark.bad_input
def test_counts_of_probes_are_checked():
    params, x = problem(4, np.float32)
    with pytest.raises(ValueError, match="num_projections must be at least 1, got 0"):
        jacobian_norm_penalty(mlp, params, x, KEY, num_projections=0)
    with pytest.raises(ValueError, match=r"num_probes must be at least 2, got 1\. A variance"):
        off_diagonal_penalty(mlp, params, x, KEY, num_probes=1)
