"""The demo's page holds what it promises, loads nothing, and is not trained twice."""

import json
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.portrait.jacobian import measure
from experiments.portrait.subject import Subject
from experiments.portrait.width import FAMILIES, _relative_errors, scaled
from poster_jax.core import models


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    _demo(folder)
    return folder


def _demo(folder):
    command = [sys.executable, "-m", "experiments.demo", "--preset=smoke", f"--workdir={folder}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_every_section_and_picture_is_on_the_page(workdir):
    page = (workdir / "index.html").read_text()
    for words in (
        "Training",
        "Curvature of the loss",
        "Relative flatness",
        "Kernels",
        "Noise of the gradients",
        "Jacobians",
        "Width",
        "test accuracy",
    ):
        assert words in page
    pictures = {p.stem for p in (workdir / "figures").glob("*.png")}
    assert pictures == {
        "training_accuracy",
        "training_loss",
        "hessian_spectrum_mlp",
        "hessian_spectrum_cnn",
        "flatness_layers_mlp",
        "flatness_layers_cnn",
        "flatness_rescaling",
        "kernel_spectrum_mlp",
        "kernel_spectrum_cnn",
        "noise_quantiles",
        "jacobian_spectrum_mlp",
        "jacobian_spectrum_cnn",
        "gradient_depth",
        "width_scaling_mlp",
        "width_scaling_cnn",
    }
    assert page.count("data:image/png;base64,") == len(pictures)


@pytest.mark.slow
def test_the_page_loads_nothing(workdir):
    page = (workdir / "index.html").read_text()
    assert not re.search(r"""(src|href)=["'](https?:)?//""", page)
    assert "<script" not in page


@pytest.mark.slow
def test_metrics_hold_the_training_of_both_networks(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    losses = {name: [] for name in ("MLP", "CNN")}
    for row in rows:
        if "train_loss" in row:
            losses[row["network"]].append(row["train_loss"])
    for name, values in losses.items():
        assert len(values) > 3, name
        assert values[-1] < values[0], name


@pytest.mark.slow
def test_a_second_run_reads_the_trained_networks_and_gives_the_same_page(workdir):
    before = (workdir / "index.html").read_text()
    steps = sorted(p.name for p in workdir.glob("training/*/checkpoints/*"))
    _demo(workdir)
    after = (workdir / "index.html").read_text()
    seconds = re.compile(r"seconds.*?\d+", re.S)
    assert seconds.sub("", after) == seconds.sub("", before)
    assert sorted(p.name for p in workdir.glob("training/*/checkpoints/*")) == steps


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n == "CNN")) for n in FAMILIES]
)
def test_networks_of_any_width_are_the_modules_and_learn_at_one_rate(name):
    """In their units the kernel df.df has one mean at every width, up to 1/n."""
    family = FAMILIES[name]
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 8, 1)), jnp.float32)
    init_fn, apply_fn = scaled(family, x)
    model = models.from_linen(family.module(family.own))
    key = jax.random.key(0)
    params = model.init(key, x[None])
    wants = model.apply_fn(params, x[None])[:, 0]
    kernels = {layer: leaves["kernel"] for layer, leaves in params.items()}
    units = {layer: k * k[..., 0].size ** 0.5 for layer, k in kernels.items()}
    np.testing.assert_allclose(apply_fn(units, x[None]), wants, rtol=1e-5)
    drawn = init_fn(key, family.own)
    assert {layer: k.shape for layer, k in drawn.items()} == {
        layer: k.shape for layer, k in kernels.items()
    }

    def kernel(width, key):
        gradient = jax.grad(lambda params: apply_fn(params, x[None])[0])(init_fn(key, width))
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradient))

    few, many = (
        jax.jit(jax.vmap(lambda key, width=width: kernel(width, key)))(jax.random.split(key, 200))
        for width in (family.widths[0], family.own)
    )
    assert abs(few.mean() / many.mean() - 1) < 0.2


def test_jacobians_of_the_page_are_those_that_are_written_out():
    module = models.MLP((9, 5, 3))
    model = models.from_linen(module)
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(12, 2, 2, 1)).astype(np.float32), rng.integers(3, size=12)
    initial, params = (model.init(jax.random.key(seed), x) for seed in (0, 1))
    fields = dict.fromkeys(Subject._fields) | {"module": module, "apply_fn": model.apply_fn}
    fields |= {"initial": initial, "params": params, "test": (x, labels)}
    found = measure(Subject(**fields), jax.random.key(0, impl="unsafe_rbg"), 10)
    assert found["names"] == ["Dense_0", "Dense_1", "Dense_2"]
    for when, p in (("at the start", initial), ("at the end", params)):
        p = jax.tree.map(np.float64, p)
        whole, h, penalties, norms = np.eye(4), x[:10].reshape(10, 4).astype(float), [], []
        steps = []
        for i, name in enumerate(found["names"]):
            z = h @ p[name]["kernel"] + p[name]["bias"]
            h = np.maximum(z, 0) if i < 2 else z
            J = p[name]["kernel"].T * (z[:, :, None] > 0 if i < 2 else 1.0) + np.zeros((10, 1, 1))
            M = J @ np.swapaxes(J, 1, 2) - np.eye(J.shape[1])
            penalties.append((M**2).sum(axis=(1, 2)).mean() / J.shape[1])
            whole = J @ whole
            steps.append(J)
        softmax = np.exp(h) / np.exp(h).sum(axis=1, keepdims=True)
        back = (softmax - np.eye(3)[labels[:10]]) / 10
        for J in reversed(steps):
            norms.append(np.linalg.norm(back))
            back = np.einsum("bm,bmn->bn", back, J)
        values = np.linalg.svd(whole, compute_uv=False)
        np.testing.assert_allclose(found[when]["values"], values, atol=1e-5 * values.max())
        np.testing.assert_allclose(found[when]["profile"], norms[::-1], rtol=1e-4)
        penalties, errors = np.array(penalties), found[when]["errors"]
        assert np.all(abs(found[when]["penalties"] - penalties) < 4 * errors + 1e-5)
        assert np.all(errors < 0.3 * found[when]["penalties"])
        assert np.all(penalties >= found["floors"])
    np.testing.assert_allclose(found["floors"], [5 / 9, 0, 0])


def test_errors_of_the_ratios_are_the_spread_of_repeated_ones():
    rng = np.random.default_rng(0)
    kernel = rng.gamma(9.0, size=(2000, 300))
    motion = kernel * (1 + 0.5 * rng.normal(size=kernel.shape))
    spread = kernel.std(1) / kernel.mean(1)
    moved = motion.mean(1) / kernel.mean(1) ** 2
    wants = [np.std(ratio) / np.mean(ratio) for ratio in (spread, moved)]
    found = np.mean([_relative_errors(*pair) for pair in zip(kernel, motion, strict=True)], axis=0)
    np.testing.assert_allclose(found, wants, rtol=0.1)
