"""Empirical kernels against neural-tangents 0.6.5, explicit Jacobians, and each other.

Calls are mostly inside one jax.jit, which compiles once what eager calls compile in dozens.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from poster_jax.kernels import empirical
from poster_jax.kernels.empirical.graph import trace
from poster_jax.kernels.empirical.uses import find_uses

pytestmark = pytest.mark.usefixtures("x64")
CONV = ("NHWC", "HWIO", "NHWC")
WAYS = list(empirical.NtkImplementation)


def dense(params, x):
    w, b, v = params
    return jnp.tanh(x @ w / w.shape[0] ** 0.5 + 0.3 * b) @ v


def convolution(params, x):
    w, b, v = params
    y = jax.lax.conv_general_dilated(x, w, (2, 1), "SAME", dimension_numbers=CONV)
    return jax.nn.relu(y + b).mean((1, 2)) @ v


def sequence(params, x):
    w, b, v = params
    return jax.nn.gelu(x @ w + b) @ v


def branches(params, x):
    a = jnp.tanh(x["a"] @ params[0] + params[1])
    b = x["b"] @ params[2]
    return {"sum": a + b, "pair": (a * b, b.sum(-1))}


def noisy(params, x, rng=None, pattern=None):
    w, b, v = params
    y = jnp.tanh(x @ w + b) * jax.random.bernoulli(rng, 0.7, (x.shape[0], w.shape[1]))
    return (y * pattern) @ v


NETWORKS = {"dense": dense, "convolution": convolution, "sequence": sequence}
AXES = {
    "default": ((-1,), (), None),
    "full": ((), (), 0),
    "diagonal": ((), (-1,), 0),
    "middle": ((1,), (), 0),
}
FIRST_AXES = [
    name if name in ("default", "full") else pytest.param(name, marks=pytest.mark.slow)
    for name in AXES
]


@pytest.fixture(scope="module")
def drawn(figures):
    return figures("empirical")


def given(figures, case):
    data = {k.split("/")[1]: v for k, v in figures.items() if k.startswith(f"{case}/")}
    params = tuple(jnp.asarray(data[f"w{i}"]) for i in range(3))
    return data, params


def assert_same(ours, figures, name):
    leaves = jax.tree.leaves(ours)
    assert f"{name}/{len(leaves)}" not in figures
    for i, leaf in enumerate(leaves):
        theirs = figures[f"{name}/{i}"]
        assert leaf.shape == theirs.shape, name
        np.testing.assert_allclose(leaf, theirs, rtol=1e-9, atol=1e-10, err_msg=name)


@pytest.mark.parametrize("case", NETWORKS)
@pytest.mark.parametrize("axes", FIRST_AXES)
@pytest.mark.parametrize("way", WAYS)
def test_kernels_are_those_of_neural_tangents(drawn, case, axes, way):
    data, params = given(drawn, case)
    fn = empirical.empirical_kernel_fn(NETWORKS[case], *AXES[axes], way)
    tag = f"{case}/{axes}/{1 if way in (1, 3) else 2}"
    both = jax.jit(lambda x, y: (fn(x, None, None, params), fn(x, y, ("ntk", "nngp"), params)))
    own, cross = both(data["x1"], data["x2"])
    assert_same(own, drawn, f"{tag}/own")
    assert own._fields == ("nngp", "ntk")
    assert_same(cross, drawn, f"{tag}/cross")
    assert cross._fields == ("ntk", "nngp")


@pytest.mark.parametrize("case", NETWORKS)
def test_variances_and_products_are_those_of_neural_tangents(drawn, case):
    data, params = given(drawn, case)
    f = NETWORKS[case]
    fn = empirical.empirical_kernel_fn(f, (), (0,), None)

    def variances_and_product(x1, x2, params):
        product = empirical.empirical_ntk_vp_fn(f, x1, x2, params)
        return fn(x1, None, None, params), product(f(params, x2))

    if case != "dense":  # which is called as users do, outside of jit
        variances_and_product = jax.jit(variances_and_product)
    variances, product = variances_and_product(data["x1"], data["x2"], params)
    assert_same(variances, drawn, f"{case}/variances")
    assert_same(product, drawn, f"{case}/product")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("vmap_axes", [None, 0])
def test_trees_of_inputs_and_outputs_are_those_of_neural_tangents(drawn, way, vmap_axes):
    data, params = given(drawn, "branches")
    x1, x2 = ({k: data[f"x{i}{k}"] for k in "ab"} for i in (1, 2))
    ntk_fn = empirical.empirical_ntk_fn(branches, (), (), vmap_axes, way)
    nngp_fn = empirical.empirical_nngp_fn(branches, (), ())
    both_fn = empirical.empirical_kernel_fn(branches, (), (), vmap_axes, way)

    @jax.jit
    def every(x1, x2):
        return ntk_fn(x1, x2, params), nngp_fn(x1, x2, params), both_fn(x1, x2, None, params)

    ours, nngp, both = every(x1, x2)
    assert set(ours) == {"sum", "pair"}
    assert_same(ours, drawn, f"branches/{vmap_axes}/ntk")
    assert_same(nngp, drawn, "branches/nngp")
    np.testing.assert_allclose(both["pair"][1].ntk, ours["pair"][1])


def test_keywords_and_keys_are_split_as_by_neural_tangents(drawn):
    data, params = given(drawn, "noisy")
    fn = empirical.empirical_kernel_fn(noisy, ())
    key, p1 = jax.random.PRNGKey(3), data["p1"]
    x1, x2 = data["x1"], data["x2"]
    cross = fn(x1, x2, None, params, rng=key, pattern=(p1, data["p2"]))
    assert_same(cross, drawn, "noisy/cross")

    @jax.jit
    def same_and_own(key):
        kwargs = {"rng": key, "pattern": (p1, p1)}
        return fn(x1, x1, None, params, **kwargs), fn(x1, None, None, params, **kwargs)

    same, own = same_and_own(key)
    assert_same(same, drawn, "noisy/same")
    assert_same(own, drawn, "noisy/own")


class Modern(nn.Module):
    """Every structure that is taken apart: strides, groups, dilation, attention, sharing, norms."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), strides=(2, 1), padding="SAME")(x))
        x = nn.Conv(6, (2, 3), feature_group_count=2, kernel_dilation=(1, 2))(x)
        x = nn.gelu(nn.LayerNorm()(x))
        x = nn.ConvTranspose(3, (2, 2), strides=(2, 1))(x)
        x = nn.Dense(4)(x).reshape(x.shape[0], -1, 4)
        x = nn.MultiHeadDotProductAttention(2)(x).mean(1)
        shared = nn.Dense(4)
        x = shared(nn.tanh(shared(x)))
        x = x @ self.param("moved", nn.initializers.normal(), (5, 4)).T * 0.7
        return nn.Dense(2, use_bias=False)(x), nn.Dense(2)(x)


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


@functools.cache
def modern():
    model, x = Modern(), normal(3, 5, 4, 2)
    params = jax.jit(model.init)(jax.random.key(1), x)
    rng = np.random.default_rng(2)
    params = jax.tree.map(lambda p: jnp.asarray(p + 0.1 * rng.normal(size=p.shape)), params)
    return model.apply, params, x


@functools.partial(jax.jit, static_argnums=0)
def jacobian(f, params, x):
    n = jax.eval_shape(f, params, x).shape
    leaves = jax.tree.leaves(jax.jacrev(f)(params, x))
    return jnp.concatenate([leaf.reshape(*n, -1) for leaf in leaves], -1)


def explicit(f, params, x1, x2):
    """The kernel as the product of two Jacobians, by einsum."""
    whole = np.asarray(jacobian(f, params, np.concatenate([x1, x2])))
    return np.einsum("nop,mqp->nmoq", whole[: len(x1)], whole[len(x1) :])


def test_all_ways_are_the_product_of_explicit_jacobians():
    f, params, x = modern()
    first = lambda p, x: f(p, x)[0]  # noqa: E731
    expected = explicit(first, params, x, x[:2] + 1)
    for way, vmap_axes in ((1, 0), (2, 0), (3, 0), (3, None)):
        fn = empirical.empirical_ntk_fn(f, (), (), vmap_axes, way)
        ntk = jax.jit(lambda a, b: fn(a, b, params)[0])(x, x[:2] + 1)  # noqa: B023
        scale = np.abs(expected).max()
        np.testing.assert_allclose(ntk, expected, atol=1e-13 * scale, err_msg=str(way))


def test_weights_and_biases_of_a_modern_network_factorise():
    f, params, x = modern()
    leaves, treedef = jax.tree.flatten(params)

    def flat(leaves, example):
        return jax.tree.leaves(f(jax.tree.unflatten(treedef, leaves), example[0]))

    uses = find_uses(trace(flat, leaves, [x[:1]]))
    names = [jax.tree_util.keystr(k) for k, _ in jax.tree_util.tree_leaves_with_path(params)]
    whole = [name for i, name in enumerate(names) if i not in uses]
    # Norms scale entry by entry; the bias of a layer used twice cannot ride on one product.
    assert whole == [
        "['params']['Dense_1']['bias']",
        "['params']['LayerNorm_0']['bias']",
        "['params']['LayerNorm_0']['scale']",
    ]


ODD = {
    "weight norm": lambda p, x: x @ (p / jnp.linalg.norm(p)),
    "weights times weights": lambda p, x: x @ (p @ p.T),
    "scan": lambda p, x: jax.lax.scan(lambda h, _: (jnp.tanh(h @ p[:, :3]), None), x, None, 3)[0],
    "checkpoint": lambda p, x: jax.checkpoint(lambda a: jnp.tanh(a @ p))(x),
    "two layouts": lambda p, x: x @ p + x[:, ::-1] @ p[::-1],
    "scalar scale": lambda p, x: (x @ (2 * p)) * x.mean(-1, keepdims=True),
    "output": lambda p, x: x @ p + p[:1],
    "weight on the left": lambda p, x: (p.T @ x.T).T,
    "embedding": lambda p, x: p[jnp.argmax(x, -1)],
    "no dependence": lambda p, x: x,
    "both operands": lambda p, x: x @ jnp.einsum("ij,kj->ik", p, p),
    "batch of weights": lambda p, x: jnp.einsum("nk,kj->kn", x, p).T,
    "batched weights": lambda p, x: jnp.einsum("nk,kj->nkj", x, p).sum(-1),
    "custom derivative": lambda p, x: jax.nn.relu(x @ jax.nn.relu(p)),
    "mixed precision": lambda p, x: x @ p.astype(jnp.float32).astype(jnp.float64),
    "integer leaf": lambda p, x: x @ p + jnp.arange(4),
    "transposed convolution": lambda p, x: jax.lax.conv_transpose(
        x[:, None, :, None], p[None, :, None, :], (1, 2), "SAME"
    ).sum((1, 2)),
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("vmap_axes", [None, 0])
def test_odd_structures_fall_back_to_the_right_kernel(name, vmap_axes):
    f = ODD[name]
    p = normal(3, 4 if name != "both operands" else 3)
    x1, x2 = np.random.default_rng(1).normal(size=(2, 2, 3))
    fn = empirical.empirical_ntk_fn(f, (), (), vmap_axes, 3)
    expected = explicit(f, p, x1, x2)
    # The cast to float32 rounds the derivative.
    tolerance = 1e-6 if name == "mixed precision" else 1e-12
    fn = fn if name == "weight norm" else jax.jit(fn)
    np.testing.assert_allclose(fn(x1, x2, p), expected, atol=tolerance)


def test_examples_may_lie_along_other_axes():
    w, x = normal(4, 3), normal(4, 5, seed=1)  # examples last
    f = lambda w, x, shift: (jnp.tanh(w.T @ x + shift), (x.T @ w) + shift.T)  # noqa: E731
    shift = (jnp.ones((1, 5)), jnp.ones((1, 5)))
    for way in WAYS:
        plain_fn, cut_fn = (
            empirical.empirical_ntk_fn(f, (), (), axes, way)
            for axes in (None, (-1, (1, 0), {"shift": -1}))
        )
        plain, cut = jax.jit(
            lambda x, **kwargs: (plain_fn(x, None, w, **kwargs), cut_fn(x, None, w, **kwargs))  # noqa: B023
        )(x, shift=shift)
        assert [k.shape for k in plain] == [(3, 3, 5, 5), (5, 5, 3, 3)]
        for a, b in zip(plain, cut, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-12)


def test_kernel_of_linear_training_is_the_one_that_predict_takes():
    from poster_jax.kernels import predict
    from poster_jax.kernels.linearize import linearize

    w = (0.5 * normal(3, 6), jnp.zeros(6), jnp.full((6, 2), 1 / 3))
    x, y = normal(4, 3, seed=1), np.sin(np.arange(8.0)).reshape(4, 2)
    f = linearize(dense, w)
    ntk_fn = empirical.empirical_ntk_fn(dense, ())
    step = 1e-3
    slope = jax.grad(lambda p: 0.5 * jnp.mean((f(p, x) - y) ** 2))

    def midpoint(_, params):  # whose error is of the order of step^2
        half = jax.tree.map(lambda p, g: p - 0.5 * step * g, params, slope(params))
        return jax.tree.map(lambda p, g: p - step * g, params, slope(half))

    @jax.jit
    def trained_and_predicted(w):
        predict_fn = predict.gradient_descent_mse(ntk_fn(x, None, w), y, trace_axes=())
        trained = f(jax.lax.fori_loop(0, 500, midpoint, w), x)
        return trained, predict_fn(500 * step, dense(w, x))

    np.testing.assert_allclose(*trained_and_predicted(w), atol=1e-7)


def test_kernels_differentiate_and_batch_over_parameters():
    w = (jnp.ones((3, 4)), jnp.zeros(4), jnp.ones((4, 2)))
    x, step = normal(2, 3), 1e-5
    for way in WAYS[2:]:
        fn = empirical.empirical_ntk_fn(dense, (), (), 0, way)

        @jax.jit
        def slopes_and_population(x):
            total = lambda x: fn(x, None, w).sum()  # noqa: B023, E731
            numeric = (total(x + step) - total(x - step)) / (2 * step)
            seeds = jax.tree.map(lambda p: jnp.stack([p, 2 * p]), w)
            population = jax.vmap(lambda p: fn(x, None, p))(seeds)  # noqa: B023
            return jax.grad(total)(x).sum(), numeric, population[0], fn(x, None, w)  # noqa: B023

        slope, numeric, first, alone = slopes_and_population(x)
        np.testing.assert_allclose(slope, numeric, rtol=1e-7)
        np.testing.assert_allclose(first, alone, rtol=1e-10)


X, W = np.ones((3, 2)), np.ones((2, 4))


def linear(p, x):
    return x @ p


BAD = {
    "implementation must be 0, 1, 2 or 3": lambda: empirical.empirical_ntk_fn(
        linear, implementation=4
    ),
    "trace_axes must lie": lambda: empirical.empirical_ntk_fn(linear, (2,))(X, None, W),
    "must not share an axis": lambda: empirical.empirical_ntk_fn(linear, (1,), (1,))(X, None, W),
    "must agree along": lambda: empirical.empirical_nngp_fn(linear, (0,))(X, X[:2], W),
    "vmap_axes must lie": lambda: empirical.empirical_ntk_fn(linear, vmap_axes=3)(X, None, W),
    "vmap_axes must name given keywords": lambda: empirical.empirical_ntk_fn(
        linear, vmap_axes=(0, 0, {"q": 0})
    )(X, None, W),
    "an axis of every output": lambda: empirical.empirical_ntk_fn(linear, vmap_axes=(0, None, {}))(
        X, None, W
    ),
    "x1 must be finite": lambda: empirical.empirical_ntk_fn(linear)(X * np.nan, None, W),
    "params must be finite": lambda: empirical.empirical_ntk_fn(linear)(X, None, W * np.inf),
    "get must name 'nngp' or 'ntk'": lambda: empirical.empirical_kernel_fn(linear)(
        X, None, "nnkg", W
    ),
    "cotangents must have the shape": lambda: empirical.empirical_ntk_vp_fn(linear, X, None, W)(X),
}


@pytest.mark.bad_input
@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_refused_in_one_sentence(message):
    with pytest.raises(ValueError, match=message):
        BAD[message]()
