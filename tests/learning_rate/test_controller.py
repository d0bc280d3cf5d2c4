"""The state machine against nested loops, exact traces, and what can be proved about it."""

import importlib.util
from fractions import Fraction
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from poster_jax.learning_rate import (
    EVENTS,
    AalrOptions,
    aalr_best,
    aalr_init,
    aalr_update,
    fit_aalr,
)

_spec = importlib.util.spec_from_file_location(
    "reference", Path(__file__).with_name("reference.py")
)
assert _spec is not None
assert _spec.loader is not None
reference = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(reference)


def _quadratic(x, scale):
    """Of the summed squares of x, each with its curvature; `scale` is a batch of one example."""
    return jnp.sum(scale[0] * x**2) / 2


def _run_table(losses, rate, options):
    def epoch(carry, now):
        state, _ = carry
        number, loss = now
        state, theta = aalr_update(state, loss, number, options=options)
        return (state, theta), (state.event, state.rate, state.patience, theta)

    start = (aalr_init(jnp.zeros(()), jnp.asarray(jnp.inf), initial_rate=rate), jnp.zeros(()))
    return jax.lax.scan(epoch, start, (jnp.arange(1.0, len(losses) + 1), losses))[1]


def _random_losses(rng, num_sequences, num_epochs):
    """Mostly falling, with plateaus, ties, spikes, NaN and infinities of both signs."""
    steps = rng.choice([-1, -1, -1, -1, -1, 0, 0, 2, 5], size=(num_sequences, num_epochs))
    calm = rng.random((num_sequences, 1)) < 0.7  # long falls, or phase 1 would rarely end
    early = np.arange(num_epochs) < rng.integers(8, 14, size=(num_sequences, 1))
    steps = np.where(calm & early, -1, steps)
    losses = 100.0 + np.cumsum(steps, axis=1)
    lost = rng.random(losses.shape) < rng.choice([0, 0.05, 0.3], size=(num_sequences, 1))
    odd = rng.choice([np.nan, np.inf, -np.inf], size=losses.shape)
    return np.where(lost, odd, losses)


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"restore": "always", "phase1_restore": "last", "phase1_patience": 3},
        {"phase1_restore": "none", "stop_block_on_nonfinite": False, "phase1_patience": 2},
    ],
)
def test_every_epoch_agrees_with_nested_loops(changed):
    losses = _random_losses(np.random.default_rng(0), 500, 60)
    options = AalrOptions(**changed)
    run = jax.jit(jax.vmap(lambda row: _run_table(row, 1.0, options)))
    event, rate, patience, theta = (np.asarray(a) for a in run(losses.astype(np.float32)))
    words = {"phase1_patience": "patience", "stop_block_on_nonfinite": "stop"}
    seen = set()
    for i, row in enumerate(losses):
        expected = reference.run(
            row.tolist(), rate=1.0, **{words.get(name, name): v for name, v in changed.items()}
        )
        found = [
            (EVENTS[e], float(r), int(p), int(t))
            for e, r, p, t in zip(event[i], rate[i], patience[i], theta[i], strict=True)
        ]
        assert found == expected
        seen |= {row[0] for row in expected}
    assert seen >= {"went on", "success", "second chance", "restore"}


def _exact_trace(num_epochs):
    """Half x squared from x = 1 at rate 3, in rationals: (rate, loss) of each epoch, by hand."""
    three = Fraction(3)
    rows = [(three, Fraction(2))]
    rows += [(three / 2, Fraction(1, 2 ** (2 * k + 1))) for k in range(1, 11)]
    rows += [(three, Fraction(1, 2**19)), (three, Fraction(1, 2**17))]
    rows += [(three / 2, Fraction(1, 2**k)) for k in (19, 21, 23, 25)]
    loss = rows[-1][1]
    while len(rows) < num_epochs:
        rows += [(three, loss * 4), (three, loss * 16)]
        rows += [(three / 2, loss * Fraction(16, 4**k)) for k in range(1, 5)]
        loss /= 16
    return rows[:num_epochs]


def test_golden_trace_and_scale_covariance_are_exact(x64):
    def run(scale, rate):
        return fit_aalr(
            _quadratic,
            jnp.ones(1),
            scale,
            jax.random.key(0),
            optimizer_fn=optax.sgd,
            num_epochs=41,
            initial_rate=rate,
            loss="evaluate",
        )

    scales = jnp.asarray([1.0, 8.0, 2.0**-20])
    found = jax.jit(jax.vmap(run))(scales[:, None], 3 / scales)
    expected = _exact_trace(41)
    assert found.history.rate[0].tolist() == [float(rate) for rate, _ in expected]
    assert found.history.loss[0].tolist() == [float(loss) for _, loss in expected]
    # At rate 3 the first try and the second chance both fail; at half of it the second succeeds.
    names = [EVENTS[e] for e in found.history.event[0]]
    assert names[:13] == ["restore"] + ["success"] * 10 + ["second chance", "halving"]
    assert names[13:17] == ["went on", "second chance", "went on", "success"]
    assert names[17:23] == names[23:29] == ["second chance", "halving", *names[13:17]]
    assert found.history.phase[0].tolist() == [1] * 11 + [2] * 30
    # A loss scaled by a power of two, at the rate divided by it, walks the same path to the bit.
    for got in (found.state.params, found.params, found.history.event):
        np.testing.assert_array_equal(got[1:], jnp.stack([got[0]] * 2))
    np.testing.assert_array_equal(
        found.history.rate * scales[:, None], found.history.rate[:1] + 0 * found.history.rate
    )


def test_first_phase_restarts_once_for_each_factor_of_two_too_many(x64):
    def run(rate):
        return fit_aalr(
            _quadratic,
            jnp.ones(1),
            jnp.ones(1),
            jax.random.key(0),
            optimizer_fn=optax.sgd,
            num_epochs=17,
            initial_rate=rate,
            loss="evaluate",
        )

    powers = np.arange(7)
    found = jax.jit(jax.vmap(run))(jnp.asarray(1.5 * 2.0**powers))
    phase1 = (found.history.phase == 1).sum(1)
    np.testing.assert_array_equal(phase1, 10 + powers)
    np.testing.assert_array_equal((found.history.event[:, :7] == 4).sum(1), powers)
    np.testing.assert_array_equal(found.history.rate[powers, 10 + powers], 3.0)


def test_rate_stays_above_the_inverse_curvature_when_every_failure_restores(x64):
    rng = np.random.default_rng(1)
    num, dim = 200, 20
    used = np.arange(dim) < rng.integers(1, dim + 1, size=(num, 1))
    curvature = 10.0 ** rng.uniform(-2, 1, size=(num, dim)) * used
    start = rng.normal(size=(num, dim)) * used
    rates = 10.0 ** rng.uniform(-2, 2, size=num)

    def run(curvature, start, rate, restore):
        return fit_aalr(
            _quadratic,
            start,
            curvature[None],
            jax.random.key(0),
            optimizer_fn=optax.sgd,
            num_epochs=60,
            initial_rate=rate,
            loss="evaluate",
            options=AalrOptions(restore=restore),
        )

    def both(*args):
        return [run(*args, restore) for restore in ("always", "nonfinite")]

    always, nonfinite = jax.jit(jax.vmap(both))(*map(jnp.asarray, (curvature, start, rates)))
    second = np.asarray(always.history.phase == 2)
    assert second.any(1).mean() > 0.9
    rows = np.flatnonzero(second.any(1))
    first = second.argmax(1)

    def lowest(found):
        rate = np.where(second, found.history.rate, np.inf)[rows]
        bound = np.minimum(found.history.rate[rows, first[rows]], 1 / curvature.max(1)[rows])
        return rate.min(1) / bound

    assert lowest(always).min() >= 1 - 1e-12
    # Without restores the loss has to fall from where the failure left it.
    assert lowest(nonfinite).min() < 0.9
    # What is handed back has the loss of the last success: f of the checkpoint never rises.
    success = np.asarray(always.history.event == 1)[rows]
    last = success.shape[1] - 1 - success[:, ::-1].argmax(1)
    best = np.asarray(always.history.loss)[rows, last]
    loss_of_best = (curvature * np.asarray(always.params) ** 2).sum(1)[rows] / 2
    np.testing.assert_allclose(loss_of_best, best, rtol=1e-12)


@pytest.mark.parametrize("poison", ["loss", "params"])
def test_nan_at_any_epoch_brings_the_checkpoint_back_to_the_bit(poison):
    losses = jnp.asarray(np.linspace(3.0, 1.0, 24), jnp.float32)

    def run(poisoned):
        def epoch(carry, now):
            state, current = carry
            number, loss = now
            current = jax.tree.map(lambda a: a * 0.9 + number / 7, current)
            lost = jnp.where(number == poisoned, jnp.nan, 0.0)
            loss = loss + lost if poison == "loss" else loss
            if poison == "params":
                current = current | {"momentum": current["momentum"] + lost}
            kept = state.checkpoint
            state, current = aalr_update(state, loss, current)
            return (state, current), (kept, current, state)

        start = {"params": jnp.arange(3.0), "momentum": jnp.ones(2)}
        state = aalr_init(start, jnp.float32(jnp.inf))
        (state, current), rows = jax.lax.scan(epoch, (state, start), (jnp.arange(24.0), losses))
        return rows, aalr_best(state, current)

    (kept, current, states), best = jax.jit(jax.vmap(run))(jnp.arange(24.0))
    at = np.arange(24)
    if poison == "loss":
        for before, after in zip(jax.tree.leaves(kept), jax.tree.leaves(current), strict=True):
            np.testing.assert_array_equal(before[at, at], after[at, at])
            assert np.isfinite(after).all()
        np.testing.assert_array_equal(states.event[at, at], EVENTS.index("restore"))
    else:  # found out where it would be kept
        assert (states.event[:20] == EVENTS.index("restore")).any(1).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((best, states.checkpoint)))


def test_rate_is_capped_and_survives_losses_that_are_never_finite():
    falling = jnp.linspace(1.0, 0.0, 300)
    lost = jnp.full(300, jnp.nan)
    options = AalrOptions(max_rate=5.0)
    rates = jax.jit(
        lambda: (
            _run_table(falling, 0.1, options)[1].max(),
            _run_table(falling, 0.1, AalrOptions())[1].max(),
            _run_table(lost, 0.1, AalrOptions())[1].min(),
        )
    )
    capped, free, low = (float(rate) for rate in rates())
    assert capped == 5.0
    assert np.isfinite(free)
    assert free > 1e37
    assert low > 0


def test_explosion_factor_treats_a_spike_as_not_finite():
    losses = jnp.asarray([1.0, 0.9, 5.0, 0.8, 0.7])
    plain = AalrOptions(phase1_patience=2)
    event = jax.jit(
        lambda: [_run_table(losses, 1.0, o)[0] for o in (plain, plain._replace(explosion_factor=4))]
    )()
    assert [EVENTS[e] for e in event[0]][2:4] == ["second chance", "success"]
    assert [EVENTS[e] for e in event[1]][2] == "restore"


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("options", "word"),
    [
        (AalrOptions(factor=1.0), "factor"),
        (AalrOptions(phase1_patience=0), "phase1_patience"),
        (AalrOptions(restore="never"), "restore"),
        (AalrOptions(phase1_restore="start"), "phase1_restore"),
        (AalrOptions(max_rate=0.0), "max_rate"),
        (AalrOptions(explosion_factor=0.5), "explosion_factor"),
    ],
)
def test_options_that_do_not_fit_are_named(options, word):
    with pytest.raises(ValueError, match=word):
        aalr_update(aalr_init(jnp.ones(1)), 1.0, jnp.ones(1), options=options)


@pytest.mark.bad_input
def test_a_rate_that_is_not_positive_is_named():
    with pytest.raises(ValueError, match="initial_rate must be finite and above 0"):
        aalr_init(jnp.ones(1), initial_rate=0.0)
