"""The closed forms of the last layer are the Hessian's, and keep their digits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from poster_jax import flatness


def _last(net, dtype):
    params, batch = jax.tree.map(
        jnp.asarray, (net.make_params(dtype=dtype), net.make_batch(dtype=dtype))
    )
    features = flatness.layer_features(net.apply_fn, params, batch[0], layer="Dense_2/kernel")
    return params, batch, features, net.apply_fn(params, batch[0]), params["Dense_2"]["kernel"]


def test_closed_form_is_the_definition(net, x64):
    params, batch, features, logits, kernel = _last(net, np.float64)
    wanted = net.definitions(np.asarray(kernel).T, net.numpy_hessian(params, batch, 2))
    np.testing.assert_allclose(
        flatness.last_layer_relative_flatness(features, logits, kernel),
        wanted["neuronwise_trace"],
        rtol=1e-12,
    )
    np.testing.assert_allclose(
        flatness.last_layer_trace(features, logits) * jnp.sum(kernel**2),
        wanted["layer_trace"],
        rtol=1e-12,
    )


@pytest.mark.parametrize(
    ("dtype", "rtol"), [pytest.param(np.float32, 1e-6, marks=pytest.mark.slow), (np.float64, 1e-10)]
)
def test_closed_form_is_the_product_path(net, key, dtype, rtol):
    with jax.enable_x64(dtype == np.float64):
        params, batch, features, logits, kernel = _last(net, dtype)
        hessian = flatness.hessian_of_layer(net.loss_fn, params, batch, layer="Dense_2/kernel")
        np.testing.assert_allclose(
            flatness.last_layer_relative_flatness(features, logits, kernel),
            net.exact_measure("neuronwise_trace", hessian, key),
            rtol=rtol,
        )


@pytest.mark.parametrize("measure", ["columnwise_trace", "layer_max_eigenvalue"])
def test_operator_of_the_last_layer_has_every_measure(net, x64, key, measure):
    params, batch, features, logits, kernel = _last(net, np.float64)
    hessian = flatness.hessian_of_last_layer(features, logits, kernel)
    wanted = net.definitions(np.asarray(kernel).T, net.numpy_hessian(params, batch, 2))
    np.testing.assert_allclose(
        net.exact_measure(measure, hessian, key), wanted[measure], rtol=1e-10
    )


def test_both_storages_agree(net):
    _, _, features, logits, kernel = _last(net, np.float32)
    np.testing.assert_allclose(
        flatness.last_layer_relative_flatness(features, logits, kernel),
        flatness.last_layer_relative_flatness(features, logits, kernel.T, neuron_axis=0),
        rtol=1e-6,
    )


def test_confident_predictions_keep_their_digits(net):
    """At a loss of 1e-6 the textbook form in float32 is rounding noise; ours is not."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(50, 8)) + 1
    kernel = 3 * rng.normal(size=(8, 4))
    logits = features @ kernel
    logits[np.arange(50), rng.integers(0, 4, 50)] += 30
    p = net.softmax(logits)
    G = kernel.T @ kernel
    wanted = 0.0
    for i in range(50):
        q = np.delete(p[i], p[i].argmax())  # 1 - p_max as a sum: exact in float64
        rest = np.delete(np.arange(4), p[i].argmax())
        y = p[i].argmax()
        pairs = sum(q[a] * p[i, y] * (G[r, r] + G[y, y] - 2 * G[r, y]) for a, r in enumerate(rest))
        pairs += sum(
            q[a] * q[b] * (G[r, r] + G[u, u] - 2 * G[r, u])
            for a, r in enumerate(rest)
            for b, u in enumerate(rest)
            if a < b
        )
        wanted += (features[i] ** 2).sum() * pairs / 50
    # The logits are the same numbers on both sides: rounding them first would be the larger error.
    logits32 = logits.astype(np.float32)
    scale = np.exp(np.abs(logits - logits32).max() * 2)
    found = float(
        flatness.last_layer_relative_flatness(
            *(jnp.asarray(a, jnp.float32) for a in (features, logits32, kernel))
        )
    )
    np.testing.assert_allclose(found, wanted, rtol=5e-6 + (scale - 1))


def test_least_squares_is_the_ridge_penalty(x64, key, net):
    """C4: kappa = |W|^2 mean |phi|^2, through the product path and in closed form."""
    rng = np.random.default_rng(0)
    x, y = jnp.asarray(rng.normal(size=(30, 6))), jnp.asarray(rng.normal(size=(30, 3)))
    params = {"kernel": jnp.asarray(rng.normal(size=(6, 3)))}

    def loss_fn(params, batch):
        x, y = batch
        return 0.5 * jnp.mean(jnp.sum((x @ params["kernel"] - y) ** 2, axis=1))

    wanted = float(np.sum(np.square(params["kernel"])) * np.mean(np.sum(np.square(x), axis=1)))
    hessian = flatness.hessian_of_layer(loss_fn, params, (x, y), layer="kernel")
    np.testing.assert_allclose(
        net.exact_measure("neuronwise_trace", hessian, key), wanted, rtol=1e-12
    )
    np.testing.assert_allclose(
        flatness.least_squares_relative_flatness(x, params["kernel"]), wanted, rtol=1e-12
    )


@pytest.mark.parametrize("alpha", [0.0, 0.03])
def test_weight_decay_in_closed_form(net, x64, key, alpha):
    params, batch, features, logits, kernel = _last(net, np.float64)

    def decayed(params, batch):
        return net.loss_fn(params, batch) + alpha * jnp.sum(params["Dense_2"]["kernel"] ** 2)

    hessian = flatness.hessian_of_layer(decayed, params, batch, layer="Dense_2/kernel")
    np.testing.assert_allclose(
        flatness.last_layer_relative_flatness(features, logits, kernel, weight_decay=alpha),
        net.exact_measure("neuronwise_trace", hessian, key),
        rtol=1e-10,
    )


def test_closed_form_of_a_population_in_one_program():
    keys = jax.random.split(jax.random.key(0), 3)
    features = jax.random.normal(keys[0], (7, 20, 5))
    kernels = jax.random.normal(keys[1], (7, 5, 4))
    logits = jnp.einsum("nim,nmd->nid", features, kernels)
    together = jax.jit(jax.vmap(flatness.last_layer_relative_flatness))(features, logits, kernels)
    alone = [
        float(flatness.last_layer_relative_flatness(*one))
        for one in zip(features, logits, kernels, strict=True)
    ]
    np.testing.assert_allclose(together, alone, rtol=1e-5)
