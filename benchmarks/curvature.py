"""Eigenvalues, trace, density and relative flatness against PyHessian, curvlinops and the authors.

    python -m benchmarks.curvature --json=out/benchmarks/curvature.json

Two networks trained for a few steps on the digits, their weights and data handed to the peers: the
CNN of 66 k parameters on 256 images of 32x32x3, and an MLP of 1 M parameters on 1,024 images of
28x28. Every row times both sides in this one run, one repeat of each in turn, and reports medians;
`ratio` is how many times faster ours is than that peer, `goal` what it should be at least.
Compilation stands apart in `compile_s`. Accuracy of both sides: the largest residual
`|H v - value v| / |H|` with H in float64, or the standard error. Some fifteen minutes on two cores;
`--models=mlp` takes three.
"""

import json
import resource
import tempfile
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from benchmarks import _flatness
from benchmarks._harness import Peer, compile_seconds, in_turn, row, timed, write_rows
from benchmarks._problems import KEY, Problem, digits, save, trained, true_residual, vectors_from
from poster_jax.core import models
from poster_jax.curvature import (
    LinearOperator,
    hessian_operator,
    matrix_operator,
    spectral_density,
    top_eigenpairs,
    trace,
    xtrace,
)

FLAGS = flags.FLAGS
_JSON = flags.DEFINE_string("json", None, "file to write the rows to")
_PEERS = flags.DEFINE_string("peers_python", ".venv-peers/bin/python", "a Python that has torch")
_REPEATS = flags.DEFINE_integer("repeats", 3, "timed repeats of each side", lower_bound=1)
_MODELS = flags.DEFINE_list("models", "mlp,cnn,flatness,memory", "which parts to run")

TORCH = Path(__file__).parent / "peers" / "curvature_torch.py"
TOP, TOLERANCE = 10, 1e-4
LANCZOS_STEPS = 64


def products(problem: Problem, op: LinearOperator, peer: Peer) -> list[dict]:
    """A product against a gradient, 16 of them together against one by one, and the peers'."""
    gradient = jax.jit(jax.grad(problem.loss_fn))
    vector = jax.tree.map(lambda a: jax.random.normal(KEY, a.shape), problem.params)
    block = jax.tree.map(lambda a: jax.random.normal(KEY, (16, *a.shape)), problem.params)
    ask = partial(peer.ask, model=problem.name)
    seconds = in_turn(
        {
            "gradient": lambda: timed(gradient, problem.params, problem.batch)[0],
            "product": lambda: timed(op, vector)[0],
            "block": lambda: timed(op.block, block)[0],
            "curvlinops": lambda: ask(case="product_curvlinops")["seconds"],
            "torch": lambda: ask(case="product_double_backward")["seconds"],
        },
        2 * _REPEATS.value + 1,
    )
    case, single = f"Hessian product, {problem.name}", seconds["product"]
    return [
        row(case, single, "our gradient x 2.2", 2.2 * seconds["gradient"], 1),
        row(f"{case}, 16", seconds["block"], "our single ones x 0.8", 0.8 * 16 * single, 1),
        row(case, single, "curvlinops", seconds["curvlinops"], 1),
        row(case, single, "torch, double backward", seconds["torch"], 1),
    ]


def top(problem: Problem, op: LinearOperator, peer: Peer, folder: Path) -> list[dict]:
    """The ten largest eigenvalues, all sides to a residual of 1e-4 of the norm or as far as go."""
    ours = partial(top_eigenpairs, op, KEY, k=TOP, tol=TOLERANCE)
    compile_s = compile_seconds(ours)
    pairs = ours()
    our_residual = true_residual(problem, pairs.values, pairs.vectors)
    ask = partial(peer.ask, model=problem.name)

    # ARPACK's tolerance is relative to each value: the loosest that reaches our residual.
    for tol in (1e-2, 1e-3, 1e-4, 1e-5):
        answer = ask(case="top_curvlinops", k=TOP, tol=tol)
        residual = true_residual(problem, answer["values"], vectors_from(problem, folder))
        if residual <= max(our_residual, TOLERANCE):
            break
    seconds = in_turn(
        {
            "ours": lambda: timed(ours)[0],
            "curvlinops": lambda: ask(case="top_curvlinops", k=TOP, tol=tol)["seconds"],
        },
        _REPEATS.value,
    )
    # PyHessian's power iteration takes minutes: once, and on the CNN for the first value alone.
    k = TOP if problem.name == "mlp" else 1
    power = ask(case="top_pyhessian", k=k)
    power_residual = true_residual(problem, power["values"], vectors_from(problem, folder))
    case = f"top {TOP} eigenvalues, {problem.name}"
    common = {"compile_s": compile_s, "ours_residual": our_residual}
    common["ours_products"] = int(pairs.num_products)
    return [
        row(
            case,
            seconds["ours"],
            f"curvlinops with scipy's eigsh, tol={tol}",
            seconds["curvlinops"],
            3,
            **common,
            peer_residual=residual,
            peer_products=answer["products"],
            largest_difference=float(
                np.max(np.abs(np.asarray(answer["values"]) - np.asarray(pairs.values)))
                / float(pairs.values[0])
            ),
        ),
        row(
            case,
            seconds["ours"],
            f"PyHessian, top {k}, once",
            power["seconds"],
            3,
            **common,
            peer_residual=power_residual,
        ),
    ]


def traces(problem: Problem, op: LinearOperator, peer: Peer) -> list[dict]:
    """To a standard error of 5 %: each side with the method of its own that takes least."""
    pilot = trace(op, KEY, num_probes=32)
    deviation = float(pilot.stderr) * 32**0.5 / float(pilot.mean)
    hutchinson = max(2, round((deviation / 0.05) ** 2))
    vectors = 4
    while True:
        found = xtrace(op, KEY, num_probes=vectors)
        if float(found.stderr) <= 0.05 * float(found.mean) or 2 * vectors >= hutchinson:
            break
        vectors += 2
    if 2 * vectors < hutchinson:
        method, ours = f"xtrace, {2 * vectors} products", partial(xtrace, num_probes=vectors)
    else:
        method, ours = f"Hutchinson, {hutchinson}", partial(trace, num_probes=hutchinson)
    compile_s = compile_seconds(ours, op, KEY)
    found = ours(op, KEY)
    case = f"trace to 5 %, {problem.name}"
    common = {
        "compile_s": compile_s,
        "ours_method": method,
        "ours_trace": float(found.mean),
        "ours_stderr": float(found.stderr) / float(found.mean),
    }
    ask = partial(peer.ask, model=problem.name)
    num = min(2 * vectors, hutchinson)
    kind = "xtrace" if num == 2 * vectors else "hutchinson"
    answer = {}

    def curvlinops() -> float:
        answer.update(ask(case=f"trace_curvlinops_{kind}", num=num))
        return answer["seconds"]

    seconds = in_turn(
        {"ours": lambda: timed(ours, op, KEY)[0], "curvlinops": curvlinops}, _REPEATS.value
    )
    power = ask(case="trace_pyhessian", num=hutchinson)
    return [
        row(
            case,
            seconds["ours"],
            f"curvlinops, {kind}, {num} products",
            seconds["curvlinops"],
            3,
            **common,
            peer_trace=answer["trace"],
        ),
        row(
            case,
            seconds["ours"],
            f"PyHessian, {hutchinson} products, once",
            power["seconds"],
            3,
            **common,
            peer_trace=power["trace"],
        ),
    ]


def densities(problem: Problem, op: LinearOperator, peer: Peer) -> list[dict]:
    """Lanczos quadrature of 64 steps from one vector; checked by its largest node."""
    ours = partial(spectral_density, op, KEY, num_lanczos=LANCZOS_STEPS, num_probes=1)
    compile_s = compile_seconds(ours)
    largest = float(top_eigenpairs(op, KEY, k=1, tol=1e-6).values[0])
    error = lambda nodes: abs(float(np.max(np.asarray(nodes))) - largest) / largest  # noqa: E731
    ask = partial(peer.ask, model=problem.name, steps=LANCZOS_STEPS)
    answers = {}

    def side(name: str) -> float:
        answers[name] = ask(case=f"density_{name}")
        return answers[name]["seconds"]

    repeats = _REPEATS.value if problem.name == "mlp" else 1
    names = ("curvlinops", "pyhessian")
    seconds = in_turn(
        {"ours": lambda: timed(ours)[0]} | {name: partial(side, name) for name in names}, repeats
    )
    return [
        row(
            f"spectral density, {problem.name}",
            seconds["ours"],
            f"{name}, {LANCZOS_STEPS} steps",
            seconds[name],
            3,
            compile_s=compile_s,
            ours_top_error=error(ours().nodes),
            peer_top_error=error(answers[name]["nodes"]),
        )
        for name in names
    ]


def memory() -> list[dict]:
    """Peak of one compiled search, in basis vectors of P numbers, by k and P."""
    rows = []
    for size in (2_000, 8_000):
        op = matrix_operator(jnp.eye(size))
        for k in (1, 10, 50):
            basis = max(k + 30, 2 * k)
            program = jax.jit(partial(top_eigenpairs, k=k))
            compiled = program.lower(op, KEY).compile()
            temporary = compiled.memory_analysis().temp_size_in_bytes
            rows.append(
                {
                    "case": f"memory of top_eigenpairs, k={k}, P={size}",
                    "bytes": temporary,
                    "in_units_of_basis_size_P_floats": temporary / (4 * basis * size),
                    "resident_peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                }
            )
            print(json.dumps(rows[-1]), flush=True)
    return rows


def main(_: list[str]) -> None:
    """Runs what `--models` names and writes the rows."""
    builders = {
        "mlp": lambda: trained(
            "mlp",
            models.MLP((640, 512, 256, 10)),
            digits(28, 1024),
            ("flatten", "dense", "relu", "dense", "relu", "dense", "relu", "dense"),
            steps=30,
        ),
        "cnn": lambda: trained(
            "cnn",
            models.CNN(),
            (jnp.tile(digits(32, 256)[0], 3), digits(32, 256)[1]),
            ("conv", "relu") * 4 + ("mean", "dense"),
            steps=60,
        ),
    }
    rows, notes = [], []
    with (
        tempfile.TemporaryDirectory() as name,
        Peer(_PEERS.value, "-W", "ignore", str(TORCH), name) as peer,
    ):
        folder = Path(name)
        for part in _MODELS.value:
            if part in builders:
                problem = builders[part]()
                save(problem, folder)
                op = hessian_operator(problem.loss_fn, problem.params, problem.batch)
                rows += products(problem, op, peer)
                rows += top(problem, op, peer, folder)
                rows += traces(problem, op, peer)
                rows += densities(problem, op, peer)
            elif part == "flatness":
                rows += _flatness.rows(peer, folder, _REPEATS.value)
            else:
                notes += memory()
    write_rows(rows, notes, _JSON.value)


if __name__ == "__main__":
    app.run(main)
