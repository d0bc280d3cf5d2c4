"""What a layer reads is found in the program of any library, or refused by name."""

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from poster_jax import flatness
from poster_jax.core import models
from poster_jax.core.convolution import conv_general_dilated
from poster_jax.core.paths import leaf_paths


class _Linen(nn.Module):
    fast: bool = True

    @nn.compact
    def __call__(self, x):
        options = {"conv_general_dilated": conv_general_dilated} if self.fast else {}
        x = nn.relu(nn.Conv(4, (3, 3), **options)(x))
        self.sow("intermediates", "conv_1_input", x)
        x = nn.avg_pool(nn.relu(nn.Conv(5, (2, 2), **options)(x)), (2, 2), (2, 2))
        x = x.reshape(len(x), -1)
        self.sow("intermediates", "dense_0_input", x)
        x = nn.relu(nn.Dense(6)(x))
        self.sow("intermediates", "dense_1_input", x)
        return nn.Dense(3)(x)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("jitted", [True, False])
def test_flax_s_own_intermediates(key, fast, jitted):
    module = _Linen(fast=fast)
    x = jax.random.normal(key, (7, 8, 8, 2))
    params = module.init(key, x)["params"]

    def apply_fn(params, x):
        return module.apply({"params": params}, x)

    apply_fn = jax.jit(apply_fn) if jitted else apply_fn
    _, sown = module.apply({"params": params}, x, mutable="intermediates")
    for layer in ("Conv_1", "Dense_0", "Dense_1"):
        found = flatness.layer_features(apply_fn, params, x, layer=f"{layer}/kernel")
        wanted = sown["intermediates"][f"{layer.lower()}_input"][0]
        np.testing.assert_allclose(found, wanted, atol=1e-6)
    first = flatness.layer_features(apply_fn, params, x, layer="Conv_0/kernel")
    np.testing.assert_array_equal(first, x)


def _libraries(key):
    x = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)

    def function(params, x):
        return jnp.tanh(x @ params["a"]) @ params["b"]

    plain = {"a": jax.random.normal(key, (4, 5)), "b": jax.random.normal(key, (5, 3))}
    yield "function", models.from_function(lambda k, x: plain, function), x, "b", plain["a"], "tanh"
    module = models.from_equinox(lambda k: eqx.nn.MLP(4, 3, 5, 1, key=k))
    params = module.init(key, x)
    yield "equinox", module, x, "layers/1/weight", params.layers[0].weight.T, "relu"
    module = models.from_haiku(hk.transform(lambda x: hk.nets.MLP([5, 3])(x)))
    params = module.init(key, x)
    yield "haiku", module, x, "mlp/~/linear_1/w", params["mlp/~/linear_0"]["w"], "relu"
    module = models.from_linen(models.MLP(features=(5, 3)))
    params = module.init(key, x)
    yield "linen", module, x, "Dense_1/kernel", params["Dense_0"]["kernel"], "relu"
    module = models.from_nnx(
        lambda rngs: nnx.Sequential(
            nnx.Linear(4, 5, rngs=rngs), nnx.relu, nnx.Linear(5, 3, rngs=rngs)
        )
    )
    params = module.init(key, x)
    (first,) = [p for p in leaf_paths(params) if "layers/0/kernel" in p]
    kernel = jax.tree.leaves(params)[leaf_paths(params).index(first)]
    yield "nnx", module, x, first.replace("layers/0", "layers/2"), kernel, "relu"


@pytest.mark.parametrize("library", ["function", "equinox", "haiku", "linen", "nnx"])
def test_hidden_layer_of_every_library(library, key):
    (found,) = [case for case in _libraries(key) if case[0] == library]
    _, model, x, layer, kernel, activation = found
    params = model.init(key, x)
    features = flatness.layer_features(model.apply_fn, params, x, layer=layer)
    assert features.shape == (9, 5)
    biases = [leaf for leaf in jax.tree.leaves(params) if leaf.shape == (5,)]
    before = x @ kernel + (biases[0] if biases else 0)
    wanted = np.tanh(before) if activation == "tanh" else np.maximum(before, 0)
    np.testing.assert_allclose(features, wanted, atol=1e-5)


def test_equinox_convolution_moves_its_channels_last(key):
    model = models.from_equinox(
        lambda k: eqx.nn.Sequential(
            [
                eqx.nn.Conv2d(2, 4, 3, key=k),
                eqx.nn.Lambda(jax.nn.relu),
                eqx.nn.Conv2d(4, 3, 2, key=k),
            ]
        )
    )
    x = jax.random.normal(key, (5, 2, 6, 6))
    params = model.init(key, x)
    paths = [p for p in leaf_paths(params) if p.endswith("weight")]
    features = flatness.layer_features(model.apply_fn, params, x, layer=paths[1])
    assert features.shape == (5, 4, 4, 4)
    first = flatness.layer_features(model.apply_fn, params, x, layer=paths[0])
    np.testing.assert_array_equal(first, jnp.moveaxis(x, 1, -1))


def test_features_under_jit_and_vmap(net, key):
    params, batch = jax.tree.map(
        jnp.asarray, (net.make_params(dtype=np.float32), net.make_batch(dtype=np.float32))
    )
    population = jax.tree.map(lambda a: jnp.stack([a, 2 * a]), params)

    def features(params):
        return flatness.layer_features(net.apply_fn, params, batch[0], layer="Dense_2/kernel")

    together = jax.jit(jax.vmap(features))(population)
    np.testing.assert_allclose(together[0], features(params), rtol=1e-5)
    np.testing.assert_allclose(
        together[0], net.numpy_features(net.make_params(), batch[0], 2), rtol=1e-4, atol=1e-5
    )


def test_scales_are_standard_deviations_constants_their_size_and_the_dead_nothing():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(30, 2, 4)).astype(np.float32)
    features[..., 1], features[..., 2] = 0.0, -7.3
    features = jnp.asarray(features)
    scales = flatness.feature_scales(features)
    np.testing.assert_allclose(scales[0], features[..., 0].std(), rtol=1e-5)
    np.testing.assert_allclose(scales[1:3], [0.0, 7.3], rtol=1e-5)
    # Each scales as its feature does: what makes the normalised measure invariant.
    np.testing.assert_allclose(flatness.feature_scales(features * 0.3), scales * 0.3, rtol=1e-5)


@pytest.mark.bad_input
def test_kernels_that_enter_in_another_way_are_refused():
    x, params = jnp.ones((5, 3)), {"w": jnp.ones((3, 3)), "v": jnp.ones((3, 2)), "b": jnp.ones(2)}

    def refused(apply_fn, message, layer="w"):
        with pytest.raises(ValueError, match=message):
            flatness.layer_features(apply_fn, params, x, layer=layer)

    refused(lambda p, x: x @ p["w"] @ p["w"] @ p["v"], "exactly one .* got 2")
    refused(lambda p, x: x @ p["v"], "exactly one .* got 0")
    refused(lambda p, x: x @ (2 * p["w"]) @ p["v"], "it enters 'mul'")
    refused(lambda p, x: x @ p["w"] @ p["v"], "Nearest", layer="u")
    with pytest.raises(ValueError, match="must have shape"):
        flatness.feature_scales(jnp.ones(3))
    with pytest.raises(ValueError, match="features must be finite"):
        flatness.feature_scales(jnp.full((3, 2), jnp.nan))
