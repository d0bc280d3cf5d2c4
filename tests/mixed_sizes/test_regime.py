"""Regimes are the tables of the authors' code; gradients are smoothed by the global norm."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from poster_jax.mixed_sizes import (
    CIFAR,
    IMAGENET_144,
    IMAGENET_224,
    regime_cost,
    size_regime,
    smooth_gradients,
)

TABLES = [
    (CIFAR, "duplicates", [(64, 1), (28, 1), (64, 2), (64, 4)]),
    (CIFAR, "batch", [(64, 1), (28, 1), (114, 1), (256, 1)]),
    (CIFAR, "both", [(64, 1), (43, 1), (85, 1), (128, 2)]),
    (IMAGENET_224, "duplicates", [(64, 3), (64, 2), *[(64, 1)] * 4, (31, 1)]),
    (IMAGENET_224, "batch", [(b, 1) for b in (196, 125, 87, 64, 49, 39, 31)]),
    (IMAGENET_144, "duplicates", [(64, 1), (64, 1), (64, 3), (64, 5)]),
    (IMAGENET_144, "batch", [(b, 1) for b in (49, 64, 196, 348)]),
]

COSTS = [
    (CIFAR, "duplicates", 1.287, 1.257),
    (CIFAR, "batch", 0.969, 0.976),
    (IMAGENET_224, "duplicates", 1.231, 1.142),
    (IMAGENET_224, "batch", 1.076, 1.078),
    (IMAGENET_144, "duplicates", 1.002, 1.000),
    (IMAGENET_144, "batch", 0.463, 0.463),
]


@pytest.mark.parametrize(("mixture", "adapt", "table"), TABLES)
def test_batches_and_copies_are_those_of_the_authors(mixture, adapt, table):
    regime = size_regime(**mixture._asdict(), adapt=adapt)
    assert [(c.batch_size, c.duplicates) for c in regime] == table
    assert tuple(c.size for c in regime) == mixture.sizes


@pytest.mark.parametrize(("mixture", "adapt", "pixels", "steps"), COSTS)
def test_an_epoch_costs_what_the_authors_regimes_cost(mixture, adapt, pixels, steps):
    regime = size_regime(**mixture._asdict(), adapt=adapt)
    cost = regime_cost(regime, base_size=mixture.base_size, base_batch=mixture.base_batch)
    np.testing.assert_allclose(cost, (pixels, steps), atol=1e-3)


@pytest.mark.parametrize(("mixture", "mean"), [(IMAGENET_224, 224), (IMAGENET_144, 144)])
def test_the_mean_size_is_the_one_in_the_name(mixture, mean):
    np.testing.assert_allclose(np.dot(mixture.sizes, mixture.fractions), mean, rtol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fractions": (0.5, 0.4)}, "sum to 1"),
        ({"fractions": (1.0,)}, "one for each fraction"),
        ({"sizes": (32, 32)}, "different"),
        ({"adapt": "none"}, "base_size"),
        ({"adapt": "duplicate"}, "Did you mean"),
        ({"sizes": (32, 512)}, "at least one example"),
    ],
)
def test_a_regime_that_cannot_be_is_refused(change, message):
    arguments = {"sizes": (32, 16), "fractions": (0.5, 0.5), "base_size": 32, "base_batch": 64}
    with pytest.raises(ValueError, match=message):
        size_regime(**{**arguments, **change})


def _smooth(norms, scale=1.0):
    """Gradients of those norms in one direction, and what smoothing makes of them."""
    smoothing = smooth_gradients()
    direction = {"a": jnp.array([0.6, 0.0]), "b": jnp.array([[0.8]])}

    def step(state, norm):
        out, state = smoothing.update(jax.tree.map(lambda d: d * norm, direction), state)
        return state, (out, state.norm)

    norms = scale * jnp.asarray(norms, jnp.float32)
    _, (out, running) = jax.jit(lambda n: jax.lax.scan(step, smoothing.init(direction), n))(norms)
    return np.concatenate([out["a"], out["b"][..., 0]], 1), np.asarray(running)


def test_a_constant_norm_is_left_alone_and_never_dies():
    out, running = _smooth(np.full(200, 3.0))
    np.testing.assert_allclose(running, 3.0, rtol=1e-5)
    np.testing.assert_allclose(out, np.tile([1.8, 0.0, 2.4], (200, 1)), rtol=1e-5)


def test_smoothing_is_the_recursion_of_norms_and_keeps_the_direction():
    norms = np.random.default_rng(0).uniform(0.5, 2.0, 20)
    norms[:2] = 1, 2
    expected = [1.0]
    for norm in norms[1:]:
        expected.append(0.9 * expected[-1] + 0.1 * norm)
    out, running = _smooth(norms)
    np.testing.assert_allclose(running, expected, rtol=1e-6)
    np.testing.assert_allclose(running[1], 1.1, rtol=1e-6)
    np.testing.assert_allclose(out, np.outer(expected, [0.6, 0.0, 0.8]), rtol=5e-6)
    np.testing.assert_allclose(_smooth(norms, 8.0)[0], 8 * out, rtol=5e-6)


def test_weight_decay_comes_after_smoothing():
    chain = optax.chain(smooth_gradients(), optax.add_decayed_weights(1e4), optax.sgd(1e-3))
    params, grads = jnp.array([3.0]), [jnp.array([1.0]), jnp.array([2.0])]
    state = chain.init(params)
    _, state = chain.update(grads[0], state, params)
    update, _ = chain.update(grads[1], state, params)
    np.testing.assert_allclose(update, -1e-3 * (1.1 + 1e4 * 3.0), rtol=1e-6)
