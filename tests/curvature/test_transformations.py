"""Every question under jit, vmap, float64, microbatches and eight devices: one table of all."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from poster_jax.core.devices import data_mesh, shard_population
from poster_jax.curvature import (
    diagonal,
    frobenius_norm,
    hessian_operator,
    hutchpp_trace,
    spectral_density,
    top_eigenpairs,
    trace,
    xtrace,
)

QUESTIONS = {
    "trace": lambda op, key: trace(op, key, num_probes=6),
    "hutchpp_trace": lambda op, key: hutchpp_trace(op, key, num_probes=12),
    "xtrace": lambda op, key: xtrace(op, key, num_probes=6),
    "diagonal": lambda op, key: diagonal(op, key, num_probes=3),
    "frobenius_norm": lambda op, key: frobenius_norm(op, key, num_probes=4),
    "top_eigenpairs": lambda op, key: top_eigenpairs(op, key, k=3, tol=1e-5)._replace(
        vectors=0, residuals=0, num_products=0
    ),
    "spectral_density": lambda op, key: _moments(
        spectral_density(op, key, num_lanczos=5, num_probes=2)
    ),
}


def _moments(density):
    # Nodes with little weight are sensitive to rounding, the moments are not.
    powers = jnp.arange(4)[:, None, None]
    return (density.weights * density.nodes**powers).sum(-1)


QUICK = ("trace", "xtrace", "top_eigenpairs", "spectral_density")


@pytest.fixture(
    params=[q if q in QUICK else pytest.param(q, marks=pytest.mark.slow) for q in QUESTIONS]
)
def question(request):
    return QUESTIONS[request.param]


@functools.cache
def _asker(question, loss_fn):
    """The question about weights and data, and its one program for all the tests."""

    def ask(params, batch, key, **options):
        return question(hessian_operator(loss_fn, params, batch, **options), key)

    return ask, jax.jit(ask)


def _assert_close(ours, expected, tolerance=2e-5):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            np.asarray(a, float), np.asarray(b, float), rtol=tolerance, atol=tolerance
        ),
        ours,
        expected,
    )


def test_jit_and_microbatches_and_eight_devices(question, problem, key):
    p = problem
    plain = question(hessian_operator(p.loss_fn, p.params, p.batch), key)
    ask, program = _asker(question, p.loss_fn)
    _assert_close(program(p.params, p.batch, key), plain)
    for options in ({"microbatch": 7}, {"mesh": data_mesh(8), "microbatch": 5}):
        cut = jax.jit(functools.partial(ask, **options))
        _assert_close(cut(p.params, p.batch, key), plain)


def test_vmap_over_a_population_on_one_device_and_on_eight(question, problem, key):
    scales = jnp.linspace(0.5, 1.5, 8)
    population = jax.vmap(lambda c: jax.tree.map(lambda a: c * a, problem.params))(scales)
    ask, program = _asker(question, problem.loss_fn)
    together = jax.jit(jax.vmap(lambda params: ask(params, problem.batch, key)))
    ours = together(population)
    for i in (0, 7):
        one = jax.tree.map(lambda a, i=i: np.asarray(a)[i], population)
        alone = program(one, problem.batch, key)
        _assert_close(jax.tree.map(lambda a, i=i: np.asarray(a)[i], ours), alone)
    spread = together(shard_population(population, data_mesh(8)))
    _assert_close(spread, ours)


def test_vmap_over_keys(question, problem):
    ask, program = _asker(question, problem.loss_fn)
    params, batch = problem.params, problem.batch
    keys = jax.random.split(jax.random.key(5), 3)
    ours = jax.jit(jax.vmap(lambda key: ask(params, batch, key)))(keys)
    alone = program(params, batch, keys[1])
    _assert_close(jax.tree.map(lambda a: np.asarray(a)[1], ours), alone)


def test_float64_agrees_with_float32_and_returns_float64(question, problem, tools, key):
    _, program = _asker(question, problem.loss_fn)
    single = program(problem.params, problem.batch, key)
    exact = tools.make_problem(jnp.float32)
    with jax.enable_x64(True):
        params = jax.tree.map(lambda a: jnp.asarray(np.asarray(a, np.float64)), exact.params)
        batch = jnp.asarray(np.asarray(exact.batch[0], np.float64)), exact.batch[1]
        double = program(params, batch, key)
        leaves = [a for a in jax.tree.leaves(double) if hasattr(a, "dtype")]
        floating = [a for a in leaves if jnp.issubdtype(a.dtype, jnp.floating)]
        assert all(a.dtype == jnp.float64 for a in floating)
        if isinstance(double, jax.Array) or "num_samples" in getattr(double, "_fields", ()):
            return  # other random numbers in double precision
        _assert_close(double, single, 1e-4)
