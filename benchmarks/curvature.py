"""Curvature and flatness against PyHessian, curvlinops and the authors' code, in one run.

    python -m benchmarks.curvature --json=out/benchmarks/curvature.json

Both sides have the same weights and data. Eigenvalues: ours and curvlinops (scipy's ARPACK) stop
at the residual, PyHessian at the change of an eigenvalue; `error` is the largest error of an
eigenvalue over the largest eigenvalue, against a float64 run of ours with a residual of 1e-9.
Trace: each takes the products it needs for a standard error of 5 %. Compilation stands apart in
`compile_s`. Peers that take minutes are timed once (`peer_repeats`).
"""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app

from benchmarks._harness import REPEATS, Peer, in_turn, row, timed, write
from poster_jax import curvature, flatness
from poster_jax.core import losses, models, training

K, TOL, STEPS = 10, 1e-3, 30
KEY = jax.random.key(0)
# name -> network, shape of an example, examples, last layer
NETWORKS = {
    "CNN": (models.CNN(), (32, 32, 3), 256, "Dense_0/kernel"),
    "MLP": (models.MLP((800, 480, 10)), (784,), 256, "Dense_2/kernel"),
    "LeNet5": (models.LeNet5(), (32, 32, 1), 256, "Dense_2/kernel"),
    "Wide": (models.MLP((512, 512)), (64,), 256, "Dense_1/kernel"),
}


class Case:
    """A network after a few steps of training, its loss and its data."""

    def __init__(self, name: str) -> None:
        network, shape, size, self.last = NETWORKS[name]
        keys = jax.random.split(KEY, 3)
        model = models.from_linen(network)
        x = jax.random.normal(keys[0], (size, *shape))
        # Labels of another network of the same kind: something that can be learned.
        y = model.apply_fn(model.init(keys[1], x), x).argmax(-1)
        self.name, self.batch = name, (x, y)
        self.loss_fn = losses.cross_entropy(model.apply_fn)
        start = model.init(keys[2], x)
        fit = partial(training.fit, optimizer=optax.adam(1e-3), num_steps=40, batch_size=64)
        self.params = jax.jit(partial(fit, self.loss_fn))(start, self.batch, KEY).params
        self.operator = curvature.hessian_operator(self.loss_fn, self.params, self.batch)

    def arrays(self) -> dict[str, Any]:
        """What the peers read: kernels and biases in the order of the layers."""
        layers = [n for kind in ("Conv", "Dense") for n in sorted(self.params) if kind in n]
        found = {"x": self.batch[0], "y": self.batch[1]}
        for index, layer in enumerate(layers):
            for part in ("kernel", "bias"):
                found[f"{part}{index}"] = self.params[layer][part]
        return {f"{self.name}/{name}": np.asarray(value) for name, value in found.items()}


def against(
    case: str,
    ours: Callable[[], dict[str, Any]],
    peers: dict[str, Callable[[], dict[str, Any]]],
    error: Callable[[Any], float] | None = None,
    slow: tuple[str, ...] = (),
    **more: Any,
) -> list[dict[str, Any]]:
    """A row a peer; `slow` ones run once, and are not repeated."""
    sides = {"ours": ours} | {name: ask for name, ask in peers.items() if name not in slow}
    seconds, answers, first = in_turn(sides, REPEATS.value)
    for name in slow:
        if name in peers:
            answers[name] = peers[name]()
            seconds[name] = answers[name]["seconds"]
    more |= {"compile_s": first["ours"] - seconds["ours"]}
    if error:
        more["ours_error"] = error(answers["ours"]["result"])
    if not peers:
        return [row(case, seconds["ours"], "no environment of peers", None, **more)]
    found = []
    for name in peers:
        theirs = {"peer_error": error(answers[name]["found"])} if error else {}
        times = {"peer_repeats": 1 if name in slow else REPEATS.value}
        found.append(row(case, seconds["ours"], name, seconds[name], **times, **theirs, **more))
    return found


def asks(peer: Peer, **question: Any) -> dict[str, Callable[[], dict[str, Any]]]:
    """The question to PyHessian and to curvlinops."""
    if peer.missing:
        return {}
    names = ("PyHessian 0.1", "curvlinops 3.0.1")
    return {name: partial(peer.ask, peer=name.split()[0], **question) for name in names}


def eigenvalues(case: Case, peer: Peer) -> list[dict[str, Any]]:
    """The ten largest, to one tolerance."""
    with jax.enable_x64(True):
        params, batch = jax.tree.map(
            lambda a: a.astype(np.float64) if a.dtype == np.float32 else a,
            jax.device_get((case.params, case.batch)),
        )
        wide = curvature.hessian_operator(case.loss_fn, params, batch)
        reference = curvature.top_eigenpairs(wide, KEY, k=K, tol=1e-9)
        reference = np.asarray(reference.values)

    def error(found: Any) -> float:
        values = np.asarray(found.values if hasattr(found, "values") else found, np.float64)
        return float(np.abs(np.sort(values)[::-1] - reference).max() / reference[0])

    ours = partial(timed, lambda: curvature.top_eigenpairs(case.operator, KEY, k=K, tol=TOL))
    pairs = ours()["result"]
    question = asks(peer, network=case.name, what="eigenvalues", k=K, tol=TOL)
    return against(
        f"top {K} eigenvalues, {case.name}",
        ours,
        question,
        error,
        slow=("PyHessian 0.1",),
        products=int(pairs.num_products),
        residual=float((pairs.residuals / pairs.values[0]).max()),
    )


def trace(case: Case, peer: Peer) -> list[dict[str, Any]]:
    """The trace to a standard error of 5 %."""
    plain = curvature.trace(case.operator, KEY, num_probes=64)
    needed = {"PyHessian": int(np.ceil(64 * float(plain.stderr / plain.mean / 0.05) ** 2))}
    for count in range(6, 200, 3):
        found = curvature.hutchpp_trace(case.operator, KEY, num_probes=count)
        if float(found.stderr / found.mean) < 0.05:
            break
    needed["curvlinops"] = count
    estimator = curvature.hutchpp_trace
    if needed["PyHessian"] <= count:
        count, estimator = max(2, needed["PyHessian"]), curvature.trace
    ours = partial(timed, lambda: estimator(case.operator, KEY, num_probes=count))
    peers = asks(peer, network=case.name, what="trace")
    peers = {name: partial(ask, count=needed[name.split()[0]]) for name, ask in peers.items()}
    return against(
        f"trace to 5 %, {case.name}",
        ours,
        peers,
        slow=("PyHessian 0.1",),
        products=count,
        peer_products=needed,
    )


def density(case: Case, peer: Peer) -> list[dict[str, Any]]:
    """One probe of the spectral density."""
    ours = partial(
        timed,
        lambda: curvature.spectral_density(case.operator, KEY, num_lanczos=STEPS, num_probes=1),
    )
    question = asks(peer, network=case.name, what="density", steps=STEPS)
    return against(f"density, {STEPS} Lanczos steps, {case.name}", ours, question)


def products(case: Case) -> list[dict[str, Any]]:
    """A product in gradients, and sixteen at once in single ones; goals 2.2 and 0.8."""
    gradient = jax.jit(jax.grad(case.loss_fn))
    probes = jax.vmap(
        lambda key: jax.tree.map(lambda leaf: jax.random.normal(key, leaf.shape), case.params)
    )(jax.random.split(KEY, 16))
    one = jax.tree.map(lambda leaf: leaf[0], probes)
    singles = [jax.tree.map(lambda leaf, i=i: leaf[i], probes) for i in range(16)]
    sides = {
        "gradient": partial(timed, gradient, case.params, case.batch),
        "product": partial(timed, case.operator, one),
        "singles": partial(timed, lambda: [case.operator(v) for v in singles]),
        "block": partial(timed, case.operator.block, probes),
    }
    s, _, _ = in_turn(sides, REPEATS.value)
    return [
        row(
            f"Hessian product, {case.name}",
            s["product"],
            "our gradient",
            s["gradient"],
            in_gradients=s["product"] / s["gradient"],
            goal=2.2,
        ),
        row(
            f"block of 16 products, {case.name}",
            s["block"],
            "16 of our products",
            s["singles"],
            in_singles=s["block"] / s["singles"],
            goal=0.8,
        ),
    ]


def relative_flatness(case: Case, peer: Peer, rows: int) -> list[dict[str, Any]]:
    """Ours by 64 products, theirs by a backward pass for each weight of the layer.

    Where theirs would take hours, the first `rows` passes are timed, and multiplied up.
    """
    measure = jax.jit(
        lambda params, batch, key: flatness.relative_flatness(
            case.loss_fn,
            params,
            batch,
            key,
            layer=case.last,
            num_probes=64,
            estimator=curvature.hutchpp_trace,
        )
    )
    ours = partial(timed, measure, case.params, case.batch, KEY)
    s, answers, first = in_turn({"ours": ours}, REPEATS.value)
    found = answers["ours"]["result"]
    size = case.operator.restrict(case.last).dim
    more: dict[str, Any] = {
        "compile_s": first["ours"] - s["ours"],
        "ours_found": [float(found.mean), float(found.stderr)],
    }
    theirs = None
    if not peer.missing:
        answer = peer.ask(network=case.name, what="flatness", peer="authors", rows=min(rows, size))
        theirs = answer["seconds"] * max(1, size / rows)
        more |= {"peer_found": answer["found"], "peer_passes_timed": min(rows, size)}
    return [
        row(
            f"relative flatness of {case.last}, {case.name}",
            s["ours"],
            f"authors' way, {size} passes",
            theirs,
            **more,
        )
    ]


def memory() -> list[dict[str, Any]]:
    """Peak of `top_eigenpairs` beside its arguments, as XLA plans it."""
    found = []
    for width in (200, 800):
        model = models.from_linen(models.MLP((width, width, 10)))
        x = jnp.ones((64, 784))
        operator = curvature.hessian_operator(
            losses.cross_entropy(model.apply_fn), model.init(KEY, x), (x, jnp.zeros(64, int))
        )
        for k in (1, 10, 40):
            search = jax.jit(lambda op, key, k=k: curvature.top_eigenpairs(op, key, k=k))
            plan = search.lower(operator, KEY).compile().memory_analysis()
            vectors = plan.temp_size_in_bytes / (4 * operator.dim)
            found.append(
                row(
                    f"memory of top_eigenpairs, k = {k}, P = {operator.dim}",
                    float("nan"),
                    f"{plan.temp_size_in_bytes / 2**20:.0f} MiB",
                    None,
                    temp_bytes=plan.temp_size_in_bytes,
                    in_vectors=vectors,
                )
            )
    return found


def main(_: Any) -> None:
    """Every case."""
    cases = {name: Case(name) for name in NETWORKS}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.npz"
        arrays = [case.arrays() for case in cases.values()]
        np.savez(path, **{name: value for group in arrays for name, value in group.items()})
        with Peer("curvature_torch.py", path) as peer:
            rows = []
            for name in ("CNN", "MLP"):
                rows += products(cases[name])
                rows += eigenvalues(cases[name], peer)
                rows += trace(cases[name], peer)
                rows += density(cases[name], peer)
            rows += relative_flatness(cases["LeNet5"], peer, 840)
            rows += relative_flatness(cases["Wide"], peer, 50)
    rows += memory()
    write(rows)


if __name__ == "__main__":
    app.run(main)
