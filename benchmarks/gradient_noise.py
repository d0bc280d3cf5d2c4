"""Tests of normality against scipy; projections against torch.func, BackPACK and Opacus.

    python -m benchmarks.gradient_noise --json=out/benchmarks/gradient_noise.json

Three networks, their weights, examples and 200 directions handed to the peers: the digits' MLP
(P = 8,970, all 1,797 examples), the CNN of 66 k parameters and ResNet-8 without BatchNorm (256
examples each). The directions are given to both sides; `draw_s` is what drawing them takes ours in
every call otherwise. Every row times both sides in this one run, one repeat of each in turn, and
reports medians; `ratio` is how many times faster ours is than that peer, `goal` what it should be
at least. `ours_mb` is what the compiled program holds beside its arguments, `peer_peak_mb` the
peer's process at its largest so far.

`--examples` and `--hadamard_bits` shrink everything, to see that it runs.
"""

import math
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from benchmarks._gradient_noise_tests import tests_rows
from benchmarks._harness import Peer, compile_seconds, in_turn, row, timed, write_rows
from benchmarks._problems import KEY, Problem, digits, save, trained
from poster_jax import gradient_noise as gn
from poster_jax.core import losses, models

FLAGS = flags.FLAGS
_JSON = flags.DEFINE_string("json", None, "file to write the rows to")
_PEERS = flags.DEFINE_string("peers_python", ".venv-peers/bin/python", "a Python that has torch")
_REPEATS = flags.DEFINE_integer("repeats", 5, "timed repeats of each side", lower_bound=1)
_PARTS = flags.DEFINE_list(
    "parts", "tests,mlp,cnn,resnet8,resampling,hadamard,covariance", "which parts to run"
)
_EXAMPLES = flags.DEFINE_integer("examples", 0, "fewer examples than the rows name; 0 takes all")
_BITS = flags.DEFINE_integer("hadamard_bits", 24, "log2 of the parameters of the Hadamard row")

TORCH = Path(__file__).parent / "peers" / "gradient_noise_torch.py"
PEERS = ("functorch", "backpack_batch_grad", "opacus_grad_sample")
NUM_DIRECTIONS = 200


def mlp() -> Problem:
    """The digits' MLP of the experiment."""
    x, y = digits(32, _EXAMPLES.value or 1797)
    x = x[:, ::4, ::4, 0].reshape(len(x), 64)
    kinds = ("dense", "relu", "dense", "relu", "dense")
    return trained("mlp", models.MLP((64, 64, 10)), (x, y), kinds, steps=30)


def cnn() -> Problem:
    """The CNN of 66 k parameters."""
    x, y = digits(32, _EXAMPLES.value or 256)
    kinds = ("conv", "relu") * 4 + ("mean", "dense")
    return trained("cnn", models.CNN(), (jnp.tile(x, 3), y), kinds, steps=10)


def resnet8() -> Problem:
    """He's network of one block a stage, without norm."""
    x, y = digits(32, _EXAMPLES.value or 256)
    module = models.ResNet(num_blocks=1, norm=None)
    return trained("resnet8", module, (jnp.tile(x, 3), y), ("resnet8",), steps=10)


def layers_in_order(params: Any) -> list[dict]:
    """Kernels and biases of any of the three in the order in which torch has them."""
    found = []
    for name in sorted(params, key=lambda name: (name.startswith("Dense"), name)):
        inside = params[name]
        found += [inside] if "kernel" in inside else [inside[conv] for conv in sorted(inside)]
    # Flax numbers "Block_0" before "Conv_0"; the stem comes first.
    return [layer for layer in found if layer is params.get("Conv_0")] + [
        layer for layer in found if layer is not params.get("Conv_0")
    ]


def as_torch(params: Any) -> np.ndarray:
    """Stacked vectors like `params` as rows in torch's order and layout of parameters."""
    parts = []
    for layer in layers_in_order(params):
        kernel = np.asarray(layer["kernel"])
        axes = (0, 4, 3, 1, 2) if kernel.ndim == 5 else (0, 2, 1)
        parts += [kernel.transpose(axes), np.asarray(layer["bias"])]
    return np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1)


def projections(problem: Problem, peer: Peer, folder: Path) -> list[dict]:
    """200 directions times all examples, ours and each peer's, and how far they differ."""
    params, batch = problem.params, problem.batch
    drawn = gn.random_directions(params, KEY, num=NUM_DIRECTIONS)
    draw = jax.jit(lambda directions: directions.kept())
    directions = jax.block_until_ready(draw(drawn))
    draw_s, _ = timed(draw, drawn)
    if problem.kinds == ("resnet8",):
        arrays = {"kinds": np.asarray('["resnet8"]'), "x": batch[0], "y": batch[1]}
        for i, layer in enumerate(layers_in_order(params)):
            arrays |= {f"kernel{i}": layer["kernel"], f"bias{i}": layer["bias"]}
        np.savez(folder / "resnet8.npz", **arrays)
    else:
        save(problem, folder)
    stacked = jax.vmap(directions.tangent)(jnp.arange(NUM_DIRECTIONS))
    np.save(folder / f"{problem.name}_directions.npy", as_torch(stacked))

    ours = partial(gn.per_example_projections, problem.loss_fn, params, batch, directions)
    compile_s = compile_seconds(ours)
    found = np.asarray(ours(), np.float64)
    plan = gn.plan_projections(problem.loss_fn, params, batch, directions)
    compiled = jax.jit(lambda p, b: gn.per_example_projections(problem.loss_fn, p, b, directions))
    memory = compiled.lower(params, batch).compile().memory_analysis()
    answers: dict[str, dict] = {}

    def side(case: str) -> float:
        answers[case] = peer.ask(case=case, model=problem.name)
        answers[case]["projections"] = np.load(folder / "projections.npy")
        return answers[case]["seconds"]

    sides: dict[str, Callable[[], float]] = {"ours": lambda: timed(ours)[0]}
    seconds = in_turn(sides | {case: partial(side, case) for case in PEERS}, _REPEATS.value)
    return [
        row(
            f"projections, {problem.name}, P={directions.dim}, N={len(batch[1])}, R={len(found)}",
            seconds["ours"],
            case,
            seconds[case],
            2,
            compile_s=compile_s,
            draw_s=draw_s,
            mode=plan.mode,
            largest_difference=float(
                np.abs(found - answers[case]["projections"]).max() / np.abs(found).max()
            ),
            ours_mb=None if memory is None else memory.temp_size_in_bytes / 2**20,
            peer_peak_mb=answers[case]["peak_mb"],
        )
        for case in PEERS
    ]


def resampling(problem: Problem) -> list[dict]:
    """One matrix for five batch sizes, against the gradients of those batches."""
    directions = gn.random_directions(problem.params, KEY, num=NUM_DIRECTIONS)
    ask = partial(
        gn.noise_projections,
        problem.loss_fn,
        problem.params,
        problem.batch,
        directions,
        KEY,
        batch_sizes=(8, 32, 128, 256, 1024),
        num_batches=1000,
    )
    seconds = in_turn(
        {
            "ours": lambda: timed(ask)[0],
            "minibatch": lambda: timed(partial(ask, mode="minibatch"))[0],
        },
        _REPEATS.value,
    )
    case = "1,000 batches of 8, 32, 128, 256, 1024, mlp"
    return [row(case, seconds["ours"], "our own batch gradients", seconds["minibatch"], 2)]


def hadamard() -> list[dict]:
    """1,000 directions in 2^24 dimensions, against copies of the vector: passes over memory."""
    size = 2**_BITS.value
    vector = jax.random.normal(KEY, (size,))
    directions = gn.random_directions(vector, KEY, num=min(1000, size), kind="hadamard")
    project = jax.jit(lambda directions, vector: directions.project(vector))
    copy = jax.jit(lambda vector: vector + 1)
    seconds = in_turn(
        {
            "ours": lambda: timed(project, directions, vector)[0],
            "copy": lambda: timed(copy, vector)[0],
        },
        _REPEATS.value,
    )
    passes = math.ceil(_BITS.value / 2)
    moved = 2 * 4 * size * passes
    return [
        row(
            f"Hadamard projection, P=2^{_BITS.value}, R={directions.num}",
            seconds["ours"],
            f"{passes} copies of the vector",
            passes * seconds["copy"],
            0.5,
            gigabytes_a_second=moved / seconds["ours"] / 1e9,
            copy_gigabytes_a_second=2 * 4 * size / seconds["copy"] / 1e9,
        )
    ]


def covariance(problem: Problem) -> list[dict]:
    """A product with Sigma against one derivative along a vector and one transposed."""
    params, batch = problem.params, problem.batch
    op = gn.noise_covariance_operator(problem.loss_fn, params, batch)
    vector = jax.tree.map(lambda a: jax.random.normal(KEY, a.shape), params)

    def losses_of(params: Any, batch: Any) -> Any:
        one = lambda x, y: losses.softmax_cross_entropy(  # noqa: E731
            problem.apply_fn(params, x[None]), y[None]
        )
        return jax.vmap(one)(*batch)

    push = jax.jit(lambda p, b, v: jax.jvp(lambda p: losses_of(p, b), (p,), (v,))[1])
    pull = jax.jit(lambda p, b, c: jax.vjp(lambda p: losses_of(p, b), p)[1](c)[0])
    weights = jnp.ones(len(batch[1]))
    seconds = in_turn(
        {
            "ours": lambda: timed(op, vector)[0],
            "jvp": lambda: timed(push, params, batch, vector)[0],
            "vjp": lambda: timed(pull, params, batch, weights)[0],
        },
        2 * _REPEATS.value + 1,
    )
    both = seconds["jvp"] + seconds["vjp"]
    case = f"product with the noise covariance, {problem.name}"
    return [row(case, seconds["ours"], "one jvp and one vjp, x 1.3", 1.3 * both, 1)]


def main(_: list[str]) -> None:
    """Runs what `--parts` names and writes the rows."""
    rows, builders = [], {"mlp": mlp, "cnn": cnn, "resnet8": resnet8}
    with (
        tempfile.TemporaryDirectory() as name,
        Peer(_PEERS.value, "-W", "ignore", str(TORCH), name) as peer,
    ):
        for part in _PARTS.value:
            if part in builders:
                rows += projections(builders[part](), peer, Path(name))
            elif part == "tests":
                rows += tests_rows(_REPEATS.value)
            elif part == "resampling":
                rows += resampling(mlp())
            elif part == "hadamard":
                rows += hadamard()
            else:
                rows += covariance(mlp()) + covariance(cnn())
    write_rows(rows, [], _JSON.value)


if __name__ == "__main__":
    app.run(main)
