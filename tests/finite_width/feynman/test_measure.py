"""Monte Carlo: contractions against derivative tensors, means against exact polynomials."""

import functools
import itertools

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from poster_jax.core import models
from poster_jax.finite_width import feynman
from poster_jax.finite_width.feynman import correlator

SPECS = [
    "f(a) f(b)",
    "df(a).df(b)",
    "f(a) df(b).ddf(a).df(c)",
    "df(a).ddf(b).ddf(c).df(a)",
    "dddf(a; df(b), df(c), df(a))",
    "ddddf(a; df(b), df(c), df(a), df(b).ddf(c))",
    "ddf(a):ddf(b)",
    "ddf(a).ddf(b).ddf(c)",
    "dddf[i,j,k](a) dddf[i,j,k](b)",
    "df(a).dddf[j,k](b) ddf[j,k](c) f(a)",
    "(ddf(a):ddf(b))^2",
]


SMALL = feynman.deep_network(jnp.tanh, depth=2, input_dim=2)


def draw_small(key, width):
    """Drawn in float64: float32's draws differ in the last digit between compilations."""
    shapes = [(2, width), (width, width), (width,)]
    return [jax.random.normal(jax.random.fold_in(key, k), s) for k, s in enumerate(shapes)]


@functools.cache
def tensor_fn(order):
    """The derivatives of that order in all parameters: one program for every test."""

    def fn(params, x):
        flat, unravel = jax.flatten_util.ravel_pytree(params)
        derivative = lambda flat: SMALL.apply_fn(unravel(flat), x[None])[0]  # noqa: E731
        for _ in range(order):
            derivative = jax.jacfwd(derivative)
        return derivative(flat)

    return jax.jit(fn)


def materialised(c, params, inputs):
    """All tensors in full, contracted by einsum."""
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    names = [""] * c.num_tensors
    for i, j in c.contractions:
        letter = next(letters)
        names[i] += letter
        names[j] += letter
    tensors = [
        np.asarray(tensor_fn(order)(params, inputs[name]))
        for name, order in zip(c.inputs, c.orders, strict=True)
    ]
    return np.einsum(",".join(names) + "->", *tensors, optimize=True)


QUICK = SPECS[:3] + SPECS[4:5] + SPECS[6:7] + SPECS[9:10]


@pytest.mark.parametrize(
    "spec", [s if s in QUICK else pytest.param(s, marks=pytest.mark.slow) for s in SPECS]
)
def test_a_network_s_value_is_that_of_its_tensors(spec, x64, key):
    c = correlator(spec)
    inputs = {"a": np.array([0.6, 0.8]), "b": np.array([1.0, -0.3]), "c": np.array([0.1, 0.7])}
    found = feynman.measure(
        c, draw_small, SMALL.apply_fn, inputs, key, widths=[2], num_networks=3, loops="exact"
    )
    keys = jax.random.split(jax.random.fold_in(key, 0), 3)

    def drawn(one):
        """The network that was measured: its key is split where there are loops."""
        params = draw_small(one, 2), draw_small(jax.random.split(one)[0], 2)
        return params[len(c.contractions) >= c.num_tensors - len(c.cluster_graph().clusters) + 1]

    for row, one in zip(found.samples[0], keys, strict=True):
        # Rounding of some 100 products, relative to the value.
        wanted = materialised(c, drawn(one), inputs)
        np.testing.assert_allclose(np.prod(row), wanted, rtol=1e-10, atol=1e-13)


def unequal_network(widths, input_dim):
    """Linear; the width argument is not looked at."""
    sizes = [input_dim, *widths, 1]

    def init_fn(key, width):
        keys = jax.random.split(key, len(sizes) - 1)
        shapes = itertools.pairwise(sizes)
        return [jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True)]

    def apply_fn(params, x):
        for weights, width in zip(params, [1, *widths], strict=True):
            x = x @ weights / width**0.5
        return x

    return init_fn, apply_fn


CHECKED = [
    "f(a) f(a) f(b) f(b)",
    "df(a).df(b)",
    "(df(a).df(b))^2",
    "f(a) f(b) df(a).df(b)",
    "f(a) df(a).ddf(b).df(b)",
    "df(a).ddf(b).ddf(b).df(a)",
    "dddf(a; df(b), df(b), df(b))",
    "ddf(a):ddf(b)",
    "(ddf(a):ddf(b))^2",
]


def check_linear(widths, num_networks, x64_key):
    inputs = {"a": np.array([0.6, 0.8]), "b": np.array([1.0, -0.5])}
    gram = np.array([[np.dot(u, v) for v in inputs.values()] for u in inputs.values()])
    asked = [correlator(spec) for spec in CHECKED]
    init_fn, apply_fn = unequal_network(widths, 2)
    found = feynman.measure_all(
        asked, init_fn, apply_fn, inputs, x64_key, widths=[max(widths)], num_networks=num_networks
    )
    names = tuple(f"n{h}" for h in range(len(widths)))
    for c, one in zip(asked, found, strict=True):
        places = ["ab".index(name) for name in c.distinct_inputs]
        exact = feynman.linear_polynomial(
            c, depth=len(widths), widths=names, gram=gram[np.ix_(places, places)]
        )
        wanted = float(exact(**dict(zip(names, widths, strict=True))))
        assert one.num_nonfinite == 0
        if one.stderr[0] > 1e-12 * abs(wanted):
            assert abs(one.mean[0] - wanted) < 4 * one.stderr[0], str(c)
        else:  # the same in every network, such as the star at depth 1
            np.testing.assert_allclose(one.mean[0], wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("widths", [(2,), (3, 2)])
def test_linear_networks_agree_with_their_polynomial(widths, x64, key):
    check_linear(widths, 100_000, key)


@pytest.mark.slow
@pytest.mark.parametrize("widths", [(5,), (5, 2), (2, 3, 5)])
def test_a_million_linear_networks_agree_with_their_polynomial(widths, x64, key):
    check_linear(widths, 1_000_000, key)


@pytest.mark.parametrize(
    ("activation", "width"), [(jnp.tanh, 3), (jax.nn.relu, 2), (jax.lax.erf, 5), (jnp.square, 3)]
)
def test_one_hidden_layer_agrees_with_its_polynomial(activation, width, x64, key):
    inputs = {"a": np.array([0.6, 0.8]), "b": np.array([1.0, -0.5])}
    specs = [
        "f(a) f(b)",
        "f(a)^2 f(b)^2",
        "(df(a).df(b))^2",
        "f(a) df(a).ddf(b).df(b)",
        "df(a).ddf(b).ddf(b).df(a)",
        "dddf(a; df(b), df(b), df(b))",
        "ddf(a):ddf(b)",
    ]
    asked = [correlator(spec) for spec in specs]
    network = feynman.deep_network(activation, depth=1, input_dim=2)
    options = {"widths": [width], "num_networks": 100_000}
    gram = np.array([[np.dot(u, v) for v in inputs.values()] for u in inputs.values()])
    for c, one in zip(
        asked, feynman.measure_all(asked, *network, inputs, key, **options), strict=True
    ):
        exact = float(feynman.one_layer_polynomial(c, activation, gram=gram)(n=width))
        assert abs(one.mean[0] - exact) <= 4 * one.stderr[0] + 1e-12, str(c)


@pytest.mark.parametrize("spec", ["(df.df)^2", "f^4", "f^2 df.df"])
def test_connected_parts_agree_with_the_exact_cumulants(spec, x64, key):
    c = correlator(spec, connected=True)
    network = feynman.deep_network(lambda z: z, depth=2, input_dim=1)
    found = feynman.measure(
        c, *network, {"x": np.ones(1)}, key, widths=[2, 3], num_networks=200_000
    )
    exact = feynman.linear_polynomial(c, depth=2)
    for width, mean, stderr in zip(found.widths, found.mean, found.stderr, strict=True):
        assert abs(mean - float(exact(n=int(width)))) < 4 * stderr


@pytest.mark.parametrize("order", [2, 3, 4])
def test_the_cumulant_of_one_column_with_itself_is_fisher_s_k_statistic(order):
    values = np.random.default_rng(0).gamma(2.0, size=50)
    statistic = feynman._statistics.Statistic(order, connected=True)
    columns = np.repeat(values[:, None], order, axis=1)
    terms = feynman._statistics.power_sums(statistic, columns)
    np.testing.assert_allclose(statistic(terms.sum(0)), stats.kstat(values, order), rtol=1e-10)


def test_the_stated_error_is_the_spread_of_estimates(x64, key):
    network = feynman.deep_network(lambda z: z, depth=1, input_dim=1)
    asked = [correlator("f^2"), correlator("(df.df)^2", connected=True)]
    runs = [
        feynman.measure_all(asked, *network, {"x": np.ones(1)}, k, widths=[3], num_networks=500)
        for k in jax.random.split(key, 200)
    ]
    for at in range(2):
        means = np.array([run[at].mean[0] for run in runs])
        stated = np.sqrt(np.mean([run[at].stderr[0] ** 2 for run in runs]))
        # 200 runs know their spread to 5 %; the tails of the variance make it 10 %.
        assert 0.8 < means.std() / stated < 1.25


def test_a_flax_module_goes_in(key):
    def init_fn(key, width):
        return models.from_linen(models.MLP((width, 1))).init(key, jnp.ones((1, 3)))

    def apply_fn(params, x):
        width = params["Dense_0"]["bias"].size
        return models.from_linen(models.MLP((width, 1))).apply_fn(params, x)

    found = feynman.measure(
        correlator("df.df"), init_fn, apply_fn, {"x": jnp.ones(3)}, key,
        widths=[4, 8], num_networks=50,
    )  # fmt: skip
    assert (found.mean > 0).all()


def test_equal_clusters_are_computed_once_and_those_with_probes_apart(x64, key):
    network = feynman.deep_network(jnp.tanh, depth=1, input_dim=1)
    found = feynman.measure(
        correlator("f^2 (ddf:ddf)^2"), *network, {"x": np.ones(1)}, key, widths=[3], num_networks=9
    )
    columns = found.samples[0].T
    assert (columns[0] == columns[1]).all()
    assert (columns[2] != columns[3]).any()


def test_networks_that_are_not_finite_are_counted_and_left_out(x64, key):
    def apply_fn(params, x):
        return jnp.log(params) + x.sum() * 0

    found = feynman.measure(
        correlator("f f"), lambda key, width: jax.random.normal(key), apply_fn, {"x": np.ones(1)},
        key, widths=[1], num_networks=1000,
    )  # fmt: skip
    assert found.num_nonfinite[0] + found.num_networks[0] == 1000
    assert abs(found.num_nonfinite[0] - 500) < 4 * 16
    assert np.isfinite(found.mean[0])


def test_a_few_networks_that_carry_the_mean_show_in_the_effective_sample_size():
    calm, wild = np.ones(100), np.array([1e6, *np.ones(99)])
    found = feynman.measurement_from_samples([calm, wild], widths=[1, 2])
    np.testing.assert_allclose(found.effective_sample_size, [100, 1], rtol=1e-3)


LINEAR = feynman.deep_network(lambda z: z, depth=1, input_dim=1)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"widths": [0]}, ValueError, "widths must be at least 1"),
        ({"widths": []}, ValueError, "widths must hold at least one"),
        ({"num_networks": 1}, ValueError, "num_networks must be at least 2"),
        ({"num_networks": [5]}, ValueError, "one for each of the 2 widths"),
        ({"inputs": {"y": np.ones(1)}}, ValueError, "inputs must hold ['x']"),
        ({"inputs": {"x": np.array([np.nan])}}, ValueError, "inputs['x'] must be finite"),
        ({"inputs": np.ones(1)}, TypeError, "inputs must map names"),
        ({"apply_fn": lambda p, x: jnp.ones(3)}, ValueError, "must have one output"),
        ({"init_fn": 3}, TypeError, "init_fn must be a function"),
        ({"loops": "all"}, ValueError, "loops must be one of"),
        ({"correlator": "f f"}, TypeError, "must be a Correlator"),
    ],
)
def test_bad_input_is_refused(changes, kind, words, key):
    given = {
        "correlator": correlator("f f"), "init_fn": LINEAR.init_fn, "apply_fn": LINEAR.apply_fn,
        "inputs": {"x": np.ones(1)}, "key": key, "widths": [1, 2], "num_networks": 4, **changes,
    }  # fmt: skip
    with pytest.raises(kind) as error:
        feynman.measure(**given)
    assert words in str(error.value)


@pytest.mark.bad_input
def test_no_finite_network_is_refused(key):
    with pytest.raises(ValueError, match="networks with finite values, got 0 of 2"):
        feynman.measurement_from_samples([np.array([np.nan, np.inf])], widths=[1])
