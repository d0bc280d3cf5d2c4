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
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from sklearn.datasets import load_digits

from benchmarks._harness import Peer, compile_seconds, in_turn, timed, write_rows
from poster_jax.core import losses, models
from poster_jax.curvature import (
    LinearOperator,
    hessian_operator,
    matrix_operator,
    spectral_density,
    top_eigenpairs,
    trace,
    xtrace,
)
from poster_jax.flatness import last_layer_relative_flatness, relative_flatness

FLAGS = flags.FLAGS
_JSON = flags.DEFINE_string("json", None, "file to write the rows to")
_PEERS = flags.DEFINE_string("peers_python", ".venv-peers/bin/python", "a Python that has torch")
_REPEATS = flags.DEFINE_integer("repeats", 3, "timed repeats of each side", lower_bound=1)
_MODELS = flags.DEFINE_list("models", "mlp,cnn,flatness,memory", "which parts to run")

TORCH = Path(__file__).parent / "peers" / "curvature_torch.py"
KEY = jax.random.key(0)
TOP, TOLERANCE = 10, 1e-4
LANCZOS_STEPS = 64


class Problem(NamedTuple):
    """A trained network of Flax, what its layers are for torch, and its batch."""

    name: str
    apply_fn: Callable[..., Any]
    loss_fn: Callable[..., Any]
    params: Any
    batch: Any
    kinds: tuple[str, ...]


def digits(side: int, num: int) -> tuple[jax.Array, jax.Array]:
    """`num` digits, enlarged to `side` pixels and centred: (num, side, side, 1)."""
    data = load_digits()
    images = np.kron(data.images / 16 - 0.3, np.ones((1, 4, 4)))
    edge = (32 - side) // 2
    images = images[:, edge : 32 - edge, edge : 32 - edge, None]
    chosen = np.random.default_rng(0).permutation(len(images))[:num]
    return jnp.asarray(images[chosen], jnp.float32), jnp.asarray(data.target[chosen], jnp.int32)


def trained(name: str, module: Any, batch: Any, kinds: tuple[str, ...], steps: int) -> Problem:
    """A few Adam steps: enough for the outliers of a trained network's Hessian."""
    model = models.from_linen(module)
    loss_fn = losses.cross_entropy(model.apply_fn)
    optimizer = optax.adam(2e-3)
    params = model.init(KEY, batch[0][:1])
    state = optimizer.init(params)

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        updates, state = optimizer.update(jax.grad(loss_fn)(params, batch), state)
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = step(params, state)
    return Problem(name, model.apply_fn, loss_fn, params, batch, kinds)


def layers_of(problem: Problem) -> list[dict]:
    """Kernels and biases in the order of the layers."""
    convs = sorted(name for name in problem.params if name.startswith("Conv"))
    denses = sorted(name for name in problem.params if name.startswith("Dense"))
    return [problem.params[name] for name in (*convs, *denses)]


def save(problem: Problem, folder: Path) -> None:
    """What the torch side reads."""
    layers = iter(layers_of(problem))
    arrays = {"kinds": json.dumps(problem.kinds)}
    for i, kind in enumerate(problem.kinds):
        if kind in {"conv", "conv_valid", "dense"}:
            layer = next(layers)
            arrays[f"kernel{i}"], arrays[f"bias{i}"] = layer["kernel"], layer["bias"]
    x, y = problem.batch
    np.savez(folder / f"{problem.name}.npz", x=x, y=y, **arrays)


def vectors_from(problem: Problem, folder: Path) -> Any:
    """The peer's vectors as a pytree like the parameters, leading axis k."""
    parts = np.load(folder / "answer.npz")
    leaves = [parts[str(i)] for i in range(len(parts.files))]
    stacked = jax.tree.map(lambda _: None, problem.params)
    names = [name for name in sorted(problem.params) if name.startswith("Conv")]
    names += [name for name in sorted(problem.params) if name.startswith("Dense")]
    for i, name in enumerate(names):
        stacked[name] = {"kernel": leaves[2 * i], "bias": leaves[2 * i + 1]}
    return stacked


def true_residual(problem: Problem, values: Any, vectors: Any) -> float:
    """max ||H v - value v|| / ||v|| / |largest value|, every number of it in float64."""
    with jax.enable_x64(True):
        double = lambda tree: jax.tree.map(  # noqa: E731
            lambda a: jnp.asarray(np.asarray(a), jnp.float64), tree
        )
        x, y = problem.batch
        op = hessian_operator(problem.loss_fn, double(problem.params), (double(x), y))
        worst = 0.0
        for i, value in enumerate(np.asarray(values, float)):
            v = jax.tree.map(lambda a, i=i: a[i], double(vectors))
            pairs = zip(jax.tree.leaves(op(v)), jax.tree.leaves(v), strict=True)
            squares = sum(float(jnp.sum((h - value * u) ** 2)) for h, u in pairs)
            length = sum(float(jnp.sum(u**2)) for u in jax.tree.leaves(v))
            worst = max(worst, (squares / length) ** 0.5)
    return worst / float(np.max(np.abs(values)))


def row(case: str, ours: float, peer: str, theirs: float, goal: float, **more: Any) -> dict:
    """One line of the table."""
    found = {"case": case, "ours_s": ours, "peer": peer, "peer_s": theirs, "ratio": theirs / ours}
    found |= {"goal": goal, **more}
    print(json.dumps(found), flush=True)
    return found


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


def flatness(peer: Peer, folder: Path) -> list[dict]:
    """The authors materialise second derivatives, a backward pass each; we take products."""
    lenet_kinds = ("conv_valid", "relu", "pool") * 2 + ("flatten",)
    lenet_kinds += ("dense", "relu", "dense", "relu", "dense")
    lenet = trained("lenet", models.LeNet5(), digits(32, 1000), lenet_kinds, 60)
    save(as_torch_flattens(lenet), folder)
    wide_kinds = ("flatten", "dense", "relu", "dense", "relu", "dense")
    wide = trained("wide", models.MLP((512, 512, 10)), digits(28, 1000), wide_kinds, 60)
    save(wide, folder)

    @jax.jit
    def closed_form_of(params: Any, x: jax.Array) -> Any:
        features, logits = lenet_features(params, x), lenet.apply_fn(params, x)
        return last_layer_relative_flatness(features, logits, params["Dense_2"]["kernel"])

    closed_form = partial(closed_form_of, lenet.params, lenet.batch[0])

    def products() -> Any:
        return relative_flatness(
            lenet.loss_fn, lenet.params, lenet.batch, KEY, layer="Dense_2/kernel", num_probes=64
        )

    def products_wide() -> Any:
        return relative_flatness(
            wide.loss_fn, wide.params, wide.batch, KEY, layer="Dense_1/kernel", num_probes=64
        )

    exact = float(closed_form())
    answer = {}

    def authors() -> float:
        answer.update(peer.ask(case="relative_flatness", model="lenet", layer=2, rows=840))
        return answer["seconds"]

    some = 64
    sides = {
        "closed": lambda: timed(closed_form)[0],
        "products": lambda: timed(products)[0],
        "wide": lambda: timed(products_wide)[0],
        "authors": authors,
        "authors, wide": lambda: peer.ask(
            case="relative_flatness", model="wide", layer=1, rows=some
        )["seconds"],
    }
    compile_s = compile_seconds(products)
    seconds = in_turn(sides, _REPEATS.value)
    found, found_wide = products(), products_wide()
    accuracy = {"peer_error": abs(answer["kappa"] - exact) / exact}
    case = "relative flatness of LeNet5's last layer"
    authors_way = "the authors' way, 840 backward passes"
    return [
        row(
            case + ", closed form",
            seconds["closed"],
            authors_way,
            seconds["authors"],
            50,
            **accuracy,
        ),
        row(
            case + ", 64 products",
            seconds["products"],
            authors_way,
            seconds["authors"],
            50,
            **accuracy,
            compile_s=compile_s,
            ours_error=abs(float(found.mean) - exact) / exact,
            ours_stderr=float(found.stderr) / exact,
        ),
        row(
            "relative flatness of a 512x512 layer, 64 products",
            seconds["wide"],
            f"the authors' way, {some} of 262,144 backward passes, scaled",
            seconds["authors, wide"] * 512 * 512 / some,
            50,
            ours_stderr=float(found_wide.stderr) / float(found_wide.mean),
        ),
    ]


def lenet_features(params: Any, x: jax.Array) -> jax.Array:
    """What enters LeNet5's last layer: the outputs with that layer replaced by the identity."""
    head = {"kernel": jnp.eye(84), "bias": jnp.zeros(84)}
    model = models.from_linen(models.LeNet5(num_classes=84))
    return model.apply_fn({**params, "Dense_2": head}, x)


def as_torch_flattens(problem: Problem) -> Problem:
    """The first dense kernel with its rows in the order (channel, height, width)."""
    kernel = problem.params["Dense_0"]["kernel"]
    side = round((kernel.shape[0] // 16) ** 0.5)
    rows = kernel.reshape(side, side, 16, -1).transpose(2, 0, 1, 3).reshape(kernel.shape)
    dense = {**problem.params["Dense_0"], "kernel": rows}
    return problem._replace(params={**problem.params, "Dense_0": dense})


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
                rows += flatness(peer, folder)
            else:
                notes += memory()
    write_rows(rows, notes, _JSON.value)


if __name__ == "__main__":
    app.run(main)
