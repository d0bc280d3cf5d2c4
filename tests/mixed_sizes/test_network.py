"""Copies of an example add nothing by themselves, and pixels are computations."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from poster_jax.core.models import from_linen
from poster_jax.core.recalibration import recalibrate
from poster_jax.mixed_sizes import augment_duplicates, resize_batch, size_sweep


class _Net(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(4, (3, 3))(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5)(x)
        return nn.Dense(3)(nn.relu(x).mean((1, 2)))


MODEL = from_linen(_Net())
KEY = jax.random.key(0)


def test_equal_copies_leave_the_gradient_as_it_is():
    draw = np.random.default_rng(0)
    x = jnp.asarray(draw.normal(size=(5, 6, 6, 2)), jnp.float32)
    y = jnp.arange(5) % 3
    params, state = MODEL.init(KEY, x), MODEL.init_state(KEY, x)

    def loss(params, x, y):
        logits, _ = MODEL.apply_train(params, state, x, KEY)
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], 1).mean()

    @jax.jit
    def gradients(x, y):
        copies = augment_duplicates(KEY, x, y, duplicates=3, augment=lambda key, image: image)
        return jax.grad(loss)(params, x, y), jax.grad(loss)(params, *copies)

    once, thrice = gradients(x, y)
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(once)) > 0.01
    for a, b in zip(jax.tree.leaves(once), jax.tree.leaves(thrice), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_computations_go_with_the_pixels():
    x = jnp.zeros((1, 8, 8, 2))
    params, state = MODEL.init(KEY, x), MODEL.init_state(KEY, x)

    def flops(size):
        x = jax.ShapeDtypeStruct((1, size, size, 2), jnp.float32)
        compiled = jax.jit(lambda x: MODEL.apply_eval(params, state, x)).lower(x).compile()
        return (compiled.cost_analysis() or {})["flops"]

    # Windows that hang over the edge multiply less, which costs the smaller image more.
    np.testing.assert_allclose(flops(160) / flops(224), (160 / 224) ** 2, rtol=0.01)


def test_a_sweep_calibrates_for_each_size():
    draw = np.random.default_rng(1)
    train = jnp.asarray(draw.normal(3, 2, size=(3, 8, 6, 6, 2)), jnp.float32)
    images, labels = train[0] + 0.5, jnp.asarray(draw.integers(0, 3, 8))
    params, state = MODEL.init(KEY, images), MODEL.init_state(KEY, images)

    @jax.jit
    def sweeps(state):
        sweep = partial(size_sweep, MODEL, params, state, (images, labels), train, KEY)
        by_hand = []
        for size in (6, 9):
            x = jax.image.resize(train, (3, 8, size, size, 2), "linear")
            fresh = recalibrate(MODEL, params, state, x, KEY)
            x = jax.image.resize(images, (8, size, size, 2), "linear")
            by_hand.append(MODEL.apply_eval(params, fresh, x))
        doubled = size_sweep(
            MODEL,
            params,
            state,
            (2 * images, labels),
            2 * train,
            KEY,
            sizes=(6, 9),
            resize=lambda x, size: resize_batch(x / 2, size),
        )
        return sweep(sizes=(6, 9)), by_hand, doubled.accuracy

    found, outputs, stored_otherwise = sweeps(state)
    np.testing.assert_array_equal(stored_otherwise, found.accuracy)
    expected = [np.mean(np.argmax(out, -1) == np.asarray(labels)) for out in outputs]
    np.testing.assert_allclose(found.accuracy, expected, rtol=1e-6)
    np.testing.assert_array_equal(found.pixels, [36, 81])
    spoilt = jax.tree.map(lambda s: 100 * s + 7, state)
    np.testing.assert_array_equal(sweeps(spoilt)[0].accuracy, found.accuracy)
