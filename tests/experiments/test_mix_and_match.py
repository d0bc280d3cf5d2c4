"""The experiment's methods cost as much, its claims decide; the paper's path in the real format."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import _program
from experiments import _sizes_claims as found_claims
from experiments import _sizes_networks as networks
from experiments import _sizes_training as training
from experiments import mix_and_match as experiment
from poster_jax import batchnorm_only
from poster_jax.core import claims
from poster_jax.core.models import imagenet_resnet
from poster_jax.mixed_sizes import SizeMixture

TFDS = pathlib.Path(__file__).parents[1] / "data" / "tfds"
SMOKE, LAPTOP = experiment.PRESETS["smoke"], experiment.PRESETS["laptop"]
KINDS = ("C1", "C2", "C3 accuracy", "C3 speed", "C4")


def _names(dataset):
    return [f"{kind} ({dataset}, {method})" for method in training.MIXED for kind in KINDS]


def _execute(workdir, preset="smoke", **changes):
    return _program.execute(
        experiment.experiment,
        name="mix_and_match",
        preset=preset,
        settings=dataclasses.replace(experiment.PRESETS[preset], **changes),
        workdir=workdir,
        seed=0,
    )


def test_the_paper_is_resnet_44_with_the_authors_sizes_and_schedule():
    paper = experiment.PRESETS["paper"]
    assert [case.dataset for case in paper.cases] == ["tfds:cifar10", "tfds:cifar100"]
    for case in paper.cases:
        assert (case.network, case.depth, case.epochs, case.rate) == ("ResNet", 44, 200, 0.1)
        assert case.mixture == SizeMixture((32, 48, 24, 16), (0.3, 0.2, 0.3, 0.2), 32, 64)
        np.testing.assert_allclose(np.multiply(case.drops, 200), [81, 122, 164])
    task = training.Task(paper.cases[0], paper, 10, 50_000)
    assert task.epoch(training.COPIES).tolist() == [234, 357, 234, 156]
    assert task.num_steps(training.FIXED) == 200 * 781


@pytest.mark.parametrize(
    ("preset", "num_train"), [("laptop", 1000), ("smoke", 1000), ("paper", 50_000)]
)
def test_all_methods_process_as_many_pixels(preset, num_train):
    chosen = experiment.PRESETS[preset]
    task = training.Task(chosen.cases[0], chosen, 10, num_train)
    pixels = {}
    for method in training.METHODS:
        share = task.epoch(method) / task.epoch(method).sum()
        pixels[method] = task.num_steps(method) * (share * task.step_pixels(method)).sum()
    # Steps are rounded to a multiple of the looks.
    rounding = 0.51 * chosen.num_looks / task.num_steps(training.FIXED)
    for total in pixels.values():
        assert abs(total / pixels[training.FIXED] - 1) < 1.2 * rounding


def test_a_view_is_a_window_of_the_padded_image_at_the_size(key):
    case = experiment.DIGITS._replace(flip=True)
    image = 1 + jnp.arange(64.0).reshape(8, 8, 1)
    keys = jax.random.split(key, 200)
    views = np.asarray(jax.jit(jax.vmap(lambda key: networks.move(case, key, image)))(keys))
    wide = np.pad(np.asarray(image), [(1, 1), (1, 1), (0, 0)], mode="edge")
    windows = [wide[i : i + 8, j : j + 8] for i in range(3) for j in range(3)]
    plain = np.array([[np.array_equal(v, window) for window in windows] for v in views])
    mirrored = np.array([[np.array_equal(v[:, ::-1], window) for window in windows] for v in views])
    assert (plain.any(1) ^ mirrored.any(1)).all()
    assert 70 < mirrored.any(1).sum() < 130  # of 200 draws of 1/2: four standard deviations
    assert (plain | mirrored).any(0).all()
    sized = jax.eval_shape(lambda key: networks.view_of(case)(key, image, 12), key)
    assert sized.shape == (12, 12, 1)


def test_residual_blocks_start_as_their_shortcuts():
    case = experiment.PRESETS["paper"].cases[0]
    net, x = networks.build(case, 10), jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    drawn = jax.tree.map(lambda a: np.ones(a.shape), jax.eval_shape(net.init, jax.random.key(0), x))
    first = networks.first_weights(case, drawn)
    zeros = [leaf.size for leaf in jax.tree.leaves(first) if not np.any(leaf)]
    assert sum(zeros) == 7 * (16 + 32 + 64)  # a scale a channel of 7 blocks a stage
    # Drawn with variance 2 / 10.
    np.testing.assert_allclose(first["Dense_0"]["kernel"], 0.01 / np.sqrt(0.2), rtol=1e-6)
    np.testing.assert_array_equal(first["BatchNorm_0"]["scale"], 1)


def test_weight_decay_is_of_kernels_and_comes_after_smoothing():
    case = experiment.DIGITS._replace(rate=0.5, weight_decay=1e3)
    params = {"layer": {"kernel": jnp.array([3.0]), "scale": jnp.array([2.0])}}
    optimizer = networks.optimiser(case, 10, training.SMOOTHING)

    @jax.jit
    def two_steps(params):
        state = optimizer.init(params)
        _, state = optimizer.update(jax.tree.map(lambda p: 0.6 + 0 * p, params), state, params)
        first = jax.tree.map(lambda p: 1.2 + 0 * p, params)
        return optimizer.update(first, state, params)[0]

    update = two_steps(params)["layer"]
    smoothed = 1.2 * (0.9 * 0.6 + 0.1 * 1.2) / 1.2  # norms are the entries times sqrt(2)
    by_hand = {"kernel": 1e3 * 3.0, "scale": 0.0}
    for name, decay in by_hand.items():
        momentum = 0.9 * (0.6 + decay) + smoothed + decay
        np.testing.assert_allclose(update[name], -0.5 * momentum, rtol=1e-5)


def _results(*, gain=0.0, small=0.0, early=0, calibration=0.3):
    """Eight seeds: mixed networks better by `gain`, on small images by `small`, earlier."""
    rng = np.random.default_rng(0)
    task = training.Task(experiment.DIGITS, LAPTOP, 10, 1000)
    sizes = np.array(experiment.DIGITS.test_sizes)
    level = 0.95 - 0.3 * (sizes != 16)
    accuracy, seen = {}, {}
    for method in training.METHODS:
        mixed = method != training.FIXED
        means = level + mixed * (gain + small * (sizes != 16))
        calibrated = means + 0.002 * rng.normal(size=(8, len(sizes)))
        looks = np.where(np.arange(10) >= 8 - mixed * early, 0.99, 0.5)
        accuracy[method] = {
            "calibrated": calibrated,
            "uncalibrated": calibrated - calibration * (sizes != 16) + 0.001 * rng.normal(),
            "by look": np.tile(looks, (8, 1)),
        }
        steps = np.arange(task.num_steps(method)) % len(task.regime(method))
        raw = np.ones((8, len(steps)))
        seen[method] = {"size": np.tile(steps, (8, 1)), "raw": raw, "loss": raw, "smoothed": raw}
    return training.Results(task, seen, accuracy, 1e6 * sizes**2)


def _held(**how):
    run = _program.Run("mix_and_match", "laptop", LAPTOP, pathlib.Path(), 0)
    found = {claim.name: claim for claim in found_claims.claims_of(run, [_results(**how)])}
    return [found[name].holds for name in _names("digits")]


def test_claims_hold_where_they_should_and_fail_where_they_should():
    assert _held(gain=0.02, small=0.3, early=3) == [True] * 10
    assert _held(gain=-0.02, small=0.1, early=-2, calibration=-0.1) == [False] * 10
    # Resilience alone: neither more accurate at its best size nor faster.
    assert _held(small=0.1)[:5] == [True, False, False, False, True]


def test_a_network_that_never_gets_there_decides_against_speed():
    results = _results(gain=0.02, small=0.3, early=3)
    results.accuracy[training.BATCH]["by look"][3] = 0.5
    run = _program.Run("mix_and_match", "laptop", LAPTOP, pathlib.Path(), 0)
    of = {claim.name: claim for claim in found_claims.claims_of(run, [results])}
    slow = of["C3 speed (digits, B+)"]
    assert (slow.holds, slow.num_nonfinite) == (False, 1)
    assert of["C3 speed (digits, D+)"].holds


@pytest.mark.parametrize(
    ("change", "word"), [({"network": "MLP"}, "network"), ({"test_sizes": (8, 12)}, "base size 16")]
)
def test_settings_that_make_no_sense_are_refused_by_name(change, word):
    with pytest.raises(ValueError, match=word):
        dataclasses.replace(SMOKE, cases=(experiment.DIGITS._replace(**change),))


def test_a_set_that_is_not_there_is_refused_with_the_command_that_fetches_it(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(_program.RefusedError, match="download_and_prepare"):
        _execute(tmp_path, preset="paper")


def test_too_few_examples_for_a_batch_are_refused(tmp_path):
    with pytest.raises(_program.RefusedError, match="fill a batch of 256"):
        _execute(tmp_path, cases=(experiment.DIGITS._replace(passes=1),))


@pytest.mark.slow
def test_smoke_writes_all_its_files_and_a_second_run_reads_them(tmp_path, monkeypatch):
    monkeypatch.setattr(_program.Run, "mesh", None)  # two networks would fill all devices
    found = _execute(tmp_path)
    written = claims.load_claims(tmp_path / "claims.json")
    assert [claim.name for claim in written] == _names("digits")
    pictures = {picture.name for section in found.sections for picture in section.pictures}
    assert pictures == {
        "accuracy_by_size",
        "accuracy_by_flops",
        "accuracy_by_pixels",
        "loss_by_pixels",
        "gradient_norms",
        "one_image",
    }
    assert {path.stem for path in (tmp_path / "figures").glob("*.png")} == pictures
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["method"] for row in rows] == list(training.METHODS)
    again = _execute(tmp_path)  # every stage is read from disk
    assert again.claims == found.claims


@pytest.mark.slow
def test_the_papers_path_runs_on_files_in_the_real_format(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(TFDS))
    monkeypatch.setattr(_program.Run, "mesh", None)
    tiny = (
        experiment.PRESETS["paper"]
        .cases[1]
        ._replace(
            depth=8, mixture=SizeMixture((16, 8), (0.5, 0.5), 16, 2), test_sizes=(8, 16), epochs=1
        )
    )
    found = _execute(
        tmp_path,
        preset="paper",
        cases=(tiny,),
        num_seeds=2,
        num_looks=1,
        calibration_batches=2,
        calibration_size=4,
        num_resamples=50,
    )
    assert [claim.name for claim in found.claims] == _names("cifar100")
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(row["calibrated"]).all() for row in rows)


@pytest.mark.slow
def test_the_imagenet_path_runs_on_files_in_the_real_format(tmp_path, monkeypatch):
    """Twenty photographs of many shapes, a narrow network of a block a stage, two sizes."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(TFDS))
    monkeypatch.setattr(_program.Run, "mesh", None)
    monkeypatch.setitem(imagenet_resnet.STAGES, 18, (1, 1, 1, 1))  # to compile half as long
    (case,) = experiment.PRESETS["imagenet144"].cases
    mixture = SizeMixture((32, 16), (0.5, 0.5), 32, 2)
    tiny = case._replace(depth=18, width=2, mixture=mixture, test_sizes=(16, 32), epochs=1)
    small = {"num_looks": 1, "calibration_batches": 2, "calibration_size": 4, "num_resamples": 50}
    found = _execute(tmp_path, preset="imagenet144", cases=(tiny,), side=40, num_seeds=2, **small)
    assert [claim.name for claim in found.claims] == _names("imagenet2012")
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(row["calibrated"]).all() for row in rows)


def test_imagenet_is_resnet_50_with_the_authors_sizes_and_schedule():
    for preset, mean in (("imagenet144", 144), ("imagenet224", 224)):
        chosen = experiment.PRESETS[preset]
        (case,) = chosen.cases
        assert (case.depth, case.width, case.epochs, case.rate) == (50, 64, 90, 0.1)
        np.testing.assert_allclose(np.multiply(case.drops, 90), [30, 60, 80])
        assert (case.test_sizes[0], case.test_sizes[-1]) == (96, 448)
        size = np.dot(case.mixture.sizes, case.mixture.fractions)
        assert abs(size - mean) < 8
        task = training.Task(case, chosen, 1000, 1_281_167)
        assert task.num_steps(training.FIXED) == 9 * round(90 * (1_281_167 // 64) / 9)


def test_photographs_start_as_the_authors_do_and_are_views_of_bytes(key):
    case = experiment.PRESETS["imagenet144"].cases[0]._replace(depth=18, width=2, side=40)
    net, x = networks.build(case, 5), jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    params = networks.first_weights(case, jax.jit(net.init)(key, jnp.ones(x.shape)))
    zeros = [leaf for leaf in jax.tree.leaves(batchnorm_only.gammas(params)) if not np.any(leaf)]
    assert sum(leaf.size for leaf in zeros) == 2 * (2 + 4 + 8 + 16)  # the last of each block
    square = jnp.zeros((40, 40, 3), jnp.uint8)
    view = jax.eval_shape(lambda key: networks.view_of(case)(key, square, 24), key)
    assert (view.shape, view.dtype) == ((24, 24, 3), jnp.float32)
