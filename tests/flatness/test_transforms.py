"""One answer under jit, under vmap over networks, in microbatches, over devices, in both floats."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from poster_jax import curvature, flatness
from poster_jax.core.devices import data_mesh

LAYER = "Dense_1/kernel"


def _slow(name):
    return pytest.param(name, marks=pytest.mark.slow)


def _float32(net, num_examples=20):
    return jax.tree.map(
        jnp.asarray,
        (
            net.make_params(dtype=np.float32),
            net.make_batch(dtype=np.float32, num_examples=num_examples),
        ),
    )


def _measure(name, hessian, key):
    if name.endswith("trace"):
        return getattr(flatness, name)(hessian, key, num_probes=6).mean
    return getattr(flatness, name)(hessian, key).mean


@pytest.mark.parametrize(
    "measure",
    [
        "neuronwise_trace",
        "columnwise_trace",
        _slow("layer_max_eigenvalue"),
        _slow("neuronwise_max_eigenvalue"),
    ],
)
def test_every_measure_under_jit_and_vmap(net, key, measure):
    params, batch = _float32(net)
    population = jax.tree.map(lambda a: jnp.stack([a, 1.2 * a]), params)

    def measured(params):
        hessian = flatness.hessian_of_layer(net.loss_fn, params, batch, layer=LAYER)
        return _measure(measure, hessian, key)

    together = jax.jit(jax.vmap(measured))(population)
    single = jax.jit(measured)
    alone = [single(jax.tree.map(lambda a, i=i: np.asarray(a)[i], population)) for i in range(2)]
    np.testing.assert_allclose(together, alone, rtol=1e-4)


def test_a_population_with_its_own_keys_and_scales(net, key):
    params, batch = _float32(net)
    population = jax.tree.map(lambda a: jnp.stack([a, 1.2 * a, 0.7 * a]), params)
    keys = jax.random.split(key, 3)

    def measured(params, key):
        features = flatness.layer_features(net.apply_fn, params, batch[0], layer=LAYER)
        return flatness.relative_flatness(
            net.loss_fn,
            params,
            batch,
            key,
            layer=LAYER,
            num_probes=5,
            feature_scales=flatness.feature_scales(features),
        )

    together = jax.jit(jax.vmap(measured))(population, keys)
    single = jax.jit(measured)
    alone = [
        single(jax.tree.map(lambda a, i=i: np.asarray(a)[i], population), keys[i]).mean
        for i in range(3)
    ]
    np.testing.assert_allclose(together.mean, alone, rtol=1e-4)
    assert together.num_samples.tolist() == [5, 5, 5]


@pytest.mark.parametrize(
    "name", [_slow("neuronwise_trace"), "columnwise_trace", _slow("layer_max_eigenvalue")]
)
def test_microbatches_of_7_of_100_and_8_devices_equal_one_batch(net, key, name):
    params, batch = _float32(net, num_examples=100)

    def measured(**options):
        hessian = flatness.hessian_of_layer(net.loss_fn, params, batch, layer=LAYER, **options)
        return _measure(name, hessian, key)

    whole = measured()
    mesh = data_mesh(8)
    for options in ({"microbatch": 7}, {"mesh": mesh}, {"microbatch": 7, "mesh": mesh}):
        np.testing.assert_allclose(measured(**options), whole, rtol=2e-6)


def test_all_layers_in_one_program(net, key):
    params, batch = _float32(net)
    layers = flatness.kernel_paths(params)

    @jax.jit
    def measured(params):
        return flatness.relative_flatness_all_layers(
            net.loss_fn, params, batch, key, layers=layers, num_probes=4
        )

    found = measured(params)
    assert set(found.per_layer) == set(layers)
    alone = flatness.relative_flatness_all_layers(
        net.loss_fn, params, batch, key, layers=layers, num_probes=4
    )
    np.testing.assert_allclose(found.sum.mean, alone.sum.mean, rtol=1e-5)


@pytest.mark.parametrize("measure", ["neuronwise_trace", "layer_max_eigenvalue"])
def test_float32_is_float64_to_rounding(net, key, measure):
    params, batch = _float32(net)
    single = net.exact_measure(
        measure, flatness.hessian_of_layer(net.loss_fn, params, batch, layer=LAYER), key
    )
    double = net.definitions(
        np.asarray(params["Dense_1"]["kernel"], np.float64).T,
        net.numpy_hessian(net.make_params(), net.make_batch(), 1),
    )[measure]
    np.testing.assert_allclose(single, double, rtol=2e-6 if "trace" in measure else 1e-5)


def test_a_hessian_passes_through_jit_as_an_argument(net, key):
    """New weights of the same shapes compile nothing."""
    params, batch = _float32(net)
    compiled = []

    @jax.jit
    def measured(hessian, key):
        compiled.append(1)
        return flatness.neuronwise_trace(hessian, key, num_probes=3).mean

    for factor in (1.0, 2.0):
        scaled = jax.tree.map(lambda a, f=factor: f * a, params)
        measured(flatness.hessian_of_layer(net.loss_fn, scaled, batch, layer=LAYER), key)
    assert len(compiled) == 1


def test_the_fast_estimators_take_a_layer_smaller_than_their_probes(net, x64, key):
    """More probes than dimensions: the answer is then exact."""
    params, batch = jax.tree.map(jnp.asarray, (net.make_params(), net.make_batch()))
    hessian = flatness.hessian_of_layer(net.loss_fn, params, batch, layer="Dense_2/kernel")
    wanted = net.exact_measure("neuronwise_trace", hessian, key)
    for estimator in (curvature.hutchpp_trace, curvature.xtrace):
        found = flatness.neuronwise_trace(hessian, key, num_probes=200, estimator=estimator)
        np.testing.assert_allclose(found.mean, wanted, rtol=1e-8)
