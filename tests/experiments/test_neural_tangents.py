"""The experiment's science against its limits; the paper's path on files in the real format."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from experiments import _image_kernels as image_kernels
from experiments import _program, _tangents_statistics
from experiments import _wide_networks as wide
from experiments import neural_tangents as experiment
from poster_jax import kernels
from poster_jax.core import claims

TFDS = pathlib.Path(__file__).parents[1] / "data" / "tfds"
README = pathlib.Path(__file__).parents[2] / "README.md"
NAMES = ["C1", "C2 (size)", "C2 (order)", "C3", "C4", "C5 (spread)", "C5 (mean)", "C6"]


def _run(workdir, preset="smoke", **changes):
    settings = dataclasses.replace(experiment.PRESETS[preset], **changes)
    return _program.Run("neural_tangents", preset, settings, workdir, 0)


def _execute(workdir, preset="smoke", **changes):
    return _program.execute(
        experiment.experiment,
        name="neural_tangents",
        preset=preset,
        settings=_run(workdir, preset, **changes).settings,
        workdir=workdir,
        seed=0,
    )


def test_the_papers_preset_is_the_posters_figure():
    paper = experiment.PRESETS["paper"]
    assert paper.dataset == "tfds:cifar10"
    assert paper.networks[-1] == "WideResNet"
    assert max(paper.sizes) == 45_000
    assert max(paper.ensemble_widths) == 2048
    for settings in experiment.PRESETS.values():
        assert wide.NARROW in settings.ensemble_widths
        assert {name for name, _ in settings.tiles} == set(settings.networks)


def test_descent_is_the_theory_on_a_linear_network():
    """Without hidden units the network is its own linearisation, at any width and every step."""
    data = wide.line()
    init_fn, apply_fn, _ = wide.network(1, second=0)
    params = init_fn(jax.random.key(0), data.x.shape)[1]
    linear = kernels.linearize(apply_fn, params)
    data = data._replace(y=data.y[:, :1])
    found = wide.descend(linear, params, data, data.rate, 64)
    theta = kernels.empirical_ntk_fn(apply_fn, trace_axes=())(
        jnp.concatenate([data.x, data.test]), data.x, params
    )
    theta = theta[..., 0, 0]
    outputs = apply_fn(params, jnp.concatenate([data.x, data.test]))
    for _ in range(64):  # one step after another, in outputs instead of weights
        outputs = outputs - data.rate / 8 * theta @ (outputs[:8] - data.y)
    np.testing.assert_allclose(found["outputs"][-1], outputs[8:], atol=2e-4)


def test_weights_are_drawn_as_by_the_library():
    """The same structure, standard normal numbers (Kolmogorov, Smirnov), neighbours independent."""
    init_fn, key = wide.network(150)[0], jax.random.key(0)
    ours, theirs = wide.weights(init_fn, key, (8, 1)), init_fn(key, (8, 1))[1]
    assert jax.tree.map(jnp.shape, ours) == jax.tree.map(jnp.shape, theirs)
    for params in (ours, theirs):
        flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)])
        assert stats.kstest(flat, "norm").pvalue > 1e-3
        assert abs(np.mean(flat[1:] * flat[:-1])) < 4 / np.sqrt(flat.size)


def test_ensembles_drawn_from_the_theory_have_its_moments():
    """200 x 8 outputs: means within 5 standard errors, variances within 5 of theirs."""
    data = wide.line()
    known = wide.theory(data, 128)
    drawn = wide.ensembles_of_theory(data, 128, 50, 32, 0)
    drawn = drawn.reshape(-1, *drawn.shape[2:])
    at = _tangents_statistics.AT_TIMES
    variance = known.variance[at][..., None]
    z = (drawn.mean(0) - known.mean[at]) / np.sqrt(variance / len(drawn))
    assert np.abs(z).max() < 5
    assert np.abs(drawn.var(0) / variance - 1).max() < 5 * np.sqrt(2 / len(drawn))


def test_coverage_is_95_percent_of_the_truth_and_less_of_anything_else():
    rng = np.random.default_rng(0)
    outputs = rng.normal(1.0, 2.0, size=(300, 5, 40, 8))
    mean, variance = np.ones((5, 40, 8)), np.full((5, 40), 4.0)
    found = _tangents_statistics.coverage(outputs, mean, variance).mean((1, 2, 3))
    assert np.all(np.abs(found - 0.95) < 0.03)  # 1,600 intervals each: two standard errors are 1 %
    wrong = _tangents_statistics.coverage(outputs, mean + 0.5, 2 * variance).mean((1, 2, 3))
    assert np.all(wrong < 0.2)


def test_the_slope_of_a_power_law_is_its_exponent(tmp_path):
    widths, rng = (16, 64, 256), np.random.default_rng(0)
    draws = (3 / np.array(widths)) * rng.chisquare(4, size=(200, 3)) / 4
    found = _tangents_statistics.slope_interval(_run(tmp_path), widths, draws, np.sqrt)
    assert found.low < -0.5 < found.high
    assert found.high - found.low < 0.1


def test_images_have_mean_square_one_and_targets_are_centred(tmp_path):
    task = image_kernels.images(_run(tmp_path))
    np.testing.assert_allclose(np.mean(task.x**2, axis=(1, 2, 3)), 1, rtol=1e-5)
    np.testing.assert_allclose(task.targets.sum(1), 0, atol=1e-12)
    assert sorted(np.unique(task.targets).round(6)) == [-0.1, 0.9]
    assert (len(task.y), len(task.test_y)) == (80, 60)


@pytest.mark.parametrize("in_memory", [100, 4], ids=["memory", "disk"])
def test_regression_is_that_of_numpy_for_one_training_set_after_the_other(in_memory, tmp_path):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(30, 40)).astype(np.float32)
    kernel, run = features @ features.T, _run(tmp_path, in_memory=in_memory)
    for size in (12, 9):
        rows, targets = rng.permutation(20)[:size], rng.normal(size=(size, 3))
        found = image_kernels._regress(run, kernel[:20, :20], kernel[20:, :20], rows, targets)
        square = kernel[np.ix_(rows, rows)].astype(np.float64)
        square += 1e-3 * np.trace(square) / size * np.eye(size)
        expected = kernel[np.ix_(range(20, 30), rows)] @ np.linalg.solve(square, targets)
        np.testing.assert_allclose(found, expected, atol=1e-9)
    assert not (tmp_path / "kernels" / "factor").exists()


def test_five_lines_are_five_stand_in_the_readme_and_agree_with_numpy():
    found = image_kernels.five_lines()
    assert found["lines"] == 5
    assert found["difference"] < 1e-3
    assert image_kernels.FIVE_LINES in README.read_text()


def test_a_pool_that_is_too_small_is_refused(tmp_path):
    with pytest.raises(_program.RefusedError, match="pool_size"):
        image_kernels.images(_run(tmp_path, pool_size=50))


def test_settings_that_do_not_fit_are_refused():
    for change in ({"num_steps": 100}, {"num_draws": 77}, {"diag_reg": 0.0}):
        with pytest.raises(ValueError, match=next(iter(change))):
            dataclasses.replace(experiment.PRESETS["smoke"], **change)


SMALL = {
    "ensemble_widths": (16, 32),
    "num_networks": 16,
    "num_steps": 16,
    "kernel_widths": (16, 32),
    "num_draws": 100,
    "linear_widths": (16, 32),
    "num_linearised": 4,
    "num_resamples": 50,
}


@pytest.mark.slow
def test_smoke_writes_all_its_files_and_pictures(tmp_path):
    found = _execute(tmp_path)
    assert [claim.name for claim in claims.load_claims(tmp_path / "claims.json")] == NAMES
    assert {p.stem for p in (tmp_path / "figures").glob("*.png")} == {
        "ensemble_bands",
        "ensemble_loss",
        "ensemble_share",
        "images_accuracy",
        "images_error",
        "images_order",
        "five_lines",
        "kernel_errors",
        "linearised",
    }
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert sum("network" in row for row in rows) == 6
    page = (tmp_path / "index.html").read_text()
    for section in found.sections:
        assert section.title in page
    held = {claim.name: claim.holds for claim in found.claims}
    assert held["C3"]
    assert held["C4"]


@pytest.mark.slow
def test_the_papers_path_runs_on_files_in_the_real_format(tmp_path, monkeypatch):
    """Four images of CIFAR-10's format, a WideResNet of three blocks, solves on disk."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(TFDS))
    found = _execute(
        tmp_path,
        preset="paper",
        **SMALL,
        strides=(2, 2),
        blocks=1,
        pool_size=4,
        test_size=2,
        sizes=(2, 3),
        num_draws_of_x=2,
        in_memory=2,
        tiles=(("FC", 4), ("CNN-Flatten", 2), ("WideResNet", 1)),
    )
    held = {claim.name: claim.holds for claim in found.claims}
    assert list(held) == NAMES
    assert held["C3"]
    assert held["C4"]
    assert all(np.isfinite(claim.measured) for claim in found.claims)
    folders = {p.name.split("_")[0] for p in (tmp_path / "kernels").glob("*_train_*")}
    assert folders == {"FC", "CNN-Flatten", "WideResNet"}


def test_a_set_that_is_not_there_is_refused_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(_program.RefusedError, match="download_and_prepare"):
        _execute(tmp_path, preset="paper")
    assert not (tmp_path / "checkpoints").exists()
