"""The three ways against gradients written by hand, and against one another."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from poster_jax.core import losses, models, training
from poster_jax.core.devices import data_mesh
from poster_jax.gradient_noise import (
    draw_batches,
    minibatch_projections,
    noise_projections,
    per_example_projections,
    plan_projections,
    random_directions,
    resample_projections,
)

KINDS = ("gaussian", "rademacher", "hadamard", "coordinates")


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("forward", "gaussian"),
        ("reverse", "hadamard"),
        *(
            pytest.param(mode, kind, marks=pytest.mark.slow)
            for mode in ("forward", "reverse")
            for kind in KINDS
            if (mode, kind) not in (("forward", "gaussian"), ("reverse", "hadamard"))
        ),
    ],
)
def test_both_modes_are_the_explicit_product(net, mode, kind, key, x64):
    params, batch = net.make_problem()
    directions = random_directions(_jax(params), key, num=6, kind=kind)
    ours = per_example_projections(net.loss_fn, params, batch, directions, mode=mode)
    expected = net.matrix_of(directions) @ net.numpy_gradients(params, batch).T
    assert ours.dtype == jnp.float64
    np.testing.assert_allclose(ours, expected, atol=1e-10)


@pytest.mark.parametrize(
    ("mode", "layer"),
    [
        ("reverse", "second/kernel"),
        pytest.param("forward", "first", marks=pytest.mark.slow),
        pytest.param("forward", "second/kernel", marks=pytest.mark.slow),
        pytest.param("reverse", "first", marks=pytest.mark.slow),
    ],
)
def test_a_layer_alone_and_microbatches_that_do_not_divide(net, mode, layer, key, x64):
    params, batch = net.make_problem(examples=100)
    expected = net.numpy_gradients(params, batch)
    directions = random_directions(_jax(params), key, num=4, layer=layer)
    whole = per_example_projections(net.loss_fn, params, batch, directions, mode=mode)
    cut = per_example_projections(net.loss_fn, params, batch, directions, mode=mode, microbatch=7)
    np.testing.assert_allclose(whole, net.matrix_of(directions) @ expected.T, atol=1e-10)
    np.testing.assert_allclose(cut, whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode", [pytest.param("forward", marks=pytest.mark.slow), "reverse"])
def test_float32_is_accurate(net, mode, key):
    params, batch = net.make_problem(np.float32)
    directions = random_directions(_jax(params), key, num=6)
    ours = per_example_projections(net.loss_fn, params, batch, directions, mode=mode)
    expected = net.matrix_of(directions) @ net.numpy_gradients(params, batch).T
    assert ours.dtype == jnp.float32
    # sums of 43 products of numbers of order 0.3
    np.testing.assert_allclose(ours, expected, atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("replacement", [True, False])
def test_minibatches_are_resampled_examples(net, replacement, key, x64):
    params, batch = net.make_problem()
    directions = random_directions(_jax(params), key, num=5)
    options = {"batch_size": 6, "num_batches": 9, "replacement": replacement}
    ours = minibatch_projections(
        net.loss_fn, params, batch, directions, key, microbatch=4, **options
    )
    projections = per_example_projections(net.loss_fn, params, batch, directions)
    np.testing.assert_allclose(ours, resample_projections(projections, key, **options), atol=1e-12)


@pytest.mark.slow
def test_every_way_answers_for_every_batch_size(net, key, x64):
    params, batch = net.make_problem()
    directions = random_directions(_jax(params), key, num=5)
    ask = lambda mode: noise_projections(  # noqa: E731
        net.loss_fn, params, batch, directions, key, batch_sizes=(2, 8), num_batches=6, mode=mode
    )
    reverse = ask("reverse")
    assert reverse.shape == (2, 5, 6)
    for mode in ("forward", "minibatch", None):
        np.testing.assert_allclose(ask(mode), reverse, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("spread", ["examples", "directions"])
@pytest.mark.parametrize("mode", ["forward", "reverse"])
@pytest.mark.parametrize("examples", [5, 23])
def test_eight_devices_equal_one(net, examples, mode, spread, key):
    params, batch = net.make_problem(np.float32, examples=examples)
    directions = random_directions(_jax(params), key, num=11)
    ask = partial(per_example_projections, net.loss_fn, params, batch, directions, mode=mode)
    ours = ask(mesh=data_mesh(8), spread=spread, microbatch=2)
    np.testing.assert_allclose(ours, ask(), atol=1e-6)


@pytest.mark.slow
def test_batches_on_eight_devices_equal_those_on_one(net, key):
    params, batch = net.make_problem(np.float32)
    directions = random_directions(_jax(params), key, num=11)
    ask = lambda **options: minibatch_projections(  # noqa: E731
        net.loss_fn, params, batch, directions, key, batch_size=4, num_batches=13, **options
    )
    np.testing.assert_allclose(ask(mesh=data_mesh(8)), ask(), atol=1e-6)


def test_vmap_over_checkpoints_and_jit(net, key):
    params, batch = net.make_problem(np.float32)
    directions = random_directions(_jax(params), key, num=4)
    checkpoints = jax.vmap(lambda c: jax.tree.map(lambda a: c * a, params))(jnp.array([1.0, 0.5]))

    def ask(params):
        return noise_projections(
            net.loss_fn, params, batch, directions, key, batch_sizes=(3,), num_batches=5
        )

    ours = jax.jit(jax.vmap(ask))(checkpoints)
    half = jax.tree.map(lambda a: 0.5 * a, params)
    np.testing.assert_allclose(ours[1], ask(half), atol=1e-6)


class WithBatchNorm(nn.Module):
    @nn.compact
    def __call__(self, x, *, train: bool):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(nn.Dense(4)(x))
        return nn.Dense(3)(nn.tanh(x))


@pytest.fixture(scope="module")
def normed(net):
    model = models.from_linen(WithBatchNorm())
    _, batch = net.make_problem(np.float32)
    params = model.init(jax.random.key(0), batch[0])
    return model, params, model.init_state(jax.random.key(0), batch[0]), batch


def test_batch_norm_in_training_mode_takes_whole_batches(net, normed, key):
    model, params, state, batch = normed
    loss_fn = training.model_loss(model, losses.softmax_cross_entropy)
    directions = random_directions(params, key, num=3)
    options = {"batch_size": 6, "num_batches": 4}
    ours = minibatch_projections(
        loss_fn, params, batch, directions, key, model_state=state, **options
    )
    rows = np.asarray(draw_batches(key, num_examples=len(batch[1]), **options))
    W = net.matrix_of(directions)
    loss_of = lambda p, x, y: losses.softmax_cross_entropy(  # noqa: E731
        model.apply_train(p, state, x, key)[0], y
    )
    gradient_of = jax.jit(jax.grad(loss_of))
    for m, chosen in enumerate(rows):
        gradient = gradient_of(params, batch[0][chosen], batch[1][chosen])
        np.testing.assert_allclose(ours[:, m], W @ net.flat(gradient), atol=1e-6)
    sizes = noise_projections(
        loss_fn, params, batch, directions, key, batch_sizes=(6,), num_batches=4, model_state=state
    )
    assert sizes.shape == (1, 3, 4)
    frozen = losses.cross_entropy(model.freeze(state))
    assert per_example_projections(frozen, params, batch, directions).shape == (3, len(batch[1]))


def test_dropout_masks_are_part_of_the_noise(key):
    def fn(params, state, batch, key):
        mask = jax.random.bernoulli(key, 0.5, batch.shape)
        return jnp.mean(batch * mask * params), state

    directions = random_directions(jnp.ones(()), key, num=1)
    ours = minibatch_projections(
        training.stateful(fn),
        jnp.ones(()),
        jnp.ones(8),
        directions,
        key,
        batch_size=4,
        num_batches=400,
    )
    # the mean of 4 fair coins: variance 1 / 16, and its standard error over 400 draws
    assert abs(float(ours.var()) - 1 / 16) < 4 * np.sqrt(2 / 400) / 16


def test_dense_layers_take_reverse_and_a_few_directions_of_a_large_model_forward(net, key):
    params, batch = net.make_problem(np.float32)
    params = _jax(params)
    signs = random_directions(params, key, num=200, kind="rademacher")
    many = plan_projections(net.loss_fn, params, batch, signs)
    assert many.mode == "reverse"
    # products 2 N R P, and some gradients
    products = 2 * 23 * 200 * 43
    assert products < many.flops["reverse"] < 20 * products
    large = {"w": jax.ShapeDtypeStruct((2000, 3000), jnp.float32)}
    big = lambda p, x: jnp.mean(jnp.tanh(x @ p["w"]) ** 2)  # noqa: E731
    few = lambda w: plan_projections(  # noqa: E731
        big, w, jnp.ones((1000, 2000)), random_directions(w, key, num=500, kind="gaussian")
    )
    plans = []
    jax.eval_shape(lambda w: plans.append(few(w)), large)
    (plan,) = plans
    # 3e9 numbers drawn anew for every 11 examples: one derivative along each is far cheaper
    assert plan.mode == "forward"
    assert plan.flops["reverse"] > 10 * plan.flops["forward"]
    assert plan.microbatch == 1000


def test_small_batches_of_many_examples_are_cheaper_one_by_one(net, key):
    params, batch = net.make_problem(np.float32, examples=20_000)
    params = _jax(params)
    directions = random_directions(params, key, num=5)
    plan = plan_projections(
        net.loss_fn, params, batch, directions, batch_sizes=(4,), num_batches=10
    )
    assert plan.mode == "minibatch"
    plan = plan_projections(
        net.loss_fn, params, batch, directions, batch_sizes=(4096,), num_batches=1000
    )
    assert plan.mode != "minibatch"


def _jax(params):
    return jax.tree.map(jnp.asarray, params)


@pytest.mark.bad_input
def test_batch_norm_refuses_single_examples(normed, key):
    model, params, state, batch = normed
    directions = random_directions(params, key, num=3)
    stateful = training.model_loss(model, losses.softmax_cross_entropy)
    match = "batch norm in training mode.*minibatch_projections"
    with pytest.raises(ValueError, match=match):
        per_example_projections(stateful, params, batch, directions)

    def plain(params, batch):
        logits, _ = model.apply_train(params, state, batch[0], key)
        return losses.softmax_cross_entropy(logits, batch[1])

    for mode in ("forward", "reverse", None):
        with pytest.raises(ValueError, match="(?i)" + match):
            per_example_projections(plain, params, batch, directions, mode=mode)


@pytest.mark.bad_input
def test_bad_input(net, key):
    params, batch = net.make_problem(np.float32)
    params = _jax(params)
    directions = random_directions(params, key, num=3)

    def total(params, batch):
        return len(batch[1]) * net.loss_fn(params, batch)

    with pytest.raises(ValueError, match="a sum must be divided by the number of examples"):
        per_example_projections(total, params, batch, directions)
    with pytest.raises(ValueError, match="mode must be one of"):
        per_example_projections(net.loss_fn, params, batch, directions, mode="backward")
    with pytest.raises(ValueError, match="that is minibatch_projections"):
        per_example_projections(net.loss_fn, params, batch, directions, mode="minibatch")
    with pytest.raises(ValueError, match="spread must be one of"):
        per_example_projections(net.loss_fn, params, batch, directions, spread="both")
    with pytest.raises(ValueError, match="params must have the structure"):
        per_example_projections(net.loss_fn, params["first"], batch, directions)
    with pytest.raises(ValueError, match="microbatch must be at least 1"):
        per_example_projections(net.loss_fn, params, batch, directions, microbatch=0)
    with pytest.raises(ValueError, match="batch_sizes must name at least 1 size"):
        noise_projections(
            net.loss_fn, params, batch, directions, key, batch_sizes=(), num_batches=3
        )
    with pytest.raises(ValueError, match="batch_size must be at most the number of examples, 23"):
        minibatch_projections(
            net.loss_fn,
            params,
            batch,
            directions,
            key,
            batch_size=24,
            num_batches=2,
            replacement=False,
        )
