"""The experiment's conditions, claims and files; the paper's path on files in the real format."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from experiments import _batchnorm_claims, _program
from experiments import _batchnorm_population as population
from experiments import _batchnorm_training as batchnorm
from experiments import batchnorm_only as experiment
from poster_jax import batchnorm_only
from poster_jax.core import claims, models

TFDS = pathlib.Path(__file__).parents[1] / "data" / "tfds"
# Blocks one by one, and in a loop, where leaves are stacked.
BOTH_FORMS = [pytest.param(False, marks=pytest.mark.slow), True]
LAPTOP, PAPER = experiment.PRESETS["laptop"], experiment.PRESETS["paper"]
IMAGENET = experiment.PRESETS["imagenet"]


def test_the_paper_trains_resnet_14_to_866_and_widths_to_512_for_160_epochs():
    assert (PAPER.dataset, PAPER.num_epochs, PAPER.batch_size) == ("tfds:cifar10", 160, 128)
    networks = batchnorm.networks(PAPER)
    batch = [network for network in networks if network.norm == "batch"]
    depths = {6 * n.num_blocks + 2 for n in batch if n.width == 16}
    assert depths == {14, 32, 56, 110, 218, 434, 866}
    assert {n.width for n in batch if n.num_blocks == 2} == {16, 32, 64, 128, 256, 512}
    assert len(networks) == len(set(networks)) == 12 + 7
    assert PAPER.augment
    assert not PAPER.one_program


def test_the_rate_falls_to_a_tenth_twice_and_only_affine_gradients_are_clipped():
    settings = dataclasses.replace(LAPTOP, num_epochs=4, weight_decay=0.0, rate=1.0)
    gradient, mask = {"w": jnp.full(3, 10.0)}, {"w": jnp.array([1.0, 1.0, 0.0])}
    for norm, size in (("batch", 10.0), ("affine", batchnorm.AFFINE_CLIP / 2**0.5)):
        network = batchnorm.Network(norm, 1, 4)
        optimizer = batchnorm.optimizer_of(settings, network, 1, mask)
        state, steps = optimizer.init(gradient), []
        for _ in range(4):
            updates, state = optimizer.update(gradient, state, gradient)
            steps.append(np.asarray(updates["w"]))
        momentum = np.cumsum(0.9 ** np.arange(4)) * size
        np.testing.assert_allclose(
            np.stack(steps)[:, 0], -momentum * [1, 1, 0.1, 0.01], rtol=1e-5, err_msg=norm
        )
        np.testing.assert_array_equal(np.stack(steps)[:, 2], 0)


@pytest.mark.parametrize("scan", BOTH_FORMS)
def test_networks_begin_by_the_authors_laws(scan, key):
    """Kernels normal with variance 2 / inputs, scales uniform, the output's bias as torch's."""
    module = models.ResNet(num_blocks=2, width=16, projection=True, scan=scan)
    x = jnp.ones((1, 8, 8, 1))
    draw = jax.jit(lambda key, ones: batchnorm.initial(module, x, key, ones))
    params, plain = draw(key, False), draw(key, True)
    shapes = jax.eval_shape(models.from_linen(module).init, key, x)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda leaf: leaf.shape, shapes)
    kernels, scales = [], []
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        names = [entry.key for entry in path]
        if names[-1] == "kernel":
            inputs = np.prod(leaf.shape[1:-1] if leaf.ndim == 5 else leaf.shape[:-1])
            kernels.append(np.ravel(leaf) / np.sqrt(2 / inputs))
            assert stats.kstest(kernels[-1], "norm").pvalue > 1e-4
        elif names[-1] == "scale":
            scales.append(np.ravel(leaf))
        elif names[0] == "Dense_0":
            assert (np.abs(leaf) < 1 / 8).all()
            assert np.abs(leaf).max() > 1 / 16
        else:
            assert not leaf.any()
    scales = np.concatenate(scales)
    assert stats.kstest(scales, "uniform").pvalue > 1e-3
    every = np.concatenate([*kernels, scales])
    assert len(np.unique(every)) > 0.99 * len(every)  # no number twice, but for rounding
    assert all((leaf == 1).all() for leaf in batchnorm_only.gammas(plain).values())
    np.testing.assert_array_equal(plain["Conv_0"]["kernel"], params["Conv_0"]["kernel"])


@pytest.mark.parametrize("scan", [False, True])
def test_layers_come_in_the_order_of_the_network(scan, key):
    """The scale of each layer is its number, counted as the network is written."""
    n = 3
    module = models.ResNet(num_blocks=n, width=2, projection=True, scan=scan)
    shapes = jax.eval_shape(models.from_linen(module).init, key, jnp.ones((1, 8, 8, 1)))
    # Stem; then two norms a block, and three where the shape changes.
    counts = [2 + (block in (n, 2 * n)) for block in range(3 * n)]
    starts = 1 + np.concatenate([[0], np.cumsum(counts)])

    def numbered(path, leaf):
        names = [entry.key for entry in path]
        if names[-1] != "scale":
            return np.zeros(leaf.shape, np.float32)
        if names[0] == "BatchNorm_0":
            return np.zeros(leaf.shape, np.float32)
        index, place = int(names[0].split("_")[1]), int(names[-2].split("_")[1])
        if names[0].startswith("Stage"):
            blocks = index * n + bool(index) + np.arange(leaf.shape[0])
        elif scan:
            blocks = (index + 1) * n
        else:
            blocks = index
        values = np.asarray(starts[blocks] + place, np.float32)
        return np.broadcast_to(values[..., None], leaf.shape)

    params = jax.tree_util.tree_map_with_path(numbered, shapes)
    rows = [r for s in batchnorm_only.gammas(params).values() for r in s.reshape(-1, s.shape[-1])]
    found = population.layer_places(params, n)
    assert found == [int(row[0]) for row in rows]
    assert sorted(found) == list(range(1 + sum(counts)))


@pytest.mark.parametrize("scan", [False, True])
def test_layers_of_imagenets_networks_come_in_their_order_too(scan, key):
    """ResNet-50: three norms a block, four in the first of each stage."""
    module = models.ImageNetResNet(50, width=1, num_classes=2, scan=scan)
    shapes = jax.eval_shape(models.from_linen(module).init, key, jnp.ones((1, 32, 32, 3)))
    stages = (3, 4, 6, 3)
    first_of = np.cumsum((0, *stages))[:-1]
    counts = [3 + (block in first_of) for block in range(16)]
    starts = 1 + np.concatenate([[0], np.cumsum(counts)])

    def numbered(path, leaf):
        names = [entry.key for entry in path]
        if names[-1] != "scale" or len(names) == 2:
            return np.zeros(leaf.shape, np.float32)
        index, place = int(names[0].split("_")[1]), int(names[-2].split("_")[1])
        if names[0].startswith("Stage"):
            blocks = first_of[index] + 1 + np.arange(leaf.shape[0])
        else:
            blocks = first_of[index] if scan else index
        values = np.asarray(starts[blocks] + place, np.float32)
        return np.broadcast_to(values[..., None], leaf.shape)

    params = jax.tree_util.tree_map_with_path(numbered, shapes)
    rows = [r for s in batchnorm_only.gammas(params).values() for r in s.reshape(-1, s.shape[-1])]
    found = population.layer_places(params, stages)
    assert found == [int(row[0]) for row in rows]
    assert sorted(found) == list(range(1 + sum(counts)))


def test_bottlenecks_have_three_rectifiers(key):
    """Every layer once, and the last gives the logits."""
    module = models.ImageNetResNet(50, width=1, num_classes=3, scan=True)
    model = models.from_linen(module)
    x = jax.random.normal(key, (4, 32, 32, 3))

    @jax.jit
    def ask(x):
        params, state = batchnorm.initial(module, x, key), model.init_state(key, x)
        units = population.activations(module, {"params": params, **state}, x, train=False)
        return params["Dense_0"], model.apply_eval(params, state, x), units

    dense, logits, units = ask(x)
    assert len(units) == 1 + 3 * 16
    assert all((unit >= 0).all() for unit in units.values())
    last = [u for name, u in units.items() if u.shape[-1] == 32 and "BatchNorm" not in name][-1]
    expected = last.mean((1, 2)) @ dense["kernel"] + dense["bias"]
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5 * float(np.abs(logits).max()))


@pytest.mark.parametrize("scan", BOTH_FORMS)
def test_what_leaves_the_rectifiers_is_what_the_network_computes(scan, key):
    """Every layer once, none negative, and the last gives the logits."""
    module = models.ResNet(num_blocks=2, width=2, projection=True, scan=scan)
    model = models.from_linen(module)
    x = jax.random.normal(key, (4, 8, 8, 1))

    @jax.jit
    def ask(x):
        params, state = batchnorm.initial(module, x, key), model.init_state(key, x)
        units = population.activations(module, {"params": params, **state}, x, train=False)
        return params["Dense_0"], model.apply_eval(params, state, x), units

    dense, logits, units = ask(x)
    assert len(units) == 1 + 2 * 6
    assert all((unit >= 0).all() and (unit == 0).any() for unit in units.values())
    last = [u for name, u in units.items() if u.shape[-1] == 8 and "BatchNorm" not in name][-1]
    expected = last.mean((1, 2)) @ dense["kernel"] + dense["bias"]
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("one_program", [True, False])
def test_every_condition_gets_its_own_networks(one_program, tmp_path, monkeypatch):
    """Each network says what was asked of it: by masks of one program, or one part at a time."""
    calls = []

    def train_rows(run, shared, network, groups, rows, *, keep=False):
        calls.append((network, groups, keep))
        mine = [(network.name, row.condition.groups, row.ones, row.same) for row in rows]
        if not one_program and keep:
            assert [row.condition.groups for row in rows] == [groups]
        return [dict.fromkeys((*batchnorm.MEASURED, "params", "state"), asked) for asked in mine]

    monkeypatch.setattr(population, "train_rows", train_rows)
    monkeypatch.setattr(population, "features", lambda run, shared, base, kept: kept)
    settings = dataclasses.replace(LAPTOP, one_program=one_program)
    run = _program.Run("batchnorm_only", "laptop", settings, tmp_path, 0)
    base = batchnorm.Network("batch", settings.num_blocks, settings.width)
    table = batchnorm.conditions(settings.per_channel, 100)
    found, by_size, kept = population.train_all(run, (), base, table)
    names = [condition.name for condition in table]
    affine = [batchnorm.AFFINE, batchnorm.AFFINE_UNIFORM]
    assert list(found) == [*names, batchnorm.SAME, *affine]
    for condition in table:
        assert found[condition.name]["accuracy"] == (base.name, condition.groups, False, False)
    only = ("batchnorm",)
    assert found[batchnorm.SAME]["accuracy"] == (base.name, only, False, True)
    other = base._replace(norm="affine").name
    assert [found[name]["accuracy"][2] for name in affine] == [True, False]
    assert {found[name]["accuracy"][0] for name in affine} == {other}
    assert set(by_size) == {network.name for network in batchnorm.networks(settings)}
    assert set(kept) == {batchnorm.BATCHNORM, batchnorm.ALL}
    at_base = [groups for network, groups, keep in calls if keep]
    assert len(at_base) == (1 if one_program else len(table) + 1)
    assert all(groups == only for network, groups, keep in calls if network != base)


def _results(settings, accuracy, *, affine_gap, depth, width):
    """Accuracies as told; `depth` and `width` are slopes over log counts of parameters."""
    rng = np.random.default_rng(0)
    noise = lambda: 0.002 * rng.normal(size=4)  # noqa: E731
    base = batchnorm.Network("batch", settings.num_blocks, settings.width)
    counts, by_size = {}, {}
    for network in batchnorm.networks(settings):
        size = network.num_blocks / settings.num_blocks * network.width / settings.width
        counts[network] = {"batchnorm": int(1000 * size), "total": 10_000}
        slope = depth if network.num_blocks != settings.num_blocks else width
        value = accuracy[batchnorm.BATCHNORM] + slope * np.log(size)
        value -= affine_gap * network.num_blocks if network.norm == "affine" else 0
        by_size[network.name] = {"accuracy": value + noise()}
    found = {name: {"accuracy": value + noise()} for name, value in accuracy.items()}
    found[batchnorm.AFFINE] = by_size[base._replace(norm="affine").name]
    sparsity = {"sparsity": np.full((4, 1), 0.3) + noise()[:, None]}
    features = {batchnorm.BATCHNORM: sparsity, batchnorm.ALL: sparsity}
    return _batchnorm_claims.Results(found, by_size, features, counts, base, [])


def _held(settings, accuracy, **options):
    results = _results(settings, accuracy, **options)
    found = _batchnorm_claims.claims_of(results, settings, seed=0)
    return {claim.name: claim.holds for claim in found}


def test_claims_hold_where_they_should_and_fail_where_they_should():
    accuracy = {
        batchnorm.ALL: 0.95,
        batchnorm.ALL_BUT: 0.93,
        batchnorm.BATCHNORM: 0.7,
        batchnorm.OUTPUT: 0.3,
        batchnorm.of_k(2): 0.4,
        batchnorm.ANYWHERE: 0.4,
        batchnorm.AFFINE_UNIFORM: 0.4,
    }
    long = dataclasses.replace(LAPTOP, full_length=True)
    names = [f"C{i}" for i in range(1, 7)]
    good = _held(long, accuracy, affine_gap=0.05, depth=0.1, width=0.02)
    assert good == dict.fromkeys(names, True)
    accuracy |= {batchnorm.BATCHNORM: 0.41, batchnorm.of_k(2): 0.41, batchnorm.ALL_BUT: 0.95}
    bad = _held(LAPTOP, accuracy, affine_gap=0.2, depth=0.02, width=0.1)
    assert bad == dict.fromkeys([name for name in names if name != "C4"], False)


def test_the_detectable_difference_is_that_of_the_t_test():
    """Simulated: of 20,000 experiments of 4 pairs about 4 in 5 find it."""
    rng = np.random.default_rng(1)
    sample = rng.normal(size=4)
    sample = (sample - sample.mean()) / sample.std(ddof=1)
    shift = _batchnorm_claims.detectable(sample)
    draws = rng.normal(size=(20_000, 4)) + shift
    t = draws.mean(1) / (draws.std(1, ddof=1) / 2)
    assert 0.74 < (t > 3.1824).mean() < 0.86  # t quantile of 3 degrees at 0.975


def test_two_random_weights_are_always_among_the_conditions():
    with pytest.raises(ValueError, match="per_channel must hold 2"):
        dataclasses.replace(LAPTOP, per_channel=(1,))


@pytest.mark.slow
def test_smoke_writes_all_its_files_and_keeps_its_stages(tmp_path, monkeypatch):
    monkeypatch.setattr(_program.Run, "mesh", None)  # eight devices would train most in vain
    found = _execute(tmp_path, experiment.PRESETS["smoke"])
    names = ["C1", "C2", "C3", "C5", "C6"]
    assert [claim.name for claim in claims.load_claims(tmp_path / "claims.json")] == names
    pictures = {picture.name for section in found.sections for picture in section.pictures}
    assert pictures == {
        "conditions",
        "depth_and_width",
        "random_weights",
        "scales_and_shifts",
        "sparsity_by_layer",
        "accuracy_after_zeroing",
    }
    assert {path.stem for path in (tmp_path / "figures").glob("*.png")} == pictures
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len([row for row in rows if "condition" in row]) == 8 + 3
    assert all(np.isfinite(row["accuracy"]).all() for row in rows if "accuracy" in row)
    stages = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert len(stages) == 1 + 2 + 2 + 1  # the base, two other sizes, without norm, features


@pytest.mark.slow
def test_the_papers_path_runs_on_files_in_the_real_format(tmp_path, monkeypatch):
    """Twenty pictures, augmented; blocks in a loop and computed twice; all conditions in turn."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(TFDS))
    monkeypatch.setattr(_program.Run, "mesh", None)
    tiny = {"num_blocks": 2, "width": 2, "depths": (2,), "widths": (2,), "width_blocks": 2}
    run = {"num_seeds": 2, "num_epochs": 1, "batch_size": 10, "scan_from": 2, "microbatch": 6}
    # One program for all conditions: that of a part alone runs for the network without norm.
    tiny |= {"dataset": "tfds:cifar100", "num_classes": 100}
    settings = dataclasses.replace(PAPER, **tiny, **run, per_channel=(2,), one_program=True)
    found = _execute(tmp_path, settings)
    assert [claim.name for claim in found.claims] == [f"C{i}" for i in range(1, 7)]
    assert all(claim.num_samples == 2 for claim in found.claims)


@pytest.mark.slow
def test_the_imagenet_path_runs_on_files_in_the_real_format(tmp_path, monkeypatch):
    """Twenty photographs of many shapes; parts of them in training, the centre in tests."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(TFDS))
    monkeypatch.setattr(_program.Run, "mesh", None)
    tiny = {"num_blocks": 18, "width": 2, "depths": (18,), "widths": (2,), "width_blocks": 18}
    run = {"num_seeds": 2, "num_epochs": 1, "batch_size": 10, "side": 32, "microbatch": 6}
    settings = dataclasses.replace(
        IMAGENET, **tiny, **run, warmup_epochs=1.0, per_channel=(2,), one_program=True
    )
    found = _execute(tmp_path, settings)
    assert {claim.num_samples for claim in found.claims} == {2}
    assert "ResNet-18 of width 2 on tfds:imagenet2012" in found.lead


def test_imagenet_is_trained_by_the_usual_recipe():
    """Rates by the step of 90 epochs of 1251 steps: up over 5, down at 30, 60 and 80."""
    steps = 1_281_167 // IMAGENET.batch_size
    network = batchnorm.Network("batch", IMAGENET.num_blocks, IMAGENET.width)
    settings = dataclasses.replace(IMAGENET, weight_decay=0.0)
    optimizer = batchnorm.optimizer_of(settings, network, steps, {"w": jnp.ones(())})
    state = optimizer.init({"w": jnp.zeros(())})
    drops = steps * np.array([30, 60, 80])
    counts = [0, 5 * steps // 2, 5 * steps, drops[0] - 1, *drops]

    @jax.jit
    def first_update(count):
        at = jax.tree.map(lambda a: count if a.dtype == jnp.int32 else a, state)
        return optimizer.update({"w": jnp.ones(())}, at, {"w": jnp.zeros(())})[0]["w"]

    rates = [-float(first_update(count)) for count in counts]
    expected = [0.4 / (5 * steps), 0.2, 0.4, 0.4, 0.04, 0.004, 0.0004]
    np.testing.assert_allclose(rates, expected, rtol=1e-3)


def _execute(folder, settings):
    return _program.execute(
        experiment.experiment,
        name="batchnorm_only",
        preset="tests",
        settings=settings,
        workdir=folder,
        seed=0,
    )


def test_a_set_that_is_not_there_is_refused_with_the_command_that_fetches_it(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(_program.RefusedError, match="download_and_prepare"):
        _execute(tmp_path, PAPER)
