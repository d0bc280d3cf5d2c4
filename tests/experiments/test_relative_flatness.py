"""The experiment's grid, measures and claims; the paper's path on files in the real format."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import _minima as minima
from experiments import _minima_claims, _program
from experiments import relative_flatness as experiment
from poster_jax import curvature
from poster_jax.core import claims, data, losses, models

TFDS = pathlib.Path(__file__).parents[1] / "data" / "tfds"
NAMES = ["C1 (float32)", "C1 (float64)", "C2", "C3", "C4"]


def _execute(workdir, preset="smoke", **changes):
    settings = dataclasses.replace(experiment.PRESETS[preset], **changes)
    return _program.execute(
        experiment.experiment,
        name="relative_flatness",
        preset=preset,
        settings=settings,
        workdir=workdir,
        seed=0,
    )


def test_the_laptop_trains_180_networks_and_half_of_every_level_has_noise():
    rows = minima.grid(experiment.PRESETS["laptop"])
    assert len(rows) == 180
    assert len({tuple(row.items()) for row in rows}) == 180
    for name in ("batch_size", "optimiser", "rate", "weight_decay"):
        for level in {row[name] for row in rows}:
            noisy = [row["noisy"] for row in rows if row[name] == level]
            # Five seeds: 2 or 3 of them noisy in each setting.
            assert abs(np.mean(noisy) - 0.5) <= 0.1
    assert sum(row["noisy"] for row in rows) == 90


def test_the_paper_is_lenet_on_cifar_with_ten_seeds_and_three_optimisers():
    paper = experiment.PRESETS["paper"]
    rows = minima.grid(paper)
    assert (paper.dataset, paper.network, paper.scaling) == ("tfds:cifar10", "LeNet5", "symmetric")
    assert {row["optimiser"] for row in rows} == {"SGD", "Adam", "RMSprop"}
    assert {row["seed"] for row in rows} == set(range(10))
    assert not any(row["noisy"] for row in rows)
    theirs = {"batch_size": 64, "rate": 0.005, "weight_decay": 5e-4}
    assert any(theirs.items() <= row.items() for row in rows)


@pytest.fixture(scope="module")
def network():
    digits = data.load("digits", num_train=100)
    model = models.from_linen(models.MLP((12, 8, 10)))
    params = model.init(jax.random.key(0), digits.train[0][:1])
    params = jax.tree.map(lambda leaf: leaf + 0.05, params)  # biases that count
    layers = tuple(f"Dense_{i}/kernel" for i in range(3))
    task = minima.Task(model, losses.cross_entropy(model.apply_fn), layers, 64)
    x, y = digits.train
    examples = minima.Examples(x, jnp.stack([y, (y + 1) % 10]), digits.test)
    return task, examples, params


@pytest.mark.slow
def test_a_rescaling_moves_the_measures_that_the_paper_says_and_no_others(network, key):
    task, examples, params = network
    found = minima.measures_before_and_after(task, examples, params, 0, jnp.float32(10.0), key)
    ratio = {name: float(value[1] / value[0]) for name, value in found.items()}
    for name in ("relative flatness", "relative flatness, features normalised", "Fisher-Rao norm"):
        assert ratio[name] == pytest.approx(1, abs=1e-4)
    # The last layer's Hessian is divided by the square of the factor; an eigenvalue to its tol.
    assert ratio["trace of H"] == pytest.approx(0.01, rel=1e-4)
    assert ratio["largest eigenvalue of H"] == pytest.approx(0.01, rel=5e-3)
    assert ratio["squared weight norm"] > 10


@pytest.mark.slow
def test_the_measures_of_the_last_layer_are_those_of_its_hessian(network, key):
    """The closed forms and microbatches against the whole matrix in float64."""
    task, examples, params = network
    found = minima.measures_of(task, examples, params, 1, key)
    with jax.enable_x64(True):
        wide_examples, wide = minima.cast((examples, params), "float64")
        op = curvature.block_operator(
            task.loss_fn, wide, wide_examples.train(1), path=task.layers[-1]
        )
        matrix = op.block(jnp.eye(80).reshape(80, 8, 10)).reshape(80, 80)
        kernel = np.asarray(wide["Dense_2"]["kernel"])
        blocks = np.asarray(matrix).reshape(8, 10, 8, 10)
        kappa = np.einsum("is,it,jsjt->", kernel, kernel, blocks)
        top = np.linalg.eigvalsh(matrix)[-1]
    assert float(found["trace of H"]) == pytest.approx(np.trace(matrix), rel=1e-5)
    assert float(found["largest eigenvalue of H"]) == pytest.approx(top, rel=1e-3)
    assert float(found["relative flatness"]) == pytest.approx(kappa, rel=1e-5)


def test_losses_count_every_example_with_the_labels_trained_on(network):
    task, examples, params = network
    for noisy in (0, 1):
        found = minima.losses_of(task, examples, params, noisy)
        expected = task.loss_fn(params, (examples.x, examples.labels[noisy]))
        assert float(found["train loss"]) == pytest.approx(float(expected), rel=1e-5)
    assert float(found["test loss"]) == pytest.approx(
        float(task.loss_fn(params, examples.test)), rel=1e-5
    )


def _results(kappa, gap, change):
    n = len(gap)
    rows = [{"seed": i % 5, "setting": i // 5, "noisy": i % 2} for i in range(n)]
    measured = {name: np.stack([kappa, kappa], axis=1) for name in minima.MEASURES}
    rng = np.random.default_rng(1)
    for name in (_minima_claims.TRACE, _minima_claims.NORM):
        measured[name] = np.stack([kappa, rng.normal(size=n)], axis=1)
    layer = {name: np.full((n, 4), 500.0) for name in minima.FOLLOWED}
    layer["relative flatness"] = np.full((n, 4), 1 + change)
    return _minima_claims.Results(
        rows=rows,
        trained={"reached": np.ones(n, bool), "diverged": np.zeros(n, bool)},
        quality={"test loss": gap, "train loss": np.zeros(n)},
        measured=measured,
        changes={bits: {"Dense_0/kernel": layer} for bits in (32, 64)},
        ridge=np.full(3, 1e-7),
    )


def _held(results):
    tau = _minima_claims.tau_of(results, num_resamples=300, seed=0)
    found = _minima_claims.claims_of(results, tau, dropped=0, seed=0)
    return {claim.name: claim.holds for claim in found}


def test_claims_hold_where_they_should_and_fail_where_they_should():
    rng = np.random.default_rng(0)
    kappa = rng.normal(size=60)
    related = kappa + 0.3 * rng.normal(size=60)
    assert _held(_results(kappa, related, 1e-10)) == dict.fromkeys(NAMES, True)
    nothing = _held(_results(kappa, rng.normal(size=60), 1e-5))
    expected = {"C1 (float32)": True, "C1 (float64)": False, "C2": False, "C3": False, "C4": True}
    assert nothing == expected


def test_a_measure_that_is_not_finite_is_counted_and_decides_against_the_claim():
    kappa = np.arange(20.0)
    kappa[3] = np.nan
    results = _results(kappa, np.arange(20.0), 1e-10)
    tau = _minima_claims.tau_of(results, num_resamples=100, seed=0)
    (c2,) = [c for c in _minima_claims.claims_of(results, tau, dropped=2, seed=0) if c.name == "C2"]
    assert not c2.holds
    assert c2.num_nonfinite == 3


@pytest.fixture(scope="module")
def on_eight_devices(tmp_path_factory):
    """The smoke preset in this process, whose eight devices share the population."""
    folder = tmp_path_factory.mktemp("eight")
    return folder, _execute(folder)


@pytest.mark.slow
def test_smoke_writes_all_its_files_and_pictures(on_eight_devices):
    folder, found = on_eight_devices
    assert [claim.name for claim in claims.load_claims(folder / "claims.json")] == NAMES
    assert {p.stem for p in (folder / "figures").glob("*.png")} == {
        "gap_before_rescaling",
        "gap_after_rescaling",
        "correlations",
        "change_under_rescaling",
        "hessian_density",
    }
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == len(minima.grid(experiment.PRESETS["smoke"]))
    page = (folder / "index.html").read_text()
    for section in found.sections:
        assert section.title in page
    held = {claim.name: claim.holds for claim in found.claims}
    assert held["C1 (float32)"]
    assert held["C1 (float64)"]
    assert held["C4"]


@pytest.mark.slow
def test_one_device_gives_the_same_claims_as_eight(on_eight_devices, tmp_path):
    folder, _ = on_eight_devices
    command = [sys.executable, "-m", "experiments.relative_flatness", "--preset=smoke"]
    # The same compiler, so that only the devices differ.
    flags = [f for f in os.environ["XLA_FLAGS"].split() if "device_count" not in f]
    environment = {**os.environ, "XLA_FLAGS": " ".join(flags)}
    subprocess.run([*command, f"--workdir={tmp_path}"], check=True, env=environment, timeout=600)
    for one, eight in zip(
        claims.load_claims(tmp_path / "claims.json"),
        claims.load_claims(folder / "claims.json"),
        strict=True,
    ):
        assert (one.name, one.holds) == (eight.name, eight.holds)
        if not one.name.startswith("C1") and one.name != "C4":  # those measure rounding itself
            assert one.measured == pytest.approx(eight.measured, abs=1e-6)
            assert one.interval == pytest.approx(eight.interval, abs=1e-6)


@pytest.mark.slow
def test_the_papers_path_runs_on_files_in_the_real_format(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(TFDS))
    found = _execute(
        tmp_path,
        preset="paper",
        batch_sizes=(4,),
        rates=(("SGD", (0.005,)), ("Adam", (0.001,)), ("RMSprop", (0.001,))),
        num_seeds=2,
        loss_below=10.0,  # 20 pictures: one epoch is enough to go through everything
        max_epochs=1,
        num_rescalings=3,
        rescaling_examples=4,
        num_resamples=50,
        num_lanczos=4,
        microbatch=6,
    )
    held = {claim.name: claim.holds for claim in found.claims}
    assert held["C1 (float32)"]
    assert held["C1 (float64)"]
    assert found.claims[2].num_samples == 6


def test_a_set_that_is_not_there_is_refused_with_the_command_that_fetches_it(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(_program.RefusedError, match="download_and_prepare"):
        _execute(tmp_path, preset="paper")


@pytest.mark.slow
def test_too_few_networks_at_the_criterion_are_refused(tmp_path):
    with pytest.raises(_program.RefusedError, match="max_epochs"):
        _execute(
            tmp_path,
            rates=(("SGD", (1e-6,)),),
            max_epochs=1,
            num_rescalings=1,
            rescaling_examples=4,
        )
