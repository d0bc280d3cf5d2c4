"""Taylor series of networks against neural-tangents 0.6.5, and against polynomials."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from poster_jax.kernels.linearize import linearize, taylor_expand

pytestmark = pytest.mark.usefixtures("x64")


def dense(params, x):
    w, b, v = params
    return jnp.tanh(x @ w / w.shape[0] ** 0.5 + 0.3 * b) @ v


def test_expansions_are_those_of_neural_tangents(figures):
    data = figures("empirical")
    params = tuple(data[f"dense/w{i}"] for i in range(3))
    moved = tuple(data[f"dense/moved{i}"] for i in range(3))
    x = data["dense/x1"]
    np.testing.assert_allclose(
        linearize(dense, params)(moved, x), data["dense/linear/0"], rtol=1e-12
    )
    for degree in (0, 1, 3):
        ours = taylor_expand(dense, params, degree)(moved, x)
        np.testing.assert_allclose(ours, data[f"dense/taylor{degree}/0"], rtol=1e-12)


def test_a_polynomial_is_its_own_series():
    f = lambda p, x, power=1: {"y": p["a"] ** 3 * x**power + p["b"] * p["a"]}  # noqa: E731
    params, moved = (
        {"a": jnp.array(0.7), "b": jnp.ones(2)},
        {"a": jnp.array(2.0), "b": jnp.zeros(2)},
    )
    exact = taylor_expand(f, params, 3)(moved, 1.5, power=2)["y"]
    np.testing.assert_allclose(exact, f(moved, 1.5, power=2)["y"], rtol=1e-13)


def test_error_falls_with_the_power_of_the_distance():
    f = lambda p, x: jnp.sin(p * x)  # noqa: E731
    for degree in (0, 1, 2, 4):
        series = taylor_expand(f, jnp.array(0.3), degree)
        error = [abs(float(series(0.3 + h, 1.7) - f(0.3 + h, 1.7))) for h in (1e-2, 1e-1)]
        assert np.isclose(np.log10(error[1] / error[0]), degree + 1, atol=0.3)


def test_series_pass_through_jit_vmap_and_grad():
    series = taylor_expand(lambda p, x: jnp.exp(p @ x), jnp.zeros(3), 2)
    xs = jnp.arange(6.0).reshape(2, 3) / 5
    batched = jax.jit(jax.vmap(series, (None, 0)))(jnp.ones(3), xs)
    np.testing.assert_allclose(batched, 1 + xs.sum(1) + xs.sum(1) ** 2 / 2)
    slope = jax.grad(series)(jnp.ones(3), xs[0])
    np.testing.assert_allclose(slope, xs[0] * (1 + xs[0].sum()))


@pytest.mark.bad_input
def test_bad_input_is_refused_in_one_sentence():
    with pytest.raises(ValueError, match="degree must be at least 0"):
        taylor_expand(dense, 1.0, -1)
    with pytest.raises(ValueError, match="p must have the structure"):
        linearize(lambda p, x: p * x, jnp.ones(2))((jnp.ones(2),), 1.0)
    with pytest.raises(TypeError, match="f must be a function"):
        linearize(1.0, jnp.ones(2))
