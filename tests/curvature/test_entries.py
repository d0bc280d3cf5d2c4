"""The diagonal: unbiased entry by entry, standard errors right, shaped like the parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from poster_jax.curvature import diagonal, hessian_operator, matrix_operator


@pytest.mark.parametrize("probe", ["rademacher", "gaussian", "sphere"])
def test_unbiased_with_the_right_standard_error(probe, tools):
    matrix = tools.rotated(np.arange(-5.0, 15))
    op = matrix_operator(jnp.asarray(matrix, jnp.float32))
    estimate = diagonal(op, jax.random.key(0), num_probes=4000, probe=probe, block_size=300)
    z = (np.asarray(estimate.mean) - np.diag(matrix)) / np.asarray(estimate.stderr)
    assert np.abs(z).max() < 4.5  # of 20 normal draws
    assert 0.5 < z.std() < 1.6


def test_variance_with_signs_is_the_off_diagonal_row(tools):
    matrix = tools.rotated(np.arange(-5.0, 15))
    op = matrix_operator(jnp.asarray(matrix, jnp.float32))
    estimate = diagonal(op, jax.random.key(0), num_probes=8000, block_size=500)
    row = (matrix**2).sum(axis=1) - np.diag(matrix) ** 2
    np.testing.assert_allclose(estimate.stderr**2 * 8000, row, rtol=0.1)


def test_diagonal_of_a_network_is_a_pytree_of_its_parameters(problem, tools):
    op = hessian_operator(problem.loss_fn, problem.params, problem.batch, microbatch=30)
    estimate = diagonal(op, jax.random.key(0), num_probes=2000, block_size=100)
    assert jax.tree.map(jnp.shape, estimate.mean) == jax.tree.map(jnp.shape, problem.params)
    mean, stderr = (
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
        for tree in (estimate.mean, estimate.stderr)
    )
    exact = np.diag(tools.numpy_hessian(problem))
    assert np.abs((mean - exact) / stderr).max() < 5


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("change", "error", "names"),
    [
        ({"op": None}, TypeError, "op"),
        ({"num_probes": 0}, ValueError, "num_probes"),
        ({"block_size": -1}, ValueError, "block_size"),
        ({"probe": "signs"}, ValueError, "probe"),
    ],
)
def test_bad_input(change, error, names, key):
    given = {"op": matrix_operator(jnp.eye(10)), "key": key, "num_probes": 4} | change
    with pytest.raises(error, match=names):
        diagonal(given.pop("op"), given.pop("key"), **given)
