"""A grid of initial rates and seeds under AALR as one program, against torch one after another.

    python -m benchmarks.training --json=out/benchmarks/training.json

60 MLPs 64-96-48-10 on the digits, six initial rates from 1e-4 to 10 and ten seeds, momentum 0.9.
Both sides start from the same weights and see the same batches and run the same controller, so the
column "same_events" (share of all epochs in which both controllers did the same) should be near 1:
rounding decides near-ties, and where a training is chaotic the two then part. The other rows time
the controller itself: AALR against `core.training.fit` for the same number of steps, goal 1/1.03.
The parts `_training_*.py` add the rows of the rooms beside `learning_rate`. Medians of repeats in
turn; compilation apart. About five minutes on two cores.
"""

import itertools
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
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

from benchmarks import _training_batchnorm, _training_diversity, _training_sizes
from benchmarks._harness import Peer, in_turn, row, timed, write_rows
from poster_jax.core.devices import data_mesh
from poster_jax.core.training import epoch_order, fit, map_population
from poster_jax.learning_rate import fit_aalr

FLAGS = flags.FLAGS
_JSON = flags.DEFINE_string("json", None, "file to write the rows to")
_PEERS = flags.DEFINE_string("peers_python", ".venv-peers/bin/python", "a Python that has torch")
_REPEATS = flags.DEFINE_integer("repeats", 5, "timed repeats of each side", lower_bound=1)
_EPOCHS = flags.DEFINE_integer("epochs", 20, "epochs of each network", lower_bound=1)

SIZES, BATCH = (64, 96, 48, 10), 64
RATES, SEEDS = (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0), 10
# Networks side by side on one device: their weights and activations stay in a core's cache.
GROUP = 5
TORCH = Path(__file__).parent / "peers" / "training_torch.py"


def digits() -> tuple[Any, Any]:
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
    return optax.softmax_cross_entropy_with_integer_labels(x @ kernel + bias, y).mean()


def sgd(rate: Any) -> optax.GradientTransformation:
    """With momentum."""
    return optax.sgd(rate, momentum=0.9)


def under_aalr(epochs: int, key: Any, rate: Any, x: Any, y: Any) -> Any:
    """Events, and the parameters of the lowest loss."""
    run = fit_aalr(
        loss_fn,
        init(key),
        (x, y),
        key,
        optimizer_fn=sgd,
        num_epochs=epochs,
        batch_size=BATCH,
        initial_rate=rate,
        batch_key=key,
    )
    return run.history.event, run.params


def plainly(epochs: int, key: Any, rate: Any, x: Any, y: Any) -> Any:
    """As many steps at the initial rate."""
    run = fit(
        loss_fn,
        init(key),
        (x, y),
        key,
        optimizer=sgd(rate),
        num_steps=epochs * (len(x) // BATCH),
        batch_size=BATCH,
        batch_key=key,
    )
    return run.losses, run.params


def members() -> tuple[Any, Any]:
    """Key and initial rate of each network."""
    keys = jax.random.split(jax.random.key(0), SEEDS)
    return jnp.tile(keys, len(RATES)), jnp.repeat(jnp.asarray(RATES), SEEDS)


def compiled(one: Callable[..., Any], mesh: Mesh, *rows: Any) -> tuple[Callable[[], Any], float]:
    """One repeat (seconds, result) of a population as a function; seconds of its compilation."""
    args = (*rows, *digits())
    axes = (0, 0, None, None)
    program = partial(map_population, one, in_axes=axes, group_size=GROUP, mesh=mesh)
    start = time.perf_counter()
    run = jax.jit(program).lower(*args).compile()
    return partial(timed, run, *args), time.perf_counter() - start


def against_torch(torch: Peer, mesh: Mesh) -> dict[str, Any]:
    """The grid, and the share of epochs in which both sides did the same."""
    ours, compile_s = compiled(partial(under_aalr, _EPOCHS.value), mesh, *members())
    events = {}

    def our_repeat() -> float:
        seconds, (events["ours"], _) = ours()
        return seconds

    def torch_repeat() -> float:
        answer = torch.ask()
        events["torch"] = answer["events"]
        return answer["seconds"]

    medians = in_turn({"ours": our_repeat, "torch": torch_repeat}, _REPEATS.value)
    same = np.asarray(events["ours"]) == np.asarray(events["torch"])
    return row(
        f"AALR, {len(RATES)} initial rates x {SEEDS} seeds, {_EPOCHS.value} epochs",
        medians["ours"],
        "torch, one after another",
        medians["torch"],
        10,
        compile_s=compile_s,
        same_events=float(same.mean()),
        same_events_early=float(same[:, :5].mean()),
    )


def overhead(mesh: Mesh, name: str, epochs: int, *rows: Any) -> dict[str, Any]:
    """AALR against plain training with as many steps."""
    sides = {"ours": under_aalr, "plain": plainly}
    programs = {side: compiled(partial(one, epochs), mesh, *rows)[0] for side, one in sides.items()}
    medians = in_turn(
        {side: lambda program=program: program()[0] for side, program in programs.items()},
        4 * _REPEATS.value + 1,
    )
    return row(
        f"controller of {name}, {epochs} epochs",
        medians["ours"],
        "the same steps without",
        medians["plain"],
        1 / 1.03,
    )


def write_inputs(path: Path) -> None:
    """Data, initial weights, rates and the rows of every batch, for the other process."""
    x, y = digits()
    keys, rates = members()
    steps = len(x) // BATCH
    arrays = {"x": x, "y": y.astype(np.int64), "rates": np.asarray(rates)}
    for layer, (kernel, bias) in enumerate(jax.vmap(init)(keys)):
        arrays |= {f"kernel{layer}": np.asarray(kernel), f"bias{layer}": np.asarray(bias)}
    orders = jax.vmap(
        lambda key: jax.vmap(lambda e: epoch_order(key, e, len(x)))(jnp.arange(_EPOCHS.value))
    )(keys)
    rows = orders[..., : steps * BATCH].reshape(len(keys), _EPOCHS.value, steps, BATCH)
    np.savez(path, rows=np.asarray(rows, np.int64), **arrays)


def main(_: Any) -> None:
    """The grid against torch; the controller against none, for the grid and for one network."""
    if not Path(_PEERS.value).exists():
        raise app.UsageError(f"no peer at {_PEERS.value}: `make bench` sets it up.")
    # One CPU device a core: each runs its share of the networks in its own thread.
    jax.config.update("jax_num_cpu_devices", os.cpu_count())
    mesh, keys = data_mesh(), members()[0]
    with tempfile.TemporaryDirectory() as directory:
        inputs = Path(directory) / "inputs.npz"
        write_inputs(inputs)
        with Peer(_PEERS.value, str(TORCH), str(inputs)) as torch:
            rows = [against_torch(torch, mesh)]
    calm = jnp.full(len(keys), 0.05)
    rows.append(overhead(mesh, f"{len(keys)} networks", 60, keys, calm))
    rows.append(overhead(data_mesh(1), "one network", 60, keys[:1], calm[:1]))
    rows += _training_batchnorm.rows(_REPEATS.value)
    rows += _training_diversity.rows(_REPEATS.value, _PEERS.value)
    # In a process of its own: there all cores are one device.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as other:
        rows += other.submit(_training_sizes.rows, _REPEATS.value, _PEERS.value).result()
    write_rows(rows, [], _JSON.value)


if __name__ == "__main__":
    app.run(main)
