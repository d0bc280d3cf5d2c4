"""Relative flatness is the robustness of the loss to changes of the features (oracle 6)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import ortho_group

from poster_jax import flatness


@pytest.fixture(scope="module")
def minimum():
    """A last layer at the minimum of a decayed cross-entropy, found by scipy in float64.

    Behind it the loss is smooth, so that the expansion has no kinks to meet.
    """
    rng = np.random.default_rng(0)
    features = np.maximum(rng.normal(size=(60, 6)), 0)
    labels = rng.integers(0, 4, 60)

    def loss(flat):
        W = flat.reshape(4, 6)
        z = features @ W.T
        top = z.max(axis=1, keepdims=True)
        e = np.exp(z - top)
        p = e / e.sum(axis=1, keepdims=True)
        value = np.mean(np.log(e.sum(axis=1)) + top[:, 0] - z[np.arange(60), labels])
        p[np.arange(60), labels] -= 1
        return value + 0.005 * flat @ flat, (p.T @ features / 60).ravel() + 0.01 * flat

    found = minimize(loss, rng.normal(size=24), jac=True, options={"gtol": 1e-10})
    return features, labels, found.x.reshape(4, 6), lambda W: loss(W.ravel())[0]


def _jax_loss(params, batch):
    x, y = batch
    z = x @ params["kernel"]
    own = jnp.take_along_axis(z, y[:, None], axis=1)[:, 0]
    decay = 0.005 * jnp.sum(params["kernel"] ** 2)
    return jnp.mean(jax.nn.logsumexp(z, axis=1) - own) + decay


DELTA = 0.03


def _predicted(net, minimum, key):
    features, labels, W, _ = minimum
    params = {"kernel": jnp.asarray(W.T)}
    batch = (jnp.asarray(features), jnp.asarray(labels))
    hessian = flatness.hessian_of_layer(_jax_loss, params, batch, layer="kernel")
    kappa = net.exact_measure("neuronwise_trace", hessian, key)
    return params, batch, DELTA**2 * kappa / (2 * W.shape[1])


def test_numpy_average_over_5000_rotations_is_the_measure(net, x64, key, minimum):
    _, _, W, loss = minimum
    rotations = ortho_group.rvs(6, size=5000, random_state=1)
    rise = np.mean([loss(W + DELTA * W @ A) for A in rotations]) - loss(W)
    np.testing.assert_allclose(rise, _predicted(net, minimum, key)[2], rtol=0.03)


def test_our_average_is_the_measure_and_its_error_is_right(net, x64, key, minimum):
    params, batch, predicted = _predicted(net, minimum, key)
    rise = flatness.feature_robustness(
        _jax_loss, params, batch, key, layer="kernel", delta=DELTA, num_samples=5000
    )
    np.testing.assert_allclose(rise.mean, predicted, rtol=0.03)
    # what remains beyond the sampling error is the fourth order, delta^2 of the second
    assert abs(float(rise.mean) - predicted) < 4 * float(rise.stderr) + DELTA**2 * predicted


def test_it_is_even_in_the_slope(x64, key, minimum):
    """Away from the minimum the plain average drowns in the slope; pairs of A and -A do not."""
    features, labels, W, _ = minimum
    params = {"kernel": jnp.asarray(W.T) + 1.0}
    batch = (jnp.asarray(features), jnp.asarray(labels))
    rise = flatness.feature_robustness(
        _jax_loss, params, batch, key, layer="kernel", delta=1e-3, num_samples=200
    )
    assert float(rise.stderr) < 0.2 * abs(float(rise.mean))


def test_storage_and_population(net, key):
    params, batch = jax.tree.map(
        jnp.asarray, (net.make_params(dtype=np.float32), net.make_batch(dtype=np.float32))
    )

    def turned(params, batch):
        kernel = params["Dense_2"]["kernel"].T
        return net.loss_fn({**params, "Dense_2": {**params["Dense_2"], "kernel": kernel}}, batch)

    stored = {**params, "Dense_2": {**params["Dense_2"], "kernel": params["Dense_2"]["kernel"].T}}
    options = {"layer": "Dense_2/kernel", "delta": 0.1, "num_samples": 50}
    ours = flatness.feature_robustness(net.loss_fn, params, batch, key, **options)
    theirs = flatness.feature_robustness(turned, stored, batch, key, neuron_axis=0, **options)
    np.testing.assert_allclose(theirs.mean, ours.mean, rtol=1e-3)
    population = jax.tree.map(lambda a: jnp.stack([a, a]), params)
    together = jax.jit(
        jax.vmap(lambda p: flatness.feature_robustness(net.loss_fn, p, batch, key, **options))
    )(population)
    np.testing.assert_allclose(together.mean, [ours.mean] * 2, rtol=1e-3)
