"""Rescalings keep the function; they keep the measures that claim it, and no others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from poster_jax import curvature, flatness

LAYERS = ("Dense_0/kernel", "Dense_1/kernel", "Dense_2/kernel")
BIASES = ("Dense_0/bias", "Dense_1/bias", "Dense_2/bias")


def _network(net, dtype=np.float64):
    return jax.tree.map(jnp.asarray, (net.make_params(dtype=dtype), net.make_batch(dtype=dtype)))


def _measured(net, measure, params, batch, key, **options):
    hessian = flatness.hessian_of_layer(
        net.loss_fn, params, batch, layer="Dense_2/kernel", **options
    )
    return net.exact_measure(measure, hessian, key)


def _rescaled_layers(params, seed=0):
    factors = np.exp(np.random.default_rng(seed).uniform(-6, 6, 3))
    factors /= np.prod(factors) ** (1 / 3)
    return flatness.rescale_layers(params, jnp.asarray(factors), layers=LAYERS, biases=BIASES)


def _rescaled_neurons(params, factors):
    return flatness.rescale_neurons(
        params,
        jnp.asarray(factors),
        previous=["Dense_1/kernel", "Dense_1/bias"],
        layer="Dense_2/kernel",
    )


def _scales(net, params, batch):
    features = flatness.layer_features(net.apply_fn, params, batch[0], layer="Dense_2/kernel")
    return flatness.feature_scales(features)


FACTORS = np.array([0.01, 3.0, 20.0, 1.0, 7.0])


def test_all_measures_survive_a_rescaling_of_layers(net, x64, key, measure):
    params, batch = _network(net)
    before = _measured(net, measure, params, batch, key)
    after = _measured(net, measure, _rescaled_layers(params), batch, key)
    # eigenvalue searches stop at a relative residual of 1e-9
    np.testing.assert_allclose(after, before, rtol=1e-8 if "eigen" in measure else 1e-11)


def test_plain_trace_and_eigenvalue_and_norm_do_not(net, x64, key):
    params, batch = _network(net)
    moved = flatness.rescale_layers(params, [1.0, 0.1, 10.0], layers=LAYERS, biases=BIASES)

    def plain(params):
        op = curvature.block_operator(net.loss_fn, params, batch, path="Dense_2/kernel")
        return (
            float(net.exact_trace(op, key, num_probes=1).mean),
            float(curvature.top_eigenpairs(op, key, k=1, tol=1e-9).values[0]),
            1 / float(flatness.squared_norm(params["Dense_2"])),
        )

    before, after = plain(params), plain(moved)
    np.testing.assert_allclose(after[:2], np.array(before[:2]) / 100, rtol=1e-8)
    assert after[2] < before[2] / 50  # the kernel's part falls by 100, the bias stays


def test_one_key_gives_one_estimate_on_both_sides_of_a_rescaling_of_layers(net, key):
    """In float32 and with few probes: the sampling error is the same, so it cancels."""
    params, batch = _network(net, np.float32)
    before, after = (
        flatness.relative_flatness(
            net.loss_fn, p, batch, key, layer="Dense_1/kernel", num_probes=8
        ).mean
        for p in (params, _rescaled_layers(params))
    )
    np.testing.assert_allclose(after, before, rtol=1e-5)


def test_only_the_columnwise_measure_survives_a_rescaling_of_neurons(net, x64, key, measure):
    params, batch = _network(net)
    before = _measured(net, measure, params, batch, key)
    after = _measured(net, measure, _rescaled_neurons(params, FACTORS), batch, key)
    if measure == "columnwise_trace":
        np.testing.assert_allclose(after, before, rtol=1e-11)
    else:
        assert abs(after - before) > 0.5 * abs(before)


def test_every_measure_of_normalised_features_survives_it(net, x64, key, measure):
    params, batch = _network(net)
    moved = _rescaled_neurons(params, FACTORS)
    before, after = (
        _measured(net, measure, p, batch, key, feature_scales=_scales(net, p, batch))
        for p in (params, moved)
    )
    np.testing.assert_allclose(after, before, rtol=1e-7 if "eigen" in measure else 1e-11)


def test_scaled_columns_are_the_normalised_network(net, x64, key, measure):
    params, batch = _network(net)
    normalised = flatness.normalize_features(
        params,
        flatness.layer_features(net.apply_fn, params, batch[0], layer="Dense_2/kernel"),
        previous=["Dense_1/kernel", "Dense_1/bias"],
        layer="Dense_2/kernel",
    )
    np.testing.assert_allclose(
        _measured(net, measure, params, batch, key, feature_scales=_scales(net, params, batch)),
        _measured(net, measure, normalised, batch, key),
        rtol=1e-7 if "eigen" in measure else 1e-11,
    )
    features = flatness.layer_features(net.apply_fn, normalised, batch[0], layer="Dense_2/kernel")
    np.testing.assert_allclose(np.std(features, axis=0), 1, rtol=1e-12)


def test_a_dead_neuron_enters_unless_its_column_is_left_out(net, x64, key):
    """Skipping it, as the authors' description has it, leaves its free scale in <w_s, w_s'>."""
    params, batch = _network(net)
    params["Dense_1"]["bias"] = params["Dense_1"]["bias"].at[2].set(-100.0)
    factors = np.array([1.0, 1.0, 0.02, 1.0, 1.0])
    moved = _rescaled_neurons(params, factors)
    scales = _scales(net, params, batch)
    assert float(scales[2]) == 0.0

    def measured(params, scales):
        return _measured(net, "neuronwise_trace", params, batch, key, feature_scales=scales)

    left_out = measured(params, scales), measured(moved, _scales(net, moved, batch))
    np.testing.assert_allclose(left_out[0], left_out[1], rtol=1e-11)
    skipped = (
        measured(p, jnp.where(_scales(net, p, batch) > 0, _scales(net, p, batch), 1.0))
        for p in (params, moved)
    )
    assert abs(np.diff(list(skipped))[0]) > 1e-3 * left_out[0]


def test_neurons_of_the_layer_itself_may_be_rescaled(net, x64, key, measure):
    params, batch = _network(net)
    moved = flatness.rescale_neurons(
        params,
        jnp.asarray(FACTORS),
        previous=["Dense_1/kernel", "Dense_1/bias"],
        layer="Dense_2/kernel",
    )
    before, after = (
        net.exact_measure(
            measure,
            flatness.hessian_of_layer(net.loss_fn, p, batch, layer="Dense_1/kernel"),
            key,
        )
        for p in (params, moved)
    )
    if measure in {"neuronwise_trace", "neuronwise_max_eigenvalue", "columnwise_trace"}:
        np.testing.assert_allclose(after, before, rtol=1e-8)
    else:
        assert abs(after - before) > 0.1 * abs(before)


def test_constants_on_the_logits_change_nothing(net, x64, key):
    params, batch = _network(net)
    params_up = {**params, "Dense_2": {**params["Dense_2"]}}
    params_up["Dense_2"]["bias"] = params["Dense_2"]["bias"] + 7.0
    for name in ("neuronwise_trace", "layer_max_eigenvalue"):
        for layer in ("Dense_1/kernel", "Dense_2/kernel"):
            before, after = (
                net.exact_measure(
                    name, flatness.hessian_of_layer(net.loss_fn, p, batch, layer=layer), key
                )
                for p in (params, params_up)
            )
            np.testing.assert_allclose(after, before, rtol=1e-8)


@pytest.mark.parametrize("layer", ["Dense_1/kernel", "Dense_2/kernel"])
def test_permutations_of_neurons_change_nothing(net, x64, key, layer):
    params, batch = _network(net)
    order = np.array([3, 0, 4, 1, 2])
    first, second = params["Dense_1"], params["Dense_2"]
    permuted = {
        **params,
        "Dense_1": {"kernel": first["kernel"][:, order], "bias": first["bias"][order]},
        "Dense_2": {**second, "kernel": second["kernel"][order]},
    }
    for name in ("neuronwise_trace", "columnwise_trace", "neuronwise_max_eigenvalue"):
        before, after = (
            net.exact_measure(
                name, flatness.hessian_of_layer(net.loss_fn, p, batch, layer=layer), key
            )
            for p in (params, permuted)
        )
        np.testing.assert_allclose(after, before, rtol=1e-8)
