"""`train` is killed for real, and resumed; the bytes are those of a run that was not."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from poster_jax.core import checkpoints, training

PROGRAM = Path(__file__).with_name("training_program.py")


def start(workdir, *arguments):
    root = str(PROGRAM.parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, str(PROGRAM), str(workdir), *arguments]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def finish(process):
    _, errors = process.communicate(timeout=300)
    return process.returncode, errors


def bytes_of(workdir):
    with np.load(workdir / "final.npz") as arrays:
        state = [(a.dtype, a.shape, a.tobytes()) for a in arrays.values()]
    return state, (workdir / "metrics.jsonl").read_bytes()


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("unbroken")
    code, errors = finish(start(workdir))
    assert code == 0, errors
    return bytes_of(workdir)


def test_the_unbroken_run_writes_one_row_a_chunk_and_leaves_the_last_checkpoints(unbroken):
    rows = [json.loads(line) for line in unbroken[1].splitlines()]
    assert [row["step"] for row in rows] == list(range(10, 201, 10))
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert all(row["diverged_at"] == -1 and row["norm"] > 0 for row in rows)


# Killed while saving it meets all that it meets before, and half a checkpoint besides.
@pytest.mark.slow
@pytest.mark.parametrize("moment", ["before_save", "while_saving"])
def test_killed_at_the_worst_moments_it_resumes_to_the_same_bytes(tmp_path, unbroken, moment):
    code, _ = finish(start(tmp_path, moment))
    assert code == -signal.SIGKILL
    assert not (tmp_path / "final.npz").exists()
    rows = (tmp_path / "metrics.jsonl").read_bytes().splitlines()
    assert len(rows) == 6  # two rows are ahead of the checkpoint: they must not come twice
    assert checkpoints.latest(tmp_path / "checkpoints")[0] == 40
    code, errors = finish(start(tmp_path))
    assert code == 0, errors
    assert bytes_of(tmp_path) == unbroken


@pytest.mark.slow
def test_killed_from_outside_it_resumes_to_the_same_bytes(tmp_path, unbroken):
    process = start(tmp_path, "never", "0.2")
    while process.poll() is None and num_rows(tmp_path) < 9:
        time.sleep(0.01)
    assert process.poll() is None, process.stderr.read()
    process.kill()
    finish(process)
    assert not (tmp_path / "final.npz").exists()
    code, errors = finish(start(tmp_path))
    assert code == 0, errors
    assert bytes_of(tmp_path) == unbroken


def num_rows(workdir):
    path = workdir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def line_loss(params, batch):
    x, y = batch
    return jnp.mean((x * params - y) ** 2)


X = jnp.linspace(-1.0, 1.0, 12)
RUN = {
    "loss_fn": line_loss,
    "params": jnp.zeros(()),
    "data": (X, 2 * X),
    "key": jax.random.key(0),
    "optimizer": optax.adam(0.1),
    "num_steps": 8,
    "batch_size": 4,
    "chunk_steps": 4,
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished")
    training.train(**RUN, workdir=workdir)
    return workdir


def test_a_finished_run_is_read_back_and_not_run_again(tmp_path):
    first = training.train(**RUN, workdir=tmp_path)
    again = training.train(**RUN, workdir=tmp_path)
    assert again.history == first.history
    assert again.params == first.params
    assert int(again.state.step) == 8


def test_it_is_fit_in_chunks_bit_for_bit_and_leaves_the_callers_params_alone():
    options = {name: value for name, value in RUN.items() if name != "chunk_steps"}
    run, whole = training.train(**RUN), training.fit(**options)
    assert run.params == whole.params
    assert run.history[1]["loss"] == pytest.approx(float(whole.losses[4:].mean()))
    assert float(RUN["params"]) == 0.0


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("num_steps", {"num_steps": 12}),
        ("chunk_steps", {"chunk_steps": 2}),
        ("batch_size", {"batch_size": 3}),
        ("optimizer", {"optimizer": optax.adam(0.2)}),
        ("optimizer", {"optimizer": optax.sgd(0.1)}),
        ("optimizer", {"optimizer": optax.adam(optax.linear_schedule(0.1, 0.0, 8))}),
        ("data", {"data": (X, 3 * X)}),
        ("params", {"params": jnp.ones(())}),
        ("key", {"key": jax.random.key(1)}),
        ("loss_fn", {"loss_fn": lambda params, batch: line_loss(params, batch) + params**2}),
        ("metrics_fn", {"metrics_fn": lambda state: {"w": state.params}}),
    ],
)
def test_another_run_in_the_same_directory_is_refused_by_name(finished, name, change):
    before = (finished / "metrics.jsonl").read_bytes()
    with pytest.raises(ValueError, match=rf"{name}.* differs"):
        training.train(**{**RUN, **change}, workdir=finished)
    assert (finished / "metrics.jsonl").read_bytes() == before


def test_hyper_parameters_kept_in_the_optimiser_state_count_as_the_optimiser(tmp_path):
    adam = optax.inject_hyperparams(optax.adam)
    training.train(**{**RUN, "optimizer": adam(learning_rate=0.1)}, workdir=tmp_path)
    with pytest.raises(ValueError, match="optimizer differs"):
        training.train(**{**RUN, "optimizer": adam(learning_rate=0.2)}, workdir=tmp_path)


def test_arrays_that_the_loss_closes_over_count_as_the_loss(tmp_path):
    def with_weights(weights):
        loss = lambda params, batch: jnp.mean((params * batch[0][:4] - weights) ** 2)  # noqa: E731
        return {**RUN, "loss_fn": loss}

    training.train(**with_weights(jnp.arange(4.0)), workdir=tmp_path)
    training.train(**with_weights(jnp.arange(4.0)), workdir=tmp_path)
    with pytest.raises(ValueError, match="loss_fn differs"):
        training.train(**with_weights(jnp.arange(4.0) + 1), workdir=tmp_path)


def test_a_missing_file_of_rows_is_said(tmp_path):
    training.train(**RUN, workdir=tmp_path)
    (tmp_path / "metrics.jsonl").unlink()
    with pytest.raises(ValueError, match=r"metrics\.jsonl must hold"):
        training.train(**RUN, workdir=tmp_path)


def test_a_run_that_diverges_ends_with_its_chunk_and_says_at_which_step(tmp_path):
    wild = {**RUN, "optimizer": optax.sgd(1e30), "num_steps": 400, "chunk_steps": 10}
    run = training.train(**wild, workdir=tmp_path)
    whole = training.fit(**{k: v for k, v in wild.items() if k != "chunk_steps"})
    assert bool(run.diverged)
    assert int(run.diverged_at) == int(whole.diverged_at) > 0
    assert run.history[-1]["loss"] is None  # strict JSON: no NaN
    assert len(run.history) == 1
    again = training.train(**wild, workdir=tmp_path)
    assert int(again.diverged_at) == int(run.diverged_at)


def test_run_chunks_takes_a_population_and_ends_when_all_have_diverged(tmp_path):
    def advance(state, start, steps):
        after = state + steps
        return after, {"loss": 1.0 / after, "diverged_at": jnp.where(after > LIMITS, start, -1)}

    options = {"num_steps": 100, "chunk_steps": 5, "workdir": tmp_path}
    run = training.run_chunks(advance, jnp.zeros(3), **options)
    assert run.diverged_at.tolist() == [10, 20, 5]  # the first step, not the last one said
    assert [row["step"] for row in run.history] == [5, 10, 15, 20, 25]


LIMITS = jnp.array([12.0, 24.0, 6.0])


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"num_steps": 0}, ValueError, "num_steps must be at least 1, got 0"),
        ({"chunk_steps": 0}, ValueError, "chunk_steps must be at least 1, got 0"),
        ({"keep": 0}, ValueError, "keep must be at least 1, got 0"),
        ({"batch_size": 13}, ValueError, "batch_size must be at most the number of examples, 12"),
        ({"metrics_fn": lambda state: state.params}, TypeError, "metrics_fn must return a dict"),
        ({"metrics_fn": lambda s: {"loss": s.params}}, ValueError, "metrics_fn must not return"),
        ({"metrics_fn": 3}, TypeError, "metrics_fn must be a function"),
    ],
)
def test_bad_input_of_train_is_named(change, error, message):
    with pytest.raises(error, match=message):
        training.train(**{**RUN, **change})
