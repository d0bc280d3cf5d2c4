"""Regularisers of weights against NumPy's singular values, explicit matrices and differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from poster_jax.jacobian import decay, weights

SHAPES = [(6, 4), (4, 6), (3, 2, 2, 5), (1, 1, 2, 7)]
FUNCTIONS = {
    "SO": weights.soft_orthogonality,
    "DSO": weights.double_soft_orthogonality,
    "MC": weights.mutual_coherence,
    "SRIP": lambda w: weights.spectral_restricted_isometry(w, jax.random.key(3)),
    "SRIP code": lambda w: weights.spectral_restricted_isometry(w, jax.random.key(3), form="code"),
}


def draw(shape, seed=0):
    fan_in = np.prod(shape[:-1])
    return np.random.default_rng(seed).normal(size=shape) / np.sqrt(fan_in)


def matrix(kernel):
    """(out, in kh kw), as torch lays a convolution out: another order of the same numbers."""
    axes = (kernel.ndim - 1, kernel.ndim - 2, *range(kernel.ndim - 2))
    return kernel.transpose(axes).reshape(kernel.shape[-1], -1)


def by_numpy(name, kernel):
    """The definitions; W of the paper is (fan_in, out)."""
    W = matrix(kernel).T
    inner, outer = W.T @ W - np.eye(W.shape[1]), W @ W.T - np.eye(W.shape[0])
    if name == "SO":
        return np.linalg.norm(inner) ** 2
    if name == "DSO":
        return np.linalg.norm(inner) ** 2 + np.linalg.norm(outer) ** 2
    if name == "MC":
        return np.abs(inner).max()
    key = jax.random.key(3)
    if name == "SRIP":
        u = inner @ np.asarray(jax.random.normal(key, (W.shape[1],)))
        return np.linalg.norm(inner @ u) / np.linalg.norm(u)
    small = inner if len(inner) <= len(outer) else outer
    u = small @ np.asarray(jax.random.uniform(key, (len(small),)))
    return (np.linalg.norm(small @ u) / np.linalg.norm(u)) ** 2


@pytest.mark.parametrize("name", list(FUNCTIONS))
def test_values_are_the_definition(x64, name):
    for shape in SHAPES:
        kernel = draw(shape)
        np.testing.assert_allclose(FUNCTIONS[name](kernel), by_numpy(name, kernel), rtol=1e-12)


@pytest.mark.parametrize("name", list(FUNCTIONS))
def test_gradients_are_central_differences_of_the_definition(x64, name):
    for shape in SHAPES[1:3]:
        kernel, step = draw(shape, 1), 1e-6
        found = jax.grad(FUNCTIONS[name])(jnp.asarray(kernel))
        expected = np.empty(shape)
        for place in np.ndindex(shape):
            change = np.zeros(shape)
            change[place] = step
            expected[place] = by_numpy(name, kernel + change) - by_numpy(name, kernel - change)
        # The differences' own error: step^2 of the third derivative, rounding over step.
        np.testing.assert_allclose(found, expected / (2 * step), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("name", list(FUNCTIONS))
def test_float32_jit_and_vmap(name):
    kernels = np.stack([draw((6, 4), seed) for seed in range(3)]).astype(np.float32)
    with jax.enable_x64(True):
        expected = [FUNCTIONS[name](k.astype(float)) for k in kernels]
    found = jax.jit(jax.vmap(FUNCTIONS[name]))(kernels)
    assert found.dtype == jnp.float32
    # Another start vector in another precision: only the other three are comparable.
    if "SRIP" not in name:
        np.testing.assert_allclose(found, expected, rtol=2e-6)
    else:
        alone = [FUNCTIONS[name](jnp.asarray(k)) for k in kernels]
        np.testing.assert_allclose(found, alone, rtol=2e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_double_is_twice_single_up_to_a_constant(x64, shape):
    kernel = jnp.asarray(draw(shape))
    found = jax.grad(weights.double_soft_orthogonality)(kernel)
    np.testing.assert_allclose(found, 2 * jax.grad(weights.soft_orthogonality)(kernel), rtol=1e-12)


def test_second_derivatives_of_soft_orthogonality(x64):
    kernel, step = jnp.asarray(draw((4, 3))), 1e-6
    along = jnp.asarray(draw((4, 3), 1))
    gradient = jax.jit(jax.grad(weights.soft_orthogonality))
    _, found = jax.jvp(gradient, (kernel,), (along,))
    expected = (gradient(kernel + step * along) - gradient(kernel - step * along)) / (2 * step)
    np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-8)


def test_orthonormal_units_cost_nothing_and_their_gradient_is_finite(x64):
    kernel = jnp.eye(6)[:, :4].reshape(3, 1, 2, 4)  # exactly orthonormal: the zero vector is met
    for name, fn in FUNCTIONS.items():
        value, gradient = jax.value_and_grad(fn)(kernel)
        assert value == (2 if name == "DSO" else 0)
        np.testing.assert_array_equal(gradient, 0)


def test_power_method_grows_to_the_largest_singular_value(x64, key):
    kernel = draw((9, 7))
    largest = np.abs(np.linalg.eigvalsh(kernel.T @ kernel - np.eye(7))).max()
    found = [
        float(weights.spectral_restricted_isometry(kernel, key, num_iterations=n))
        for n in (1, 2, 8, 400)
    ]
    assert found == sorted(found)
    assert found[1] < 0.99 * largest  # two steps are a bound, not the answer
    np.testing.assert_allclose(found[-1], largest, rtol=1e-12)
    single = jnp.asarray(kernel, jnp.float32)
    found = weights.spectral_restricted_isometry(single, key, num_iterations=400)
    np.testing.assert_allclose(found, largest, rtol=1e-6)


def test_more_units_than_inputs_never_cost_less_than_one_in_the_papers_form_only(x64, key):
    kernel = jnp.eye(4, 6)  # W W' = I, but W'W - I = -1 along two directions
    paper = weights.spectral_restricted_isometry(kernel, key)
    np.testing.assert_allclose(paper, 1, rtol=1e-12)
    assert weights.spectral_restricted_isometry(kernel, key, form="code") == 0


@pytest.mark.parametrize("shape", SHAPES)
def test_retraction_is_a_step_down_soft_orthogonality(x64, shape):
    kernel, beta = draw(shape), 0.1
    W = matrix(kernel)
    moved = weights.parseval_retraction(kernel, beta=beta)
    assert moved.shape == shape
    expected = (1 + beta) * W - beta * W @ W.T @ W
    np.testing.assert_allclose(matrix(np.asarray(moved)), expected, rtol=1e-12, atol=1e-14)
    step = beta / 4 * jax.grad(weights.soft_orthogonality)(jnp.asarray(kernel))
    np.testing.assert_allclose(moved, kernel - step, rtol=1e-12, atol=1e-14)


def test_retractions_lead_to_orthonormal_units(x64):
    retract = jax.jit(lambda kernel: weights.parseval_retraction(kernel, beta=0.3))
    kernel = draw((6, 4))
    left, _, right = np.linalg.svd(kernel, full_matrices=False)
    for _ in range(150):
        kernel = retract(kernel)
    np.testing.assert_allclose(kernel, left @ right, atol=1e-12)  # the polar factor: U V' is kept


def test_the_schedule_is_the_authors(x64):
    schedule = jax.jit(decay.orthogonality_decay_schedule(7))
    for epoch in range(1, 201):  # theirs count from 1
        factor = 0 if epoch > 120 else 1e-6 if epoch > 70 else 1e-4 if epoch > 50 else 1
        factor = 1e-3 if 20 < epoch <= 50 else factor
        for step in (7 * (epoch - 1), 7 * epoch - 1):
            np.testing.assert_allclose(schedule(step), 1e-2 * factor, rtol=1e-7)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: weights.soft_orthogonality(np.ones(3)), ValueError, "kernel must be one array"),
        (lambda: weights.soft_orthogonality(np.ones((0, 3))), ValueError, "got .0, 3."),
        (lambda: weights.mutual_coherence(np.ones((2, 3), int)), TypeError, "kernel must be a flo"),
        (
            lambda: weights.double_soft_orthogonality({"a": np.ones((2, 2))}),
            ValueError,
            "kernel must be one array .* got dict",
        ),
        (
            lambda: weights.soft_orthogonality(np.full((2, 2), np.nan)),
            ValueError,
            "kernel must be finite",
        ),
        (
            lambda: weights.parseval_retraction(np.eye(2), beta=-1.0),
            ValueError,
            "beta must be finite and at least 0",
        ),
        (
            lambda: weights.spectral_restricted_isometry(np.eye(2), 0),
            TypeError,
            "key must be a PRNG key",
        ),
        (
            lambda: weights.spectral_restricted_isometry(
                np.eye(2), jax.random.key(0), num_iterations=0
            ),
            ValueError,
            "num_iterations must be at least 1, got 0",
        ),
        (
            lambda: weights.spectral_restricted_isometry(
                np.eye(2), jax.random.key(0), form="papers"
            ),
            ValueError,
            "form must be one of .* Did you mean 'paper'",
        ),
        (lambda: decay.orthogonality_decay_schedule(0), ValueError, "steps_per_epoch must be at l"),
        (
            lambda: decay.orthogonality_decay_schedule(5, epochs=(20, 20), factors=(1, 1)),
            ValueError,
            "epochs must increase and be as many as factors",
        ),
        (
            lambda: decay.orthogonality_decay_schedule(5, factors=(1, 0)),
            ValueError,
            "epochs must increase and be as many as factors",
        ),
        (
            lambda: decay.orthogonality_decay_schedule(5, init_value=-1.0),
            ValueError,
            "init_value must be finite and at least 0",
        ),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
