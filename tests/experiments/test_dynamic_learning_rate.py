"""The experiment's arms, claims and files."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import _program, _rates_claims
from experiments import _rates as rates
from experiments import dynamic_learning_rate as experiment
from poster_jax.core import claims, losses, models

SEEDS = 8
TFDS = pathlib.Path(__file__).parents[1] / "data" / "tfds"


def _execute(workdir, preset="smoke", **changes):
    settings = dataclasses.replace(experiment.PRESETS[preset], **changes)
    return _program.execute(
        experiment.experiment,
        name="dynamic_learning_rate",
        preset=preset,
        settings=settings,
        workdir=workdir,
        seed=0,
    )


def test_the_grid_has_six_decades_and_the_paper_trains_on_cifar():
    laptop, paper = experiment.PRESETS["laptop"], experiment.PRESETS["paper"]
    np.testing.assert_allclose(laptop.initial_rates, 10.0 ** np.arange(-4, 2))
    assert (laptop.num_epochs, laptop.num_seeds, laptop.attack_steps) == (60, 10, 7)
    assert (paper.dataset, paper.num_epochs, paper.batch_size) == ("tfds:cifar10", 200, 128)
    assert (paper.weight_decay, paper.epsilon, paper.step_size) == (5e-4, 8 / 255, 2 / 255)


def _task(**changes):
    model = models.from_linen(models.MLP((4, 10)))
    shared = {"num_epochs": 20, "epoch_steps": 5, "batch_size": 8, "weight_decay": 0.0}
    rest = {"augment": False, "bounds": (0.0, 1.0), "microbatch": 100}
    return rates.Task(model=model, **{**shared, **rest, **changes})


def test_tables_hold_the_schedules():
    task = _task()
    of = {name: np.asarray(rates.table(task, name, 2.0)) for name in rates.SCHEDULES}
    np.testing.assert_allclose(of["constant"], 2.0)
    np.testing.assert_allclose(of["step decay"][[0, 49, 50, 74, 75]], [2, 2, 0.2, 0.2, 0.02])
    # Periods of 3, 6 and 12 epochs of five steps.
    assert np.flatnonzero(of["cosine restarts"] == 2.0).tolist() == [0, 15, 45]
    assert of["one-cycle"].argmax() == 30
    assert of["one-cycle"].max() == pytest.approx(2.0)


def test_robust_accuracy_is_measured_on_attacked_inputs():
    rng = np.random.default_rng(0)
    x, y = jnp.asarray(rng.uniform(size=(30, 2, 3, 1)), jnp.float32), jnp.arange(30) % 10
    task, attack = _task(), rates.Attack(0.2, 0.05, 1, 10)
    examples = rates.Examples((x, y), (x[:10], y[:10]), (x, y))
    params = task.model.init(jax.random.key(0), x)
    found = jax.jit(lambda p: rates.scores(task, p, (), examples, attack))(params)
    clean = losses.accuracy(task.model.apply_fn)(params, (x, y))
    assert float(found["test accuracy"]) == pytest.approx(float(clean))
    assert float(found["test robust"]) <= float(clean)
    assert set(found) == {f"{p} {m}" for p in ("valid", "test") for m in ("accuracy", "robust")}


def _results(ours, constant, *, ratio=1.0, robust=0.5):
    """Accuracies by rate, with one common deviation for each seed."""
    shift = np.linspace(-0.003, 0.003, SEEDS)
    both = lambda rows: np.asarray(rows)[:, None] + shift  # noqa: E731
    arm = lambda rows, extra: {  # noqa: E731
        "valid accuracy": both(rows),
        "test accuracy": both(rows),
        "valid robust": both(rows) * extra,
        "test robust": both(rows) * extra,
    }
    grid = (1e-3, 0.1, 10.0)
    arms = {kind: {rates.AALR: grid, "constant": grid} for kind in ("plain", "PGD")}
    found = {
        "plain": {rates.AALR: arm(ours, 1), "constant": arm(constant, 1)},
        "PGD": {rates.AALR: arm(ours, robust), "constant": arm(constant, 0.5)},
    }
    time = np.linspace(0.9, 1.1, 9)
    seconds = {rates.AALR: ratio * time, "plain SGD": time}
    return _rates_claims.Results(arms, found, seconds, {}, {}, 0.1)


def _held(results):
    found = _rates_claims.claims_of(results, seed=0)
    return {claim.name: (claim.holds, claim.measured) for claim in found}


def test_claims_hold_where_they_should_and_fail_where_they_should():
    held = _held(_results([0.97, 0.98, 0.975], [0.7, 0.981, np.nan], ratio=1.02))
    assert {name: holds for name, (holds, _) in held.items()} == {
        "C1": True,
        "C2 (PGD)": True,
        "C3": True,
        "C4": True,
    }
    assert held["C1"][1] == pytest.approx(-0.1)
    assert held["C3"][1] == pytest.approx(1.02)
    assert held["C4"][1] == pytest.approx(1.0)
    failed = _held(_results([0.9, 0.97, 0.97], [0.97, 0.98, 0.96], ratio=1.04, robust=0.4))
    assert not any(holds for holds, _ in failed.values())
    # A flat line proves nothing where constant rates give one too.
    assert not _held(_results([0.98] * 3, [0.98, 0.98, 0.97]))["C4"][0]


def test_a_diverged_network_counts_as_a_guess_and_the_best_is_chosen_on_validation():
    results = _results([0.98] * 3, [0.7, 0.98, np.nan])
    np.testing.assert_allclose(results.score("plain", "constant", "test accuracy")[2], 10)
    assert results.num_lost("plain") == SEEDS
    assert results.best("plain", "accuracy") == ("constant", 1)
    results.found["plain"]["constant"]["valid accuracy"][0] += 0.5
    assert results.best("plain", "accuracy") == ("constant", 0)


@pytest.mark.slow
def test_smoke_writes_all_its_files_and_a_second_run_reads_its_stages(tmp_path):
    found = _execute(tmp_path)
    names = ["C1", "C2 (FGSM)", "C3", "C4"]
    assert [claim.name for claim in claims.load_claims(tmp_path / "claims.json")] == names
    assert {p.stem for p in (tmp_path / "figures").glob("*.png")} == {
        "accuracy_by_arm",
        "accuracy_by_initial_rate",
        "rate_and_loss",
        "rate_times_curvature",
        "robust_accuracy_fgsm",
    }
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    smoke = experiment.PRESETS["smoke"]
    arms = len((*rates.READINGS, *smoke.baselines))
    assert len(rows) == arms * len(smoke.initial_rates) + 4 + 1
    page = (tmp_path / "index.html").read_text()
    for section in found.sections:
        assert section.title in page
    _execute(tmp_path)  # reads its stages
    # All but the times of an epoch.
    assert (tmp_path / "metrics.jsonl").read_text().splitlines()[:-1] == lines[:-1]


def test_too_few_examples_are_refused(tmp_path):
    with pytest.raises(_program.RefusedError, match="fewer than a batch"):
        _execute(tmp_path, num_valid=990)


@pytest.mark.slow
def test_the_papers_path_runs_on_files_in_the_real_format(tmp_path, monkeypatch):
    """20 pictures of CIFAR-10's format, shifted and mirrored, plainly and under PGD; one program of
    the paper's own networks is traced.
    """
    monkeypatch.setenv("TFDS_DATA_DIR", str(TFDS))
    for network in ("ResNet56", "VGG16"):
        settings = dataclasses.replace(
            experiment.PRESETS["paper"], network=network, num_valid=4, batch_size=8, microbatch=4
        )
        run = _program.Run("dynamic_learning_rate", "paper", settings, tmp_path, 0)
        task, examples, _ = experiment.prepare(run)
        assert task.augment

        def whole(key, task=task, examples=examples):
            x = examples.train[0][:1]
            starts = task.model.init(key, x), task.model.init_state(key, x)
            shared = rates.Shared(examples, jax.tree.map(lambda a: a[None], starts), key[None])
            return rates.train_aalr(task, None, "nonfinite", shared, 0, 0.1)

        shapes = jax.eval_shape(whole, jax.random.key(0))
        assert shapes["rate"].shape == (200,)
    found = _execute(
        tmp_path,
        preset="paper",
        network="MLP",
        num_valid=4,
        batch_size=8,
        num_epochs=2,
        initial_rates=(1e-3, 0.1),
        baselines=("constant",),
        num_seeds=2,
        attacks=("PGD",),
        attack_rates=(0.1,),
        attack_seeds=2,
        attack_steps=2,
        test_steps=2,
        edge_examples=4,
        repeats=1,
        microbatch=4,
    )
    assert [claim.name for claim in found.claims] == ["C1", "C2 (PGD)", "C3", "C4"]
