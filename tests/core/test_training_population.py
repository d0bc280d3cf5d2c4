"""A population as one program equals its networks trained one after another."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from poster_jax.core.devices import data_mesh
from poster_jax.core.training import (
    fit,
    fit_until,
    map_population,
    mask_updates,
    stack_padded,
    steps_per_epoch,
    unpad,
)

N, B, P = 40, 8, 10
RNG = np.random.default_rng(1)
X = RNG.normal(size=(N, 6)).astype(np.float32)
Y = (np.abs(X[:, 0]) + X[:, 1] > 0.5).astype(np.int32)
FLIPPED = np.where(RNG.random((P, N)) < 0.2, 1 - Y, Y).astype(np.int32)
KEYS = jax.random.split(jax.random.key(3), P)
RATES = jnp.linspace(0.003, 0.03, P)
DECAYS = jnp.where(jnp.arange(P) % 2, 0.0, 0.1)


def init(key, width=7):
    first, second = jax.random.split(key)
    return {
        "first": {"w": jax.random.normal(first, (6, width)) / 3, "b": jnp.zeros(width)},
        "second": {"w": jax.random.normal(second, (width, 2)) / 3, "b": jnp.zeros(2)},
    }


def loss_fn(params, batch):
    x, y = batch
    x = jax.nn.relu(x @ params["first"]["w"] + params["first"]["b"])
    x = x @ params["second"]["w"] + params["second"]["b"]
    return optax.softmax_cross_entropy_with_integer_labels(x, y).mean()


def train_one(key, rate, decay, y, x=X):
    return fit(
        loss_fn,
        init(key),
        (x, y),
        key,
        optimizer=optax.adamw(rate, weight_decay=decay),
        num_steps=12,
        batch_size=B,
    )


def assert_close(ours, theirs, atol=2e-5):
    """float32 over a dozen Adam steps; Adam magnifies the roundoff of small gradients."""
    jax.tree.map(partial(np.testing.assert_allclose, atol=atol, rtol=1e-4), ours, theirs)


@pytest.fixture(scope="module")
def one_by_one():
    single = jax.jit(train_one)
    runs = [single(*member) for member in zip(KEYS, RATES, DECAYS, FLIPPED, strict=True)]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *map(arrays, runs))


def arrays(run):
    return run.params, run.losses, run.state.step, run.diverged


MEMBERS = (KEYS, RATES, DECAYS, FLIPPED)


def test_vmap_of_fit_over_seeds_rates_decays_and_labels_is_the_loop(one_by_one):
    assert_close(arrays(jax.jit(jax.vmap(train_one))(*MEMBERS)), one_by_one)


@pytest.mark.parametrize("group_size", [1, 4])
def test_groups_change_nothing_in_and_out_of_jit(one_by_one, group_size):
    run = partial(map_population, train_one, group_size=group_size)
    assert_close(arrays((jax.jit(run) if group_size == 4 else run)(*MEMBERS)), one_by_one)


def test_eight_devices_equal_one_and_need_not_divide_the_population(one_by_one):
    assert_close(arrays(map_population(train_one, *MEMBERS, mesh=data_mesh(8))), one_by_one)


def test_what_is_shared_is_passed_once(one_by_one):
    shared = (0, 0, 0, 0, None)
    options = {"mesh": data_mesh(4), "group_size": 2}
    assert_close(
        arrays(map_population(train_one, *MEMBERS, X, in_axes=shared, **options)), one_by_one
    )


def test_networks_with_one_batch_key_see_the_same_batches():
    loss = lambda w, x: (w * x).mean()  # noqa: E731
    data = jnp.arange(float(N))

    def final(key, batch_key=None):
        return fit(
            loss,
            jnp.zeros(()),
            data,
            key,
            optimizer=optax.sgd(1.0),
            num_steps=3,
            batch_size=B,
            batch_key=batch_key,
        ).params

    own = map_population(final, KEYS)
    together = map_population(partial(final, batch_key=KEYS[0]), KEYS)
    assert len(set(own.tolist())) == P
    assert len(set(together.tolist())) == 1


def test_one_diverging_network_is_flagged_and_does_not_touch_the_others(one_by_one):
    rates = RATES.at[4].set(jnp.inf)
    runs = map_population(train_one, KEYS, rates, DECAYS, FLIPPED)
    assert runs.diverged.tolist() == [i == 4 for i in range(P)]
    assert int(runs.diverged_at[4]) == 1
    others = [i for i in range(P) if i != 4]
    pick = lambda tree: jax.tree.map(lambda a: a[np.array(others)], tree)  # noqa: E731
    assert_close(pick(arrays(runs)), pick(one_by_one))


def test_data_subsets_of_one_size_are_a_population_too():
    rows = jnp.stack([jax.random.permutation(k, N)[:24] for k in KEYS[:3]])

    def on_subset(key, rows):
        return train_one(key, 0.01, 0.0, jnp.asarray(Y)[rows], jnp.asarray(X)[rows])

    runs = map_population(on_subset, KEYS[:3], rows)
    alone = jax.jit(on_subset)(KEYS[2], rows[2])
    assert_close(jax.tree.map(lambda a: a[2], arrays(runs)), arrays(alone))


WIDTHS = (3, 7)


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.adamw(0.01, weight_decay=0.1),
        optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(0.1)),
    ],
)
def test_padded_widths_train_like_the_narrow_networks(optimizer):
    narrow = [init(key, width) for key, width in zip(KEYS, WIDTHS, strict=False)]
    params, masks = stack_padded(narrow)
    options = {"num_steps": 8}

    def one(params, mask, key):
        run = fit(loss_fn, params, (X, Y), key, optimizer=mask_updates(optimizer, mask), **options)
        return run.params, run.losses

    padded, losses = map_population(one, params, masks, KEYS[:2])
    for i, member in enumerate(narrow):
        single = partial(fit, loss_fn, optimizer=optimizer, **options)
        alone = jax.jit(single)(member, (X, Y), KEYS[i])
        ours = jax.tree.map(lambda a, i=i: a[i], padded)
        assert_close(unpad(ours, member), alone.params)
        assert_close(losses[i], alone.losses)
        outside = jax.tree.map(lambda a, m, i=i: jnp.abs(a * (1 - m[i])).max(), ours, masks)
        assert max(jax.tree.leaves(outside)) == 0.0


def test_a_mask_holds_entries_still_that_the_optimiser_would_move():
    mask = {"w": jnp.array([1.0, 0.0])}
    loss = lambda p, x: (p["w"] ** 2).sum() * x.mean()  # noqa: E731
    run = fit(
        loss,
        {"w": jnp.ones(2)},
        jnp.ones(4),
        KEYS[0],
        optimizer=mask_updates(optax.adamw(0.1, weight_decay=0.1), mask),
        num_steps=5,
    )
    assert float(run.params["w"][1]) == 1.0
    assert float(run.params["w"][0]) < 0.8


UNTIL = {"batch_size": B, "loss_below": 0.35, "max_epochs": 40}


def until_one(key, rate, **options):
    return fit_until(
        loss_fn, init(key), (X, Y), key, optimizer=optax.adam(rate), **{**UNTIL, **options}
    )


def test_a_stopped_network_is_that_of_fit_with_so_many_epochs():
    run = until_one(KEYS[0], 0.02)
    epochs, epoch_steps = int(run.num_epochs), steps_per_epoch(N, B)
    assert bool(run.reached)
    assert 1 < epochs < 40
    assert int(run.state.step) == epochs * epoch_steps
    same = fit(
        loss_fn,
        init(KEYS[0]),
        (X, Y),
        KEYS[0],
        optimizer=optax.adam(0.02),
        num_steps=epochs * epoch_steps,
        batch_size=B,
    )
    assert_close(run.params, same.params, atol=1e-6)
    means = np.asarray(same.losses).reshape(epochs, epoch_steps).mean(axis=1)
    np.testing.assert_allclose(run.epoch_losses[:epochs], means, rtol=1e-5)
    assert (means[:-1] >= 0.35).all()
    assert means[-1] < 0.35
    assert np.isnan(run.epoch_losses[epochs:]).all()


@pytest.mark.parametrize("options", [{}, {"group_size": 3, "mesh": data_mesh(2)}])
def test_every_network_of_a_population_stops_for_itself(options):
    runs = map_population(until_one, KEYS, RATES.at[0].set(1e-6), **options)
    single = jax.jit(until_one)
    alone = [single(k, r) for k, r in zip(KEYS, RATES.at[0].set(1e-6), strict=True)]
    assert runs.state.step.tolist() == [int(run.state.step) for run in alone]
    assert runs.reached.tolist() == [False] + [True] * (P - 1)
    assert len(set(runs.num_epochs.tolist())) > 3
    assert int(runs.num_epochs[0]) == 40
    assert_close(runs.params, jax.tree.map(lambda *a: jnp.stack(a), *[r.params for r in alone]))


def test_a_network_that_diverges_stops_and_is_not_said_to_have_reached_the_threshold():
    runs = jax.vmap(until_one)(KEYS[:2], jnp.array([jnp.inf, 0.02]))
    assert runs.diverged.tolist() == [True, False]
    assert runs.reached.tolist() == [False, True]
    assert int(runs.diverged_at[0]) == 1
    assert int(runs.num_epochs[0]) == 1
    assert int(runs.num_epochs[1]) > 1


def test_full_batches_stop_too_and_the_threshold_may_be_traced():
    below = jnp.array([0.6, 0.5])
    runs = jax.vmap(lambda b: until_one(KEYS[0], 0.05, batch_size=None, loss_below=b))(below)
    assert runs.reached.all()
    assert int(runs.num_epochs[0]) < int(runs.num_epochs[1])
    assert (runs.state.step == runs.num_epochs).all()


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: map_population(3, KEYS), TypeError, "fn must be a function"),
        (lambda: map_population(train_one), ValueError, "members must hold arrays"),
        (lambda: map_population(init, KEYS[:0]), ValueError, "members must hold at least 1"),
        (lambda: map_population(until_one, KEYS, RATES[:3]), ValueError, "leading"),
        (lambda: map_population(init, KEYS, group_size=0), ValueError, "group_size must be at"),
        (lambda: map_population(init, KEYS, in_axes=(1,)), ValueError, "in_axes must hold 0 or"),
        (lambda: map_population(init, KEYS, mesh=2), TypeError, "mesh must be a jax"),
        (lambda: until_one(KEYS[0], 0.1, max_epochs=0), ValueError, "max_epochs must be at least"),
        (lambda: until_one(KEYS[0], 0.1, loss_below=0.0), ValueError, "loss_below must be finite"),
        (lambda: until_one(KEYS[0], 0.1, batch_size=41), ValueError, "batch_size must be at most"),
        (lambda: stack_padded([]), ValueError, "members must hold at least 1 network"),
        (lambda: stack_padded([{"a": X}, {"b": X}]), ValueError, r"members\[1\] must have the"),
        (lambda: stack_padded([{"a": X}, {"a": X[0]}]), ValueError, r"members\[1\] must have the"),
        (lambda: mask_updates(None, X), TypeError, "optimizer must be"),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
