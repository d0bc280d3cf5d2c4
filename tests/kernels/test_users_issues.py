"""What users of the original reported, by the number of the issue; the others are where they fit.

14, 88, 197: test_stax_gradients and test_stax_float32. 206: test_batch. 87: test_empirical_models.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from poster_jax.core import models
from poster_jax.kernels import predict, stax
from poster_jax.kernels.batch import batch
from poster_jax.kernels.disk import kernel_to_disk
from poster_jax.kernels.empirical import empirical_ntk_fn

pytestmark = pytest.mark.slow  # in favour of a quick `make test`

RNG = np.random.default_rng(0)


def conv():
    return stax.serial(stax.Conv(1, (3, 3), padding="CIRCULAR", W_std=1.4, b_std=0.1), stax.Relu())


@pytest.mark.slow
def test_issue_76_pooled_images_that_no_kernel_tells_apart_are_predicted():
    """A shifted image has the kernel of the image: that of 8 images and shifts is singular."""
    _, _, kernel_fn = stax.serial(conv(), stax.GlobalAvgPool(), stax.Dense(1))
    kernel_fn = jax.jit(kernel_fn, static_argnums=2)
    images = RNG.normal(size=(10, 6, 6, 1)).astype(np.float32)
    x, x_test = np.concatenate([images[:8], np.roll(images[:8], 2, axis=1)]), images[6:]
    y = RNG.normal(size=(16, 2)).astype(np.float32)
    fn = predict.gradient_descent_mse_ensemble(kernel_fn, x, y)
    values = np.linalg.eigvalsh(np.asarray(kernel_fn(x, None, "nngp"), float))
    assert np.abs(values[:8]).max() < 1e-5 * values[-1]  # to rounding, half of them are zero
    for t in (None, 5.0):
        answers = fn(t, x_test, None, True)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(answers))
    # The images that were learned, twice with different labels, are known as the labels' mean.
    mean = fn(None, x_test, "ntk")[:2]
    np.testing.assert_allclose(mean, (y[6:8] + y[14:16]) / 2, atol=2e-2)


@pytest.mark.slow
def test_issue_36_in_the_ordered_phase_all_is_predicted_as_the_mean_label():
    """15 layers of small weights map all inputs to one: a kernel of rank one, to rounding."""
    layers = [stax.Dense(1, W_std=0.5, b_std=0.5), stax.Erf()] * 15
    _, _, kernel_fn = stax.serial(*layers, stax.Dense(1, W_std=0.5, b_std=0.5))
    kernel_fn = jax.jit(kernel_fn, static_argnums=2)
    x, y = RNG.normal(size=(7, 3)).astype(np.float32), RNG.normal(size=(7, 1)).astype(np.float32)
    fn = predict.gradient_descent_mse_ensemble(kernel_fn, x, y)
    for get in ("nngp", "ntk"):
        mean, covariance = fn(None, x[:4] + 1, get, True)
        np.testing.assert_allclose(mean, np.full((4, 1), y.mean()), atol=1e-3)
        np.testing.assert_allclose(covariance, 0, atol=1e-4)


@pytest.mark.bad_input
def test_issue_76_a_kernel_beyond_rounding_is_refused_with_the_regularisation_that_it_needs():
    kernel = np.diag([1.0, 1.0, -0.4]).astype(np.float32)
    fn = predict.gradient_descent_mse(kernel, np.ones((3, 1), np.float32))
    with pytest.raises(ValueError, match=r"diag_reg above 0\.75"):
        fn(1.0)
    repaired = predict.gradient_descent_mse(kernel, np.ones((3, 1), np.float32), diag_reg=0.8)
    assert np.isfinite(repaired(1.0)).all()


def watched(live, x1, x2, *_):
    """A product that notes how many bytes are on devices while a tile is computed."""
    jax.debug.callback(lambda: live.append(sum(a.nbytes for a in jax.live_arrays())))
    return x1 @ x2.T


@pytest.mark.parametrize("place", ["kept", "host", "disk"])
def test_issue_89_tiles_on_host_and_disk_leave_the_device_its_memory(place, tmp_path):
    """Arrays of some tiles live on the device and not of the kernel, unless all tiles are kept."""
    live, x = [], RNG.normal(size=(192, 3)).astype(np.float32)
    base = sum(a.nbytes for a in jax.live_arrays())
    fn = partial(watched, live)
    if place == "disk":
        kernel = kernel_to_disk(tmp_path, fn, x, batch_size=16, device_count=0)
        assert isinstance(kernel, np.memmap)
    elif place == "host":
        kernel = batch(fn, 16, 0, store_on_device=False)(x, None)
    else:  # the control
        parts, one = np.split(x, 12), jax.jit(fn)
        kernel = np.block([[one(a, b) for b in parts] for a in parts])
    jax.effects_barrier()
    np.testing.assert_allclose(kernel, x @ x.T, rtol=1e-5, atol=1e-5)
    assert len(live) >= 144
    whole, tile = x.shape[0] ** 2 * 4, 16 * 16 * 4
    if place == "kept":
        assert max(live) - base > whole / 2
    else:
        assert max(live) - base < x.nbytes + 16 * tile


class Net(nn.Module):
    """A small one of their 2.5 million parameters: 42,000, most of them in the last layers."""

    train: bool = False

    @nn.compact
    def __call__(self, x):
        for width in (16, 32):
            x = nn.relu(nn.Conv(width, (3, 3), strides=2)(x))
        x = x.reshape(len(x), -1)
        if self.train:
            x = nn.BatchNorm(use_running_average=False)(x)
        return nn.Dense(2)(nn.relu(nn.Dense(70)(x)))


def products_of_gradients(f, params, x):
    """One gradient for each example and output, and their products summed over the outputs."""
    gradient = jax.jit(jax.grad(lambda p, i, o: f(p, x)[i, o]))
    rows = [jax.tree.leaves(gradient(params, i, o)) for i in range(len(x)) for o in range(2)]
    flat = np.stack([np.concatenate([np.ravel(leaf) for leaf in row]) for row in rows])
    flat = flat.reshape(len(x), 2, -1)
    return np.einsum("iop,jop->ij", flat, flat) / 2


def test_issue_30_the_ntk_of_a_cnn_comes_in_tiles_without_its_jacobian():
    model, x = models.from_linen(Net()), RNG.normal(size=(9, 16, 16, 1)).astype(np.float32)
    params = model.init(jax.random.key(0), x)
    ntk_fn = empirical_ntk_fn(model.apply_fn, vmap_axes=0, implementation=3)
    tiles = batch(ntk_fn, 4, store_on_device=False)(x, None, params)
    expected = products_of_gradients(model.apply_fn, params, x)
    np.testing.assert_allclose(tiles, expected, atol=1e-5 * np.abs(expected).max())
    # What a tile of 64 x 64 keeps at once is below the Jacobians of its two sides.
    many = jnp.zeros((64, 16, 16, 1))
    needed = jax.jit(ntk_fn).lower(many, many, params).compile().memory_analysis()
    jacobians = 2 * 64 * 2 * sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert needed.temp_size_in_bytes < jacobians / 2


def test_issue_134_batch_norm_in_training_makes_a_kernel_of_the_batch_and_it_is_said_so():
    net, x = Net(train=True), RNG.normal(size=(3, 16, 16, 1)).astype(np.float32)
    variables = jax.jit(net.init)(jax.random.key(0), x)
    params = variables["params"]

    def f(params, x):
        state = {"params": params, "batch_stats": variables["batch_stats"]}
        return net.apply(state, x, mutable=["batch_stats"])[0]

    ntk_fn = jax.jit(empirical_ntk_fn(f), static_argnums=1)  # vmap_axes=None: the whole batch
    whole = np.asarray(ntk_fn(x, None, params))
    expected = products_of_gradients(f, params, x)
    np.testing.assert_allclose(whole, expected, atol=1e-4 * np.abs(expected).max())
    # The third image changes what the kernel says of the first two: no kernel of pairs.
    fewer = np.asarray(ntk_fn(x[:2], None, params))
    assert np.abs(fewer - whole[:2, :2]).max() > 0.01 * np.abs(whole).max()
    assert "BatchNorm" in (empirical_ntk_fn.__doc__ or "")
