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
import os
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

from benchmarks._harness import Peer, in_turn, row, timed, write_rows
from poster_jax.core.devices import data_mesh
from poster_jax.core.training import epoch_order, fit, map_population

FLAGS = flags.FLAGS
_JSON = flags.DEFINE_string("json", None, "file to write the rows to")
_PEERS = flags.DEFINE_string("peers_python", ".venv-peers/bin/python", "a Python that has torch")
_REPEATS = flags.DEFINE_integer("repeats", 5, "timed repeats of each side", lower_bound=1)
_NETWORKS = flags.DEFINE_integer("networks", 100, "networks in the population", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", 100, "training steps of each network", lower_bound=1)

SIZES, BATCHES = (64, 96, 48, 10), (16, 64)
# Networks side by side on one device: their weights and activations stay in a core's cache.
GROUP = 5
OPTIMIZERS = {"sgd": optax.sgd(0.05), "adam": optax.adam(1e-3)}
TORCH = Path(__file__).parent / "peers" / "populations_torch.py"


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
    logits = x @ kernel + bias
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def batch_rows(key: jax.Array, batch: int, steps: int, num_examples: int) -> jax.Array:
    """The rows that `fit` takes at each step under `batch_key=key`, (steps, batch), for torch."""
    epoch_steps = num_examples // batch
    orders = jax.vmap(lambda e: epoch_order(key, e, num_examples))(
        jnp.arange(-(-steps // epoch_steps))
    )
    return orders[:, : epoch_steps * batch].reshape(-1, batch)[:steps]


def compiled(
    batch: int, optimizer: str, keys: jax.Array, mesh: Mesh, *, shared: bool
) -> tuple[Callable[[], tuple[float, float]], float]:
    """One repeat of ours (seconds, mean loss) as a function, and the seconds of its compilation."""
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
        seconds, (losses, _) = timed(run, keys, x, y)
        return seconds, float(losses.mean())

    return repeat, seconds


def large_products(mesh: Mesh) -> tuple[Callable[[], float], int]:
    """Large matrix products on every device: the seconds of one repeat, and its operations."""
    size, products = 512, 8
    a = jax.random.normal(jax.random.key(0), (mesh.size, size, size)) / size

    def chain(a: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, products, lambda _, b: a @ b, a)

    run = jax.jit(partial(map_population, chain, mesh=mesh))
    return lambda: timed(run, a)[0], mesh.size * products * 2 * size**3


def step_flops(batch: int) -> int:
    """Of one network's step: forward, by the weights, and by the inputs of all but the first."""
    products = [2 * a * b for a, b in itertools.pairwise(SIZES)]
    return batch * (3 * sum(products) - products[0])


def compared(
    torch: Peer,
    batch: int,
    optimizer: str,
    keys: jax.Array,
    mesh: Mesh,
    *,
    shared: bool,
) -> dict:
    """Both sides and the large matrix products in turn."""
    ours, compile_s = compiled(batch, optimizer, keys, mesh, shared=shared)
    losses = {}

    def one_repeat() -> float:
        seconds, losses["ours"] = ours()
        return seconds

    def torch_repeat() -> float:
        answer = torch.ask(batch=batch, optimizer=optimizer)
        losses["torch"] = answer["loss"]
        return answer["seconds"]

    products, product_flops = large_products(mesh)
    medians = in_turn(
        {"ours": one_repeat, "torch": torch_repeat, "products": products}, _REPEATS.value
    )
    work = step_flops(batch) * _STEPS.value * _NETWORKS.value
    batches = "one order of batches" if shared else "own batches"
    found = row(
        f"{_NETWORKS.value} MLPs, batch {batch}, {optimizer}, {batches}",
        medians["ours"],
        "torch, one after another",
        medians["torch"],
        20,
        compile_s=compile_s,
        microseconds_a_step=1e6 * medians["ours"] / (_STEPS.value * _NETWORKS.value),
        of_peak=work / product_flops * medians["products"] / medians["ours"],
        loss=losses["ours"],
    )
    if shared:  # torch's networks have batches of their own: the same work, another end
        return found
    return {**found, "difference": abs(losses["torch"] - losses["ours"])}


def write_inputs(path: Path, keys: jax.Array) -> None:
    """Data, initial weights and the rows of every batch, for the other process."""
    x, y = digits()
    arrays = {"x": x, "y": y.astype(np.int64)}
    for layer, (kernel, bias) in enumerate(jax.vmap(init)(keys)):
        arrays |= {f"kernel{layer}": np.asarray(kernel), f"bias{layer}": np.asarray(bias)}
    for batch in BATCHES:
        rows = jax.vmap(lambda k, b=batch: batch_rows(k, b, _STEPS.value, len(x)))(keys)
        arrays[f"rows{batch}"] = np.asarray(rows, np.int64)
    np.savez(path, **arrays)


def main(_: Any) -> None:
    """Two batch sizes, two optimisers; every network its own batches, or all of them the same."""
    if not Path(_PEERS.value).exists():
        raise app.UsageError(f"no peer at {_PEERS.value}: `make bench` sets it up.")
    # One CPU device a core: each runs its share of the networks in its own thread.
    jax.config.update("jax_num_cpu_devices", os.cpu_count())
    mesh, keys = data_mesh(), jax.random.split(jax.random.key(0), _NETWORKS.value)
    with tempfile.TemporaryDirectory() as directory:
        inputs = Path(directory) / "inputs.npz"
        write_inputs(inputs, keys)
        with Peer(_PEERS.value, str(TORCH), str(inputs)) as torch:
            rows = [
                compared(torch, batch, optimizer, keys, mesh, shared=shared)
                for batch in BATCHES
                for optimizer in OPTIMIZERS
                for shared in (False, True)
            ]
    write_rows(rows, [], _JSON.value)


if __name__ == "__main__":
    app.run(main)
