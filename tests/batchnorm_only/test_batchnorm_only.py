"""Groups, masks and sparsity by counting; networks of BatchNorm's parameters by invariances."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from flax import linen as nn

from poster_jax import batchnorm_only
from poster_jax.core import losses, models
from poster_jax.core.devices import data_mesh, shard_batch
from poster_jax.core.training import fit, freeze, mask_updates, merge, model_loss, partition

IMAGES = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
KEY = jax.random.key(0)


def resnet(**options):
    return models.from_linen(models.ResNet(projection=True, **options))


def sizes(params):
    """Params of the same tree, without memory: counts need shapes alone."""
    return jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), params)


@pytest.mark.parametrize(
    ("depth", "width", "total", "batchnorm"),
    [
        (14, 1, 175_258, 1_120),
        (32, 1, 466_906, 2_464),
        (56, 1, 855_770, 4_256),
        (110, 1, 1_730_714, 8_288),
        (218, 1, 3_480_602, 16_352),
        (434, 1, 6_980_378, 32_480),
        (866, 1, 13_979_930, 64_736),
        (14, 2, 696_618, 2_240),
        (14, 4, 2_777_674, 4_480),
        (14, 8, 11_093_130, 8_960),
        (14, 16, 44_337_418, 17_920),
        (14, 32, 177_279_498, 35_840),
    ],
)
def test_counts_are_those_of_the_paper(depth, width, total, batchnorm):
    model = resnet(num_blocks=(depth - 2) // 6, width=16 * width, scan=True)
    found = batchnorm_only.count_parameters(sizes(jax.eval_shape(model.init, KEY, IMAGES)))
    assert (found["total"], found["batchnorm"]) == (total, batchnorm)
    if width == 1:
        assert (found["shortcut"], found["output"]) == (2_560, 650)
    assert sum(found.values()) == 2 * total


@cache
def problem():
    """A small network, its state, images with labels, and everything a test asks of it at once."""
    model = resnet(num_blocks=1, width=4, scale_init=nn.initializers.uniform(1.0))
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(32, 8, 8, 1)).astype(np.float32), rng.integers(10, size=32)
    return model, model.init(KEY, x), model.init_state(KEY, x), (jnp.asarray(x), jnp.asarray(y))


@pytest.mark.slow
def test_scanned_blocks_are_the_unrolled_ones_and_their_program_does_not_grow():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(4, 8, 8, 1)), jnp.float32)
    unrolled, scanned = (resnet(num_blocks=2, width=2, scan=scan) for scan in (False, True))
    params, state = unrolled.init(KEY, x), unrolled.init_state(KEY, x)

    def stacked(tree):
        rest = {k: v for k, v in tree.items() if not k.startswith("Block")}
        for stage, blocks in enumerate([(0, 1), (3,), (5,)]):
            rows = [tree[f"Block_{i}"] for i in blocks]
            rest[f"Stage_{stage}"] = {"Block_0": jax.tree.map(lambda *a: jnp.stack(a), *rows)}
        return rest | {f"Block_{i}": tree[f"Block_{2 * i + 2}"] for i in (0, 1)}

    def ask(model, params, state):
        def value(params):
            logits, new = model.apply_train(params, state, x, KEY)
            return (logits**2).sum(), (logits, new)

        return jax.grad(value, has_aux=True)(params)

    grad, (logits, new) = jax.jit(lambda p, s: ask(unrolled, p, s))(params, state)
    state = {"batch_stats": stacked(state["batch_stats"])}
    found = jax.jit(lambda p, s: ask(scanned, p, s))(stacked(params), state)
    np.testing.assert_allclose(found[1][0], logits, rtol=1e-5, atol=1e-5)
    wanted = (stacked(grad), stacked(new["batch_stats"]))
    for a, b in zip(
        jax.tree.leaves((found[0], found[1][1]["batch_stats"])),
        jax.tree.leaves(wanted),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * float(jnp.abs(b).max()))

    def length(num_blocks):
        model = resnet(num_blocks=num_blocks, scan=True)
        params, state = (jax.eval_shape(f, KEY, x) for f in (model.init, model.init_state))
        step = lambda p, s: ask(model, p, s)  # noqa: E731
        return len(str(jax.make_jaxpr(step)(params, state)).splitlines())

    assert abs(length(2) - length(144)) < 10  # lines break elsewhere


def test_frozen_leaves_stay_to_the_bit_and_scales_of_frozen_convolutions_do_not_matter():
    model, params, state, batch = problem()
    loss = model_loss(model, losses.softmax_cross_entropy)
    chosen = batchnorm_only.trains(params, "batchnorm")
    optimizer = optax.chain(optax.add_decayed_weights(0.01), optax.sgd(0.1, momentum=0.9))
    # Behind a normalisation a factor changes only what eps = 1e-5 is to the variance.
    large, larger = (
        jax.tree.map(lambda leaf: factor * leaf if leaf.ndim == 4 else leaf, params)  # noqa: B023
        for factor in (2.0**10, 2.0**14)
    )

    @jax.jit
    def train(params):
        trainable, frozen = partition(params, chosen)
        run = fit(
            freeze(loss, frozen), trainable, batch, KEY, optimizer=optimizer, num_steps=10,
            batch_size=16, model_state=state,
        )  # fmt: skip
        return merge(run.params, frozen), run.losses

    after, first = train(params)
    for group, a, b in zip(*map(jax.tree.leaves, (chosen, params, after)), strict=True):
        assert bool((a != b).all()) if group else bool((a == b).all())
    assert first[-1] < first[0]
    np.testing.assert_allclose(train(large)[1], train(larger)[1], rtol=1e-5)


def test_what_is_frozen_costs_no_gradient():
    """Forward and input gradients are two thirds of a step; the last 3 % are pointwise."""
    model, params, state, batch = problem()
    loss = model_loss(model, losses.softmax_cross_entropy)

    def flops(*groups):
        trainable, frozen = partition(params, batchnorm_only.trains(params, *groups))
        of_part = freeze(loss, frozen).fn
        step = jax.jit(jax.grad(lambda p: of_part(p, state, batch, KEY)[0]))
        return step.lower(trainable).compile().cost_analysis()["flops"]

    assert flops("batchnorm") < 0.75 * flops(*batchnorm_only.GROUPS)


@pytest.mark.slow
def test_batchnorm_with_its_statistics_folded_in_is_the_affine_network():
    model, params, _, (x, _) = problem()
    state = model.apply_train(params, model.init_state(KEY, x), x, KEY)[1]
    affine = resnet(num_blocks=1, width=4, norm="affine")

    def folded(params, stats):
        out = {}
        for name, node in params.items():
            if name.startswith("BatchNorm"):
                mean, var = stats[name]["mean"], stats[name]["var"]
                scale = node["scale"] / np.sqrt(var + 1e-5)
                node = {"scale": scale, "bias": node["bias"] - mean * scale}
                out[name.replace("BatchNorm", "Affine")] = node
            else:
                out[name] = folded(node, stats.get(name, {})) if name.startswith("Block") else node
        return out

    found = affine.apply_fn(folded(params, state["batch_stats"]), x)
    np.testing.assert_allclose(found, model.apply_eval(params, state, x), rtol=1e-4, atol=1e-5)
    bare = resnet(num_blocks=1, width=4, norm="normalise")
    assert "BatchNorm_0" not in bare.init(KEY, x)


def test_a_pruned_feature_is_a_channel_that_is_not_there():
    model, params, state, (x, _) = problem()
    scale = params["Block_0"]["BatchNorm_0"]["scale"]
    limit = float(jnp.sort(scale)[1] + jnp.sort(scale)[2]) / 2
    pruned = batchnorm_only.prune_features(
        {"Block_0": {"BatchNorm_0": params["Block_0"]["BatchNorm_0"]}}, threshold=limit
    )["Block_0"]["BatchNorm_0"]
    assert int((pruned["scale"] == 0).sum()) == 2
    kept = np.flatnonzero(pruned["scale"])
    with_zeros = {**params, "Block_0": {**params["Block_0"], "BatchNorm_0": pruned}}
    # The second convolution without the inputs that are off: nothing else reads them.
    kernel = params["Block_0"]["Conv_1"]["kernel"]
    without = jnp.zeros_like(kernel).at[:, :, kept].set(kernel[:, :, kept])
    removed = {**params, "Block_0": {**params["Block_0"], "Conv_1": {"kernel": without}}}
    a, b = (model.apply_eval(p, state, x) for p in (with_zeros, removed))
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_sparsity_counts_and_random_pruning_takes_as_many_of_each_layer():
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    params = {
        "BatchNorm_0": {"scale": draw(40), "bias": draw(40)},
        "Stage_0": {"BatchNorm_0": {"scale": draw(3, 10), "bias": draw(3, 10)}},
        "Dense_0": {"kernel": draw(10, 2), "bias": draw(2)},
    }
    limits = np.array([0.1, 1.0])
    found = batchnorm_only.batchnorm_sparsity(params, threshold=limits)
    rows = [params["BatchNorm_0"]["scale"], *params["Stage_0"]["BatchNorm_0"]["scale"]]
    counts = np.array([[(np.abs(row) < limit).sum() for row in rows] for limit in limits])
    np.testing.assert_allclose(found.per_layer, counts / [40, 10, 10, 10])
    np.testing.assert_allclose(found.fraction, counts.sum(axis=1) / 70)
    some = batchnorm_only.prune_features(params, KEY, threshold=1.0, at_random=True)
    for name, tree in (
        ("first", lambda p: p["BatchNorm_0"]),
        ("scan", lambda p: p["Stage_0"]["BatchNorm_0"]),
    ):
        off = tree(some)["scale"] == 0
        np.testing.assert_array_equal(off, tree(some)["bias"] == 0)
        np.testing.assert_array_equal(
            off.sum(axis=-1), (jnp.abs(tree(params)["scale"]) < 1).sum(axis=-1), err_msg=name
        )
    np.testing.assert_array_equal(some["Dense_0"]["kernel"], params["Dense_0"]["kernel"])
    assert bool(
        (
            some["BatchNorm_0"]["scale"]
            != batchnorm_only.prune_features(params, threshold=1.0)["BatchNorm_0"]["scale"]
        ).any()
    )


def test_dead_features_are_zero_on_every_example():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(7, 2, 2, 3)), jnp.float32)
    shift = jnp.array([0.0, -100.0, 1.0])
    dead = batchnorm_only.dead_features(
        lambda p, x: {"one": nn.relu(x + p), "two": nn.relu(x[:, 0, 0, :2] - 100)}, shift, x,
        microbatch=3,
    )  # fmt: skip
    assert dead["one"].tolist() == [False, True, False]
    assert dead["two"].tolist() == [True, True]


def test_random_entries_are_uniform_without_replacement_and_new_for_every_kernel():
    params = {
        "Conv_0": {"kernel": jnp.zeros((3, 3, 2, 5))},
        "Conv_1": {"kernel": jnp.zeros((3, 3, 2, 5))},
        "Stage_0": {"kernel": jnp.zeros((4, 3, 3, 2, 5))},
        "Dense_0": {"kernel": jnp.zeros((3, 7)), "bias": jnp.zeros(7)},
    }
    own = batchnorm_only.random_parameter_mask(params, KEY, per_channel=2)
    assert not own["Dense_0"]["kernel"].any()  # the output layer, which is frozen with BatchNorm
    assert own["Conv_0"]["kernel"].sum() == 10

    @jax.jit
    def ask(keys):
        draw = lambda **options: jax.vmap(  # noqa: E731
            lambda key: batchnorm_only.random_parameter_mask(
                params, key, include_output=True, **options
            )
        )(keys)
        return draw(per_channel=2), draw(per_channel=18), draw(total=50)

    two, all_, total = jax.device_get(ask(jax.random.split(KEY, 3_000)))
    kernel = two["Conv_0"]["kernel"]
    assert np.all(kernel.sum(axis=(1, 2, 3)) == 2)
    assert np.all(two["Stage_0"]["kernel"].sum(axis=(2, 3, 4)) == 2)
    assert np.all(two["Dense_0"]["kernel"].sum(axis=1) == 2)
    assert not two["Dense_0"]["bias"].any()
    for counts in (
        kernel[..., 0].sum(axis=0).ravel(),
        total["Conv_1"]["kernel"].sum(axis=0).ravel(),
    ):
        # Without replacement the spread is below a multinomial's: the test is conservative.
        assert scipy.stats.chisquare(counts).pvalue > 1e-3
    assert (kernel != two["Conv_1"]["kernel"]).any()
    assert np.all(all_["Conv_0"]["kernel"] == 1)
    assert np.all(sum(leaf.reshape(3_000, -1).sum(axis=1) for leaf in jax.tree.leaves(total)) == 50)
    moved = mask_updates(optax.sgd(1.0), jax.tree.map(lambda a: a[0], two))
    ones = jax.tree.map(jnp.ones_like, params)
    steps = moved.update(ones, moved.init(params))[0]
    assert float(-steps["Conv_0"]["kernel"].sum()) == 10


def test_gammas_start_uniform_and_eight_devices_share_their_statistics():
    model = resnet(num_blocks=1, width=64, scale_init=nn.initializers.uniform(1.0))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(16, 8, 8, 1)), jnp.float32)
    scales = batchnorm_only.gammas(model.init(KEY, x))
    assert scipy.stats.kstest(np.concatenate(list(scales.values())), "uniform").pvalue > 1e-3
    model, params, state, (x, _) = problem()
    run = jax.jit(lambda p, x: model.apply_train(p, state, x, KEY))
    one, eight = run(params, x), run(params, shard_batch(x, data_mesh()))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(eight), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_scales_and_shifts_of_random_features_are_a_regression(x64):
    """y = sum_c (gamma_c a_c + beta_c): least squares in the gammas and the sum of the betas."""
    rng = np.random.default_rng(0)
    x, W, y = rng.normal(size=(60, 5)), rng.normal(size=(5, 4)), rng.normal(size=60)
    params = {"kernel": jnp.asarray(W), "scale": jnp.ones(4), "bias": jnp.zeros(4)}

    def loss(p, batch):
        features = batch[0] @ p["kernel"] * p["scale"] + p["bias"]
        return jnp.mean((features.sum(axis=1) - batch[1]) ** 2)

    trainable, frozen = partition(params, lambda path, leaf: path != "kernel")
    run = fit(
        freeze(loss, frozen), trainable, (jnp.asarray(x), jnp.asarray(y)), KEY,
        optimizer=optax.sgd(0.02), num_steps=15_000,
    )  # fmt: skip
    design = np.column_stack([x @ W, np.ones(60)])
    wanted = np.linalg.lstsq(design, y, rcond=None)[0]
    np.testing.assert_allclose(run.params["scale"], wanted[:4], atol=1e-6)
    np.testing.assert_allclose(run.params["bias"].sum(), wanted[4], atol=1e-6)


@pytest.mark.bad_input
def test_bad_input():
    params = {"Conv_0": {"kernel": jnp.ones((1, 1, 2, 2))}, "Dense_0": {"kernel": jnp.ones((2, 2))}}
    with pytest.raises(ValueError, match="groups must be some of"):
        batchnorm_only.trains(params, "gamma")
    with pytest.raises(ValueError, match="one of per_channel and total must be given"):
        batchnorm_only.random_parameter_mask(params, KEY)
    with pytest.raises(ValueError, match="total must be at most the 4 entries of kernels, got 5"):
        batchnorm_only.random_parameter_mask(params, KEY, total=5)
    with pytest.raises(ValueError, match="params must have leaves called 'scale'"):
        batchnorm_only.batchnorm_sparsity(params)
    with pytest.raises(ValueError, match="threshold must be"):
        batchnorm_only.prune_features(params, threshold=-1.0)
    with pytest.raises(ValueError, match="params must have leaves called 'kernel'"):
        batchnorm_only.random_parameter_mask({"Dense_0": params["Dense_0"]}, KEY, total=1)
    with pytest.raises(TypeError, match="key must be"):
        batchnorm_only.random_parameter_mask(params, None, total=1)
    with pytest.raises(TypeError, match="activations_fn"):
        batchnorm_only.dead_features(None, params, jnp.ones(3))
