"""Kernels of networks that see images, on disk, and what they learn from how many examples."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments._program import RefusedError, Run
from poster_jax import kernels
from poster_jax.core import progress
from poster_jax.core.training.identity import digest_arrays
from poster_jax.kernels import predict, stax

KINDS = ("nngp", "ntk")
W_STD, B_STD = 2**0.5, 0.1  # ReLU layers that keep the scale of what they see
FIVE_LINES = """\
from poster_jax import kernels as nt
from poster_jax.kernels import stax
_, _, kernel_fn = stax.serial(stax.Dense(512, 1.5, 0.05), stax.Erf(), stax.Dense(1, 1.5, 0.05))
predict_fn = nt.predict.gradient_descent_mse_ensemble(kernel_fn, x_train, y_train, diag_reg=1e-4)
mean, covariance = predict_fn(x_test=x_test, get="ntk", compute_cov=True)
"""


class Images(NamedTuple):
    """A pool to draw training sets from, and a test set.

    Attributes:
      x: (pool, height, width, channels), each image of mean square 1.
      y: (pool,).
      test_x: (test, ...), likewise.
      test_y: (test,).
      num_classes: how many.
    """

    x: Any
    y: Any
    test_x: Any
    test_y: Any
    num_classes: int

    @property
    def targets(self) -> np.ndarray:
        """Labels of the pool as centred vectors: 1 - 1/classes at the class, -1/classes else."""
        return np.eye(self.num_classes)[self.y] - 1 / self.num_classes


def images(run: Run) -> Images:
    """The data set: the pool first, from the training part on, then the test set.

    The digits have 1,000 training examples, and the largest set is one of 1,024: there the pool
    takes some of the test part, and what is left of it is the test set.
    """
    chosen = run.settings
    found = run.load(chosen.dataset, scaling=chosen.scaling, seed=run.seed)
    x, y = (
        np.concatenate([np.asarray(a), b]) for a, b in zip(found.train, found.test, strict=True)
    )
    pool = chosen.pool_size
    if max(chosen.sizes) > pool or pool >= len(y):
        raise RefusedError(
            f"pool_size must be at least {max(chosen.sizes)}, the largest training set, and leave "
            f"some of the {len(y)} examples to test on, got {pool}."
        )
    x, end = _unit_second_moment(x), pool + chosen.test_size
    return Images(x[:pool], y[:pool], x[pool:end], y[pool:end], found.num_classes)


def kernel_of(name: str, settings: Any) -> Any:
    """The kernel function of a network by its name."""
    conv = [_layer(stride) for stride in settings.strides]
    networks = {
        "FC": lambda: [stax.Flatten(), *(_dense() for _ in range(3)), stax.Dense(1)],
        "CNN-Flatten": lambda: [*conv, stax.Flatten(), stax.Dense(1)],
        "CNN-GAP": lambda: [*conv, stax.GlobalAvgPool(), stax.Dense(1)],
        "WideResNet": lambda: [
            stax.Conv(1, (3, 3), padding="SAME"),
            *(_residual_group(settings.blocks, stride) for stride in (1, 2, 2)),
            stax.GlobalAvgPool(),
            stax.Dense(1),
        ],
    }
    return stax.serial(*networks[name]())[2]


def compute_kernels(run: Run, task: Images) -> dict[str, Any]:
    """Network -> (train kernels, test kernels) mapped from disk; a killed run goes on."""
    found = {}
    for name in run.settings.networks:
        kernel_fn, size = kernel_of(name, run.settings), dict(run.settings.tiles)[name]
        parts = []
        for part, pair in (("train", (task.x, None)), ("test", (task.test_x, task.x))):
            # Other images or layers, another folder: what is there is never mixed with them.
            spec = (run.settings.strides, run.settings.blocks, size, jax.default_backend())
            arrays = [a for a in pair if a is not None]
            mark = digest_arrays([*arrays, np.frombuffer(repr(spec).encode(), np.uint8)])[:12]
            folder = run.workdir / "kernels" / f"{name}_{part}_{mark}"
            options: dict[str, Any] = {"batch_size": min(size, len(pair[0]))}
            parts.append(
                kernels.kernel_to_disk(
                    folder, kernel_fn, *pair, get=KINDS, progress=progress.progress_bar, **options
                )
            )
        found[name] = tuple(parts)
    return found


def learning_curves(run: Run, task: Images, found: dict[str, Any]) -> dict[Any, dict[str, Any]]:
    """(network, kind) -> accuracy, error and shuffled accuracy, each (draws, sizes)."""
    chosen, curves = run.settings, {}
    cases = [(name, kind) for name in found for kind in KINDS]
    with run.progress("learning curves", len(cases)) as update:
        for done, (name, kind) in enumerate(cases):
            update(done, f"{name}, {kind}")
            train, test = (getattr(part, kind) for part in found[name])
            rows = [_scores(run, task, train, test, draw) for draw in range(chosen.num_draws_of_x)]
            curves[name, kind] = {
                what: np.array([[score[what] for score in row] for row in rows])
                for what in rows[0][0]
            }
    return curves


def _scores(run: Run, task: Images, train: Any, test: Any, draw: int) -> list[dict[str, float]]:
    """One nested sequence of training sets; the same for every kernel."""
    rng = np.random.default_rng([run.seed, draw])
    order = rng.permutation(len(task.y))
    test_targets = np.eye(task.num_classes)[task.test_y] - 1 / task.num_classes
    scores = []
    for size in run.settings.sizes:
        rows = order[:size]
        shuffled = task.targets[rng.permutation(rows)]
        targets = np.concatenate([task.targets[rows], shuffled], axis=1)
        outputs = _regress(run, train, test, rows, targets)
        true, wrong = np.split(outputs, 2, axis=1)
        scores.append(
            {
                "accuracy": float(np.mean(true.argmax(1) == task.test_y)),
                "shuffled": float(np.mean(wrong.argmax(1) == task.test_y)),
                "error": float(np.mean(np.sum((true - test_targets) ** 2, axis=1))),
            }
        )
    return scores


def _regress(run: Run, train: Any, test: Any, rows: Any, targets: Any) -> np.ndarray:
    """Outputs on the test set of networks of infinite width trained on `rows` for ever."""
    rows, places = np.sort(rows), np.argsort(rows)
    targets, options = targets[places], {"diag_reg": run.settings.diag_reg}
    with jax.enable_x64(True):
        if len(rows) <= run.settings.in_memory:
            kernel, cross = train[rows][:, rows], test[:, rows]
            arrays = (np.asarray(a, np.float64) for a in (kernel, targets, cross))
            return np.asarray(_posterior_mean(*arrays, **options))
        folder = run.workdir / "kernels" / "factor"
        shutil.rmtree(folder, ignore_errors=True)  # a killed run's, of another set perhaps
        folder.mkdir(parents=True)
        files = (folder / "kernel.npy", folder / "factor.npy")
        kernel = np.lib.format.open_memmap(files[0], "w+", np.float64, (len(rows), len(rows)))
        for block in _blocks(len(rows)):
            kernel[block] = train[rows[block]][:, rows]
        factor = predict.cholesky_to_disk(
            files[1], kernel, progress=progress.progress_bar, **options
        )
        weights = predict.cholesky_solve_from_disk(factor, targets)
        outputs = [np.asarray(test[b][:, rows], np.float64) @ weights for b in _blocks(len(test))]
        shutil.rmtree(folder)
        return np.concatenate(outputs)


@jax.jit  # one program for each size, not one for each operation and size
def _posterior_mean(kernel: Any, targets: Any, cross: Any, diag_reg: float) -> Any:
    return predict.gp_inference(kernel, targets, diag_reg=diag_reg)("nngp", cross)


def five_lines() -> dict[str, Any]:
    """Runs FIVE_LINES: its prediction with its deviation, and how far it is from plain numpy's."""
    x = np.linspace(-2, 2, 6)[:, None]
    test = np.linspace(-4, 4, 81)[:, None]
    names: dict[str, Any] = {
        name: jnp.asarray(values)
        for name, values in (("x_train", x), ("y_train", np.sin(2 * x)), ("x_test", test))
    }
    exec(compile(FIVE_LINES, "five lines", "exec"), names)
    mean, covariance = (np.asarray(names[name]) for name in ("mean", "covariance"))
    expected = _erf_regression(x, np.sin(2 * x), test)
    return {
        "lines": len(FIVE_LINES.strip().splitlines()),
        "x": test[:, 0],
        "train": (x[:, 0], np.sin(2 * x)[:, 0]),
        "mean": mean[:, 0],
        "deviation": np.sqrt(np.diagonal(covariance)),
        "difference": float(np.max(np.abs(mean - expected))),
    }


def _erf_regression(x: Any, y: Any, test: Any) -> np.ndarray:
    """The same mean from the closed form of one hidden layer, in numpy, on its own feet."""

    def ntk(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        k, va, vb = (2.25 * c + 0.0025 for c in (a @ b.T, a**2, b.T**2))
        product = (1 + 2 * va) * (1 + 2 * vb)
        dual = 2 / np.pi * np.arcsin(2 * k / np.sqrt(product))
        slope = 4 / np.pi / np.sqrt(product - 4 * k**2)
        return 2.25 * dual + 0.0025 + 2.25 * k * slope

    kernel = ntk(x, x)
    kernel += 1e-4 * np.trace(kernel) / len(x) * np.eye(len(x))
    return ntk(test, x) @ np.linalg.solve(kernel, y)


def compare_devices(task_x: Any, settings: Any) -> dict[str, Any]:
    """The kernels of one program on one device and on all there are: difference and seconds."""
    names = settings.networks[:2]
    x, count = task_x[:64], jax.local_device_count()
    found: dict[str, Any] = {"devices": count, "difference": 0.0, "control": 0.0}
    for name in names:
        kernel_fn, answers = kernel_of(name, settings), []
        for devices in (1, count):
            tiled = kernels.batch(kernel_fn, batch_size=8, device_count=devices)
            jax.block_until_ready(tiled(x, None, KINDS))
            start = time.perf_counter()
            answers.append(jax.block_until_ready(tiled(x, None, KINDS)))
            found[f"seconds, {name}, {devices}"] = time.perf_counter() - start
        for kind in KINDS:
            one, many = (np.asarray(getattr(a, kind), np.float64) for a in answers)
            apart = np.max(np.abs(one - many)) / np.max(np.abs(one))
            turned = np.max(np.abs(one - np.roll(many, 1))) / np.max(np.abs(one))
            found["difference"] = max(found["difference"], float(apart))
            found["control"] = max(found["control"], float(turned))
    return found


def on_devices(run: Run, task: Images) -> Callable[[], dict[str, Any]]:
    """A function that answers `compare_devices`: here where there are several.

    Where there is one, a process of eight CPU devices starts at once and works beside this one.
    """
    if jax.local_device_count() > 1:
        return partial(compare_devices, task.x, run.settings)
    inputs = run.workdir / "devices.npz"
    np.savez(inputs, x=task.x[:64])
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "experiments._image_kernels", str(inputs), run.preset]
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    home = Path(__file__).parents[1]
    process = subprocess.Popen(command, env=environment, cwd=home, **options)

    def finish() -> dict[str, Any]:
        answer, words = process.communicate()
        inputs.unlink()
        if process.returncode:
            raise RefusedError(f"the process of eight devices failed: {words[-500:]}")
        return json.loads(answer)

    return finish


def _layer(stride: int) -> Any:
    conv = stax.Conv(1, (3, 3), (stride, stride), padding="SAME", W_std=W_STD, b_std=B_STD)
    return stax.serial(conv, stax.Relu())


def _dense() -> Any:
    return stax.serial(stax.Dense(1, W_STD, B_STD), stax.Relu())


def _residual_group(blocks: int, stride: int) -> Any:
    """Blocks of two convolutions beside a shortcut, which the first block convolves as well."""

    def block(stride: int, shortcut: Any) -> Any:
        main = [stax.Relu(), stax.Conv(1, (3, 3), (stride, stride), padding="SAME")]
        main += [stax.Relu(), stax.Conv(1, (3, 3), padding="SAME")]
        return stax.serial(
            stax.FanOut(2), stax.parallel(stax.serial(*main), shortcut), stax.FanInSum()
        )

    wider = stax.Conv(1, (3, 3), (stride, stride), padding="SAME")
    return stax.serial(
        block(stride, wider), *(block(1, stax.Identity()) for _ in range(blocks - 1))
    )


def _unit_second_moment(x: np.ndarray) -> np.ndarray:
    squares = np.mean(x.astype(np.float64) ** 2, axis=tuple(range(1, x.ndim)), keepdims=True)
    return (x / np.sqrt(np.maximum(squares, np.finfo(np.float32).tiny))).astype(np.float32)


def _blocks(size: int, step: int = 1024) -> Iterator[slice]:
    return (slice(start, min(start + step, size)) for start in range(0, size, step))


if __name__ == "__main__":
    from experiments.neural_tangents import PRESETS

    x = np.load(sys.argv[1])["x"]
    print(json.dumps(compare_devices(x, PRESETS[sys.argv[2]])))
