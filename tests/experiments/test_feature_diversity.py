"""The experiment's grid, its claims on made-up results, and its paths at a small size."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest

from experiments import _diversity as shallow
from experiments import _diversity_claims as claims_module
from experiments import _diversity_deep as deep
from experiments import _program
from experiments import feature_diversity as experiment
from poster_jax import feature_diversity as fd
from poster_jax.core import claims

TFDS = pathlib.Path(__file__).parents[1] / "data" / "tfds"
NAMES = ["C1", "C2", "C2 (rounding)", "C2 (law)", "C3", "C4", "C4 (LeakyNet)"]
PICTURES = {
    "accuracy_by_kinds", "accuracy_by_noise", "correlations", "diversity_by_layer",
    "diversity_by_noise", "growth", "leaky_accuracy", "leaky_diversity",
}  # fmt: skip


def _execute(workdir, preset="smoke", **changes):
    return _program.execute(
        experiment.experiment,
        name="feature_diversity",
        preset=preset,
        settings=dataclasses.replace(experiment.PRESETS[preset], **changes),
        workdir=workdir,
        seed=0,
    )


def test_the_laptop_has_every_kind_in_every_mode_and_the_paper_the_authors_constants():
    rows = shallow.conditions(experiment.PRESETS["laptop"])
    assert len(rows) == 3 * 7 + 2 * 8 == len(set(rows))
    paper = experiment.PRESETS["paper"]
    assert (paper.dataset, paper.depth, paper.widen, paper.epochs) == ("tfds:cifar10", 16, 10, 200)
    assert (paper.deep_rate, paper.deep_batch, paper.weight_decay) == (0.03, 128, 5e-4)
    rate = deep.rate_schedule(paper, 390, 200)
    for epoch, expected in ((59, 0.03), (61, 0.006), (121, 0.0012), (161, 0.00024)):
        assert float(rate(390 * epoch)) == pytest.approx(expected, rel=1e-5)
    assert paper.patterns == fd.PATTERNS
    assert deep.const_net(paper, 10).widths == (16, 160, 320, 640)


def _results(settings, *, tied, noisy, times, const, leaky, seeds=4):
    """Made-up measurements: accuracies in shares, times in steps, all seeds a little different."""
    jitter = 0.001 * np.arange(seeds)
    rows = shallow.conditions(settings)
    accuracy = np.full((seeds, len(rows)), 0.98)
    accuracy[:, rows.index(shallow.Condition("zero", 1, 0.0))] = tied
    first = rows.index(shallow.Condition("zero", 1, settings.noises[0]))
    accuracy[:, first : first + len(settings.noises)] = noisy
    steps = np.array(shallow.recorded(settings))
    curves = np.zeros((seeds, len(rows), len(steps)))
    for place, time in enumerate(times, first):
        curves[:, place] = steps >= time
    # One direction grows, by sigma such that ln(10) / 2 / ln(1 + rate sigma) = 30 steps a decade.
    sigma = np.expm1(np.log(10) / 60) / settings.shallow_rate
    coupling = np.zeros((seeds, settings.record_until // settings.record_every, 5, 3))
    coupling[..., 0, 0] = sigma
    probe = np.array([[1.0, 0.0, 0.0, 0.0]])
    on, power = np.ones((*coupling.shape[:2], 1), bool), np.full(coupling.shape[:2], 0.25)
    grid = {"accuracy": accuracy + jitter[:, None], "diversity": curves}
    exact = {"accuracy": tied + jitter, "coupling": coupling, "active": on, "power": power}
    exact["probe"] = probe
    return claims_module.Results(
        {
            "grid": grid,
            "rounded": {"accuracy": 0.97 + jitter},
            "exact": exact,
        },
        {name: {"accuracy": a + jitter, "leak": np.zeros(seeds)} for name, a in const.items()},
        {"accuracy": np.array(leaky)[:, None] + jitter[:2]},
    )


GOOD = {
    "tied": 0.2,
    "noisy": 0.98,
    "times": [420, 360, 300, 240, 180, 120, 0, 0],
    "const": {"none": 0.2, "weights": 0.97, "rounding": 0.97, "random": 0.97, "dropout": 0.97,
              "exact": 0.2},
    "leaky": [0.97, 0.97, 0.95, 0.9, 0.8],
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "fails"),
    [
        ({}, set()),
        ({"tied": 0.9}, {"C1"}),
        ({"noisy": 0.9}, {"C2"}),
        ({"times": [420, 60, 300, 40, 180, 120, 0, 0]}, {"C2", "C2 (law)"}),
        ({"times": [840, 720, 600, 480, 360, 240, 0, 0]}, {"C2 (law)"}),
        ({"const": {**GOOD["const"], "dropout": 0.9}}, {"C3"}),
        ({"const": {**GOOD["const"], "exact": 0.9}}, {"C4"}),
        ({"leaky": GOOD["leaky"][::-1]}, {"C4 (LeakyNet)"}),
    ],
    ids=["all good", "tied", "noisy", "crooked", "slow", "dropout", "exact", "leaky"],
)
def test_each_rule_holds_and_fails_where_it_should(change, fails):
    settings = experiment.PRESETS["laptop"]
    found = claims_module.claims_of(settings, _results(settings, **{**GOOD, **change}), seed=0)
    assert [claim.name for claim in found] == NAMES
    assert {claim.name for claim in found if not claim.holds} == fails


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="deep_seeds must be at least 2, got 1"):
        dataclasses.replace(experiment.PRESETS["laptop"], deep_seeds=1)
    with pytest.raises(ValueError, match="patterns must have the same number of letters"):
        dataclasses.replace(experiment.PRESETS["laptop"], patterns=("i_i_i_i", "1_11_11_11"))


@pytest.mark.slow
def test_smoke_writes_all_its_files_and_goes_on_from_them(tmp_path, monkeypatch):
    monkeypatch.setattr(_program.Run, "mesh", None)  # two seeds would fill all devices
    found = _execute(tmp_path)
    assert [claim.name for claim in claims.load_claims(tmp_path / "claims.json")] == NAMES
    assert {p.stem for p in (tmp_path / "figures").glob("*.png")} >= PICTURES
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    smoke = experiment.PRESETS["smoke"]
    assert len(rows) == len(shallow.conditions(smoke)) + 6 + len(smoke.patterns)
    page = (tmp_path / "index.html").read_text()
    assert all(section.title in page for section in found.sections)
    again = _execute(tmp_path)  # every stage is read from disk
    assert [c.measured for c in again.claims] == [c.measured for c in found.claims]


@pytest.mark.slow
def test_the_papers_path_runs_on_files_in_the_real_format(tmp_path, monkeypatch):
    """20 pictures of CIFAR-10's format; crops, drops of the rate, every network at a small size."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(TFDS))
    monkeypatch.setattr(_program.Run, "mesh", None)
    found = _execute(
        tmp_path,
        preset="paper",
        width=8,
        num_unique=(1, 8),
        noises=(1e-6, 1e-4, 1.0),
        shallow_batch=8,
        shallow_steps=40,
        shallow_seeds=2,
        record_every=10,
        record_until=40,
        depth=7,
        widen=1,
        deep_batch=10,
        epochs=1,
        deep_seeds=2,
        patterns=("i_i_i_i", "1_1_1_1"),
        leaky_epochs=1,
        leaky_seeds=2,
        microbatch=5,
    )
    assert [claim.name for claim in found.claims] == NAMES


def test_a_set_that_is_not_there_is_refused_with_the_command_that_fetches_it(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(_program.RefusedError, match="download_and_prepare"):
        _execute(tmp_path, preset="paper")
