"""Figures of PyHessian and curvlinops for the same weights (tests/oracles/make_curvature.py)."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from poster_jax.core.losses import softmax_cross_entropy
from poster_jax.curvature import (
    empirical_fisher_operator,
    gauss_newton_operator,
    hessian_operator,
    top_eigenpairs,
    trace,
    xtrace,
)

FIGURES = np.load(pathlib.Path(__file__).parents[1] / "oracles" / "curvature.npz")


def _apply(params, x):
    for i, layer in enumerate(params):
        x = x @ layer["kernel"] + layer["bias"]
        x = x if i == len(params) - 1 else jnp.tanh(x)
    return x


def _loss(params, batch):
    return softmax_cross_entropy(_apply(params, batch[0]), batch[1])


def _operator(name):
    params = [
        {"kernel": jnp.asarray(FIGURES[f"kernel_{i}"]), "bias": jnp.asarray(FIGURES[f"bias_{i}"])}
        for i in range(3)
    ]
    batch = jnp.asarray(FIGURES["x"]), jnp.asarray(FIGURES["y"])
    if name == "gauss_newton":
        return gauss_newton_operator(_apply, softmax_cross_entropy, params, batch)
    make = {"hessian": hessian_operator, "empirical_fisher": empirical_fisher_operator}[name]
    return make(_loss, params, batch)


OPERATORS = ["hessian", "gauss_newton", "empirical_fisher"]


@pytest.mark.parametrize("name", OPERATORS)
def test_products_equal_those_of_curvlinops(name):
    op = _operator(name)
    leaves, treedef = jax.tree.flatten(op.like)
    parts = np.split(FIGURES["vector"], np.cumsum([leaf.size for leaf in leaves])[:-1])
    vector = jax.tree.unflatten(
        treedef,
        [jnp.asarray(p.reshape(a.shape), jnp.float32) for p, a in zip(parts, leaves, strict=True)],
    )
    product = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(op(vector))])
    # two float32 programs; entries of order 1
    np.testing.assert_allclose(product, FIGURES[f"{name}_product"], atol=5e-6)


@pytest.mark.parametrize("name", OPERATORS)
def test_top_eigenvalues_equal_those_of_the_peers(name, key):
    values = top_eigenpairs(_operator(name), key, k=5).values
    np.testing.assert_allclose(values, FIGURES[f"{name}_top"], rtol=1e-4)
    if name == "hessian":
        # power iteration there stops on the change of the value
        np.testing.assert_allclose(values, FIGURES["pyhessian_top"], rtol=1e-3)


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("estimator", [trace, xtrace])
def test_traces_are_within_three_standard_errors(name, estimator, key):
    estimate = estimator(_operator(name), key, num_probes=50)
    # Fifty vectors span the whole range of the empirical Fisher: what is left there is float32
    # (3e-7 here, 8e-8 of the stored figure), which no spread over probes shows.
    rounding = 1e-6 * FIGURES[f"{name}_trace"]
    assert abs(estimate.mean - FIGURES[f"{name}_trace"]) < 3 * estimate.stderr + rounding
    assert estimate.stderr < 0.2 * FIGURES[f"{name}_trace"]


def test_trace_is_within_three_standard_errors_of_pyhessians(key):
    estimate = trace(_operator("hessian"), key, num_probes=2000, block_size=100)
    error = np.hypot(estimate.stderr, FIGURES["pyhessian_trace_stderr"])
    assert abs(estimate.mean - FIGURES["pyhessian_trace"]) < 3 * error
