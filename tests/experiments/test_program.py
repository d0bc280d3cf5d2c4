"""What every experiment's wiring promises: files, flags, one sentence for bad ones, resumption."""

import dataclasses
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import _program
from poster_jax.core import claims, report

CLAIM = claims.Claim(
    poster="toy",
    name="T1",
    claim="Squares are positive.",
    paper="exact",
    measured=1.0,
    unit="smallest square",
    interval=None,
    interval_of="",
    rule="above 0",
    holds=True,
)


@dataclasses.dataclass(frozen=True)
class Settings:
    size: int = _program.setting(3, "how many")
    scale: float = _program.setting(1.0, "how large")
    group_size: int = _program.setting(2, "side by side")


def toy(run):
    values = run.population("squares", lambda shared, x: shared * x**2, 1.0, jnp.arange(1.0, 4.0))
    run.log(values=values, bad=np.array([np.nan, 1.0]))
    figure = report.strips({"squares": values}, ylabel="square")
    drawn = report.picture(figure, name="squares", alt="three points", caption="Squares.")
    section = report.Section("Squares", "Some.", pictures=[drawn])
    return _program.Findings("Toy", "Squares.", [CLAIM], [section])


def run_toy(workdir, experiment=toy, **changes):
    options = {"name": "toy", "preset": "smoke", "settings": Settings(), "seed": 0}
    return _program.execute(experiment, workdir=workdir, **{**options, **changes})


def test_a_run_writes_claims_metrics_pictures_and_page(tmp_path):
    run_toy(tmp_path)
    assert claims.load_claims(tmp_path / "claims.json") == [CLAIM]
    (row,) = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert row == {"values": [1.0, 4.0, 9.0], "bad": [None, 1.0]}
    assert [p.name for p in (tmp_path / "figures").iterdir()] == ["squares.png"]
    page = (tmp_path / "index.html").read_text()
    assert "Squares are positive." in page
    assert "data:image/png;base64," in page


def test_a_second_run_leaves_the_same_files(tmp_path):
    run_toy(tmp_path)
    names = ("claims.json", "metrics.jsonl")
    before = [(tmp_path / name).read_bytes() for name in names]
    run_toy(tmp_path)
    assert [(tmp_path / name).read_bytes() for name in names] == before


def test_finished_stages_are_read_back_after_an_interruption(tmp_path):
    """The first run dies after its first stage; the second computes the second stage alone."""
    computed = []

    def counted(name, x):
        jax.debug.callback(lambda: computed.append(name))
        return jax.random.normal(jax.random.key(0), (3,)) * x

    def experiment(run, *, dies):
        first = run.stage("first", lambda x: counted("first", x), jnp.ones(()))
        if dies:
            raise KeyboardInterrupt
        second = run.stage("second", lambda x: counted("second", x), first)
        run.log(second=second)
        return toy(run)

    with pytest.raises(KeyboardInterrupt):
        run_toy(tmp_path / "broken", lambda run: experiment(run, dies=True))
    for place in ("broken", "unbroken"):
        run_toy(tmp_path / place, lambda run: experiment(run, dies=False))
    jax.effects_barrier()
    assert computed == ["first", "second", "first", "second"]
    rows = [(tmp_path / place / "metrics.jsonl").read_bytes() for place in ("broken", "unbroken")]
    assert rows[0] == rows[1]


@pytest.mark.parametrize("what", ["another program", "another argument"])
def test_a_stage_of_another_program_or_argument_is_computed_anew(tmp_path, what):
    run = _program.Run("toy", "smoke", Settings(), tmp_path, 0)
    assert float(run.stage("s", lambda x: x + 1, jnp.ones(()))) == 2
    if what == "another program":
        assert float(run.stage("s", lambda x: x + 2, jnp.ones(()))) == 3
    else:
        assert float(run.stage("s", lambda x: x + 1, 2 * jnp.ones(()))) == 3


def test_a_population_is_spread_over_the_devices(tmp_path):
    assert jax.device_count() == 8  # tests/conftest.py
    run = _program.Run("toy", "smoke", Settings(), tmp_path, 0)
    found = run.population("p", lambda shared, x: shared + x, 1.0, jnp.arange(16.0))
    np.testing.assert_array_equal(found, 1 + np.arange(16.0))


def _program_run(*arguments):
    command = [sys.executable, "-m", "experiments.relative_flatness", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(
    ("flag", "word"),
    [
        ("--preset=nosuch", "preset"),
        pytest.param("--seed=-1", "seed", marks=pytest.mark.slow),
        pytest.param("--workdir=/proc/nosuch", "workdir", marks=pytest.mark.slow),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [
                ("--seed=x", "seed"),
                ("--num_seeds=0", "num_seeds"),
                ("--nosuch=3", "nosuch"),
                ("--network=nosuch", "network"),
                ("--dataset=nosuch", "nosuch"),
                ("--label_noise=1.5", "label_noise"),
                ("stray", "stray"),
            ]
        ),
    ],
)
def test_a_bad_flag_ends_in_one_sentence(tmp_path, flag, word):
    done = _program_run("--preset=smoke", f"--workdir={tmp_path}", flag)
    assert done.returncode != 0
    assert "Traceback" not in done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1
    assert word in lines[0]


def test_help_names_every_flag():
    done = _program_run("--help")
    for name in ("preset", "workdir", "seed", "num_seeds", "label_noise"):
        assert f"--{name}" in done.stdout.replace("[no]", "")
