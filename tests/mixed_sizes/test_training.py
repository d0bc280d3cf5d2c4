"""One size is plain training; several sizes are one program, resumed to the same bits."""

import logging
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from poster_jax.core.cost import count_flops
from poster_jax.core.devices import data_mesh
from poster_jax.core.losses import softmax_cross_entropy
from poster_jax.core.models import from_linen
from poster_jax.core.recalibration import recalibrate
from poster_jax.core.training import fit, init_state, model_loss
from poster_jax.mixed_sizes import (
    continue_mixed,
    epoch_plan,
    epoch_steps,
    fit_mixed,
    gradient_norms,
    resize_batch,
    size_regime,
    smooth_gradients,
    step_flops,
    train_mixed,
)

KEY = jax.random.key(0)
EXAMPLES, STEPS = 60, 12
PAIR = size_regime((8, 4), (0.5, 0.5), base_size=8, base_batch=4)
OPTIMIZER = optax.chain(smooth_gradients(), optax.sgd(0.05, momentum=0.9))
REGIME = size_regime((8, 12, 4), (0.4, 0.3, 0.3), base_size=8, base_batch=4)


class _Net(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(4, (3, 3), padding="CIRCULAR")(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5)(x)
        return nn.Dense(3)(nn.relu(x).mean((1, 2)))


MODEL = from_linen(_Net())
LOSS = model_loss(MODEL, softmax_cross_entropy)
_draw = np.random.default_rng(0)
DATA = (
    jnp.asarray(_draw.normal(size=(EXAMPLES, 8, 8, 2)), jnp.float32),
    jnp.asarray(_draw.integers(0, 3, EXAMPLES)),
)
START = jax.jit(lambda: (MODEL.init(KEY, DATA[0]), MODEL.init_state(KEY, DATA[0])))()


def _flip(key, image, size):
    image = jnp.where(jax.random.bernoulli(key), image, image[:, ::-1])
    return resize_batch(image[None], size)[0]


def _fit(key, *, num_steps=STEPS, **options):
    params, state = START
    options = {"regime": REGIME, "optimizer": OPTIMIZER, "model_state": state} | options
    return fit_mixed(LOSS, params, DATA, key, num_steps=num_steps, **options)


def _same(a, b):
    for ours, theirs in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_one_size_is_plain_training_to_the_bit():
    params, state = START
    regime = size_regime((8,), (1.0,), base_size=8, base_batch=16)  # three steps an epoch

    @jax.jit
    def both(key):
        options = {"optimizer": OPTIMIZER, "num_steps": STEPS, "model_state": state}
        plain = fit(LOSS, params, DATA, key, batch_size=16, **options)
        return plain, _fit(key, regime=regime)

    plain, mixed = both(KEY)
    _same((plain.params, plain.losses), (mixed.params, mixed.losses))
    _same(plain.state.model_state, mixed.state.model_state)


def test_each_step_is_the_plain_step_on_the_planned_batch_and_norms_are_kept():
    every = range(1, STEPS + 1)
    norms = lambda state: gradient_norms(state.opt_state)  # noqa: E731
    run = jax.jit(lambda key: _fit(key, metrics_fn=norms, metrics_steps=every))(KEY)
    raw, smoothed = (np.asarray(values) for values in run.metrics)
    expected = [raw[0]]
    for norm in raw[1:]:
        expected.append(0.9 * expected[-1] + 0.1 * norm)
    np.testing.assert_allclose(smoothed, expected, rtol=1e-5)
    assert (bool(run.diverged), int(run.diverged_at)) == (False, -1)
    key = jax.random.fold_in(KEY, 2**32 - 1)  # of the order, as in core.training
    plan = jax.jit(lambda: epoch_plan(key, EXAMPLES, REGIME))()
    np.testing.assert_array_equal(run.sizes, plan.size_index[:STEPS])

    sizes, places = np.asarray(plan.size_index), np.asarray(plan.row)
    batches = [(sizes[t], np.asarray(plan.tables[sizes[t]])[places[t]]) for t in range(3)]

    @jax.jit
    def by_hand():
        params, state = START
        opt_state, seen = OPTIMIZER.init(params), []
        grad = jax.value_and_grad(LOSS.fn, has_aux=True)
        x, y = DATA
        for index, rows in batches:
            batch = resize_batch(x[rows], REGIME[index].size), y[rows]
            (loss, state), grads = grad(params, state, batch, KEY)
            updates, opt_state = OPTIMIZER.update(grads, opt_state, params)
            params, seen = optax.apply_updates(params, updates), [*seen, loss]
        return jnp.stack(seen)

    np.testing.assert_allclose(run.losses[:3], by_hand(), rtol=2e-5)


def test_a_population_is_its_members_and_two_halves_are_the_whole():
    keys = jax.random.split(jax.random.key(3))
    fit_one = partial(_fit, regime=PAIR, size_key=KEY, augment=_flip)
    together = jax.jit(jax.vmap(fit_one))(keys)

    @jax.jit
    def apart(key):
        whole = fit_one(key)
        half = fit_one(key, num_steps=5)
        rest = continue_mixed(
            LOSS,
            half.state,
            DATA,
            regime=PAIR,
            optimizer=OPTIMIZER,
            num_steps=STEPS - 5,
            size_key=KEY,
            augment=_flip,
        )
        return whole, half, rest

    whole, half, rest = apart(keys[1])
    _same(whole.state.params, rest.state.params)
    _same(whole.losses, jnp.concatenate([half.losses, rest.losses]))
    np.testing.assert_array_equal(together.sizes, jnp.tile(whole.sizes, (2, 1)))
    np.testing.assert_allclose(together.losses[1], whole.losses, rtol=1e-4)
    assert np.ptp(np.asarray(together.losses[:, 0])) > 0


def test_a_shared_order_of_sizes_lets_a_population_compute_one_size_a_step():
    keys = jax.random.split(KEY)
    costs = [
        count_flops(jax.vmap(partial(_fit, regime=PAIR, augment=_flip, **options)), keys)
        for options in ({"size_key": KEY}, {})
    ]
    assert costs[1] > 1.9 * costs[0]  # of two sizes as dear as each other, and the choice


def test_training_compiles_once_and_resumes_to_the_same_bits(tmp_path, caplog):
    params, state = START

    def train(workdir):
        return train_mixed(
            LOSS,
            params,
            DATA,
            KEY,
            regime=PAIR,
            optimizer=OPTIMIZER,
            num_steps=STEPS,
            chunk_steps=3,
            model_state=state,
            augment=_flip,
            metrics_fn=lambda state: gradient_norms(state.opt_state)._asdict(),
            workdir=workdir,
        )

    with caplog.at_level(logging.DEBUG), jax.log_compiles():
        whole = train(tmp_path)
    compiled = [r.getMessage() for r in caplog.records if "XLA compilation" in r.getMessage()]
    assert sum("chunk" in message for message in compiled) == 1  # of four chunks, two sizes
    (tmp_path / "checkpoints" / "12").rename(tmp_path / "lost")  # killed before the last chunk
    again = train(tmp_path)
    _same(whole.state.params, again.state.params)
    assert again.history == whole.history
    assert set(whole.history[0]) >= {"loss", "loss_by_size", "raw", "smoothed"}
    with pytest.raises(ValueError, match="regime differs"):
        train_mixed(
            LOSS,
            params,
            DATA,
            KEY,
            regime=PAIR[::-1],
            optimizer=OPTIMIZER,
            num_steps=STEPS,
            chunk_steps=3,
            model_state=state,
            workdir=tmp_path,
        )


def test_steps_of_all_sizes_cost_about_as_much():
    params, state = START
    start = init_state(params, KEY, optimizer=OPTIMIZER, model_state=state)
    regime = size_regime((32, 48, 16), (0.4, 0.3, 0.3), base_size=32, base_batch=36)
    flops = step_flops(LOSS, start, DATA, regime=regime, optimizer=OPTIMIZER)
    per_pixel = np.array(flops) / [c.batch_size * c.size**2 for c in regime]
    np.testing.assert_allclose(per_pixel, per_pixel[0], rtol=0.02)


def test_constant_images_look_alike_at_every_size():
    """Global pooling and circular padding: no edge can be seen."""
    params, state = START
    colours = jnp.asarray(_draw.normal(size=(5, 1, 1, 2)), jnp.float32)

    @jax.jit
    def outputs(colours):
        images = [jnp.broadcast_to(colours, (5, size, size, 2)) for size in (4, 7, 16)]
        return [MODEL.apply_eval(params, state, x) for x in images]

    small, middle, large = outputs(colours)
    np.testing.assert_allclose(small, large, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(middle, large, rtol=1e-5, atol=1e-6)


def test_a_fixed_networks_statistics_are_those_that_calibration_finds():
    """Weights stand still and every batch is all of the data: nothing is left to chance."""
    regime = size_regime((8,), (1.0,), base_size=8, base_batch=EXAMPLES)

    @jax.jit
    def both(key):
        run = _fit(key, regime=regime, optimizer=optax.sgd(0.0), num_steps=150)
        fresh = recalibrate(MODEL, run.params, START[1], DATA[0][None], key)
        larger = resize_batch(DATA[0], 16)[None]
        return run.state.model_state, fresh, recalibrate(MODEL, run.params, START[1], larger, key)

    running, fresh, larger = (jax.tree.leaves(tree) for tree in both(KEY))
    for ours, theirs in zip(running, fresh, strict=True):  # 0.9^150 = 1e-7 of the start is left
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-6)
    assert max(float(jnp.abs(a - b).max()) for a, b in zip(fresh, larger, strict=True)) > 0.05


@pytest.mark.slow
def test_batches_spread_over_devices_train_the_same_network():
    mesh = data_mesh(4)
    regime = size_regime((8, 4), (0.5, 0.5), base_size=8, base_batch=8)
    fit_one = partial(_fit, regime=regime, augment=_flip, num_steps=4, passes=2)
    alone, spread = jax.jit(fit_one)(KEY), jax.jit(partial(fit_one, mesh=mesh))(KEY)
    np.testing.assert_allclose(spread.losses, alone.losses, rtol=1e-5)
    with pytest.raises(ValueError, match="multiple of the 4 devices"):
        _fit(KEY, regime=size_regime((8,), (1.0,), base_size=8, base_batch=6), mesh=mesh)


@pytest.mark.parametrize(
    ("sampling", "passes", "steps"),
    [("examples", 1, (6, 9, 1)), ("examples", 3, (18, 27, 3)), ("steps", 1, (3, 2, 2))],
)
def test_fractions_are_of_examples_or_of_steps(sampling, passes, steps):
    assert [c.batch_size for c in REGIME] == [4, 2, 16]
    assert epoch_steps(EXAMPLES, REGIME, sampling=sampling, passes=passes) == steps
    make = partial(epoch_plan, num_examples=EXAMPLES, regime=REGIME)
    plan = jax.jit(lambda key: make(key, sampling=sampling, passes=passes))(KEY)
    counts = np.unique(np.concatenate([t.ravel() for t in plan.tables]), return_counts=True)[1]
    assert counts.max() <= passes
    np.testing.assert_array_equal(np.bincount(plan.size_index), steps)


@pytest.mark.bad_input
def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="augment must be given"):
        _fit(KEY, regime=size_regime((8, 4), (0.5, 0.5), base_size=8, base_batch=4,
                                     adapt="duplicates"))  # fmt: skip
    with pytest.raises(ValueError, match="sampling"):
        _fit(KEY, sampling="pixels")
    with pytest.raises(ValueError, match="one SmoothingState"):
        gradient_norms(optax.sgd(0.1).init(START[0]))

    with pytest.raises(ValueError, match="4 images of 8 x 8"):
        fit_mixed(
            lambda params, batch: jnp.sum(batch[0] @ jnp.ones((3, 1))) * params,
            jnp.ones(()),
            DATA,
            KEY,
            regime=REGIME,
            optimizer=optax.sgd(0.1),
            num_steps=1,
        )
