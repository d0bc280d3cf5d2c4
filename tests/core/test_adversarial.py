"""Attacks: closed forms on linear models, the ball and the box, training on what they find."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from poster_jax.core import training
from poster_jax.core.adversarial import adversarial_loss, fgsm, pgd


def _linear(w, batch):
    x, y = batch
    return jnp.mean((x.reshape(len(x), -1) @ w) * y)


def _bent(params, batch):
    x, y = batch
    return jnp.mean(jnp.sin(3 * x.reshape(len(x), -1) @ params).sum(-1) * y)


def _batch(seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.uniform(0, 1, (6, 2, 4))), jnp.asarray(rng.choice([-1.0, 1.0], 6))


def test_on_a_linear_model_the_loss_rises_by_epsilon_times_the_dual_norm(x64):
    w = jnp.asarray(np.random.default_rng(1).normal(size=8))
    batch = _batch()

    def rises():
        shared = {"step_size": 0.07, "num_steps": 9}
        found = []
        for norm in ("inf", "2"):
            options = {"epsilon": 0.3, "norm": norm}
            for x in (
                fgsm(_linear, w, batch, **options),
                pgd(_linear, w, batch, jax.random.key(0), **options, **shared),
            ):
                found.append(_linear(w, (x, batch[1])) - _linear(w, batch))
        return jnp.stack(found)

    dual = [np.abs(w).sum()] * 2 + [np.linalg.norm(w)]
    found = np.asarray(jax.jit(rises)())
    np.testing.assert_allclose(found[:3], 0.3 * np.array(dual), rtol=1e-12)
    # On the sphere the steps turn to the gradient but reach it only in the limit.
    assert 0.8 * 0.3 * dual[2] < found[3] <= 0.3 * dual[2] * (1 + 1e-12)


def test_attacks_stay_in_the_ball_and_in_the_box(x64):
    w = jnp.asarray(np.random.default_rng(2).normal(size=(8, 5)))
    x, y = _batch()

    def found():
        rows = []
        for norm in ("inf", "2"):
            shared = {"epsilon": 0.4, "norm": norm, "bounds": (0.0, 1.0)}
            once = {"step_size": 0.4, "num_steps": 1, "random_start": False}
            key = jax.random.key(1)
            rows.append(
                (
                    fgsm(_bent, w, (x, y), **shared),
                    pgd(_bent, w, (x, y), key, **shared, **once),
                    pgd(_bent, w, (x, y), key, **shared, step_size=0.05, num_steps=20),
                    pgd(_bent, w, (x, y), key, **shared, step_size=1e-9, num_steps=1),
                )
            )
        return rows, [[_bent(w, (moved, y)) for moved in row] for row in rows], _bent(w, (x, y))

    rows, losses, before = jax.jit(found)()
    for norm, row, values in zip(("inf", 2), rows, losses, strict=True):
        for moved in row:
            shift = np.asarray(moved - x).reshape(6, -1)
            lengths = np.abs(shift).max(1) if norm == "inf" else np.linalg.norm(shift, axis=1)
            assert (lengths <= 0.4 * (1 + 1e-12)).all()
            assert (lengths > 0.02).all()
            assert moved.min() >= 0
            assert moved.max() <= 1
        np.testing.assert_array_equal(row[0], row[1])  # one step from x is FGSM
        assert values[2] > before
        assert np.abs(row[3] - x).max() > 1e-3  # the random start


def test_tiny_and_vanishing_gradients(x64):
    w = jnp.asarray([3e-200, 4e-200, 0, 0, 0, 0, 0, 0])
    batch = _batch()
    attack = jax.jit(lambda w: fgsm(_linear, w, batch, epsilon=1.0, norm="2") - batch[0])
    moved = np.asarray(attack(w)).reshape(6, 8)
    np.testing.assert_allclose(moved[:, :2] * np.asarray(batch[1])[:, None], [[0.6, 0.8]] * 6)
    np.testing.assert_array_equal(attack(w * 0), 0)


def test_adversarial_training_is_training_on_the_attacked_batch(x64):
    w = jnp.asarray(np.random.default_rng(3).normal(size=(8, 5))) / 5
    batch = _batch()
    attack = {"epsilon": 0.1, "bounds": (0.0, 1.0)}

    def both():
        key = jax.random.key(0)
        robust = adversarial_loss(_bent, **attack)
        run = training.fit(robust, w, batch, key, optimizer=optax.sgd(0.1), num_steps=1)
        x = fgsm(_bent, w, batch, **attack)
        loss, grad = jax.value_and_grad(_bent)(w, (x, batch[1]))
        many = adversarial_loss(_bent, step_size=0.03, num_steps=8, **attack)
        return run.params, w - 0.1 * grad, run.losses[0], loss, many.fn(w, (), batch, key)[0]

    moved, expected, first, loss, strong = jax.jit(both)()
    np.testing.assert_allclose(moved, expected, rtol=1e-13)
    np.testing.assert_allclose(first, loss, rtol=1e-13)
    assert strong >= loss - 1e-3
    assert loss > _bent(w, batch)


def test_what_the_model_remembers_of_the_attack_is_dropped():
    counting = training.stateful(lambda w, count, batch, key: (_linear(w, batch), count + 1))
    robust = adversarial_loss(counting, epsilon=0.1, step_size=0.1, num_steps=3)
    batch = _batch()
    count = jax.jit(lambda: robust.fn(jnp.ones(8), jnp.int32(0), batch, jax.random.key(0))[1])()
    assert count == 1


@pytest.mark.bad_input
def test_arguments_that_do_not_fit_are_named():
    batch, w = _batch(), jnp.ones(8)
    for bad, word in (
        ({"epsilon": -1.0}, "epsilon"),
        ({"epsilon": 0.1, "norm": "1"}, "norm"),
        ({"epsilon": 0.1, "bounds": (1.0, 0.0)}, "bounds"),
    ):
        with pytest.raises(ValueError, match=word):
            fgsm(_linear, w, batch, **bad)
    with pytest.raises(TypeError, match="x must be"):
        fgsm(_linear, w, (jnp.ones((6, 8), int), batch[1]), epsilon=0.1)
    with pytest.raises(ValueError, match="num_steps"):
        pgd(_linear, w, batch, jax.random.key(0), epsilon=0.1, step_size=0.1, num_steps=0)
    with pytest.raises(ValueError, match="step_size"):
        adversarial_loss(_linear, epsilon=0.1, num_steps=3)
