"""What is recorded while a network trains is what the same questions answer afterwards."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

from poster_jax.core import training
from poster_jax.gradient_noise import (
    directions_along,
    noise_observer,
    noise_scale,
    per_example_projections,
    random_directions,
    record_noise,
    resample_projections,
)

STEPS = (0, 3, 7)


@pytest.fixture(scope="module")
def run(net):
    params, batch = net.make_problem(np.float32, examples=60)
    params = jax.tree.map(jnp.asarray, params)
    directions = random_directions(params, jax.random.key(1), num=20)
    observer = noise_observer(net.loss_fn, batch, directions, batch_sizes=(4, 16), num_batches=25)
    options = {"optimizer": optax.sgd(0.3), "num_steps": 8, "batch_size": 12}
    train = partial(
        training.fit,
        net.loss_fn,
        data=batch,
        metrics_fn=lambda state: (state.params, state.key, observer(state)),
        metrics_steps=STEPS,
        **options,
    )
    fit = jax.jit(lambda params: train(params, key=jax.random.key(2)))(params)
    return params, batch, directions, observer, options, fit


def test_fit_records_what_scipy_says_of_the_noise_at_these_parameters(net, run):
    _, batch, directions, _, _, fit = run
    checkpoints, keys, records = fit.metrics
    assert records.rejected_fraction.shape == (3, 2)

    @jax.jit
    def samples_at(params, key):
        found = per_example_projections(net.loss_fn, params, batch, directions)
        return [
            resample_projections(
                found, jax.random.fold_in(key, size), batch_size=size, num_batches=25
            )
            for size in (4, 16)
        ]

    for i, step in enumerate(STEPS):
        params = jax.tree.map(lambda a, i=i: a[i], checkpoints)
        gradients = net.numpy_gradients(params, batch)
        single = net.matrix_of(directions) @ gradients.T
        kurtosis = np.median(scipy.stats.kurtosis(single, axis=1))
        np.testing.assert_allclose(records.kurtosis[i], kurtosis, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(records.trace[i], 43 * single.var(axis=1).mean(), rtol=1e-4)
        np.testing.assert_allclose(
            records.noise_scale[i],
            single.var(axis=1).mean() / (single.mean(axis=1) ** 2).mean(),
            rtol=1e-3,
        )
        key = jax.random.fold_in(jax.random.fold_in(keys[i], 2**32 - 2), step)
        for j, samples in enumerate(samples_at(params, key)):
            pvalues = [scipy.stats.shapiro(s).pvalue for s in np.asarray(samples, np.float64)]
            np.testing.assert_allclose(records.mean_pvalue[i, j], np.mean(pvalues), atol=2e-3)
            rejected = (np.array(pvalues) < 0.05).mean()
            assert abs(float(records.rejected_fraction[i, j]) - rejected) < 1e-6
    assert (np.asarray(records.num_degenerate) == 0).all()


@pytest.mark.slow
def test_random_directions_estimate_the_noise_scale_without_bias(net, key):
    params, batch = net.make_problem(np.float32)
    params = jax.tree.map(jnp.asarray, params)
    exact = noise_scale(net.loss_fn, params, batch)
    directions = random_directions(params, key, num=2000)
    observer = noise_observer(net.loss_fn, batch, directions, batch_sizes=(4,), num_batches=3)
    found = jax.jit(observer.at)(params, key)
    # one direction's variance scatters by at most sqrt(2) of itself
    np.testing.assert_allclose(found.trace, exact.trace.mean, rtol=4 * np.sqrt(2 / 2000))
    np.testing.assert_allclose(found.squared_norm, exact.squared_norm.mean, rtol=0.13)


@pytest.mark.slow
def test_directions_without_noise_are_counted_and_have_no_part(key):
    """One parameter has the same gradient for all examples, and 0.9 is no sum of powers of two."""
    x = jax.random.normal(key, (30, 3)).at[:, 1].set(0.1)

    @jax.jit
    def record(rows):
        observer = noise_observer(
            lambda w, x: 0.5 * jnp.mean(jnp.sum((w - x) ** 2, axis=-1)),
            x,
            directions_along(jnp.eye(3)[rows]),
            batch_sizes=(2, 8),
            num_batches=20,
        )
        return observer.at(jnp.ones(3), key)

    # rows twice have the means of rows once, and the shape of the others: one program
    found, alone = record(np.array([0, 1, 2, 1])), record(np.array([0, 2, 0, 2]))
    assert found.num_degenerate.tolist() == [2, 2]
    assert alone.num_degenerate.tolist() == [0, 0]
    for field in ("kurtosis", "mean_pvalue", "rejected_fraction"):
        assert np.isfinite(getattr(alone, field)).all()
        np.testing.assert_allclose(getattr(found, field), getattr(alone, field), rtol=1e-5)


@pytest.mark.slow
def test_an_optimiser_that_records_makes_the_same_updates(net, run):
    params, batch, _, observer, options, fit = run
    key = jax.random.key(5)
    optimizer = record_noise(options["optimizer"], observer.at, key, steps=STEPS)
    train = partial(training.fit, net.loss_fn, data=batch, **{**options, "optimizer": optimizer})
    again = jax.jit(lambda params: train(params, key=jax.random.key(2)))(params)
    np.testing.assert_array_equal(again.losses, fit.losses)
    jax.tree.map(np.testing.assert_array_equal, again.params, fit.params)
    checkpoints, _, records = fit.metrics
    ours = again.state.opt_state.records
    # kurtosis and trace do not depend on the batches that are drawn
    np.testing.assert_allclose(ours.kurtosis, records.kurtosis, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ours.trace, records.trace, rtol=1e-5)
    third = jax.jit(observer.at)(
        jax.tree.map(lambda a: a[1], checkpoints), jax.random.fold_in(key, 3)
    )
    np.testing.assert_allclose(ours.mean_pvalue[1], third.mean_pvalue, atol=1e-4)
    assert int(again.state.opt_state.count) == 8


def test_a_step_that_has_not_come_is_not_a_number():
    optimizer = record_noise(optax.sgd(1.0), lambda w, key: w, jax.random.key(0), steps=(1, 100))
    state = optimizer.init(jnp.ones(2))
    for _ in range(3):
        _, state = optimizer.update(jnp.zeros(2), state, jnp.ones(2))
    assert np.isnan(np.asarray(state.records[1])).all()
    assert np.asarray(state.records[0]).tolist() == [1.0, 1.0]


def test_between_chosen_steps_nothing_is_computed_also_in_a_population(net):
    """The observer stands in a conditional that `vmap` leaves one: its predicate is not mapped."""
    params, batch = net.make_problem(np.float32)
    params = jax.tree.map(jnp.asarray, params)
    calls = []

    def observe(params, key):
        del key
        total = jnp.sum(params["first"]["bias"])
        jax.debug.callback(lambda value: calls.append(value), total)
        return total

    optimizer = record_noise(optax.sgd(0.1), observe, jax.random.key(0), steps=(2,))

    def train(scale):
        start = jax.tree.map(lambda a: scale * a, params)
        return training.fit(
            net.loss_fn, start, batch, jax.random.key(1), optimizer=optimizer, num_steps=6
        ).state.opt_state.records

    records = jax.block_until_ready(jax.jit(jax.vmap(train))(jnp.array([1.0, 0.5])))
    jax.effects_barrier()
    assert records.shape == (2, 1)
    assert len(calls) == 2  # one a network


def test_the_cost_is_stated(net, run):
    params, *_, observer, _, _ = run
    plan = observer.plan(params)
    assert plan.mode == "reverse"
    assert plan.flops["reverse"] > 2 * 60 * 20 * 43


def test_batch_norm_is_observed_batch_by_batch(net, key):
    params, batch = net.make_problem(np.float32)
    params = jax.tree.map(jnp.asarray, params)

    def coupled(params, state, batch, key):
        x, y = batch
        return net.loss_fn(params, ((x - x.mean(axis=0)) / (x.std(axis=0) + 1e-3), y)), state

    loss_fn = training.stateful(coupled)
    directions = random_directions(params, key, num=4)
    observer = noise_observer(loss_fn, batch, directions, batch_sizes=(8,), num_batches=15)
    found = observer.at(params, key)
    assert np.isnan(float(found.kurtosis))
    assert 0 < float(found.mean_pvalue[0]) < 1
    assert observer.plan(params).mode == "minibatch"


@pytest.mark.bad_input
def test_bad_input(net, key):
    params, batch = net.make_problem(np.float32)
    directions = random_directions(jax.tree.map(jnp.asarray, params), key, num=4)
    ask = lambda **options: noise_observer(net.loss_fn, batch, directions, **options)  # noqa: E731
    with pytest.raises(ValueError, match="batch_sizes must name at least 1"):
        ask(batch_sizes=())
    with pytest.raises(ValueError, match="num_batches must be at least 3"):
        ask(batch_sizes=(4,), num_batches=2)
    with pytest.raises(ValueError, match="num_batches must be at most 5000"):
        ask(batch_sizes=(4,), num_batches=5001)
    with pytest.raises(ValueError, match="level must lie between 0 and 1"):
        ask(batch_sizes=(4,), level=5)
    observe = lambda params, key: 0.0  # noqa: E731
    with pytest.raises(ValueError, match="steps must be increasing"):
        record_noise(optax.sgd(0.1), observe, key, steps=(3, 1))
    with pytest.raises(TypeError, match="optimizer must be"):
        record_noise(0.1, observe, key, steps=(1,))
    optimizer = record_noise(optax.sgd(0.1), lambda w, key: w, key, steps=(1,))
    with pytest.raises(ValueError, match="params must be given to update"):
        optimizer.update(jnp.ones(2), optimizer.init(jnp.ones(2)))
