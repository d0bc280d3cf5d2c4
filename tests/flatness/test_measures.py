"""Every measure is what its definition says, and its estimator is unbiased with a true error."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from poster_jax import curvature, flatness
from poster_jax.core import losses


def _hessian(net, layer, **options):
    params, batch = jax.tree.map(jnp.asarray, (net.make_params(), net.make_batch()))
    return (
        params,
        batch,
        flatness.hessian_of_layer(
            net.loss_fn, params, batch, layer=f"Dense_{layer}/kernel", **options
        ),
    )


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_measure_is_its_definition(net, x64, key, measure, layer):
    params, batch, hessian = _hessian(net, layer)
    H = net.numpy_hessian(params, batch, layer)
    W = np.asarray(params[f"Dense_{layer}"]["kernel"]).T
    wanted = net.definitions(W, H)[measure]
    np.testing.assert_allclose(net.exact_measure(measure, hessian, key), wanted, rtol=1e-10)


@pytest.mark.parametrize("name", ["neuronwise_trace", "columnwise_trace", "layer_trace"])
@pytest.mark.parametrize("layer", [1, 2])
def test_mean_of_20000_probes_is_right_and_so_is_its_error(net, x64, name, layer):
    params, batch, hessian = _hessian(net, layer)
    H = net.numpy_hessian(params, batch, layer)
    W = np.asarray(params[f"Dense_{layer}"]["kernel"]).T
    wanted = net.definitions(W, H)[name]
    estimate = getattr(flatness, name)(hessian, jax.random.key(5), num_probes=20_000)
    assert abs(float(estimate.mean) - wanted) < 4 * float(estimate.stderr)
    assert int(estimate.num_samples) == 20_000
    # Variance of a quadratic form in random signs: twice the squared off-diagonal entries.
    d, m = W.shape
    if name == "layer_trace":
        M = (W**2).sum() * H.reshape(d * m, d * m)
    elif name == "columnwise_trace":
        M = np.einsum("st,stru,ru->tu", W, H, W)
    else:
        L = np.linalg.qr(W.T)[1].T
        M = np.einsum("sk,stru,rj->ktju", L, H, L).reshape(L.shape[1] * m, -1)
    variance = 2 * ((M**2).sum() - (np.diag(M) ** 2).sum())
    # 20,000 samples know their own variance to about 2 %.
    np.testing.assert_allclose(float(estimate.stderr) ** 2 * 20_000, variance, rtol=0.1)


@pytest.mark.parametrize("estimator", ["trace", "hutchpp_trace", "xtrace"])
def test_every_estimator_is_unbiased_and_honest_about_its_error(net, x64, estimator):
    params, batch, hessian = _hessian(net, 1)
    W = np.asarray(params["Dense_1"]["kernel"]).T
    wanted = net.definitions(W, net.numpy_hessian(params, batch, 1))["neuronwise_trace"]
    runs = jax.vmap(
        lambda key: flatness.neuronwise_trace(
            hessian, key, num_probes=12, estimator=getattr(curvature, estimator)
        )
    )(jax.random.split(jax.random.key(0), 600))
    spread = float(runs.mean.std())
    assert abs(float(runs.mean.mean()) - wanted) < 4 * spread / 600**0.5
    # The stated error is the spread of the estimates: a quarter either way for so few probes.
    assert 0.75 < float(jnp.sqrt(jnp.mean(runs.stderr**2))) / spread < 1.33


def test_deflating_estimators_are_sharper_on_a_trained_layer(net, key):
    rng = np.random.default_rng(0)
    features = jnp.asarray(np.maximum(rng.normal(size=(200, 40)) + 0.5, 0), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(40, 10)), jnp.float32)
    hessian = flatness.hessian_of_last_layer(features, features @ kernel, kernel)
    plain = flatness.neuronwise_trace(hessian, key, num_probes=90)
    better = flatness.neuronwise_trace(
        hessian, key, num_probes=90, estimator=curvature.hutchpp_trace
    )
    assert float(better.stderr) < float(plain.stderr) / 2


@pytest.mark.parametrize("measure", ["neuronwise_trace", "layer_trace", "layer_max_eigenvalue"])
def test_weight_decay_adds_exactly_its_own_curvature(net, x64, key, measure):
    alpha = 0.01

    def decayed(params, batch):
        return net.loss_fn(params, batch) + alpha * jnp.sum(params["Dense_1"]["kernel"] ** 2)

    params, batch, plain = _hessian(net, 1)
    hessian = flatness.hessian_of_layer(decayed, params, batch, layer="Dense_1/kernel")
    d, m = hessian.weights.shape
    norm = float(jnp.sum(hessian.weights**2))
    added = net.exact_measure(measure, hessian, key) - net.exact_measure(measure, plain, key)
    # lambda_max and the columnwise form gain 2 alpha |W|^2, a trace over m inputs m times that.
    factor = {"layer_trace": d * m, "neuronwise_trace": m}.get(measure, 1)
    np.testing.assert_allclose(added, 2 * alpha * factor * norm, rtol=1e-9)


def test_the_library_s_weight_decay_is_counted(net, x64, key):
    params, batch, plain = _hessian(net, 2)
    decayed = losses.with_weight_decay(net.loss_fn, 0.1)
    hessian = flatness.hessian_of_layer(decayed, params, batch, layer="Dense_2/kernel")
    m, norm = hessian.weights.shape[1], float(jnp.sum(hessian.weights**2))
    for name, factor in (("layer_max_eigenvalue", 1), ("neuronwise_trace", m)):
        gained = net.exact_measure(name, hessian, key) - net.exact_measure(name, plain, key)
        np.testing.assert_allclose(gained, 0.1 * factor * norm, rtol=1e-9)


def test_a_layer_s_operator_may_be_any_curvature(net, x64, key):
    params, batch = jax.tree.map(jnp.asarray, (net.make_params(), net.make_batch()))
    fisher = curvature.fisher_operator(net.apply_fn, params, batch).restrict("Dense_1/kernel")
    hessian = flatness.layer_hessian_from_operator(fisher)
    wanted = net.definitions(hessian.weights, net.numpy_hessian(params, batch, 1))
    # Fisher = Gauss-Newton = Hessian within one layer of a ReLU network under cross-entropy.
    np.testing.assert_allclose(
        net.exact_measure("neuronwise_trace", hessian, key), wanted["neuronwise_trace"], rtol=1e-10
    )


def test_more_neurons_than_inputs(net, x64, key):
    widths = (3, 8, 2)
    params, batch = jax.tree.map(
        jnp.asarray, (net.make_params(widths=widths), net.make_batch(widths=widths))
    )
    hessian = flatness.hessian_of_layer(net.loss_fn, params, batch, layer="Dense_0/kernel")
    wanted = net.definitions(hessian.weights, net.numpy_hessian(params, batch, 0))
    np.testing.assert_allclose(
        net.exact_measure("neuronwise_trace", hessian, key), wanted["neuronwise_trace"], rtol=1e-10
    )


def test_all_layers_are_each_layer_their_sum_and_their_largest(net, x64, key):
    params, batch = jax.tree.map(jnp.asarray, (net.make_params(), net.make_batch()))
    layers = flatness.kernel_paths(params)
    assert layers == ("Dense_0/kernel", "Dense_1/kernel", "Dense_2/kernel")
    found = flatness.relative_flatness_all_layers(
        net.loss_fn, params, batch, key, layers=layers, num_probes=1, estimator=net.exact_trace
    )
    wanted = [
        net.definitions(
            np.asarray(params[f"Dense_{i}"]["kernel"]).T, net.numpy_hessian(params, batch, i)
        )["neuronwise_trace"]
        for i in range(3)
    ]
    per_layer = [float(found.per_layer[layer].mean) for layer in layers]
    np.testing.assert_allclose(per_layer, wanted, rtol=1e-10)
    np.testing.assert_allclose(float(found.sum.mean), sum(wanted), rtol=1e-10)
    np.testing.assert_allclose(float(found.max.mean), max(wanted), rtol=1e-10)


def test_errors_of_layers_add_in_squares(net, key):
    params, batch = jax.tree.map(
        jnp.asarray, (net.make_params(dtype=np.float32), net.make_batch(dtype=np.float32))
    )
    found = flatness.relative_flatness_all_layers(
        net.loss_fn, params, batch, key, layers=flatness.kernel_paths(params), num_probes=50
    )
    errors = [float(e.stderr) for e in found.per_layer.values()]
    np.testing.assert_allclose(float(found.sum.stderr), np.linalg.norm(errors), rtol=1e-5)
    largest = max(found.per_layer.values(), key=lambda e: float(e.mean))
    assert float(found.max.stderr) == float(largest.stderr)
