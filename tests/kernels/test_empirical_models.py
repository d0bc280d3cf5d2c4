"""Empirical kernels of models of every library, and the choice of the cheapest way."""

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from poster_jax.core import models
from poster_jax.core.cost import count_flops
from poster_jax.kernels import empirical
from poster_jax.kernels.batch import batch
from poster_jax.kernels.linearize import linearize

pytestmark = [pytest.mark.usefixtures("x64"), pytest.mark.slow]
X = np.random.default_rng(0).normal(size=(5, 4, 3, 2))


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.gelu(nn.Conv(3, (2, 2))(x))
        return nn.Dense(2)(nn.BatchNorm(use_running_average=True)(x).mean((1, 2)))


class Nnx(nnx.Module):
    def __init__(self, *, rngs):
        self.conv = nnx.Conv(2, 3, (2, 2), rngs=rngs)
        self.dense = nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x):
        return self.dense(nnx.gelu(self.conv(x)).mean((1, 2)))


class Equinox(eqx.Module):
    conv: eqx.nn.Conv2d
    dense: eqx.nn.Linear

    def __init__(self, key):
        self.conv = eqx.nn.Conv2d(2, 3, 2, key=key, dtype=float)
        self.dense = eqx.nn.Linear(3, 2, key=key, dtype=float)

    def __call__(self, x):
        return self.dense(jnp.tanh(self.conv(jnp.moveaxis(x, -1, 0))).mean((1, 2)))


def haiku_net(x):
    return hk.Linear(2)(jax.nn.gelu(hk.Conv2D(3, 2)(x)).mean((1, 2)))


MODELS = {
    "linen": lambda: models.from_linen(Linen()),
    "nnx": lambda: models.from_nnx(Nnx(rngs=nnx.Rngs(0))),
    "equinox": lambda: models.from_equinox(Equinox(jax.random.key(0))),
    "haiku": lambda: models.from_haiku(hk.transform(haiku_net)),
    "function": lambda: models.from_function(
        lambda key, x: [jax.random.normal(key, (24, 6)), jnp.ones((6, 2))],
        lambda params, x: jnp.tanh(x.reshape(len(x), -1) @ params[0]) @ params[1],
    ),
}


def pure(name):
    model = MODELS[name]()
    params = model.init(jax.random.key(1), X)
    return model.freeze(model.init_state(jax.random.key(1), X)), params


@pytest.mark.parametrize("name", MODELS)
def test_kernels_of_any_library_are_products_of_jacobians(name):
    f, params = pure(name)
    jacobian = jax.jit(jax.jacrev(f))(params, X)
    flat = np.concatenate([np.reshape(j, (5, 2, -1)) for j in jax.tree.leaves(jacobian)], -1)
    expected = np.einsum("nop,mop->nm", flat, flat) / 2
    scale = np.abs(expected).max()
    # Models of these libraries may hold parameters in float32.
    for way in (1, 3):
        fn = jax.jit(
            empirical.empirical_ntk_fn(f, vmap_axes=0, implementation=way), static_argnums=1
        )
        np.testing.assert_allclose(fn(X, None, params), expected, atol=2e-6 * scale)
    tiles = batch(empirical.empirical_ntk_fn(f, vmap_axes=0, implementation=3), 2)
    np.testing.assert_allclose(tiles(X, None, params), expected, atol=2e-6 * scale)
    moved = jax.tree.map(lambda p: p + 0.01 * jnp.ones_like(p), params)
    line = linearize(f, params)(moved, X)
    step = np.concatenate([np.full(p.size, 0.01) for p in jax.tree.leaves(params)])
    np.testing.assert_allclose(line, f(params, X) + flat @ step, atol=1e-5)


@pytest.mark.parametrize(
    ("outputs", "width", "wins"),
    [(10, 64, 3), (1, 4, None)],
    ids=["many outputs", "one output"],
)
def test_auto_is_the_way_of_the_least_counted_operations(outputs, width, wins):
    f = lambda p, x: jnp.tanh(x @ p[0]) @ p[1]  # noqa: E731
    params, x = [jnp.ones((8, width)), jnp.ones((width, outputs))], jnp.ones((6, 8))

    def flops(way):
        fn = empirical.empirical_ntk_fn(f, (), (), 0, way)
        return count_flops(lambda x, p: fn(x, None, p), x, params)

    counted = {way: flops(way) for way in (1, 2, 3)}
    assert flops(0) == min(counted.values())
    assert wins is None or counted[wins] == min(counted.values())


def test_a_model_whose_examples_see_each_other_needs_vmap_axes_none():
    # Issue 134 of the original: with BatchNorm in training, outputs depend on the whole batch.
    def f(p, x):
        y = x @ p
        return (y - y.mean(0)) / jnp.sqrt(y.var(0) + 0.1)

    x, p = X.reshape(5, -1), jnp.asarray(np.random.default_rng(1).normal(size=(24, 3)))
    jacobian = np.reshape(jax.jacrev(f)(p, x), (5, 3, -1))
    expected = np.einsum("nop,mop->nm", jacobian, jacobian) / 3
    for way in (1, 2, 3):
        whole = empirical.empirical_ntk_fn(f, implementation=way)(x, None, p)
        np.testing.assert_allclose(whole, expected, atol=1e-12)
    cut = empirical.empirical_ntk_fn(f, vmap_axes=0)(x, None, p)
    np.testing.assert_allclose(cut, 0, atol=1e-12)  # a batch of one is its own mean


def test_tiles_keep_output_axes_in_place():
    # Issue 87 of the original: vmap_axes with kept output axes, in tiles, had a wrong shape.
    f = lambda p, x: jnp.tanh(jnp.einsum("nhwc,cd->nhwd", x, p))  # noqa: E731
    p = jnp.asarray(np.random.default_rng(1).normal(size=(2, 3)))
    for trace, diagonal, shape in (
        ((), (), (5, 5, 4, 4, 3, 3, 3, 3)),
        ((-1,), (1,), (5, 5, 4, 3, 3)),
        ((1, 2), (), (5, 5, 3, 3)),
    ):
        fn = empirical.empirical_kernel_fn(f, trace, diagonal, 0)
        whole, tiles = fn(X, None, None, p), batch(fn, 2)(X, None, None, p)
        assert tiles.ntk.shape == shape
        np.testing.assert_allclose(tiles.ntk, whole.ntk, atol=1e-12)
        np.testing.assert_allclose(tiles.nngp, whole.nngp, atol=1e-12)
