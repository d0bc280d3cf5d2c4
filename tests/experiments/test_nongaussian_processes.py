"""The experiment's fits against known exponents; it runs, and says what fails."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest

from experiments import _finite_priors as priors
from experiments import _nongaussian_claims as found_claims
from experiments import _program
from experiments import nongaussian_processes as experiment
from poster_jax.core import claims

TFDS = pathlib.Path(__file__).parents[1] / "data" / "tfds"
NAMES = ["C1 (entries)", "C1 (order)", "C2", "C3 (evidence)", "C3 (test error)"]


def test_a_slope_is_found_under_noise_that_hides_it_at_the_wide_end():
    rng = np.random.default_rng(0)
    widths = np.array([8, 16, 32, 64])
    size = rng.normal(size=30)
    stderr = np.full((4, 30), 0.01)
    errors = size * (widths[:, None] / 8.0) ** -2 + stderr * rng.normal(size=(4, 30))
    assert found_claims.fitted_slope(errors, stderr, widths) == pytest.approx(-2, abs=0.05)
    logs = np.polyfit(np.log(widths), np.log(np.abs(errors)).mean(1), 1)[0]
    assert logs > -1.9  # what the plain fit makes of the same numbers
    zeroth = size * (widths[:, None] / 8.0) ** -1 + stderr * rng.normal(size=(4, 30))
    assert found_claims.fitted_slope(zeroth, stderr, widths) == pytest.approx(-1, abs=0.05)


def test_the_share_of_entries_falls_when_the_prediction_is_wrong():
    rng = np.random.default_rng(1)
    V = np.stack([np.eye(6) + 1.0] * 4)
    G1, K = rng.normal(size=(4, 6)), np.ones((4, 6))
    width = 256
    shift = G1 / width + 1e-4 * rng.normal(size=(20, 4, 6))
    cov = V / width + 1e-5 * rng.normal(size=(20, 4, 6, 6))
    flow = priors.Flow(K, G1, V, shift, cov)
    assert found_claims.share_within(flow, width) == 1
    assert found_claims.share_within(flow._replace(V=2 * V), width) < 0.5
    assert found_claims.without_vertex(flow, width) < 0.5


def test_the_best_width_of_a_subset_is_chosen_by_the_others():
    """Evidence that peaks at another width in each subset gains nothing by itself."""

    class Exact:
        pass

    subsets = []
    for index in range(3):
        exact = Exact()
        exact.log_evidence, exact.mean = Exact(), Exact()
        exact.log_evidence.mean = np.eye(3)[index]
        exact.mean.mean = np.zeros((3, 2, 1))
        exact.effective_sample_size = np.full(3, 1000.0)
        zeroth = (np.zeros((3, 2, 1)), None, np.zeros(3))
        subsets.append(priors.Subset(exact, None, zeroth, np.ones(2), None, 1.0))
    found = found_claims.gains(subsets)
    np.testing.assert_array_equal(found["evidence"], 0)
    np.testing.assert_array_equal(found["error"], 0)


SMALL = {
    "depth": 2, "flow_widths": (16, 64), "flow_budget": 20_000, "order_widths": (4, 8),
    "order_budget": 20_000, "num_subsets": 2, "num_controls": 1, "widths": (8, 16),
    "num_samples": 200, "num_resamples": 50, "num_neurons": 256,
}  # fmt: skip


def _execute(workdir, preset, **overrides):
    settings = dataclasses.replace(experiment.PRESETS[preset], **SMALL, **overrides)
    return _program.execute(
        experiment.experiment, name="nongaussian_processes", preset=preset, settings=settings,
        workdir=workdir, seed=0,
    )  # fmt: skip


@pytest.mark.slow
def test_it_runs_from_flags_to_page(tmp_path):
    found = _execute(tmp_path, "smoke")
    assert [claim.name for claim in found.claims] == NAMES
    assert [c.measured for c in claims.load_claims(tmp_path / "claims.json")] == [
        c.measured for c in found.claims
    ]
    pictures = {picture.name for section in found.sections for picture in section.pictures}
    assert {path.stem for path in (tmp_path / "figures").glob("*.png")} == pictures
    assert {
        "vertex_over_depth", "density_of_an_output", "posterior_bands", "evidence_over_width",
    } <= pictures  # fmt: skip
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 5 * 2 + 2 + 1  # flows, subsets, controls


@pytest.mark.slow
def test_the_papers_path_runs_on_files_in_the_real_format(tmp_path, monkeypatch):
    """The vertex in factors, of images of MNIST."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(TFDS))
    found = _execute(
        tmp_path, "paper", classes=(4, 9), components=2, num_train=3, num_test=1, rank=10
    )
    assert [claim.name for claim in found.claims] == NAMES
    assert (tmp_path / "figures" / "posterior_errors.png").exists()


def test_the_papers_preset_is_larger():
    paper, laptop = experiment.PRESETS["paper"], experiment.PRESETS["laptop"]
    assert paper.dataset == "tfds:mnist"
    assert paper.form == "factored"
    assert paper.num_train >= 100 > laptop.num_train
    assert max(paper.flow_widths) == 512
