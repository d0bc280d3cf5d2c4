"""Schedules against optax and torch's formulas; the hypergradient against finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from poster_jax.learning_rate import (
    cosine,
    cosine_restarts,
    hypergradient,
    one_cycle,
    step_decay,
)


def test_schedules_agree_with_optax_for_traced_rates(x64):
    steps = jnp.arange(70)
    rates = jnp.asarray([0.01, 3.0])

    def ours(rate):
        made = (
            step_decay(rate, num_steps=70),
            cosine(rate, num_steps=70),
            cosine_restarts(rate, first_period=10, num_steps=70),
            one_cycle(rate, num_steps=70),
        )
        return [jax.vmap(schedule)(steps) for schedule in made]

    def theirs(rate):
        restarts = [{"init_value": 0.0, "peak_value": rate, "warmup_steps": 0} for _ in range(3)]
        for entry, length in zip(restarts, (10, 20, 40), strict=True):
            entry["decay_steps"] = length
        made = (
            optax.piecewise_constant_schedule(rate, {35: 0.1, 53: 0.1}),
            optax.cosine_decay_schedule(rate, 70),
            optax.sgdr_schedule(restarts),
            optax.cosine_onecycle_schedule(70, rate),
        )
        return [np.array([float(schedule(t)) for t in range(70)]) for schedule in made]

    found = jax.jit(jax.vmap(ours))(rates)
    for row, rate in enumerate((0.01, 3.0)):
        for mine, other in zip(found, theirs(rate), strict=True):
            np.testing.assert_allclose(mine[row], other, rtol=1e-5, atol=1e-7)


def test_the_hypergradient_is_the_derivative_of_the_next_loss(x64):
    rng = np.random.default_rng(0)
    a = rng.normal(size=(3, 3))
    hessian = a @ a.T
    x0, rate, beta, h = rng.normal(size=3), 0.1, 1e-3, 1e-6

    def loss_after(r):
        x = x0 - r * hessian @ x0
        return x @ hessian @ x / 2

    piece = hypergradient(rate, step_size=beta)

    def two_steps():
        x = jnp.asarray(x0)
        update, state = piece.update(jnp.asarray(hessian) @ x, piece.init(x))
        x = optax.apply_updates(x, update)
        update, state = piece.update(jnp.asarray(hessian) @ x, state)
        return state.rate, update, x

    found, update, x = jax.jit(two_steps)()
    slope = (loss_after(rate + h) - loss_after(rate - h)) / (2 * h)
    np.testing.assert_allclose(found, rate - beta * slope, rtol=1e-9)
    np.testing.assert_allclose(update, -float(found) * hessian @ np.asarray(x), rtol=1e-12)
