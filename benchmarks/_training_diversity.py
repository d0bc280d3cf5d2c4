"""A slice of the shallow grid of `feature_diversity`, against torch one network after another.

Networks 64-256-10 of u kinds of features, batch 64, plain SGD: some u in every mode of tied
readers, and some noises, each with several seeds. Both sides start from the same weights and see
the same batches, so that their final losses must agree ("difference"); torch is spared the drawing
of the order. `of_peak` is the rate of the arithmetic over the rate of large matrix products on all
cores, measured in turn: no form of the program passes it.
"""

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
from sklearn.datasets import load_digits

from benchmarks._harness import Peer, in_turn, row, timed
from poster_jax import feature_diversity as diversity
from poster_jax.core import losses, models
from poster_jax.core.devices import data_mesh
from poster_jax.core.training import epoch_order, fit, map_population

TORCH = Path(__file__).parent / "peers" / "feature_diversity_torch.py"
WIDTH, BATCH, RATE, STEPS, SEEDS = 256, 64, 0.1, 100, 4
CONDITIONS = [(mode, u, 0.0) for mode in ("zero", "duplicated", "independent") for u in (1, 256)]
CONDITIONS += [("duplicated", 1, 1e-8), ("duplicated", 1, 1e-4)]
SIDE_BY_SIDE = 8
MODEL = models.from_linen(models.MLP((WIDTH, 10)))
LOSS_FN = losses.cross_entropy(MODEL.apply_fn)


def digits() -> tuple[Any, Any]:
    """1,000 of them, standardised."""
    x, y = load_digits(return_X_y=True)
    x = (x - x.mean(0)) / (x.std(0) + 1e-3)
    return x[:1000].astype(np.float32), y[:1000].astype(np.int32)


def starts(key: jax.Array) -> Any:
    """The parameters of all conditions of one seed."""
    keys = jax.random.split(key)
    drawn = jax.nn.initializers.lecun_normal()(keys[1], (WIDTH, 10), jnp.float32)
    kernels = [
        diversity.duplicate_features(keys[0], (64, WIDTH), num_unique=u, noise=noise)
        for _, u, noise in CONDITIONS
    ]
    readouts = [diversity.tie_output(drawn, num_unique=u, mode=mode) for mode, u, _ in CONDITIONS]
    num = len(CONDITIONS)
    return {
        "Dense_0": {"kernel": jnp.stack(kernels), "bias": jnp.zeros((num, WIDTH))},
        "Dense_1": {"kernel": jnp.stack(readouts), "bias": jnp.zeros((num, 10))},
    }


def train_seed(params: Any, key: jax.Array, x: Any, y: Any) -> Any:
    """The losses of all conditions of one seed after training, and their parameters."""

    def one(params: Any) -> Any:
        run = fit(
            LOSS_FN,
            params,
            (x, y),
            key,
            optimizer=optax.sgd(RATE),
            num_steps=STEPS,
            batch_size=BATCH,
            batch_key=key,
        )
        return LOSS_FN(run.params, (x, y)), run.params

    return map_population(one, params, group_size=SIDE_BY_SIDE)


def batch_rows(key: jax.Array, num_examples: int) -> jax.Array:
    """The examples that `fit` takes at each step, (steps, batch), for torch."""
    epoch_steps = num_examples // BATCH
    orders = [epoch_order(key, epoch, num_examples) for epoch in range(-(-STEPS // epoch_steps))]
    return jnp.stack(orders)[:, : epoch_steps * BATCH].reshape(-1, BATCH)[:STEPS]


def large_products(mesh: Any) -> tuple[Callable[[], float], int]:
    """Large matrix products on every device: the seconds of one repeat, and its operations."""
    size, products = 512, 8
    a = jax.random.normal(jax.random.key(0), (mesh.size, size, size)) / size

    def chain(a: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, products, lambda _, b: a @ b, a)

    run = jax.jit(partial(map_population, chain, mesh=mesh))
    return lambda: timed(run, a)[0], mesh.size * products * 2 * size**3


def rows(repeats: int, peers_python: str) -> list[dict]:
    """One row: the slice as one program, and torch."""
    mesh, keys = data_mesh(), jax.random.split(jax.random.key(0), SEEDS)
    x, y = digits()
    params = jax.jit(jax.vmap(starts))(keys)
    program = partial(map_population, train_seed, in_axes=(0, 0, None, None), group_size=1,
                      mesh=mesh)  # fmt: skip
    begin = time.perf_counter()
    run = jax.jit(program).lower(params, keys, x, y).compile()
    compile_s = time.perf_counter() - begin
    found = {}
    with tempfile.TemporaryDirectory() as directory:
        inputs = Path(directory) / "inputs.npz"
        order = np.stack([np.asarray(batch_rows(key, len(x)), np.int64) for key in keys])
        layers = {
            f"{name}{layer}": np.asarray(params[f"Dense_{layer}"][name])
            for layer in (0, 1)
            for name in ("kernel", "bias")
        }
        np.savez(inputs, x=x, y=y.astype(np.int64), rows=order, rate=RATE, **layers)

        def ours() -> float:
            seconds, (final, _) = timed(run, params, keys, x, y)
            found["ours"] = np.asarray(final, np.float64)
            return seconds

        with Peer(peers_python, str(TORCH), str(inputs)) as torch:

            def theirs() -> float:
                answer = torch.ask()
                found["torch"] = np.array(answer["losses"])
                return answer["seconds"]

            products, product_flops = large_products(mesh)
            medians = in_turn({"ours": ours, "torch": theirs, "products": products}, repeats)
    num = SEEDS * len(CONDITIONS)
    # Forward and by the weights in both layers, by the inputs in the second.
    work = num * STEPS * BATCH * 2 * (2 * 64 * WIDTH + 3 * WIDTH * 10)
    return [
        row(
            f"{num} networks of the shallow grid, width {WIDTH}, batch {BATCH}, {STEPS} steps",
            medians["ours"],
            "torch, one after another",
            medians["torch"],
            20,
            compile_s=compile_s,
            microseconds_a_step=1e6 * medians["ours"] / (num * STEPS),
            of_peak=work / product_flops * medians["products"] / medians["ours"],
            difference=float(np.abs(found["ours"] - found["torch"]).max()),
        )
    ]
