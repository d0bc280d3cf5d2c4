"""Products are those of the matrix, however the batch is cut and the vectors are stacked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from poster_jax.core.devices import data_mesh
from poster_jax.curvature import (
    block_operator,
    empirical_fisher_operator,
    fisher_operator,
    gauss_newton_operator,
    hessian_operator,
    matrix_operator,
    sampled_fisher_operator,
)


def _mean_square(outputs, targets):
    return jnp.mean(jnp.sum((outputs - jax.nn.one_hot(targets, 3)) ** 2, axis=-1))


OPERATORS = {
    "hessian": lambda p, **o: hessian_operator(p.loss_fn, p.params, p.batch, **o),
    "gauss_newton": lambda p, **o: gauss_newton_operator(
        p.apply_fn, _mean_square, p.params, p.batch, **o
    ),
    "fisher": lambda p, **o: fisher_operator(p.apply_fn, p.params, p.batch, **o),
    "empirical_fisher": lambda p, **o: empirical_fisher_operator(p.loss_fn, p.params, p.batch, **o),
    "sampled_fisher": lambda p, **o: sampled_fisher_operator(
        p.apply_fn, p.params, p.batch, jax.random.key(3), num_samples=2, **o
    ),
}
CUTS = [
    {"microbatch": 7},
    {"microbatch": 1000},
    {"mesh": 8},
    {"mesh": 8, "microbatch": 5},
]


@jax.jit
def _linear(op, vector):
    return op.linear_map()(vector)


def _options(cut):
    return {**cut, "mesh": data_mesh(cut["mesh"])} if "mesh" in cut else cut


def test_hessian_is_the_one_of_finite_differences(problem, tools, x64):
    exact = tools.make_problem(jnp.float64)
    reference = tools.numpy_hessian(exact)
    op = hessian_operator(exact.loss_fn, exact.params, exact.batch)
    # central differences with steps of 1e-5 are good to about 1e-9
    np.testing.assert_allclose(tools.materialise(op), reference, atol=1e-8)
    op = hessian_operator(problem.loss_fn, problem.params, problem.batch)
    np.testing.assert_allclose(tools.materialise(op), reference, atol=2e-6)


@pytest.mark.parametrize("cut", CUTS, ids=str)
@pytest.mark.parametrize("name", OPERATORS)
def test_cut_batches_and_eight_devices_change_nothing(name, cut, problem, tools):
    plain = tools.materialise(OPERATORS[name](problem))
    cut_up = tools.materialise(OPERATORS[name](problem, **_options(cut)))
    # entries of order 1, sums of 100 float32 terms
    np.testing.assert_allclose(cut_up, plain, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", OPERATORS)
def test_products_single_stacked_and_from_a_kept_linearisation_agree(name, problem):
    for options in ({}, {"microbatch": 7}):
        op = OPERATORS[name](problem, **options)
        rng = np.random.default_rng(4)
        stacked = jax.tree.map(
            lambda a, rng=rng: rng.normal(size=(3, *a.shape)).astype(a.dtype), problem.params
        )
        block = jax.tree.map(np.asarray, op.block(stacked))
        for i in range(3):
            vector = jax.tree.map(lambda a, i=i: a[i], stacked)
            for product in (op(vector), _linear(op, vector)):
                jax.tree.map(
                    lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-5, atol=2e-6),
                    block,
                    product,
                )


@pytest.mark.parametrize("name", OPERATORS)
def test_every_operator_is_symmetric(name, problem, tools):
    matrix = tools.materialise(OPERATORS[name](problem))
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-6)


def test_new_weights_of_the_same_shapes_compile_nothing(problem):
    traces = []

    def loss_fn(params, batch):
        traces.append(None)
        return problem.loss_fn(params, batch)

    quadratic = jax.jit(lambda op, v: op.linear_map()(v))
    first = hessian_operator(loss_fn, problem.params, problem.batch)
    first(problem.params), quadratic(first, problem.params)
    other = jax.tree.map(lambda a: 2 * a, problem.params)
    second = hessian_operator(loss_fn, other, problem.batch)
    before = len(traces)
    product = second(problem.params)
    quadratic(second, problem.params)
    assert len(traces) == before
    fresh = hessian_operator(problem.loss_fn, other, problem.batch)(problem.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), product, fresh)


def test_vmap_over_a_population_of_weights(problem):
    population = jax.tree.map(lambda a: np.stack([a, -a, 2 * a]), problem.params)

    def product(params):
        return hessian_operator(problem.loss_fn, params, problem.batch)(problem.params)

    together = jax.tree.map(np.asarray, jax.vmap(product)(population))
    for i in range(3):
        alone = product(jax.tree.map(lambda a, i=i: a[i], population))
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(a[i], b, atol=2e-6), together, alone
        )


def test_product_is_differentiable_through_the_weights(problem):
    """The slope of v^T H((1 + t) p) v, a third derivative of the loss, against differences."""

    def form(t):
        params = jax.tree.map(lambda a: (1 + t) * a, problem.params)
        vector = problem.params
        product = hessian_operator(problem.loss_fn, params, problem.batch)(vector)
        return sum(
            jnp.vdot(a, b)
            for a, b in zip(jax.tree.leaves(vector), jax.tree.leaves(product), strict=True)
        )

    at = jax.jit(form)
    slope = (at(0.01) - at(-0.01)) / 0.02
    np.testing.assert_allclose(jax.jit(jax.grad(form))(0.0), slope, rtol=2e-3)


@pytest.mark.parametrize("path", ["first", "second", "first/kernel", "second/bias"])
@pytest.mark.parametrize("name", ["hessian", "fisher", "empirical_fisher"])
def test_block_is_the_diagonal_block_of_the_matrix(name, path, problem, tools):
    factories = {
        "hessian": (problem.loss_fn, hessian_operator),
        "fisher": (problem.apply_fn, fisher_operator),
        "empirical_fisher": (problem.loss_fn, empirical_fisher_operator),
    }
    fn, operator = factories[name]
    op = block_operator(
        fn, problem.params, problem.batch, path=path, operator=operator, microbatch=30
    )
    rows = np.concatenate(
        [
            np.full(leaf.size, "/".join(k.key for k in keys).startswith(path))
            for keys, leaf in jax.tree_util.tree_leaves_with_path(problem.params)
        ]
    )
    whole = tools.materialise(OPERATORS[name](problem))
    assert op.dim == rows.sum()
    np.testing.assert_allclose(tools.materialise(op), whole[np.ix_(rows, rows)], atol=1e-6)


def test_restrict_takes_a_part_of_a_part(problem):
    op = hessian_operator(problem.loss_fn, problem.params, problem.batch).restrict("first")
    assert op.restrict("bias").dim == 6


def test_leaves_of_several_precisions(problem, tools):
    mixed = {
        "first": problem.params["first"],
        "second": jax.tree.map(lambda a: a.astype(jnp.bfloat16), problem.params["second"]),
    }
    op = hessian_operator(problem.loss_fn, mixed, problem.batch)
    product = op(mixed)
    assert jax.tree.map(lambda a: a.dtype, product) == jax.tree.map(lambda a: a.dtype, mixed)
    plain = hessian_operator(problem.loss_fn, problem.params, problem.batch)(problem.params)
    # bfloat16 keeps 8 bits
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a.astype(jnp.float32), b, atol=0.03),
        product,
        plain,
    )


def test_matrix_operator_multiplies(tools):
    matrix = tools.rotated(np.arange(7.0))
    op = matrix_operator(jnp.asarray(matrix, jnp.float32))
    np.testing.assert_allclose(tools.materialise(op), matrix, atol=1e-6)


BAD = [
    ({"loss_fn": None}, TypeError, "loss_fn"),
    ({"loss_fn": lambda p, b: b[0]}, ValueError, "loss_fn"),
    ({"params": {}}, ValueError, "params"),
    ({"params": {"w": jnp.arange(3)}}, TypeError, "params"),
    ({"params": {"first": {"kernel": jnp.ones((2, 2))}}}, ValueError, "params"),
    ({"batch": (jnp.ones((0, 5)), jnp.ones(0, int))}, ValueError, "batch"),
    ({"batch": (jnp.ones((4, 5)), jnp.ones(3, int))}, ValueError, "batch"),
    ({"batch": (jnp.full((4, 5), jnp.nan), jnp.ones(4, int))}, ValueError, "batch"),
    ({"microbatch": 0}, ValueError, "microbatch"),
    ({"microbatch": 2.0}, TypeError, "microbatch"),
    ({"mesh": "data"}, TypeError, "mesh"),
]


@pytest.mark.bad_input
@pytest.mark.parametrize("operator", [hessian_operator, empirical_fisher_operator])
@pytest.mark.parametrize(("change", "error", "names"), BAD)
def test_bad_input_of_operators_on_losses(operator, change, error, names, problem):
    given = {"loss_fn": problem.loss_fn, "params": problem.params, "batch": problem.batch} | change
    with pytest.raises(error, match=names):
        operator(**given)


@pytest.mark.bad_input
def test_bad_input_of_operators_on_models(problem):
    p = problem
    with pytest.raises(TypeError, match="apply_fn"):
        fisher_operator(3, p.params, p.batch)
    with pytest.raises(ValueError, match="logits"):
        fisher_operator(lambda w, x: p.apply_fn(w, x)[:, 0], p.params, p.batch)
    with pytest.raises(ValueError, match="pair"):
        fisher_operator(p.apply_fn, p.params, p.batch[0])
    with pytest.raises(ValueError, match="pair"):
        gauss_newton_operator(p.apply_fn, _mean_square, p.params, p.batch[:1])
    with pytest.raises(TypeError, match="output_loss_fn"):
        gauss_newton_operator(p.apply_fn, "mse", p.params, p.batch)
    with pytest.raises(TypeError, match="key"):
        sampled_fisher_operator(p.apply_fn, p.params, p.batch, 0)
    with pytest.raises(ValueError, match="num_samples"):
        sampled_fisher_operator(p.apply_fn, p.params, p.batch, jax.random.key(0), num_samples=0)


@pytest.mark.bad_input
def test_bad_paths_vectors_and_functions(problem):
    p = problem
    with pytest.raises(ValueError, match="first/kernel"):
        block_operator(p.loss_fn, p.params, p.batch, path="first/kernal")
    op = hessian_operator(p.loss_fn, p.params, p.batch)
    with pytest.raises(ValueError, match="vector"):
        op({"first": p.params["first"]})
    with pytest.raises(ValueError, match="vector"):
        op.block(p.params)

    class Unhashable:
        __hash__ = None

        def __call__(self, params, batch):
            return p.loss_fn(params, batch)

    with pytest.raises(TypeError, match="hashable"):
        hessian_operator(Unhashable(), p.params, p.batch)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("matrix", "error", "names"),
    [
        ([[1.0]], TypeError, "matrix"),
        (jnp.ones((2, 3)), ValueError, "square"),
        (jnp.ones((0, 0)), ValueError, "empty"),
        (jnp.eye(2, dtype=int), TypeError, "matrix"),
        (jnp.array([[0.0, 1.0], [0.0, 0.0]]), ValueError, "symmetric"),
        (jnp.full((2, 2), jnp.nan), ValueError, "finite"),
    ],
)
def test_bad_matrices(matrix, error, names):
    with pytest.raises(error, match=names):
        matrix_operator(matrix)
