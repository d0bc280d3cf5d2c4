"""The hierarchy against materialised tensors, and against the flow whose derivative it is."""

import itertools

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

from poster_jax.core import models
from poster_jax.finite_width import feynman

NETWORK = feynman.deep_network(jnp.tanh, depth=2, input_dim=2)

# One program for the tests that ask for every order.
hierarchy = jax.jit(feynman.hierarchy, static_argnums=0)


@pytest.fixture
def network(x64):
    rng = np.random.default_rng(1)
    params = [rng.normal(size=shape) for shape in ((2, 4), (4, 4), (4,))]
    return NETWORK.apply_fn, jax.tree.map(jnp.asarray, params), jnp.asarray(rng.normal(size=(3, 2)))


def test_equals_contracted_tensors(network):
    apply_fn, params, x = network
    flat, unravel = jax.flatten_util.ravel_pytree(params)

    def f(flat):
        return apply_fn(unravel(flat), x)

    derivatives = jax.jit(lambda flat: (jax.jacfwd(f)(flat), jax.hessian(f)(flat), _third(f)(flat)))
    g, h, t = map(np.asarray, derivatives(flat))
    hg = np.einsum("ipq,jq->ijp", h, g)
    o3 = np.einsum("ikp,jp->ijk", hg, g) + np.einsum("jkp,ip->ijk", hg, g)
    # d_l of (H_i g_k) . g_j, each factor in turn; and the same with i and j exchanged.
    half = (
        np.einsum("ipqr,kp,jq,lr->ijkl", t, g, g, g)
        + np.einsum("klp,ijp->ijkl", hg, hg)
        + np.einsum("ikp,jlp->ijkl", hg, hg)
    )
    o4 = half + half.transpose(1, 0, 2, 3)
    found = hierarchy(apply_fn, params, x)
    for ours, wanted in zip(found, (f(flat), g @ g.T, o3, o4), strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=1e-10, atol=1e-12)


def _third(f):
    return jax.jacfwd(jax.hessian(f))


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_arrays_hold_the_functions_of_inputs(network, order):
    apply_fn, params, x = network
    array = np.asarray(hierarchy(apply_fn, params, x)[order - 1])
    operator = jax.jit(feynman.hierarchy_fn(apply_fn, order=order))
    places = list(itertools.product(range(3), repeat=order))[:: 2 * order - 1]
    points = np.asarray(x)
    for place in places:
        wanted = operator(params, *(points[k] for k in place))
        np.testing.assert_allclose(array[place], wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_each_order_is_the_motion_of_the_one_before(network, order):
    apply_fn, params, x = network
    residual = np.array([0.3, -1.0, 0.5])
    slope = jax.jit(jax.grad(lambda p: residual @ apply_fn(p, x)))(params)

    def at(time):
        moved = [np.asarray(p) - time * np.asarray(g) for p, g in zip(params, slope, strict=True)]
        return [np.asarray(array) for array in hierarchy(apply_fn, moved, x)]

    low, high = (at(s * 1e-5)[order - 1] for s in (-1, 1))
    wanted = -at(0.0)[order] @ residual
    # The central difference is off by (1e-5)^2 times a third derivative.
    np.testing.assert_allclose((high - low) / 2e-5, wanted, rtol=1e-6, atol=1e-8)


def test_lower_orders_leave_the_others_out(network):
    found = feynman.hierarchy(*network, order=2)
    assert found.o3 is None
    assert found.o4 is None


def test_a_flax_network_goes_in_and_the_kernel_is_that_of_the_kernels_room(key):
    from poster_jax import kernels

    model = models.from_linen(models.MLP((8, 1)))
    x = jax.random.normal(key, (3, 2))
    params = model.init(key, x)
    wanted = kernels.empirical_ntk_fn(model.apply_fn)(x, None, params)
    found = feynman.hierarchy(model.apply_fn, params, x, order=3)
    np.testing.assert_allclose(found.o2, np.asarray(wanted).reshape(3, 3), rtol=1e-5)


@pytest.mark.bad_input
def test_bad_input_is_refused(network):
    apply_fn, params, x = network
    with pytest.raises(ValueError, match="order must be 2, 3 or 4"):
        feynman.hierarchy(apply_fn, params, x, order=5)
    with pytest.raises(ValueError, match="order must be at least 2"):
        feynman.hierarchy(apply_fn, params, x, order=1)
    with pytest.raises(ValueError, match="one output for each of the 3 examples"):
        feynman.hierarchy(lambda p, x: x, params, x)
    with pytest.raises(ValueError, match="xs must be 2 inputs"):
        feynman.hierarchy_fn(apply_fn, order=2)(params, x[0])
    with pytest.raises(ValueError, match="order must be at least 1"):
        feynman.hierarchy_fn(apply_fn, order=0)
