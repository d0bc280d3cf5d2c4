"""The solver against LAPACK: clusters, copies, both ends, low rank, restarts; true residuals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from poster_jax.curvature import hessian_operator, matrix_operator, top_eigenpairs

RNG = np.random.default_rng(7)
DIM = 120  # of all, so that one program serves them
SPECTRA = {
    "one to 120": np.arange(1.0, DIM + 1),
    "four and three copies": np.array([5.0] * 4 + [3.0] * 3 + [*np.linspace(0, 1, DIM - 7)]),
    "all the same": np.ones(DIM),
    "zero": np.zeros(DIM),
    "rank three": np.array([3.0, 2, 2] + [0.0] * (DIM - 3)),
    "indefinite": np.linspace(-10, 9, DIM),
    "cluster": np.concatenate([10 + 1e-3 * np.arange(5), RNG.normal(size=DIM - 5)]),
    "outliers and bulk": np.concatenate(
        [10 * 0.7 ** np.arange(9), 0.01 * RNG.normal(size=DIM - 9)]
    ),
    "negative": -np.arange(1.0, DIM + 1),
    "tiny": 1e-12 * np.arange(1.0, DIM + 1),
    "huge": 1e12 * np.arange(1.0, DIM + 1),
    "three": np.array([3.0, -1, 2]),
    "one": np.array([-4.0]),
}
WHICH = ["largest", "smallest", "both", "magnitude"]


def _wanted(eigenvalues, k, which):
    up = np.sort(eigenvalues)
    if which == "largest":
        return up[::-1][:k]
    if which == "smallest":
        return up[:k]
    if which == "both":
        return np.concatenate([up[::-1][: (k + 1) // 2], up[: k // 2][::-1]])
    return up[np.argsort(-np.abs(up), kind="stable")][:k]


@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n == "one" else ()) for n in SPECTRA]
)
def test_finds_what_lapack_finds(name, which, tools, key):
    spectrum = SPECTRA[name]
    k = min(6, len(spectrum))
    matrix = tools.rotated(spectrum)
    # LAPACK in double precision of the very matrix that the operator holds
    stored = jnp.asarray(matrix, jnp.float32)
    exact = np.linalg.eigvalsh(np.asarray(stored, np.float64))
    scale = np.abs(exact).max()
    pairs = top_eigenpairs(matrix_operator(stored), key, k=k, which=which)
    values, expected = np.asarray(pairs.values, np.float64), _wanted(exact, k, which)
    if which == "magnitude":
        values, expected = np.abs(values), np.abs(expected)
    assert pairs.converged.all()
    # The theorem: an eigenvalue lies within the residual. Where the gaps are wider than residuals
    # (everywhere but in the bulk, 1e-4 of the norm wide) the error is its square over the gap.
    rounding = 3e-6 * scale
    bulk = name == "outliers and bulk" and which != "largest"
    allowed = np.asarray(pairs.residuals) + rounding if bulk else rounding
    assert (np.abs(values - expected) <= allowed).all()
    vectors = np.asarray(pairs.vectors, np.float64)
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(k), atol=5e-6)
    true = vectors @ np.asarray(stored, np.float64) - np.asarray(pairs.values)[:, None] * vectors
    np.testing.assert_allclose(
        pairs.residuals, np.linalg.norm(true, axis=1), rtol=0.02, atol=2e-6 * scale
    )
    assert (np.asarray(pairs.residuals) <= 1.01e-4 * scale).all()


def test_diagonal_matrix_in_double_precision_to_rounding(x64, key):
    op = matrix_operator(jnp.diag(jnp.arange(1.0, 201)))
    pairs = top_eigenpairs(op, key, k=5, tol=1e-12, max_iters=2000)
    assert pairs.converged.all()
    np.testing.assert_allclose(pairs.values, [200, 199, 198, 197, 196], rtol=1e-12)
    assert pairs.values.dtype == jnp.float64


def test_copies_are_found_in_double_precision_too(x64, key, tools):
    """Without rounding errors to help, a single Krylov space never finds a second copy."""
    spectrum = np.concatenate([[7.0] * 5, [4.0] * 2, np.linspace(-1, 1, 193)])
    op = matrix_operator(jnp.asarray(tools.rotated(spectrum)))
    pairs = top_eigenpairs(op, key, k=8, tol=1e-9, max_iters=2000)
    np.testing.assert_allclose(pairs.values, [7, 7, 7, 7, 7, 4, 4, 1], atol=1e-8)


def test_restarts_in_a_small_basis(key, tools):
    matrix = tools.rotated(np.linspace(0, 1, 300) ** 2)
    op = matrix_operator(jnp.asarray(matrix, jnp.float32))
    pairs = top_eigenpairs(op, key, k=4, basis_size=14, max_iters=2000)
    assert pairs.converged.all()
    assert pairs.num_products > 14
    np.testing.assert_allclose(pairs.values, np.linalg.eigvalsh(matrix)[::-1][:4], atol=1e-5)


def test_an_isolated_spectrum_takes_few_products(key, tools):
    """Power iteration with deflation spends some twenty on each eigenvalue."""
    spectrum = np.concatenate([10 * 0.8 ** np.arange(10), 0.01 * RNG.normal(size=490)])
    op = matrix_operator(jnp.asarray(tools.rotated(spectrum), jnp.float32))
    pairs = top_eigenpairs(op, key, k=10)
    assert pairs.converged.all()
    assert pairs.num_products <= 30


def test_a_search_that_is_cut_short_says_so(key, tools):
    op = matrix_operator(jnp.asarray(tools.rotated(np.linspace(0, 1, 300)), jnp.float32))
    pairs = top_eigenpairs(op, key, k=4, max_iters=12)
    assert pairs.num_products == 12
    assert not pairs.converged.all()
    assert (np.asarray(pairs.residuals)[~np.asarray(pairs.converged)] > 1e-4).all()


def test_nan_ends_the_search_and_has_not_converged(key):
    def loss(w, x):
        return jnp.mean(x) * jnp.sum(jnp.sqrt(w) ** 3)

    op = hessian_operator(loss, -jnp.ones(50), jnp.ones(3))
    pairs = top_eigenpairs(op, key, k=3)
    assert not pairs.converged.any()
    assert np.isnan(pairs.values).all()
    assert pairs.num_products == 1


@pytest.mark.parametrize("which", WHICH)
def test_hessian_of_a_network(which, problem, tools, key):
    op = hessian_operator(problem.loss_fn, problem.params, problem.batch)
    exact = np.linalg.eigvalsh(tools.numpy_hessian(problem))
    pairs = top_eigenpairs(op, key, k=5, which=which)
    np.testing.assert_allclose(pairs.values, _wanted(exact, 5, which), atol=1e-5)
    assert jax.tree.map(jnp.shape, pairs.vectors) == jax.tree.map(
        lambda a: (5, *a.shape), problem.params
    )
    products = op.block(pairs.vectors)
    squares = jax.tree.map(
        lambda h, v: (
            ((h - jnp.expand_dims(pairs.values, tuple(range(1, h.ndim))) * v) ** 2)
            .reshape(5, -1)
            .sum(1)
        ),
        products,
        pairs.vectors,
    )
    true = np.sqrt(sum(jax.tree.leaves(squares)))
    np.testing.assert_allclose(pairs.residuals, true, rtol=0.02, atol=2e-6)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("change", "error", "names"),
    [
        ({"op": lambda v: v}, TypeError, "op"),
        ({"key": 0}, TypeError, "key"),
        ({"k": 0}, ValueError, "k must"),
        ({"k": 11}, ValueError, "dimension of the operator, 10"),
        ({"k": 1.0}, TypeError, "k must"),
        ({"which": "larges"}, ValueError, "largest"),
        ({"tol": 0.0}, ValueError, "tol"),
        ({"tol": float("nan")}, ValueError, "tol"),
        ({"max_iters": 0}, ValueError, "max_iters"),
        ({"basis_size": 3}, ValueError, "basis_size"),
    ],
)
def test_bad_input(change, error, names, key):
    given = {"op": matrix_operator(jnp.eye(10)), "key": key, "k": 2} | change
    with pytest.raises(error, match=names):
        top_eigenpairs(given.pop("op"), given.pop("key"), **given)
