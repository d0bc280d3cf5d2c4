"""Training under the controller: populations, halves, the optax form, plain SGD."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from poster_jax.core import training
from poster_jax.learning_rate import (
    EVENTS,
    AalrOptions,
    aalr,
    aalr_best,
    continue_fit_aalr,
    fit_aalr,
)

MOMENTUM = lambda rate: optax.sgd(rate, momentum=0.9)  # noqa: E731


def _data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 3))
    return jnp.asarray(x), jnp.asarray(np.sin(x.sum(1)))


def _loss(params, batch):
    x, y = batch
    return jnp.mean((jnp.tanh(x @ params["w"]) @ params["v"] - y) ** 2)


def _params(key):
    return {"w": jax.random.normal(key, (3, 4)), "v": jnp.ones(4) / 4}


def _fit(key, rate, num_epochs=24, **options):
    return fit_aalr(
        _loss,
        _params(key),
        _data(),
        key,
        optimizer_fn=MOMENTUM,
        num_epochs=num_epochs,
        batch_size=8,
        initial_rate=rate,
        options=AalrOptions(phase1_patience=3),
        **options,
    )


def test_a_population_is_its_members_and_two_halves_are_the_whole(x64):
    keys = jax.random.split(jax.random.key(0), 8)
    rates = jnp.asarray(10.0 ** np.linspace(-4, 3, 8))
    together = jax.jit(jax.vmap(_fit))(keys, rates)
    alone = jax.jit(lambda: jax.lax.map(lambda member: _fit(*member), (keys, rates)))()

    def halves(key, rate):
        first = _fit(key, rate, 11)
        second = continue_fit_aalr(
            _loss,
            first,
            _data(),
            optimizer_fn=MOMENTUM,
            num_epochs=13,
            batch_size=8,
            options=AalrOptions(phase1_patience=3),
        )
        return first.history, second

    early, late = jax.jit(lambda: jax.lax.map(lambda member: halves(*member), (keys, rates)))()
    joined = jax.tree.map(lambda a, b: jnp.concatenate([a, b], 1), early, late.history)
    same = lambda a, b: np.testing.assert_array_equal(a, b)  # noqa: E731
    jax.tree.map(same, joined, alone.history)
    jax.tree.map(same, late.params, alone.params)
    jax.tree.map(same, late.control, alone.control)
    assert set(np.unique(alone.history.event)) >= {1, 2, 3, 4}
    assert np.isfinite(alone.history.loss).any(1).all()
    np.testing.assert_array_equal(together.history.event, alone.history.event)
    np.testing.assert_array_equal(together.history.rate, alone.history.rate)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12),
        together.params,
        alone.params,
    )


def test_with_the_rate_held_it_is_plain_training_to_the_bit(x64):
    key = jax.random.key(3)

    def both():
        run = fit_aalr(
            _loss,
            _params(key),
            _data(),
            key,
            optimizer_fn=MOMENTUM,
            num_epochs=4,
            batch_size=8,
            initial_rate=0.05,
            metrics_fn=lambda state, rate: (state.step, rate),
        )
        plain = training.fit(
            _loss,
            _params(key),
            _data(),
            key,
            optimizer=MOMENTUM(jnp.asarray(0.05)),
            num_steps=20,
            batch_size=8,
        )
        return run, plain

    run, plain = jax.jit(both)()
    assert run.history.event.tolist() == [1] * 4
    jax.tree.map(np.testing.assert_array_equal, run.params, plain.params)
    np.testing.assert_allclose(run.history.loss, plain.losses.reshape(4, 5).mean(1), rtol=1e-13)
    assert run.metrics[0].tolist() == [5, 10, 15, 20]
    assert run.metrics[1].tolist() == [0.05] * 4


def test_the_optax_form_walks_the_same_path(x64):
    key = jax.random.key(1)
    x, y = _data()

    def both(rate):
        # Not the loss itself: with one step an epoch the next start would tie with it, to rounding.
        before = 1.01 * _loss(_params(key), (x, y))
        whole = fit_aalr(
            _loss,
            _params(key),
            (x, y),
            key,
            optimizer_fn=MOMENTUM,
            num_epochs=24,
            initial_rate=rate,
            initial_loss=before,
            options=AalrOptions(phase1_patience=3),
        )
        optimizer = aalr(
            MOMENTUM,
            steps_per_epoch=1,
            initial_rate=rate,
            initial_loss=before,
            options=AalrOptions(phase1_patience=3),
        )

        def step(carry, _):
            params, state = carry
            loss, grads = jax.value_and_grad(_loss)(params, (x, y))
            update, state = optimizer.update(grads, state, params, value=loss)
            return (optax.apply_updates(params, update), state), (
                state.control.rate,
                state.control.event,
            )

        start = (_params(key), optimizer.init(_params(key)))
        (params, state), (rate, event) = jax.lax.scan(step, start, length=24)
        best = aalr_best(state.control, (params, state.inner))
        return whole, params, best[0], rate, event

    whole, params, best, rate, event = jax.jit(jax.vmap(both))(jnp.asarray([0.01, 0.3, 3.0, 1e3]))
    np.testing.assert_array_equal(event, whole.history.event)
    np.testing.assert_array_equal(rate[:, :-1], whole.history.rate[:, 1:])
    assert (np.asarray(event) == 4).any()
    for ours, theirs in ((params, whole.state.params), (best, whole.params)):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), ours, theirs
        )


def test_the_optax_form_never_lets_a_parameter_become_nan(x64):
    optimizer = aalr(optax.sgd, steps_per_epoch=3, initial_rate=1.0)

    def run():
        def step(carry, grad):
            x, state = carry
            update, state = optimizer.update(grad, state, x, value=jnp.abs(grad).sum())
            x = optax.apply_updates(x, update)
            return (x, state), (x, state.control.event, state.control.rate)

        start = jnp.asarray([1.0, 1 / 3])
        grads = jnp.ones((7, 2)).at[4].set(jnp.nan).at[3].set(1e9)
        return jax.lax.scan(step, (start, optimizer.init(start)), grads)[1]

    x, event, rate = jax.jit(run)()
    assert np.isfinite(x).all()
    assert event[5] == 4
    assert rate[5] == 0.5
    # To rounding of the 1e9 it comes back from; one step later that rounding is gone.
    np.testing.assert_allclose(x[5], [1.0, 1 / 3], atol=2e-7)
    np.testing.assert_allclose(x[6], [0.5, 1 / 3 - 0.5], rtol=1e-14)


def test_the_first_epoch_must_not_exceed_the_loss_before_training(x64):
    """At a rate that first explodes and then falls, only the measured loss tells."""
    key = jax.random.key(2)

    def both():
        shared = {"optimizer_fn": optax.sgd, "num_epochs": 6, "batch_size": 10}
        parts = (lambda w, x: jnp.mean(x) * w**2 / 2, jnp.ones(()), jnp.ones(40), key)
        # Each step multiplies w by -3 at rate 4, by -1 at rate 2.
        measured = fit_aalr(*parts, initial_rate=4.0, **shared)
        told = fit_aalr(*parts, initial_rate=4.0, initial_loss=jnp.inf, **shared)
        return measured, told

    measured, told = jax.jit(both)()
    assert float(measured.control.initial_loss) == 0.5
    assert EVENTS[int(measured.history.event[0])] == "restore"
    assert EVENTS[int(told.history.event[0])] == "success"
    assert measured.history.rate.tolist()[:3] == [4.0, 2.0, 2.0]


@pytest.mark.bad_input
def test_arguments_that_do_not_fit_are_named():
    good = {"optimizer_fn": optax.sgd, "num_epochs": 2}
    args = (lambda p, x: jnp.mean(p * x), jnp.ones(()), jnp.ones(4), jax.random.key(0))
    for bad, word in (
        ({"loss": "mean"}, "loss must be one of"),
        ({"num_epochs": 0}, "num_epochs"),
        ({"initial_rate": -1.0}, "initial_rate"),
        ({"batch_size": 5}, "batch_size"),
    ):
        with pytest.raises(ValueError, match=word):
            fit_aalr(*args, **(good | bad))
    with pytest.raises(TypeError, match="optimizer_fn"):
        fit_aalr(*args, num_epochs=2, optimizer_fn=0.1)
    optimizer = aalr(optax.sgd, steps_per_epoch=1)
    with pytest.raises(ValueError, match="value=loss"):
        optimizer.update(jnp.ones(1), optimizer.init(jnp.ones(1)), jnp.ones(1))
