"""Sums and means over a cut batch equal those over the whole, on one device and on eight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poster_jax.core.batching import map_over_batch, mean_over_batch, sum_over_batch
from poster_jax.core.devices import data_mesh

N, IN, OUT = 103, 5, 3


def _problem(dtype=jnp.float32):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(N, IN)), rng.normal(size=(N, OUT))
    params = {"w": jnp.asarray(rng.normal(size=(IN, OUT)), dtype)}
    return params, (jnp.asarray(x, dtype), jnp.asarray(y, dtype))


def _loss(params, batch):
    x, y = batch
    return jnp.mean(jnp.sum((jnp.tanh(x @ params["w"]) - y) ** 2, axis=-1))


def _numpy_gradient(params, batch):
    w, x, y = (np.asarray(a, np.float64) for a in (params["w"], *batch))
    f = np.tanh(x @ w)
    return x.T @ (2 * (f - y) * (1 - f**2)) / len(x)


CUTS = [
    {"microbatch": 7},
    {"microbatch": 1},
    {"microbatch": N},
    {"microbatch": 1000},
    {"mesh": 8},
    {"mesh": 8, "microbatch": 5},
    {"mesh": 3, "microbatch": 7},
]


def _options(cut):
    return {**cut, "mesh": data_mesh(cut["mesh"])} if "mesh" in cut else cut


@pytest.mark.parametrize("cut", CUTS, ids=str)
@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_mean_of_gradients_equals_the_gradient_in_numpy(cut, jit):
    params, batch = _problem()

    def gradient(params, batch):
        return mean_over_batch(lambda b: jax.grad(_loss)(params, b), batch, **_options(cut))

    ours = (jax.jit(gradient) if jit else gradient)(params, batch)["w"]
    # entries of order 1, each a float32 sum of 103 terms
    np.testing.assert_allclose(ours, _numpy_gradient(params, batch), atol=1e-6)


@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_differentiates_through_the_cut(cut):
    params, batch = _problem()
    loss = lambda p: mean_over_batch(lambda b: _loss(p, b), batch, **_options(cut))  # noqa: E731
    both = jax.jit(lambda p: (jax.grad(loss)(p), jax.jvp(jax.grad(loss), (p,), (p,))[1]))
    gradient, product = both(params)
    np.testing.assert_allclose(gradient["w"], _numpy_gradient(params, batch), atol=1e-6)
    np.testing.assert_allclose(product["w"], _plain_product(params, batch)["w"], atol=3e-6)


@jax.jit
def _plain_product(params, batch):
    return jax.jvp(lambda p: jax.grad(_loss)(p, batch), (params,), (params,))[1]


@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_vmap_over_a_population(cut):
    params, batch = _problem()
    population = jax.tree.map(lambda a: jnp.stack([a, -a, 2 * a]), params)
    loss = lambda p: mean_over_batch(lambda b: _loss(p, b), batch, **_options(cut))  # noqa: E731
    expected = [_loss({"w": np.asarray(population["w"])[i]}, batch) for i in range(3)]
    np.testing.assert_allclose(jax.jit(jax.vmap(loss))(population), expected, rtol=1e-6)


def test_float64(x64):
    params, batch = _problem(jnp.float64)
    ours = mean_over_batch(lambda b: jax.grad(_loss)(params, b), batch, microbatch=7)["w"]
    assert ours.dtype == jnp.float64
    np.testing.assert_allclose(ours, _numpy_gradient(params, batch), atol=1e-14)


def test_compensation_keeps_float32_error_at_one_rounding():
    # 100,000 microbatches of one: a plain float32 running sum is off by about 1e-4 here.
    x = np.random.default_rng(0).uniform(size=100_003).astype(np.float32) + np.float32(0.1)
    exact = np.mean(x.astype(np.float64))
    ours = float(mean_over_batch(jnp.mean, jnp.asarray(x), microbatch=1))
    assert abs(ours - exact) <= 2 * np.finfo(np.float32).eps * exact
    plain = np.cumsum(x, dtype=np.float32)[-1] / np.float32(len(x))
    assert abs(plain - exact) > 10 * np.finfo(np.float32).eps * exact


@settings(max_examples=30, deadline=None)
@given(size=st.integers(1, 40), microbatch=st.integers(1, 45))
def test_map_and_sum_for_any_size(size, microbatch):
    x = jnp.arange(float(size))
    mapped = map_over_batch(lambda b: {"square": b**2}, x, microbatch=microbatch)
    np.testing.assert_array_equal(mapped["square"], np.arange(size) ** 2)
    total = sum_over_batch(lambda b: jnp.sum(b), x, microbatch=microbatch)
    np.testing.assert_allclose(total, size * (size - 1) / 2, rtol=1e-6)


def test_map_keeps_trailing_axes_under_jit():
    x = jnp.arange(24.0).reshape(6, 4)
    ours = jax.jit(lambda x: map_over_batch(lambda b: b @ jnp.ones((4, 2)), x, microbatch=4))(x)
    np.testing.assert_allclose(ours, np.arange(24.0).reshape(6, 4).sum(1)[:, None] * np.ones(2))


@pytest.mark.parametrize("size", [5, 8, 19])
@pytest.mark.parametrize("microbatch", [None, 2])
def test_mapping_keeps_the_order_of_the_examples_on_eight_devices(size, microbatch):
    x = jnp.arange(float(size))
    fn = lambda x: {"cube": jnp.stack([x, x**3], axis=1)}  # noqa: E731
    ours = map_over_batch(fn, x, microbatch=microbatch, mesh=data_mesh(8))
    np.testing.assert_array_equal(ours["cube"][:, 1], np.arange(float(size)) ** 3)


@pytest.mark.bad_input
@pytest.mark.parametrize("fn", [mean_over_batch, sum_over_batch, map_over_batch])
@pytest.mark.parametrize(
    ("batch", "options", "error", "names"),
    [
        (jnp.ones(3), {"microbatch": 0}, ValueError, "microbatch"),
        (jnp.ones(3), {"microbatch": 1.5}, TypeError, "microbatch"),
        (jnp.ones((0, 2)), {}, ValueError, "batch"),
        ((jnp.ones(3), jnp.ones(4)), {}, ValueError, "batch"),
        (jnp.float32(1.0), {}, ValueError, "batch"),
        ((), {}, ValueError, "batch"),
    ],
)
def test_bad_input(fn, batch, options, error, names):
    with pytest.raises(error, match=names):
        fn(lambda b: jax.tree.map(jnp.mean, b), batch, **options)


@pytest.mark.bad_input
def test_bad_functions_and_meshes():
    with pytest.raises(TypeError, match="fn"):
        mean_over_batch(None, jnp.ones(3))
    with pytest.raises(TypeError, match="fn must return floating"):
        mean_over_batch(lambda b: jnp.sum(b > 0), jnp.ones(3), microbatch=2)
    with pytest.raises(ValueError, match="example axis"):
        map_over_batch(jnp.sum, jnp.ones(3))
    with pytest.raises(TypeError, match="mesh"):
        mean_over_batch(jnp.mean, jnp.ones(3), mesh="data")
    wrong = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("model",))
    with pytest.raises(ValueError, match="mesh must have an axis named 'data'"):
        mean_over_batch(jnp.mean, jnp.ones(3), mesh=wrong)
