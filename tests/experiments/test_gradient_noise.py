"""Verdicts and claims on noise made by hand; the paper's path on files in the real format."""

import dataclasses
import json
import pathlib
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from experiments import _noise_claims, _noise_report, _noise_statistics, _program
from experiments import _noise_measurement as measurement
from experiments import gradient_noise as experiment
from poster_jax.core import claims

TFDS = pathlib.Path(__file__).parents[1] / "data" / "tfds"
NAMES = ["C1", "C2", "C3 (b = 32)", "C3 (b = 256)", "C4", "b*"]
CASE = measurement.Case("digits", "MLP", "SGD", 0.1)


def _run(workdir, preset="smoke", **changes):
    settings = dataclasses.replace(experiment.PRESETS[preset], **changes)
    return _program.Run("gradient_noise", preset, settings, workdir, 0)


def _execute(workdir, preset="smoke", **changes):
    return _program.execute(
        experiment.experiment,
        name="gradient_noise",
        preset=preset,
        settings=_run(workdir, preset, **changes).settings,
        workdir=workdir,
        seed=0,
    )


def _noise(fraction, critical=(0.0, 100.0, 500.0), accuracy=(0.1, 0.8, 1.0),
           by_skewness=(0.0, 0.0, 0.0), **changes):  # fmt: skip
    """What was measured, (2 seeds, 3 checkpoints, 3 sizes), by hand; the band is 0.02 to 0.08."""
    fraction = np.broadcast_to(fraction, (2, 3, 3))
    test = SimpleNamespace(
        rejected_fraction=fraction,
        rejected_low=np.full((2, 3, 3), 0.02),
        rejected_high=np.full((2, 3, 3), 0.08),
        inside_band=(fraction >= 0.02) & (fraction <= 0.08),
        mean_pvalue=0.5 - fraction / 2,
        mean_statistic=0.99 - fraction / 100,
        surrogate_pvalue=np.full((2, 3, 3), 0.4),
        surrogate_mean_pvalue=np.full((2, 3, 3, 5), 0.5),
    )
    cells = np.ones((2, 3))
    found = {
        "loss": 0.5 * cells,
        "kurtosis": 3.0 * cells,
        "skewness": 0.5 * cells,
        "coordinates": 0.1 * cells,
        "families": dict.fromkeys(measurement.FAMILIES, 0.2 * cells),
        "layers": np.full((2, 3, 2), 0.1),
        "layer_names": ("Dense_0", "Dense_1"),
        "shown": np.random.default_rng(0).normal(size=(2, 3, 3, 4, 30)),
        "spectrum": np.full((2, 3, 60), 1.0) / np.arange(1, 61),
        "verdicts": {"tests": {"shapiro_wilk": test}},
        "accuracy": cells * np.array(accuracy),
        "critical": cells * np.array(critical),
        "critical_by_skewness": cells * np.array(by_skewness),
        "pooled": 1.3 * cells,
        "by_coordinate": 2.02 * cells,
        "same_covariance": np.full((2, 3, 4), 1.32),
        "same_variances": np.full((2, 3, 4), 1.5),
        "zeros": 0.02 * cells,
        "diverged": np.zeros(2, bool),
    }
    return found | changes


# b = 32, 256, 1024 at three checkpoints: Gaussian at the first; then small batches are rejected;
# at the last all but the largest.
AS_CLAIMED = np.array([[0.05, 0.05, 0.05], [0.3, 0.05, 0.05], [0.9, 0.4, 0.05]])


def _claims(tmp_path, *found):
    cases = [CASE._replace(rate=0.1 * (1 + index)) for index in range(len(found))]
    results = _noise_statistics.Results(cases, dict(zip(cases, found, strict=True)))
    return {claim.name: claim for claim in _noise_claims.claims_of(_run(tmp_path), results)}


def test_all_rules_hold_on_noise_that_is_as_the_claims_say(tmp_path):
    found = _claims(tmp_path, _noise(AS_CLAIMED))
    assert list(found) == NAMES
    assert all(claim.holds for claim in found.values())
    assert found["C1"].num_samples == 4  # two seeds at the two checkpoints below 0.9
    assert found["C4"].num_samples == 4
    assert found["b*"].measured == 1.0


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"fraction": np.where(AS_CLAIMED == 0.05, 0.3, AS_CLAIMED)}, "C1"),
        ({"fraction": 0.05}, "C3 (b = 32)"),
        ({"fraction": 0.05}, "C3 (b = 256)"),
        ({"fraction": AS_CLAIMED, "pooled": np.full((2, 3), 1.95)}, "C4"),
        ({"fraction": AS_CLAIMED, "by_coordinate": np.full((2, 3), 1.8)}, "C4"),
        ({"fraction": AS_CLAIMED, "same_covariance": np.full((2, 3, 4), 1.5)}, "C4"),
        ({"fraction": AS_CLAIMED, "critical": (2000.0, 2000.0, 2.0)}, "b*"),
        ({"fraction": AS_CLAIMED, "accuracy": (1.0, 1.0, 1.0)}, "C1"),
    ],
)
def test_each_rule_fails_where_it_must(changes, name, tmp_path):
    assert not _claims(tmp_path, _noise(**changes))[name].holds


def test_one_case_that_fails_breaks_c2(tmp_path):
    found = _claims(tmp_path, _noise(AS_CLAIMED), _noise(0.3))
    assert not found["C2"].holds
    assert found["C2"].measured == 0.0
    assert "met in 1 of 2" in found["C2"].control


def test_a_case_without_gradients_of_examples_has_no_part_in_b_star(tmp_path):
    found = _claims(tmp_path, _noise(AS_CLAIMED), _noise(0.3, critical=(np.nan,) * 3))
    assert found["b*"].num_samples == 18


def test_pictures_of_several_cases_have_names_of_their_own(tmp_path):
    cases = [CASE, CASE._replace(rate=0.2)]
    nothing = dict.fromkeys(measurement.FAMILIES, np.full((2, 3), np.nan))  # as with BatchNorm
    found = [_noise(AS_CLAIMED), _noise(AS_CLAIMED, families=nothing)]
    results = _noise_statistics.Results(cases, dict(zip(cases, found, strict=True)))
    sections = _noise_report.findings(_run(tmp_path), results).sections
    names = [picture.name for section in sections for picture in section.pictures]
    assert sorted(names) == sorted(f"case_{i}_{name}" for i in (0, 1) for name in FIGURES)


def test_b_star_with_skewness_is_the_larger_of_both(tmp_path):
    run, late = _run(tmp_path), _noise(AS_CLAIMED, critical=(0.0, 0.0, 0.0))
    assert (_noise_statistics.foretold(run, late)[0]).all()
    both = _noise(AS_CLAIMED, critical=(0.0, 0.0, 500.0), by_skewness=(0.0, 100.0, 1.0))
    above, seen = _noise_statistics.foretold(run, both, with_skewness=True)
    np.testing.assert_array_equal(above, seen)
    assert not np.array_equal(_noise_statistics.foretold(run, both)[0], seen)


def test_intervals_of_shares_are_those_of_beta_quantiles():
    found = _noise_statistics.share([True] * 7 + [False] * 3)
    ends = (stats.beta.ppf(0.025, 7, 4), stats.beta.ppf(0.975, 8, 3))
    np.testing.assert_allclose(found.interval, ends, rtol=1e-6)
    assert _noise_statistics.share([]).interval is None


def test_the_network_of_the_laptop_is_the_cards(tmp_path):
    task, (x, y) = measurement.prepare(_run(tmp_path, "laptop"), CASE)
    params = task.model.init(jax.random.key(0), x[:1])
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 8970
    assert (len(x), len(y)) == (1797, 1797)
    assert abs(x.mean()) < 0.01
    assert abs(x.std() - 1) < 0.01
    assert task.layers == ("Dense_0", "Dense_1", "Dense_2")
    assert task.separable


def test_a_network_with_batch_norm_has_no_gradients_of_examples(tmp_path):
    task, _ = measurement.prepare(_run(tmp_path), CASE._replace(network="ResNet20 with BatchNorm"))
    assert not task.separable
    assert task.layers[-1] == "Dense_0"
    assert not any("BatchNorm" in layer for layer in task.layers)


def test_checkpoints_are_those_of_a_shorter_run(tmp_path):
    """The middle checkpoint is where training for as many steps ends, the first where it begins."""
    run = _run(tmp_path, checkpoints=(0, 2, 4), num_examples=70)
    task, examples = measurement.prepare(run, CASE)
    whole = measurement.train_one(task, CASE, examples, jax.random.key(0))
    shorter = task._replace(settings=dataclasses.replace(run.settings, checkpoints=(0, 2)))
    half = measurement.train_one(shorter, CASE, examples, jax.random.key(0))
    for a, b in zip(*map(jax.tree.leaves, (whole["params"], half["params"])), strict=True):
        np.testing.assert_allclose(a[:2], b, rtol=1e-6)
        assert np.any(a[2] != b[1]) or not np.any(a)


def test_rejected_fractions_leave_out_rows_without_noise():
    rng = np.random.default_rng(0)
    rows = np.stack([rng.normal(size=300), rng.standard_t(2, 300), np.zeros(300)])
    assert float(measurement._rejected(jnp.asarray(rows, jnp.float32))) == 0.5


def test_settings_that_do_not_fit_are_refused():
    for change in ({"batch_sizes": (8, 32)}, {"vector_batch": 32}, {"early_below": 1.5}):
        with pytest.raises(ValueError, match=next(iter(change))):
            dataclasses.replace(experiment.PRESETS["smoke"], **change)


def test_the_papers_preset_names_networks_and_optimisers_that_are_there():
    paper = experiment.PRESETS["paper"]
    assert {network for _, network in paper.cases} <= set(measurement.NETWORKS)
    assert {name for name, _ in paper.optimisers} == set(measurement.OPTIMISERS)
    assert all(dataset.startswith("tfds:") for dataset, _ in paper.cases)
    assert any("BatchNorm" in network for _, network in paper.cases)


def test_a_set_that_is_not_there_is_refused_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(_program.RefusedError, match="download_and_prepare"):
        _execute(tmp_path, preset="paper")
    assert not (tmp_path / "checkpoints").exists()


FIGURES = {"rejected", "quantiles", "layers", "directions", "tail_index", "spectrum", "critical"}


@pytest.mark.slow
def test_smoke_writes_all_its_files_and_goes_on_where_it_was(tmp_path):
    found = _execute(tmp_path)
    assert [claim.name for claim in claims.load_claims(tmp_path / "claims.json")] == NAMES
    assert {p.stem for p in (tmp_path / "figures").glob("*.png")} == FIGURES
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 30, 300]
    page = (tmp_path / "index.html").read_text()
    for section in found.sections:
        assert section.title in page
    again = _execute(tmp_path)  # every stage is read from disk
    assert [c.measured for c in again.claims] == [c.measured for c in found.claims]


class TinyWithBatchNorm(nn.Module):
    classes: int

    @nn.compact
    def __call__(self, x, *, train: bool):
        x = nn.BatchNorm(use_running_average=not train)(nn.Conv(2, (4, 4), strides=4)(x))
        return nn.Dense(self.classes)(nn.relu(x).mean((1, 2)))


@pytest.mark.slow
def test_the_papers_path_runs_on_files_in_the_real_format(tmp_path, monkeypatch):
    """Twenty images of MNIST and of CIFAR-10, with and without BatchNorm.

    The network with BatchNorm is a tiny one: its gradients are taken of thousands of images, batch
    by batch and layer by layer.
    """
    monkeypatch.setenv("TFDS_DATA_DIR", str(TFDS))
    monkeypatch.setitem(measurement.NETWORKS, "ResNet20 with BatchNorm", TinyWithBatchNorm)
    found = _execute(
        tmp_path,
        preset="paper",
        cases=(("tfds:mnist", "LeNet5"), ("tfds:cifar10", "ResNet20 with BatchNorm")),
        optimisers=(("Adam", 1e-3),),
        train_batch=4,
        checkpoints=(0, 2),
        num_seeds=2,
        batch_sizes=(32, 256, 1024),
        num_directions=3,
        num_vectors=4,
        num_surrogates=3,
        num_tail_vectors=4,
        num_tail_surrogates=1,
        num_eigenvectors=1,
        num_coordinates=200,
        num_resamples=50,
    )
    assert [claim.name for claim in found.claims] == NAMES
    assert {p.stem for p in (tmp_path / "figures").glob("*.png")} == {
        f"case_{index}_{name}" for index in (0, 1) for name in FIGURES
    }
    assert found.claims[-1].num_samples == 2 * 2 * 3  # LeNet5's cells alone have a b*
