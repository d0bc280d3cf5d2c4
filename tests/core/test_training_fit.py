"""`fit` against loops written in numpy and against itself in parts, under every transformation."""

from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from flax import linen as nn

from poster_jax.core.devices import data_mesh, replicate
from poster_jax.core.training import (
    continue_fit,
    epoch_order,
    fit,
    init_state,
    model_loss,
    stateful,
    steps_per_epoch,
)

N, B = 22, 4  # five full batches an epoch, two examples left out
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, 3)).astype(np.float32)
Y = (X @ np.array([1.0, -2.0, 0.5]) + 0.1 * RNG.normal(size=N)).astype(np.float32)
W = jnp.asarray(RNG.normal(size=3), jnp.float32)
KEY = jax.random.key(7)


def line_loss(w, batch):
    x, y = batch
    return jnp.mean((x @ w - y) ** 2) / 2


def by_hand(rows_of_step, w, num_steps, rate, momentum):
    """Heavy-ball descent in numpy's float64."""
    w, trace, losses = np.asarray(w, np.float64), 0.0, []
    for t in range(num_steps):
        x, y = X[rows_of_step(t)].astype(np.float64), Y[rows_of_step(t)].astype(np.float64)
        error = x @ w - y
        losses.append((error**2).mean() / 2)
        trace = momentum * trace + x.T @ error / len(y)
        w = w - rate(t) * trace
    return w, np.array(losses)


def batch_key_of(key):
    return jax.random.fold_in(key, 99)


@pytest.mark.parametrize("schedule", [False, True])
def test_fit_is_the_loop_over_permuted_slices_that_its_docs_describe(schedule):
    rate = optax.warmup_cosine_decay_schedule(0.0, 0.2, 5, 30) if schedule else (lambda t: 0.05)
    key = batch_key_of(KEY)

    def rows(t):
        order = np.asarray(epoch_order(key, t // 5, N))
        return order[t % 5 * B : (t % 5 + 1) * B]

    w, losses = by_hand(rows, W, 23, lambda t: float(rate(t)), 0.9)
    run = fit(
        line_loss,
        W,
        (X, Y),
        KEY,
        optimizer=optax.sgd(rate if schedule else 0.05, momentum=0.9),
        num_steps=23,
        batch_size=B,
        batch_key=key,
    )
    # float32 over 23 steps of a well-conditioned problem: a few ulps of numbers of size 1
    np.testing.assert_allclose(run.params, w, atol=2e-6)
    np.testing.assert_allclose(run.losses, losses, rtol=2e-5, atol=1e-6)
    assert int(run.state.step) == 23


@pytest.mark.parametrize("batch_size", [None, N])
def test_a_full_batch_sees_the_data_as_they_lie(batch_size):
    w, losses = by_hand(lambda t: slice(None), W, 9, lambda t: 0.1, 0.0)
    run = fit(
        line_loss, W, (X, Y), KEY, optimizer=optax.sgd(0.1), num_steps=9, batch_size=batch_size
    )
    np.testing.assert_allclose(run.params, w, atol=2e-6)
    np.testing.assert_allclose(run.losses, losses, rtol=2e-5, atol=1e-6)


def seen(num_steps, key=KEY):
    """Which examples each step saw, told by the gradient of a loss with one weight an example."""
    loss = lambda w, rows: w[rows].sum() / B  # noqa: E731
    run = partial(fit, loss, jnp.zeros(N), jnp.arange(N), key, optimizer=optax.sgd(float(B)))
    result = run(
        num_steps=num_steps,
        batch_size=B,
        metrics_fn=lambda state: -state.params,
        metrics_steps=range(num_steps + 1),
    )
    return np.diff(np.asarray(result.metrics), axis=0)


def test_an_epoch_sees_no_example_twice_and_leaves_the_rest_of_its_permutation_out():
    visits = seen(2000).reshape(-1, 5, N)
    assert visits.sum(axis=2).tolist() == [[B] * 5] * 400
    assert visits.sum(axis=1).max() == 1
    left_out = (visits.sum(axis=1) == 0).sum(axis=0)
    assert left_out.sum() == 400 * (N % B)
    # each example is left out equally often: chi-square, correlation between the two of an epoch
    # makes the statistic smaller than it would be for independent draws
    assert scipy.stats.chisquare(left_out).pvalue > 1e-3


def test_the_order_is_a_uniform_permutation():
    orders = jax.vmap(lambda e: epoch_order(KEY, e, 4))(jnp.arange(24_000))
    counts = Counter(map(tuple, np.asarray(orders).tolist()))
    assert len(counts) == 24
    assert scipy.stats.chisquare(list(counts.values())).pvalue > 1e-3


@pytest.mark.parametrize("size", [1, 2, 3, 1000, 1024, 1025, 70_000])
def test_the_order_is_a_permutation_whatever_the_size(size):
    first, second = epoch_order(KEY, 0, size), epoch_order(KEY, 1, size)
    assert (jnp.sort(first) == jnp.arange(size)).all()
    assert size < 1000 or (first != second).mean() > 0.99
    # ranks of places and entries are unrelated: ties of the packed words are broken by chance
    if size >= 1000:
        assert abs(scipy.stats.spearmanr(np.arange(size), first).statistic) < 4 / size**0.5


def test_two_parts_make_the_whole_bit_for_bit():
    options = {"optimizer": optax.adam(0.1), "batch_size": B}
    whole = fit(line_loss, W, (X, Y), KEY, num_steps=17, **options)
    # 8 is inside an epoch: the second part must go on with the same permutation
    first = fit(line_loss, W, (X, Y), KEY, num_steps=8, **options)
    second = continue_fit(line_loss, first.state, (X, Y), num_steps=9, **options)
    again = continue_fit(line_loss, first.state, (X, Y), num_steps=9, start=8, **options)
    for run in (second, again):
        assert (run.params == whole.params).all()
        assert (run.losses == whole.losses[8:]).all()
        assert int(run.state.step) == 17


def test_metrics_are_those_of_the_shorter_runs():
    options = {"optimizer": optax.adam(0.1), "batch_size": B}
    steps = (0, 1, 6, 12)
    metrics_fn = lambda s: {"w": s.params, "step": s.step}  # noqa: E731
    run = fit(
        line_loss,
        W,
        (X, Y),
        KEY,
        num_steps=12,
        metrics_fn=metrics_fn,
        metrics_steps=steps,
        **options,
    )
    assert run.metrics["step"].tolist() == list(steps)
    for row, t in enumerate(steps[1:], 1):
        short = fit(line_loss, W, (X, Y), KEY, num_steps=t, **options)
        assert (run.metrics["w"][row] == short.params).all()
    assert (run.metrics["w"][0] == W).all()


def test_metrics_are_computed_at_the_chosen_steps_and_at_no_other():
    calls = []

    def metrics_fn(state):
        # the parameters differ from network to network, so that each makes a call of its own
        jax.debug.callback(lambda step, _: calls.append(int(step)), state.step, state.params)
        return state.step

    run = jax.vmap(
        lambda key: fit(
            line_loss,
            W,
            (X, Y),
            key,
            optimizer=optax.sgd(0.1),
            num_steps=20,
            batch_size=B,
            metrics_fn=metrics_fn,
            metrics_steps=(3, 11),
        )
    )(jax.random.split(KEY, 2))
    jax.block_until_ready(run)
    jax.effects_barrier()
    assert sorted(calls) == [3, 3, 11, 11]


def test_a_loss_that_is_not_finite_is_flagged_with_its_step():
    blow_up = lambda w, x: jnp.where(w > 2.5, jnp.inf, -w)  # noqa: E731
    run = fit(blow_up, jnp.zeros(()), jnp.ones(4), KEY, optimizer=optax.sgd(1.0), num_steps=6)
    assert bool(run.diverged)
    assert int(run.diverged_at) == 3
    assert not np.isfinite(run.losses[3])
    later = continue_fit(
        blow_up, run.state, jnp.ones(4), optimizer=optax.sgd(1.0), num_steps=2, start=6
    )
    assert int(later.diverged_at) == 6
    well = fit(line_loss, W, (X, Y), KEY, optimizer=optax.sgd(0.1), num_steps=3)
    assert (bool(well.diverged), int(well.diverged_at)) == (False, -1)


class Normed(nn.Module):
    """A network with running statistics and dropout."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(5, use_bias=False)(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.8)(x)
        x = nn.Dropout(0.3, deterministic=not train)(nn.relu(x))
        return nn.Dense(1)(x)[..., 0]


class NormedModel:
    """What `model_loss` needs of a model."""

    @staticmethod
    def apply_train(params, state, x, key):
        outputs, new = Normed().apply(
            {"params": params, "batch_stats": state},
            x,
            train=True,
            rngs={"dropout": key},
            mutable=["batch_stats"],
        )
        return outputs, new["batch_stats"]


def normed_run(**options):
    variables = Normed().init({"params": KEY, "dropout": KEY}, X, train=True)
    loss = model_loss(NormedModel, lambda outputs, y: jnp.mean((outputs - y) ** 2))
    run = partial(
        fit,
        loss,
        variables["params"],
        (X, Y),
        KEY,
        model_state=variables["batch_stats"],
        optimizer=optax.sgd(0.05, momentum=0.9),
    )
    return run(**{"num_steps": 12, "batch_size": 16, **options}), variables


def test_running_statistics_ride_along_as_in_a_loop_written_out():
    key, optimizer = batch_key_of(KEY), optax.sgd(0.05, momentum=0.9)
    run, variables = normed_run(batch_key=key, num_steps=6)
    params, stats = variables["params"], variables["batch_stats"]
    opt_state = optimizer.init(params)
    for t in range(6):  # 22 // 16: one batch an epoch
        rows = epoch_order(key, t, N)[:16]

        def loss(params, stats=stats, rows=rows, t=t):
            outputs, stats = NormedModel.apply_train(
                params, stats, X[rows], jax.random.fold_in(KEY, t)
            )
            return jnp.mean((outputs - Y[rows]) ** 2), stats

        grads, stats = jax.grad(loss, has_aux=True)(params)
        updates, opt_state = optimizer.update(grads, opt_state)
        params = optax.apply_updates(params, updates)
    for ours, theirs in [(run.params, params), (run.state.model_state, stats)]:
        # float32, six steps of numbers of size one, one of them divided by a batch's deviation
        jax.tree.map(partial(np.testing.assert_allclose, atol=2e-5), ours, theirs)


def test_eight_devices_equal_one_batch_norm_and_dropout_included():
    one, _ = normed_run()
    mesh = data_mesh(8)
    spread = jax.jit(lambda: normed_run(mesh=mesh)[0])()
    jax.tree.map(
        partial(np.testing.assert_allclose, atol=2e-5),
        (one.params, one.state.model_state, one.losses),
        (spread.params, spread.state.model_state, spread.losses),
    )


def test_a_batch_on_a_mesh_is_really_spread():
    shapes = []

    def loss(w, batch):
        jax.debug.inspect_array_sharding(batch[0], callback=lambda s: shapes.append(s))
        return line_loss(w, batch)

    mesh = data_mesh(4)
    data = replicate((X, Y), mesh)
    run = jax.jit(
        lambda d: fit(
            loss, W, d, KEY, optimizer=optax.sgd(0.1), num_steps=2, batch_size=8, mesh=mesh
        )
    )
    jax.block_until_ready(run(data))
    assert [s.shard_shape((8, 3)) for s in shapes] == [(2, 3)] * len(shapes)
    assert shapes


def test_the_noise_of_a_stateful_loss_is_new_at_every_step_and_the_same_in_every_run():
    def loss(w, state, batch, key):
        return jnp.mean(batch) * w, state + jax.random.uniform(key)

    def one(key):
        return fit(
            stateful(loss),
            jnp.zeros(()),
            jnp.ones(4),
            key,
            model_state=jnp.zeros(()),
            optimizer=optax.sgd(0.0),
            num_steps=5,
            metrics_fn=lambda s: s.model_state,
            metrics_steps=range(6),
        ).metrics

    draws = np.diff(one(KEY))
    assert len(set(draws.tolist())) == 5
    assert (one(KEY) == one(KEY)).all()
    assert (one(KEY) != one(jax.random.key(8)))[1:].all()


def test_it_is_differentiable_through_training():
    with jax.enable_x64(True):
        data = (X.astype(np.float64), Y.astype(np.float64))

        def final_loss(rate):
            run = fit(
                line_loss,
                W.astype(jnp.float64),
                data,
                KEY,
                optimizer=optax.sgd(rate),
                num_steps=6,
            )
            return line_loss(run.params, data)

        rate, h = jnp.asarray(0.1), 1e-5
        slope = (final_loss(rate + h) - final_loss(rate - h)) / (2 * h)
        # central differences: error h^2 f''' ~ 1e-9 of a slope of order one
        np.testing.assert_allclose(jax.grad(final_loss)(rate), slope, rtol=1e-6)
        assert final_loss(rate).dtype == jnp.float64


def test_jit_unroll_and_old_style_keys_change_nothing():
    options = {"optimizer": optax.sgd(0.1), "num_steps": 11, "batch_size": B}
    plain = fit(line_loss, W, (X, Y), KEY, **options)
    jitted = jax.jit(partial(fit, line_loss, **options))(W, (X, Y), KEY)
    unrolled = fit(line_loss, W, (X, Y), KEY, unroll=3, **options)
    old = fit(line_loss, W, (X, Y), jax.random.key_data(KEY), **options)
    for run in (jitted, unrolled, old):
        np.testing.assert_allclose(run.params, plain.params, rtol=1e-6)


def test_optimisers_that_ask_for_the_loss_get_it():
    plateau = optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau(patience=2))
    run = fit(line_loss, W, (X, Y), KEY, optimizer=plateau, num_steps=5)
    assert int(run.state.opt_state[1].count) >= 0
    assert float(run.losses[-1]) < float(run.losses[0])


RUN = {"optimizer": optax.sgd(0.1), "num_steps": 3, "batch_size": B}


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"num_steps": 0}, ValueError, "num_steps must be at least 1, got 0"),
        ({"num_steps": 1.5}, TypeError, "num_steps must be an integer"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        ({"batch_size": 23}, ValueError, "batch_size must be at most the number of examples, 22"),
        ({"unroll": 0}, ValueError, "unroll must be at least 1"),
        ({"optimizer": 0.1}, TypeError, "optimizer must be an optax.GradientTransformation"),
        ({"batch_key": 3}, TypeError, "batch_key must be a PRNG key"),
        ({"key": 3}, TypeError, "key must be a PRNG key"),
        ({"params": {}}, ValueError, "params must be a pytree of floating point arrays"),
        ({"params": W.at[0].set(jnp.nan)}, ValueError, "params must be finite, got 1 NaN"),
        ({"params": jnp.arange(3)}, TypeError, "params must be a floating point array"),
        ({"params": W[:2]}, ValueError, "params and data do not fit"),
        ({"data": (X, Y[:5])}, ValueError, "data: leaves must share the leading example axis"),
        ({"data": (X[:0], Y[:0])}, ValueError, "data must hold at least 1 example"),
        ({"data": (X * np.nan, Y)}, ValueError, r"data\[0\] must be finite"),
        ({"loss_fn": lambda w, b: b[1] * w[0]}, ValueError, "one floating point scalar"),
        ({"loss_fn": None}, TypeError, "loss_fn must be a function"),
        ({"loss_fn": stateful(lambda w, s, b, k: (w[0], s + 1))}, ValueError, "could not be eval"),
        ({"loss_fn": stateful(lambda w, s, b, k: (w, s))}, ValueError, "with a scalar loss"),
        ({"loss_fn": stateful(lambda w, s, b, k: (w[0], 1.0 * k))}, ValueError, "loss_fn"),
        (
            {
                "loss_fn": stateful(lambda w, s, b, k: (w[0], jnp.stack([s, s]))),
                "model_state": jnp.zeros(()),
            },
            ValueError,
            "model_state like the one it got",
        ),
        ({"metrics_steps": (1,)}, ValueError, "metrics_steps needs a metrics_fn"),
        ({"metrics_fn": lambda s: s.step}, ValueError, "increasing steps from 0 to num_steps=3"),
        (
            {"metrics_fn": lambda s: s.step, "metrics_steps": (2, 1)},
            ValueError,
            "increasing steps",
        ),
        ({"metrics_fn": lambda s: s.step, "metrics_steps": (4,)}, ValueError, "increasing steps"),
        ({"metrics_fn": 1, "metrics_steps": (1,)}, TypeError, "metrics_fn must be a function"),
        ({"mesh": data_mesh(8)}, ValueError, "batch_size must be a multiple of the 8 devices"),
        ({"mesh": 8}, TypeError, "mesh must be a jax.sharding.Mesh"),
    ],
)
def test_bad_input_is_named(change, error, message):
    call = {"loss_fn": line_loss, "params": W, "data": (X, Y), "key": KEY, **RUN, **change}
    with pytest.raises(error, match=message):
        fit(**call)


@pytest.mark.bad_input
def test_bad_input_of_the_small_functions_is_named():
    with pytest.raises(ValueError, match="batch_size must be at most"):
        steps_per_epoch(3, 4)
    with pytest.raises(ValueError, match="num_examples must be at least 1"):
        steps_per_epoch(0, 1)
    with pytest.raises(TypeError, match="fn must be a function"):
        stateful(3)
    with pytest.raises(TypeError, match="output_loss_fn must be a function"):
        model_loss(NormedModel, None)
    with pytest.raises(TypeError, match="optimizer must be"):
        init_state(W, KEY, optimizer=lambda g: g)
