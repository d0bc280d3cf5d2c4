"""What Gauss-Newton and the Fisher matrices are equal to, and what they are not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from poster_jax.curvature import (
    empirical_fisher_operator,
    fisher_operator,
    gauss_newton_operator,
    hessian_operator,
    sampled_fisher_operator,
)


def _half_square(outputs, y):
    return 0.5 * jnp.mean(jnp.sum((outputs - y) ** 2, axis=-1))


def _cross_entropy(logits, labels):
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1).mean()


@pytest.mark.parametrize("cut", [{}, {"microbatch": 7}], ids=str)
def test_equals_the_hessian_for_a_linear_network_with_squared_loss(cut, tools, x64):
    rng = np.random.default_rng(0)
    x, y = jnp.asarray(rng.normal(size=(30, 4))), jnp.asarray(rng.normal(size=(30, 3)))
    params = {"w": jnp.asarray(rng.normal(size=(4, 3))), "b": jnp.zeros(3)}

    def linear(p, x):
        return x @ p["w"] + p["b"]

    def loss(p, batch):
        return _half_square(linear(p, batch[0]), batch[1])

    ours = tools.materialise(gauss_newton_operator(linear, _half_square, params, (x, y), **cut))
    hessian = tools.materialise(hessian_operator(loss, params, (x, y)))
    np.testing.assert_allclose(ours, hessian, atol=1e-12)
    features = np.concatenate([np.ones((30, 1)), x], axis=1)
    np.testing.assert_allclose(hessian, np.kron(features.T @ features / 30, np.eye(3)), atol=1e-12)


def test_fisher_equals_gauss_newton_of_cross_entropy_and_the_sum_over_all_labels(tools, x64):
    p = tools.make_problem(jnp.float64)
    fisher = tools.materialise(fisher_operator(p.apply_fn, p.params, p.batch))
    gauss_newton = gauss_newton_operator(p.apply_fn, _cross_entropy, p.params, p.batch)
    np.testing.assert_allclose(fisher, tools.materialise(gauss_newton), atol=1e-12)
    # by definition: every label in turn, weighted by its probability, gradients by hand
    flat, x, _ = tools.as_numpy(p)
    _, _, probabilities = tools.numpy_forward(flat, x)
    total = 0
    for label in range(3):
        g = tools.numpy_example_gradients(flat, x, np.eye(3)[np.full(len(x), label)])
        total = total + (g * probabilities[:, label : label + 1]).T @ g / len(x)
    np.testing.assert_allclose(fisher, total, atol=1e-12)


def test_fisher_does_not_look_at_the_labels(problem, tools):
    x, y = problem.batch
    a = tools.materialise(fisher_operator(problem.apply_fn, problem.params, (x, y)))
    b = tools.materialise(fisher_operator(problem.apply_fn, problem.params, (x, 2 - y)))
    np.testing.assert_array_equal(a, b)


def test_empirical_fisher_is_the_second_moment_of_gradients_and_differs_from_the_fisher(tools, x64):
    p = tools.make_problem(jnp.float64)
    ours = tools.materialise(empirical_fisher_operator(p.loss_fn, p.params, p.batch))
    flat, x, onehot = tools.as_numpy(p)
    g = tools.numpy_example_gradients(flat, x, onehot)
    np.testing.assert_allclose(ours, g.T @ g / len(x), atol=1e-12)
    fisher = tools.materialise(fisher_operator(p.apply_fn, p.params, p.batch))
    assert np.abs(ours - fisher).max() > 0.1 * np.abs(fisher).max()


def test_sampled_fisher_is_unbiased(problem, tools):
    fisher = tools.materialise(fisher_operator(problem.apply_fn, problem.params, problem.batch))
    trace = np.trace(fisher)
    draws = np.array(
        [
            np.trace(
                tools.materialise(
                    sampled_fisher_operator(
                        problem.apply_fn, problem.params, problem.batch, jax.random.key(i)
                    )
                )
            )
            for i in range(40)
        ]
    )
    assert abs(draws.mean() - trace) < 4 * draws.std(ddof=1) / np.sqrt(len(draws))
    many = sampled_fisher_operator(
        problem.apply_fn, problem.params, problem.batch, jax.random.key(0), num_samples=400
    )
    # 40,000 draws: entries of order 1 are known to a few parts in a thousand
    np.testing.assert_allclose(tools.materialise(many), fisher, atol=0.02)


def test_positive_semi_definite_where_the_hessian_is_not(problem, tools):
    hessian = tools.materialise(hessian_operator(problem.loss_fn, problem.params, problem.batch))
    fisher = tools.materialise(fisher_operator(problem.apply_fn, problem.params, problem.batch))
    assert np.linalg.eigvalsh(hessian).min() < -1e-2
    assert np.linalg.eigvalsh(fisher).min() > -1e-6
