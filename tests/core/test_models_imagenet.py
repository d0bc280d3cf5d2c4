"""ImageNet's residual networks: torchvision's counts, and numpy written from the paper."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from poster_jax import batchnorm_only
from poster_jax.core import losses, models
from poster_jax.core.models.imagenet_resnet import STAGES
from poster_jax.core.training import fit, freeze, merge, model_loss, partition
from tests.core import reference_networks as reference

KEY = jax.random.key(0)


def _shapes(module, shape):
    model = models.from_linen(module)
    x = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    return [jax.eval_shape(f, KEY, x) for f in (model.init, model.init_state)]


# torchvision's table of models, to the unit; the groups by adding up table 1 of He et al.
@pytest.mark.parametrize(
    ("depth", "total", "batchnorm", "shortcut", "output"),
    [
        (18, 11_689_512, 9_600, 172_032, 513_000),
        (34, 21_797_672, 17_024, 172_032, 513_000),
        (50, 25_557_032, 53_120, 2_768_896, 2_049_000),
        (101, 44_549_160, 105_344, 2_768_896, 2_049_000),
        (152, 60_192_808, 151_424, 2_768_896, 2_049_000),
    ],
)
def test_published_numbers_of_parameters_in_their_groups(depth, total, batchnorm, shortcut, output):
    params, _ = _shapes(models.ImageNetResNet(depth, scan=True), (224, 224, 3))
    zeros = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), params)
    found = batchnorm_only.count_parameters(zeros)
    assert found["total"] == total
    assert (found["batchnorm"], found["shortcut"], found["output"]) == (batchnorm, shortcut, output)
    assert sum(found.values()) == 2 * total
    trained = batchnorm_only.trains(zeros, "shortcut")
    assert sum(jax.tree.leaves(trained)) == (3 if depth < 50 else 4)


def _drawn(like, seed, *, positive):
    leaves, structure = jax.tree.flatten(like)
    rng = np.random.default_rng(seed)
    drawn = [rng.uniform(0.5 if positive else -0.5, 1, leaf.shape) for leaf in leaves]
    return structure.unflatten([np.float32(leaf) for leaf in drawn])


def _one_by_one(tree, blocks):
    """The blocks of a scanned network in the order of the layers."""
    rows = {name: leaf for name, leaf in tree.items() if name[:5] not in ("Block", "Stage")}
    found = []
    for stage, number in enumerate(blocks):
        found.append(tree[f"Block_{stage}"])
        stacked = tree[f"Stage_{stage}"]["Block_0"]
        found += [jax.tree.map(lambda a, i=i: a[i], stacked) for i in range(number - 1)]
    return rows | {f"Block_{i}": block for i, block in enumerate(found)}


@pytest.mark.parametrize("depth", [18, pytest.param(50, marks=pytest.mark.slow)])
def test_evaluation_is_the_papers_network_in_numpy(depth):
    module = models.ImageNetResNet(depth, width=2, num_classes=5, scan=depth == 50)
    shape = (39, 34, 3)
    x = np.random.default_rng(1).normal(size=(2, *shape)).astype(np.float32)
    params, state = (
        _drawn(like, seed, positive=seed) for seed, like in enumerate(_shapes(module, shape))
    )
    got = jax.jit(models.from_linen(module).freeze(state))(params, x)
    wide, stats = (jax.tree.map(np.float64, tree) for tree in (params, state["batch_stats"]))
    if module.scan:
        wide, stats = (_one_by_one(tree, STAGES[depth]) for tree in (wide, stats))
    want = reference.imagenet_resnet(wide, {"batch_stats": stats}, x.astype(float), STAGES[depth])
    assert np.ptp(want) > 1e-2 * np.abs(want).max()
    # Up to fifty float32 layers.
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4 * np.abs(want).max())


@pytest.mark.slow
def test_a_step_moves_batchnorm_and_only_batchnorm():
    module = models.ImageNetResNet(50, width=4, last_scale_init=nn.initializers.zeros, scan=True)
    model = models.from_linen(module)
    x = jax.random.normal(KEY, (4, 32, 32, 3))
    y = jnp.array([0, 999, 500, 3])

    @jax.jit
    def step(key):
        before, state = model.init(key, x), model.init_state(key, x)
        trained, frozen = partition(before, batchnorm_only.trains(before, "batchnorm"))
        loss = freeze(model_loss(model, losses.softmax_cross_entropy), frozen)
        sgd = {"optimizer": optax.sgd(0.1), "num_steps": 1, "batch_size": 4}
        found = fit(loss, trained, (x, y), key, model_state=state, **sgd)
        return before, merge(found.params, frozen), found.losses

    before, after, loss = step(KEY)
    scales = [s for s in jax.tree.leaves(batchnorm_only.gammas(before)) if not np.any(s)]
    # A block's last: four times as many channels as its first convolution, 3, 4, 6 and 3 blocks.
    assert sum(s.size for s in scales) == 4 * (3 * 4 + 4 * 8 + 6 * 16 + 3 * 32)
    assert 4 < loss[0] < 12  # log 1000 = 6.9
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), before, after)
    groups = batchnorm_only.parameter_groups(before)
    for group, changed in zip(jax.tree.leaves(groups), jax.tree.leaves(moved), strict=True):
        assert not changed or group == "batchnorm"
    assert any(jax.tree.leaves(moved))


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 20}, "depth must be one of .*152, 200"),
        ({"norm": "group"}, "norm must be one of"),
    ],
)
def test_bad_attributes_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        _shapes(models.ImageNetResNet(**options), (32, 32, 3))
