"""Kernels of convolutions: by hand in numpy, in both storages, under rescaling of a channel."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from poster_jax import flatness
from poster_jax.core import models
from poster_jax.core.convolution import conv_general_dilated
from poster_jax.core.paths import leaf_paths

SIZE, KERNEL, CHANNELS, NEURONS, CLASSES = 5, 2, 3, 4, 3
OUT = SIZE - KERNEL + 1


def _problem(dtype=np.float64):
    rng = np.random.default_rng(0)
    params = {
        "conv": rng.normal(size=(KERNEL, KERNEL, CHANNELS, NEURONS)).astype(dtype),
        "bias": rng.normal(size=NEURONS).astype(dtype),
        "dense": (rng.normal(size=(OUT * OUT * NEURONS, CLASSES)) / 5).astype(dtype),
    }
    x = rng.normal(size=(8, SIZE, SIZE, CHANNELS)).astype(dtype)
    return params, (x, rng.integers(0, CLASSES, 8))


def _apply(params, x):
    z = conv_general_dilated(
        x, params["conv"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jax.nn.relu(z + params["bias"]).reshape(len(x), -1) @ params["dense"]


def _loss(params, batch):
    x, y = batch
    logits = _apply(params, x)
    own = jnp.take_along_axis(logits, y[:, None], axis=1)[:, 0]
    return jnp.mean(jax.nn.logsumexp(logits, axis=1) - own)


def _numpy_hessian(net, params, x):
    """(o, input, o, input) with inputs in the order (row, column, channel) of the patch."""
    patches = np.stack(
        [
            x[:, i : i + KERNEL, j : j + KERNEL].reshape(len(x), -1)
            for i in range(OUT)
            for j in range(OUT)
        ],
        axis=1,
    )  # (n, position, input)
    z = np.einsum("npt,to->npo", patches, params["conv"].reshape(-1, NEURONS)) + params["bias"]
    logits = np.maximum(z, 0).reshape(len(x), -1) @ params["dense"]
    p = net.softmax(logits)
    S = np.einsum("ia,ab->iab", p, np.eye(CLASSES)) - np.einsum("ia,ib->iab", p, p)
    down = (z > 0)[..., None] * params["dense"].reshape(1, OUT * OUT, NEURONS, CLASSES)
    J = np.einsum("npoa,npt->naot", down, patches)
    return np.einsum("naot,nab,nbru->otru", J, S, J) / len(x)


@pytest.mark.parametrize(
    "measure", ["neuronwise_trace", "columnwise_trace", "neuronwise_max_eigenvalue"]
)
def test_every_measure_of_a_convolution_is_its_definition(net, x64, key, measure):
    params, batch = _problem()
    W = params["conv"].reshape(-1, NEURONS).T
    wanted = net.definitions(W, _numpy_hessian(net, params, batch[0]))[measure]
    hessian = flatness.hessian_of_layer(_loss, params, batch, layer="conv")
    np.testing.assert_allclose(net.exact_measure(measure, hessian, key), wanted, rtol=1e-10)


@pytest.mark.parametrize("name", ["neuronwise_trace", "columnwise_trace", "layer_trace"])
def test_channels_first_storage_gives_the_same(net, x64, key, name):
    """Inputs come in another order there, which no measure sees."""
    params, batch = _problem()
    stored = {**params, "conv": params["conv"].transpose(3, 2, 0, 1)}

    def loss(stored, batch):
        return _loss({**stored, "conv": stored["conv"].transpose(2, 3, 1, 0)}, batch)

    scales = jnp.arange(1.0, 1.0 + CHANNELS)
    for options in ({}, {"feature_scales": scales}):
        ours = flatness.hessian_of_layer(_loss, params, batch, layer="conv", **options)
        theirs = flatness.hessian_of_layer(
            loss, stored, batch, layer="conv", neuron_axis=0, **options
        )
        np.testing.assert_allclose(
            net.exact_measure(name, theirs, key), net.exact_measure(name, ours, key), rtol=1e-11
        )


def test_the_wrong_storage_is_another_number(net, x64, key):
    """Nothing is detected: what `neuron_axis` says is what is measured."""
    params, batch = _problem()
    values = [
        net.exact_measure(
            "neuronwise_trace",
            flatness.hessian_of_layer(_loss, params, batch, layer="conv", neuron_axis=axis),
            key,
        )
        for axis in (-1, 2, 0)
    ]
    assert len({round(v, 6) for v in values}) == 3


def test_channels_before_a_convolution_may_be_rescaled(net, x64, key):
    """Two convolutions; normalised and columnwise measures of the second survive, the plain not."""
    rng = np.random.default_rng(1)
    params, (x, y) = _problem()
    params["first"] = rng.normal(size=(2, 2, 2, CHANNELS)) / 2
    params["shift"] = rng.normal(size=CHANNELS)
    x = rng.normal(size=(8, SIZE + 1, SIZE + 1, 2))

    def apply_fn(params, x):
        z = conv_general_dilated(
            x, params["first"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return _apply(params, jax.nn.relu(z + params["shift"]))

    def loss(params, batch):
        x, y = batch
        logits = apply_fn(params, x)
        own = jnp.take_along_axis(logits, y[:, None], axis=1)[:, 0]
        return jnp.mean(jax.nn.logsumexp(logits, axis=1) - own)

    moved = flatness.rescale_neurons(
        params, jnp.array([0.1, 30.0, 2.0]), previous=["first", "shift"], layer="conv"
    )
    np.testing.assert_allclose(apply_fn(moved, x), apply_fn(params, x), rtol=1e-10)

    def measured(params, name, normalise):
        scales = flatness.feature_scales(flatness.layer_features(apply_fn, params, x, layer="conv"))
        hessian = flatness.hessian_of_layer(
            loss, params, (x, y), layer="conv", feature_scales=scales if normalise else None
        )
        return net.exact_measure(name, hessian, key)

    for name, normalise, survives in (
        ("neuronwise_trace", True, True),
        ("columnwise_trace", False, True),
        ("neuronwise_trace", False, False),
    ):
        before, after = measured(params, name, normalise), measured(moved, name, normalise)
        assert (abs(after - before) < 1e-10 * before) == survives


def test_an_equinox_convolution_is_measured_as_it_is_stored(net, x64, key):
    model = models.from_equinox(
        lambda k: eqx.nn.Sequential(
            [
                eqx.nn.Conv2d(CHANNELS, NEURONS, KERNEL, key=k),
                eqx.nn.Lambda(jax.nn.relu),
                eqx.nn.Lambda(lambda z: jnp.moveaxis(z, 0, -1).ravel()),
                eqx.nn.Linear(OUT * OUT * NEURONS, CLASSES, use_bias=False, key=k),
            ]
        )
    )
    params, (x, y) = _problem()
    x = jnp.moveaxis(jnp.asarray(x), -1, 1)
    eqx_params = model.init(key, x)
    paths = leaf_paths(eqx_params)
    values = {
        paths[0]: params["conv"].transpose(3, 2, 0, 1),
        paths[1]: params["bias"][:, None, None],
        paths[2]: params["dense"].T,
    }
    treedef = jax.tree.structure(eqx_params)
    eqx_params = jax.tree.unflatten(treedef, [jnp.asarray(values[p]) for p in paths])

    def loss(p, batch):
        logits = model.apply_fn(p, batch[0])
        own = jnp.take_along_axis(logits, batch[1][:, None], axis=1)[:, 0]
        return jnp.mean(jax.nn.logsumexp(logits, axis=1) - own)

    W = params["conv"].reshape(-1, NEURONS).T
    wanted = net.definitions(W, _numpy_hessian(net, params, _problem()[1][0]))
    hessian = flatness.hessian_of_layer(loss, eqx_params, (x, y), layer=paths[0], neuron_axis=0)
    np.testing.assert_allclose(
        net.exact_measure("neuronwise_trace", hessian, key), wanted["neuronwise_trace"], rtol=1e-10
    )
    wanted = net.definitions(params["dense"].T, _dense_hessian(net, params, _problem()[1][0]))
    hessian = flatness.hessian_of_layer(loss, eqx_params, (x, y), layer=paths[2], neuron_axis=0)
    np.testing.assert_allclose(
        net.exact_measure("neuronwise_trace", hessian, key), wanted["neuronwise_trace"], rtol=1e-10
    )


def _dense_hessian(net, params, x):
    phi = np.asarray(jax.nn.relu(_features_of(params, x)))
    p = net.softmax(phi @ params["dense"])
    S = np.einsum("ia,ab->iab", p, np.eye(CLASSES)) - np.einsum("ia,ib->iab", p, p)
    return np.einsum("iab,it,iu->atbu", S, phi, phi) / len(x)


def _features_of(params, x):
    z = conv_general_dilated(
        x, params["conv"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return (z + params["bias"]).reshape(len(x), -1)
