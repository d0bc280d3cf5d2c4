"""The numpy reference is itself right: finite differences of a numpy loss, and jax.hessian."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_hand_derived_hessian_is_the_second_difference_of_the_loss(net, layer):
    params, batch = net.make_params(), net.make_batch()
    W = params[f"Dense_{layer}"]["kernel"]
    H = net.numpy_hessian(params, batch, layer)
    rng = np.random.default_rng(2)
    step = 1e-4  # no kink lies within it: checked by the agreement itself

    def loss(move):
        moved = dict(params)
        moved[f"Dense_{layer}"] = {**params[f"Dense_{layer}"], "kernel": W + step * move}
        return net.numpy_loss(moved, batch)

    for _ in range(5):
        u = rng.normal(size=W.shape)
        second = (loss(u) - 2 * loss(0 * u) + loss(-u)) / step**2
        # cancellation costs eps / step^2 = 2e-8, the fourth derivative step^2 = 1e-8
        np.testing.assert_allclose(np.einsum("st,stru,ru", u.T, H, u.T), second, rtol=1e-5)


@pytest.mark.parametrize("layer", [*(pytest.param(n, marks=pytest.mark.slow) for n in (0, 1)), 2])
def test_hand_derived_hessian_is_the_automatic_one(net, x64, layer):
    params, batch = jax.tree.map(jnp.asarray, (net.make_params(), net.make_batch()))

    def loss(W):
        moved = {**params, f"Dense_{layer}": {**params[f"Dense_{layer}"], "kernel": W.T}}
        return net.loss_fn(moved, batch)

    H = jax.hessian(loss)(params[f"Dense_{layer}"]["kernel"].T)
    np.testing.assert_allclose(net.numpy_hessian(params, batch, layer), H, atol=1e-14)
