"""Rescaled networks compute the same function, through every library's way to store it."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from poster_jax import flatness
from poster_jax.core import models
from poster_jax.core.paths import get_path, leaf_paths, set_path

KERNELS = [f"Dense_{i}/kernel" for i in range(3)]
BIASES = [f"Dense_{i}/bias" for i in range(3)]


def _with_random_biases(params, seed=0):
    """Drawn, not zero: a bias that is not rescaled must show."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda a: jnp.asarray(rng.normal(size=a.shape), a.dtype) if not a.any() else a, params
    )


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.floats(-7, 7), min_size=3, max_size=3))
def test_layers_over_six_decades(net, logs):
    with jax.enable_x64(True):
        params, (x, _) = jax.tree.map(jnp.asarray, (net.make_params(), net.make_batch()))
        factors = np.exp(np.array(logs) - np.mean(logs))
        moved = flatness.rescale_layers(params, jnp.asarray(factors), layers=KERNELS, biases=BIASES)
        np.testing.assert_allclose(net.apply_fn(moved, x), net.apply_fn(params, x), atol=1e-12)
        np.testing.assert_allclose(
            moved["Dense_1"]["kernel"], factors[1] * params["Dense_1"]["kernel"]
        )


def test_the_paper_s_rescaling_of_lenet(key):
    """fc2's weight and bias by 1/c, fc3's weight by c (2019 and 2021 code)."""
    model = models.from_linen(models.LeNet5(padding="SAME"))
    x = jax.random.normal(key, (3, 8, 8, 1))
    params = _with_random_biases(model.init(key, x))
    moved = flatness.rescale_layers(
        params,
        [1 / 17, 17.0],
        layers=["Dense_1/kernel", "Dense_2/kernel"],
        biases=["Dense_1/bias", "Dense_2/bias"],
    )
    np.testing.assert_allclose(model.apply_fn(moved, x), model.apply_fn(params, x), atol=1e-5)
    np.testing.assert_allclose(moved["Dense_1"]["bias"], params["Dense_1"]["bias"] / 17, rtol=1e-6)
    np.testing.assert_array_equal(moved["Dense_2"]["bias"], params["Dense_2"]["bias"])


def test_all_layers_of_a_convolutional_network(key):
    model = models.from_linen(models.LeNet5(padding="SAME"))
    x = jax.random.normal(key, (3, 8, 8, 1))
    params = _with_random_biases(model.init(key, x))
    names = ["Conv_0", "Conv_1", "Dense_0", "Dense_1", "Dense_2"]
    moved = flatness.rescale_layers(
        params,
        [4.0, 0.1, 5.0, 0.25, 2.0],
        layers=[f"{n}/kernel" for n in names],
        biases=[f"{n}/bias" for n in names],
    )
    np.testing.assert_allclose(model.apply_fn(moved, x), model.apply_fn(params, x), atol=2e-5)


def test_channels_that_are_flattened_last(key):
    """Flax: (height, width, channel) flattened, so that a channel feeds every C-th row."""
    model = models.from_linen(models.LeNet5(padding="SAME"))
    x = jax.random.normal(key, (3, 8, 8, 1))
    params = _with_random_biases(model.init(key, x))
    factors = jnp.exp(jax.random.normal(key, (16,)))
    options = {"previous": ["Conv_1/kernel", "Conv_1/bias"], "layer": "Dense_0/kernel"}
    moved = flatness.rescale_neurons(params, factors, flatten="channels_last", **options)
    np.testing.assert_allclose(model.apply_fn(moved, x), model.apply_fn(params, x), atol=2e-5)
    wrong = flatness.rescale_neurons(params, factors, flatten="channels_first", **options)
    assert float(jnp.abs(model.apply_fn(wrong, x) - model.apply_fn(params, x)).max()) > 0.1
    between = flatness.rescale_neurons(
        params, factors[:6], previous=["Conv_0/kernel", "Conv_0/bias"], layer="Conv_1/kernel"
    )
    np.testing.assert_allclose(model.apply_fn(between, x), model.apply_fn(params, x), atol=2e-5)


def _equinox(key):
    model = models.from_equinox(
        lambda k: eqx.nn.Sequential(
            [
                eqx.nn.Conv2d(2, 4, 3, key=k),
                eqx.nn.Lambda(jax.nn.relu),
                eqx.nn.Conv2d(4, 3, 2, key=k),
                eqx.nn.Lambda(jax.nn.relu),
                eqx.nn.Lambda(jnp.ravel),
                eqx.nn.Linear(27, 5, key=k),
            ]
        )
    )
    x = jax.random.normal(key, (5, 2, 6, 6))
    return model, model.init(key, x), x


def test_equinox_s_storage_and_channels_flattened_first(key):
    model, params, x = _equinox(key)
    kernels = [p for p in leaf_paths(params) if p.endswith("weight")]
    biases = [p for p in leaf_paths(params) if p.endswith("bias")]
    before = model.apply_fn(params, x)
    for previous, layer, flatten in ((0, 1, None), (1, 2, "channels_first")):
        moved = flatness.rescale_neurons(
            params,
            jnp.exp(jax.random.normal(key, (get_path(params, kernels[previous]).shape[0],))),
            previous=[kernels[previous], biases[previous]],
            layer=kernels[layer],
            neuron_axis=0,
            flatten=flatten,
        )
        assert (
            float(jnp.abs(get_path(moved, kernels[layer]) - get_path(params, kernels[layer])).max())
            > 0
        )
        np.testing.assert_allclose(model.apply_fn(moved, x), before, atol=1e-5)
    moved = flatness.rescale_layers(
        params, [4.0, 0.5, 0.5], layers=kernels, biases=biases, neuron_axis=0
    )
    np.testing.assert_allclose(model.apply_fn(moved, x), before, atol=1e-5)
    normalised = flatness.normalize_features(
        params,
        flatness.layer_features(model.apply_fn, params, x, layer=kernels[2]),
        previous=[kernels[1], biases[1]],
        layer=kernels[2],
        neuron_axis=0,
        flatten="channels_first",
    )
    np.testing.assert_allclose(model.apply_fn(normalised, x), before, atol=1e-5)
    features = flatness.layer_features(model.apply_fn, normalised, x, layer=kernels[2])
    np.testing.assert_allclose(features.reshape(5, 3, 9).std(axis=(0, 2)), 1, rtol=1e-4)


class _Normed(nn.Module):
    @nn.compact
    def __call__(self, x, *, train: bool = False):
        x = nn.Dense(6)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        return nn.Dense(3)(x)


def test_scale_and_shift_of_batch_norm_are_the_previous_layer(net, key):
    model = models.from_linen(_Normed())
    x = jax.random.normal(key, (20, 4))
    params = model.init(key, x)
    params["BatchNorm_0"]["bias"] = jax.random.normal(key, (6,))
    state = model.apply_train(params, model.init_state(key, x), x, key)[1]
    apply_fn = model.freeze(state)
    previous = ["BatchNorm_0/scale", "BatchNorm_0/bias"]
    before = apply_fn(params, x)
    moved = flatness.rescale_neurons(
        params, jnp.arange(1.0, 7.0), previous=previous, layer="Dense_1/kernel"
    )
    np.testing.assert_allclose(apply_fn(moved, x), before, atol=1e-5)
    layers = flatness.rescale_layers(
        params,
        [8.0, 0.125],
        layers=["BatchNorm_0/scale", "Dense_1/kernel"],
        biases=["BatchNorm_0/bias", "Dense_1/bias"],
    )
    np.testing.assert_allclose(apply_fn(layers, x), before, atol=1e-5)
    features = flatness.layer_features(apply_fn, params, x, layer="Dense_1/kernel")
    normalised = flatness.normalize_features(
        params, features, previous=previous, layer="Dense_1/kernel"
    )
    np.testing.assert_allclose(apply_fn(normalised, x), before, atol=1e-5)
    spread = flatness.layer_features(apply_fn, normalised, x, layer="Dense_1/kernel").std(axis=0)
    np.testing.assert_allclose(spread, 1, rtol=1e-4)
    # The kernel before a frozen normalisation is no such layer: the function would change.
    wrong = flatness.rescale_neurons(
        params,
        jnp.arange(1.0, 7.0),
        previous=["Dense_0/kernel", "Dense_0/bias"],
        layer="Dense_1/kernel",
    )
    assert float(jnp.abs(apply_fn(wrong, x) - before).max()) > 0.1


def test_rescaling_inside_jit_and_vmap(net):
    params, (x, _) = jax.tree.map(
        jnp.asarray, (net.make_params(dtype=np.float32), net.make_batch(dtype=np.float32))
    )
    factors = jnp.exp(jax.random.uniform(jax.random.key(0), (50, 3), minval=-3, maxval=3))
    factors = factors / jnp.prod(factors, axis=1, keepdims=True) ** (1 / 3)

    def outputs(factors):
        moved = flatness.rescale_layers(params, factors, layers=KERNELS, biases=BIASES)
        return net.apply_fn(moved, x)

    together = jax.jit(jax.vmap(outputs))(factors)
    np.testing.assert_allclose(
        together, jnp.broadcast_to(net.apply_fn(params, x), together.shape), atol=1e-5
    )


@pytest.mark.bad_input
def test_what_does_not_chain_or_fit_is_refused(net):
    params = jax.tree.map(jnp.asarray, net.make_params(dtype=np.float32))

    def layers(message, factors=(2.0, 0.5), layers=KERNELS[:2], error=ValueError, **options):
        with pytest.raises(error, match=message):
            flatness.rescale_layers(params, factors, layers=layers, **options)

    layers("product 1, .* got 4", factors=(2.0, 2.0))
    layers("finite and above 0", factors=(-2.0, -0.5))
    layers("one entry for each of 2 layers", factors=(1.0,))
    layers("one entry for each of 0 layers", factors=(), layers=())
    layers("must chain: 'Dense_0/kernel' has 6 neurons", layers=[KERNELS[0], KERNELS[2]])
    layers("names nothing", layers=["Dense_0/kernle", KERNELS[1]])
    layers("holds several", layers=["Dense_0", KERNELS[1]])
    layers("biases must have one entry a layer", biases=["Dense_0/bias"])
    layers("neuron_axis must be an axis", neuron_axis=2)
    layers("input_axis must be an axis", input_axis=-1)

    def neurons(message, factors=None, error=ValueError, **options):
        options = {"previous": ["Dense_0/kernel", "Dense_0/bias"], "layer": KERNELS[1]} | options
        factors = jnp.ones(6) if factors is None else factors
        with pytest.raises(error, match=message):
            flatness.rescale_neurons(params, factors, **options)

    neurons("one entry for each neuron of 'Dense_0/kernel'", factors=jnp.ones(5))
    neurons("must have shape", factors=jnp.ones((6, 1)))
    neurons("finite and above 0", factors=jnp.zeros(6))
    neurons("finite and above 0", factors=jnp.full(6, jnp.nan))
    neurons("Say|say flatten", layer=KERNELS[2])
    neurons("a multiple of 6", layer=KERNELS[2], flatten="channels_last")
    neurons("Did you mean 'channels_last'", flatten="channel_last")
    neurons("at least one path", previous=[])
    neurons("at least one path", previous="Dense_0/kernel")
    neurons("names nothing", previous=["Dense_9/kernel"])
    with pytest.raises(ValueError, match="must be finite"):
        flatness.rescale_neurons(
            set_path(params, KERNELS[0], jnp.full((4, 6), jnp.nan)),
            jnp.ones(6),
            previous=["Dense_0/kernel"],
            layer=KERNELS[1],
        )
    with pytest.raises(ValueError, match="features must have a multiple"):
        flatness.normalize_features(
            params,
            jnp.ones((3, 7)),
            previous=["Dense_0/kernel"],
            layer=KERNELS[1],
            flatten="channels_last",
        )
