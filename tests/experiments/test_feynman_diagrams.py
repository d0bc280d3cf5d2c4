"""The experiment's rules: what makes a claim fail, and that a small run writes everything."""

import dataclasses
import json

import numpy as np
import pytest

from experiments import _feynman_report as rules
from experiments import _program
from experiments import _wide_correlators as wide
from experiments import feynman_diagrams as experiment
from poster_jax.finite_width import feynman

WIDTHS = [16, 32, 64, 128]


def _population(slopes):
    """Correlators of known exponents, a little noisy."""
    rng = np.random.default_rng(0)
    measured = {}
    for (label, c), slope in zip(wide.CORRELATORS.items(), slopes, strict=True):
        samples = [n**slope * (1 + 0.1 * rng.normal(size=2000)) for n in WIDTHS]
        found = feynman.measurement_from_samples(samples, widths=WIDTHS)
        measured[label] = found._replace(correlator=c) if not c.connected else found
    fitted = {
        label: feynman.fit_exponent(m, bound=wide.CORRELATORS[label].exponent_bound() * 1.0)
        for label, m in measured.items()
    }
    return wide.Population(measured, fitted, {})


BOUNDS = [float(c.exponent_bound()) for c in wide.CORRELATORS.values()]


def test_the_bound_s_claim_holds_at_the_bound_and_fails_above_it():
    assert rules._bound_claim({"a, 1": _population(BOUNDS)}).holds
    above = [bound + 0.5 * (k == 3) for k, bound in enumerate(BOUNDS)]
    failed = rules._bound_claim({"a, 1": _population(above)})
    assert not failed.holds
    assert failed.measured == 1
    assert list(wide.CORRELATORS)[3] in failed.unit


def test_the_claim_of_tight_and_loose_bounds_needs_both():
    assert not rules._tight_claim({"a, 1": _population(BOUNDS)}).holds
    below = [bound - (k == 3) for k, bound in enumerate(BOUNDS)]
    assert rules._tight_claim({"a, 1": _population(below)}).holds


def _training(kernel, error):
    widths = np.array([16, 32, 64, 128])
    rng = np.random.default_rng(0)
    noise = 1 + 0.1 * rng.normal(size=(4, 50, 6))
    moved, off = (widths[:, None, None] ** float(s) * noise for s in (kernel, error))
    return wide.Training(widths, moved, off, moved, off, np.zeros((4, 50, 6, 2)))


@pytest.mark.parametrize(
    ("kernel", "error", "holds"),
    [(-1, -2, [True, True]), (-0.5, -2, [False, True]), (-1, -1, [True, False])],
)
def test_training_s_claims_follow_the_slopes(kernel, error, holds):
    assert [c.holds for c in rules._training_claims(_training(kernel, error))] == holds


def test_a_broken_theorem_would_be_seen():
    # (df.df)^2 with a constant where its bound is 0 is fine; with the chain's label it is not.
    wrong = feynman.Polynomial(("n",), {(0,): 1.0})
    run = dataclasses.make_dataclass("Run", ["settings"])(experiment.PRESETS["smoke"])
    population = _population(BOUNDS)
    fine = population._replace(exact={"df.df df.df": wrong})
    broken = population._replace(exact={"df.ddf.ddf.df": wrong})
    assert rules._theorem_claim(run, {"a, 1": fine}).holds
    assert not rules._theorem_claim(run, {"a, 1": broken}).holds


def test_small_correlators_are_one_of_each_kind():
    found = wide.small_correlators(2)
    assert len({(c.num_tensors, c.contractions) for c in found}) == len(found)
    # Multigraphs of degree at most 2: unions of paths and cycles. Two vertices: 0, 1, 2 edges;
    # four: by hand, 0: 1; 1: 1; 2: double, path, two pairs; 3: path, triangle, double + pair;
    # 4: square, two doubles.
    assert len(found) == 3 + 1 + 1 + 3 + 3 + 2


def test_presets():
    laptop = experiment.PRESETS["laptop"]
    assert set(laptop.activations) == set(wide.ACTIVATIONS) - {"erf"}
    assert len(laptop.widths) == len(laptop.num_networks) >= 5
    assert len(laptop.channels) == len(laptop.num_convolutional)
    paper = experiment.PRESETS["paper"]
    assert max(paper.widths) == 2048
    with pytest.raises(ValueError, match="activations must be one of"):
        dataclasses.replace(laptop, activations=("swish",))


@pytest.mark.parametrize("pooling", [False, True])
def test_convolutional_networks_have_outputs_of_order_one(pooling, key, x64):
    network = wide.convolutional(lambda z: z, pooling=pooling)
    found = feynman.measure(
        feynman.correlator("f^2"), *network, {"x": wide.IMAGE}, key, widths=[4], num_networks=500
    )
    assert 0.01 < found.mean[0] < 10


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "overrides"),
    [
        ("smoke", {"activations": ("tanh",)}),
        ("paper", {"activations": ("erf",), "depths": (2,), "convolutions": ("flatten",),
                   "channels": (2, 3, 4), "num_convolutional": (20, 20, 20)}),
    ],
)  # fmt: skip
def test_a_small_run_writes_claims_and_pictures(tmp_path, preset, overrides):
    settings = dataclasses.replace(
        experiment.PRESETS[preset],
        **overrides,
        widths=(2, 4, 8),
        num_networks=(50, 50, 50),
        training_widths=(2, 4, 8),
        num_trained=2,
    )
    found = _program.execute(
        experiment.experiment,
        name="feynman_diagrams",
        preset=preset,
        settings=settings,
        workdir=tmp_path,
        seed=0,
    )
    assert [claim.name for claim in found.claims] == [
        "C1", "C2", "C3 (kernel)", "C3 (expansion)", "C4",
    ]  # fmt: skip
    assert len(json.loads((tmp_path / "claims.json").read_text())["claims"]) == 5
    assert {p.stem for p in (tmp_path / "figures").glob("*.png")} == {
        "exponents", "correlators", "diagrams", "kernel_over_time", "expansion_errors",
    }  # fmt: skip
    rows = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert len(rows) == len(wide.CORRELATORS) * (1 + len(settings.convolutions))
    assert "<img" in (tmp_path / "index.html").read_text()
