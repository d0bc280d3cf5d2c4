"""100 networks of the digits as one program, against torch training them one after another.

    python -m benchmarks.populations --json=out/benchmarks/populations.json

Both sides train the same 100 MLPs 64-96-48-10 from the same weights on the same batches, so that
their final losses must agree (column "difference"); torch is spared the drawing of the order, ours
draws it. Each row times both in this one run, one repeat of each in turn, and reports the medians;
`ratio` is how many times faster ours is. Compilation stands apart in `compile_s`. `of_peak` is the
rate of the arithmetic (three products a layer, two in the first) over the rate of large matrix
products on all cores, measured in turn with the rest: the bound that no form of the program passes.
About two minutes on two cores.
"""

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from jax.sharding import Mesh
from sklearn.datasets import load_digits

from poster_jax.core.devices import data_mesh
from poster_jax.core.training import epoch_order, fit, map_population

FLAGS = flags.FLAGS
_JSON = flags.DEFINE_string("json", None, "file to write the rows to")
_PEERS = flags.DEFINE_string("peers_python", ".venv-peers/bin/python", "a Python that has torch")
_REPEATS = flags.DEFINE_integer("repeats", 5, "timed repeats of each side", lower_bound=1)
_NETWORKS = flags.DEFINE_integer("networks", 100, "networks in the population", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", 100, "training steps of each network", lower_bound=1)

SIZES = (64, 96, 48, 10)
# Networks side by side on one device: their weights and activations stay in a core's cache.
GROUP = 5
OPTIMIZERS = {"sgd": optax.sgd(0.05), "adam": optax.adam(1e-3)}
TORCH = Path(__file__).parent / "peers" / "populations_torch.py"


def digits() -> tuple[np.ndarray, np.ndarray]:
    """1,000 of them, standardised."""
    x, y = load_digits(return_X_y=True)
    x = (x - x.mean(0)) / (x.std(0) + 1e-3)
    return x[:1000].astype(np.float32), y[:1000].astype(np.int32)


def init(key: jax.Array) -> list[tuple[jax.Array, jax.Array]]:
    """He's normal weights, zero biases."""
    shapes = list(itertools.pairwise(SIZES))
    keys = jax.random.split(key, len(shapes))
    return [
        (jax.random.normal(k, shape) * (2 / shape[0]) ** 0.5, jnp.zeros(shape[1]))
        for k, shape in zip(keys, shapes, strict=True)
    ]


def loss_fn(params: Any, batch: Any) -> jax.Array:
    """Cross-entropy of the MLP."""
    x, y = batch
    for kernel, bias in params[:-1]:
        x = jax.nn.relu(x @ kernel + bias)
    kernel, bias = params[-1]
    logits = x @ kernel + bias
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def batch_rows(key: jax.Array, batch: int, steps: int, num_examples: int) -> jax.Array:
    """The rows that `fit` takes at each step under `batch_key=key`, (steps, batch), for torch."""
    epoch_steps = num_examples // batch
    orders = jax.vmap(lambda e: epoch_order(key, e, num_examples))(
        jnp.arange(-(-steps // epoch_steps))
    )
    return orders[:, : epoch_steps * batch].reshape(-1, batch)[:steps]


class Torch:
    """The other process; one repeat of a case gives its seconds and final mean loss."""

    def __init__(self, python: str, inputs: Path) -> None:
        self._command = [python, str(TORCH), str(inputs)]

    def __enter__(self) -> "Torch":
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, *error: Any) -> None:
        self._process.stdin.close()
        self._process.wait(timeout=60)

    def run(self, batch: int, optimizer: str) -> tuple[float, float]:
        """Trains all networks once."""
        print(batch, optimizer, file=self._process.stdin, flush=True)
        seconds, loss = self._process.stdout.readline().split()
        return float(seconds), float(loss)


def compiled(
    batch: int, optimizer: str, keys: jax.Array, mesh: Mesh, *, shared: bool
) -> tuple[Callable[[], tuple[float, float]], float]:
    """One repeat of ours as a function, and the seconds that its compilation took."""
    x, y = digits()

    def train(key: jax.Array, x: Any, y: Any) -> Any:
        run = fit(
            loss_fn,
            init(key),
            (x, y),
            key,
            optimizer=OPTIMIZERS[optimizer],
            num_steps=_STEPS.value,
            batch_size=batch,
            batch_key=keys[0] if shared else key,
        )
        return loss_fn(run.params, (x, y)), run.params

    program = partial(map_population, train, in_axes=(0, None, None), group_size=GROUP, mesh=mesh)
    start = time.perf_counter()
    run = jax.jit(program).lower(keys, x, y).compile()
    seconds = time.perf_counter() - start

    def repeat() -> tuple[float, float]:
        start = time.perf_counter()
        losses, _ = jax.block_until_ready(run(keys, x, y))
        return time.perf_counter() - start, float(losses.mean())

    return repeat, seconds


def peak_flops(mesh: Mesh) -> Callable[[], tuple[float, float]]:
    """One repeat of large matrix products on each device: its seconds, operations a second."""
    size, products = 512, 8
    a = jax.random.normal(jax.random.key(0), (mesh.size, size, size)) / size

    def chain(a: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, products, lambda _, b: a @ b, a)

    run = jax.jit(partial(map_population, chain, mesh=mesh))

    def repeat() -> tuple[float, float]:
        start = time.perf_counter()
        jax.block_until_ready(run(a))
        seconds = time.perf_counter() - start
        return seconds, mesh.size * products * 2 * size**3 / seconds

    return repeat


def step_flops(batch: int) -> int:
    """Of one network's step: forward, by the weights, and by the inputs of all but the first."""
    products = [2 * a * b for a, b in itertools.pairwise(SIZES)]
    return batch * (3 * sum(products) - products[0])


def row(
    case: str,
    batch: int,
    ours: Callable[[], tuple[float, float]],
    theirs: Callable[[], tuple[float, float]] | None,
    peak: Callable[[], tuple[float, float]],
    compile_s: float,
) -> dict:
    """Medians of interleaved repeats of both sides."""
    sides = [peak, ours] if theirs is None else [peak, ours, theirs]
    losses = [side()[1] for side in sides]  # warms the caches
    repeats = [[side() for side in sides] for _ in range(_REPEATS.value)]
    rate = statistics.median(repeat[0][1] for repeat in repeats)
    medians = [statistics.median(repeat[i][0] for repeat in repeats) for i in range(len(sides))]
    work = step_flops(batch) * _STEPS.value * _NETWORKS.value
    found = {
        "case": case,
        "ours_s": medians[1],
        "peer": "torch, one after another",
        "peer_s": None,
        "ratio": None,
        "compile_s": compile_s,
        "of_peak": work / medians[1] / rate,
        "loss": losses[1],
    }
    if theirs is None:
        found["peer"] = f"torch: not installed at {_PEERS.value}"
    else:
        found |= {"peer_s": medians[2], "ratio": medians[2] / medians[1]}
        found["difference"] = abs(losses[2] - losses[1])
    print(json.dumps(found), file=sys.stderr)
    return found


def rows(torch: Torch | None, keys: jax.Array, mesh: Mesh) -> list[dict]:
    """Two batch sizes, two optimisers; every network its own batches, or all of them the same."""
    peak, found = peak_flops(mesh), []
    for batch in (16, 64):
        for optimizer in OPTIMIZERS:
            for shared in (False, True):
                ours, compile_s = compiled(batch, optimizer, keys, mesh, shared=shared)
                theirs = None if torch is None else partial(torch.run, batch, optimizer)
                batches = "one order of batches" if shared else "own batches"
                case = f"{_NETWORKS.value} MLPs, batch {batch}, {optimizer}, {batches}"
                found.append(row(case, batch, ours, theirs, peak, compile_s))
                if shared:
                    # torch's networks see batches of their own: another end, the same work.
                    found[-1].pop("difference", None)
    return found


def write_inputs(path: Path, keys: jax.Array) -> None:
    """Data, initial weights and the rows of every batch, for the other process."""
    x, y = digits()
    arrays = {"x": x, "y": y.astype(np.int64)}
    for layer, (kernel, bias) in enumerate(jax.vmap(init)(keys)):
        arrays |= {f"kernel{layer}": np.asarray(kernel), f"bias{layer}": np.asarray(bias)}
    for batch in (16, 64):
        rows = jax.vmap(lambda k, b=batch: batch_rows(k, b, _STEPS.value, len(x)))(keys)
        arrays[f"rows{batch}"] = np.asarray(rows, np.int64)
    np.savez(path, **arrays)


def main(_: Any) -> None:
    """Runs all rows and writes them."""
    # One CPU device a core: each runs its share of the networks in its own thread.
    jax.config.update("jax_num_cpu_devices", os.cpu_count())
    mesh, keys = data_mesh(), jax.random.split(jax.random.key(0), _NETWORKS.value)
    if Path(_PEERS.value).exists():
        with tempfile.TemporaryDirectory() as directory:
            inputs = Path(directory) / "inputs.npz"
            write_inputs(inputs, keys)
            with Torch(_PEERS.value, inputs) as torch:
                found = rows(torch, keys, mesh)
    else:
        found = rows(None, keys, mesh)
    if _JSON.value:
        Path(_JSON.value).parent.mkdir(parents=True, exist_ok=True)
        Path(_JSON.value).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    app.run(main)
