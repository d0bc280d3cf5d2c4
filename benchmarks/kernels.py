"""Kernels of infinite and finite networks against neural-tangents.

    python -m benchmarks.kernels --json=out/benchmarks/kernels.json

The peer is neural-tangents 0.6.5 on jax 0.5.3, in an environment of its own (`make oracles` builds
it). Every row times both sides in this one run, one repeat of each in turn, and reports medians;
compilation stands apart. `ratio` is how many times faster ours is, `goal` what it should be at
least. Accuracy of both: the largest difference from our own kernel in float64, relative to its
largest entry. `of_copy` is the time in which the machine copies the covariances of one array once
for every layer, over ours: the bound of any program that writes them at all.
"""

import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from benchmarks._harness import Peer, compile_seconds, in_turn, row, timed, write_rows
from benchmarks.peers.kernels_neural_tangents import finite_networks, networks
from poster_jax.kernels import empirical_ntk_fn, stax

FLAGS = flags.FLAGS
_JSON = flags.DEFINE_string("json", None, "file to write the rows to")
_PEER = flags.DEFINE_string(
    "peer_python", ".venv-oracles/bin/python", "a Python that has neural-tangents"
)
_REPEATS = flags.DEFINE_integer("repeats", 3, "timed repeats of each side", lower_bound=1)
_CASES = flags.DEFINE_list(
    "cases",
    "dense,pooled,myrtle,flat,mlp,cnn,import",
    "which rows; `deep` takes minutes more",
)

PROGRAM = Path(__file__).parent / "peers" / "kernels_neural_tangents.py"
# Shapes of both batches, layers times covariances of a pair, goals without and with symmetry.
ANALYTIC = {
    "dense": ("NNGP + NTK, 5 ReLU layers", (2000, 784), 5, 2.0, 4.0),
    "pooled": ("NNGP + NTK, 5 conv + GAP", (64, 8, 8, 1), 5 * 64**2, 4.0, 4.0),
    "myrtle": ("NNGP + NTK, Myrtle-5", (4, 32, 32, 3), 2.3 * 1024**2, 3.0, 3.0),
    "flat": ("NNGP + NTK, 5 conv + Flatten", (256, 16, 16, 3), 5 * 256, 3.0, 3.0),
    "deep": ("NNGP + NTK, 21 conv + GAP", (1, 32, 32, 3), 21 * 1024**2, 8.0, 8.0),
}
FINITE = {"mlp": (100, 784), "cnn": (32, 16, 16, 3)}
flags.register_validator(
    "cases",
    lambda cases: set(cases) <= {*ANALYTIC, *FINITE, "import"},
    message=f"must be of {', '.join([*ANALYTIC, *FINITE, 'import'])}.",
)
WAYS = {1: "Jacobian contraction", 2: "NTK-vector products", 3: "structured derivatives"}


def copy_rate() -> float:
    """Entries of float32 a second that a compiled program copies."""
    x = jnp.zeros(1 << 24, jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    return x.size / min(timed(copy, x)[0] for _ in range(4))


def errors(found: Any, exact: Any) -> float:
    """The largest difference, relative to the largest entry of each array."""
    return max(
        float(np.abs(np.asarray(a, np.float64) - b).max() / np.abs(b).max())
        for a, b in zip(found, exact, strict=True)
    )


def load(folder: Path, name: str) -> list[np.ndarray]:
    """What the peer answered."""
    with np.load(folder / name) as arrays:
        return [arrays[key] for key in arrays]


def analytic(case: str, peer: Peer, folder: Path) -> list[dict[str, Any]]:
    """Two batches, and one batch with itself."""
    name, shape, entries, *goals = ANALYTIC[case]
    kernel_fn = networks(stax)[case][2]
    rng, rows = np.random.default_rng(0), []
    x1, x2 = (rng.normal(size=shape).astype(np.float32) for _ in range(2))
    np.savez(folder / f"{case}.npz", x1=x1, x2=x2)

    def kernels(x1: Any, x2: Any) -> Any:
        return kernel_fn(x1, x2, ("nngp", "ntk"))

    with jax.enable_x64(True):
        few = x1[:4].astype(np.float64), x2[:4].astype(np.float64)
        exact = [np.asarray(k) for k in jax.jit(kernels)(*few)]
    peer.ask(case=case, double=False, save="answer.npz")
    theirs = errors([k[:4, :4] for k in load(folder, "answer.npz")], exact)
    pairs, floor = shape[0] ** 2, copy_rate()
    for own, goal in zip((False, True), goals, strict=True):
        ours = partial(jax.jit(kernels), jnp.asarray(x1), None if own else jnp.asarray(x2))
        compile_s = compile_seconds(ours)
        error = None if own else errors([k[:4, :4] for k in ours()], exact)
        seconds = in_turn(
            {
                "ours": lambda: timed(ours)[0],  # noqa: B023
                "peer": lambda: peer.ask(case=case, double=False)["seconds"],
            },
            _REPEATS.value,
        )
        more = {} if own else {"error": error, "peer_error": theirs}
        bound = (0.5 if own else 1.0) * pairs * entries / floor / seconds["ours"]
        more |= {"compile_s": compile_s, "of_copy": bound}
        rows.append(
            row(
                f"{name}, {shape[0]} x {shape[0]}{', x2 = x1' if own else ''}",
                seconds["ours"], "neural-tangents", seconds["peer"], goal, **more,
            )
        )  # fmt: skip
    return rows


def finite(case: str, peer: Peer, folder: Path) -> list[dict[str, Any]]:
    """The default way of choosing (AUTO) against the best of the peer's three."""
    init_fn, apply_fn, _ = finite_networks(stax)[case]
    shape = FINITE[case]
    x = jax.random.normal(jax.random.key(0), shape)
    params = init_fn(jax.random.key(1), (1, *shape[1:]))[1]
    leaves = {f"p{i:02}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(params))}
    np.savez(folder / f"{case}.npz", a=np.asarray(x), **leaves)
    ntk_fn = empirical_ntk_fn(apply_fn, trace_axes=(), vmap_axes=0, implementation=0)
    ours = partial(jax.jit(lambda x, params: ntk_fn(x, None, params)), x, params)
    compile_s, times = compile_seconds(ours), {}
    for how in WAYS:  # one repeat finds the best
        peer.ask(case=case, double=False, how=how)
        times[how] = peer.ask(case=case, double=False, how=how)["seconds"]
    works = {how: seconds for how, seconds in times.items() if seconds is not None}
    best = min(works, key=works.__getitem__)
    seconds = in_turn(
        {
            "ours": lambda: timed(ours)[0],
            "peer": lambda: peer.ask(case=case, double=False, how=best)["seconds"],
        },
        _REPEATS.value,
    )
    name = f"empirical NTK, {case}, {shape[0]} inputs"
    who = f"neural-tangents, {WAYS[best]}"
    fails = [WAYS[how] for how in WAYS if how not in works]
    more = {"compile_s": compile_s, "peer_fails": fails}
    return [row(name, seconds["ours"], who, seconds["peer"], 1.5, **more)]


def imports() -> list[dict[str, Any]]:
    """Seconds of a process that imports the package and nothing else."""

    def seconds(python: str, statement: str) -> float:
        start = time.perf_counter()
        subprocess.run([python, "-W", "ignore", "-c", statement], check=True, capture_output=True)
        return time.perf_counter() - start

    medians = in_turn(
        {
            "ours": lambda: seconds(sys.executable, "import poster_jax.kernels"),
            "peer": lambda: seconds(_PEER.value, "import neural_tangents"),
        },
        _REPEATS.value,
    )
    return [row("import", medians["ours"], "neural-tangents", medians["peer"], 1.0)]


def main(_: Any) -> None:
    """Times every case and writes the rows."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name, Peer(_PEER.value, str(PROGRAM), name) as peer:
        for case in _CASES.value:
            if case == "import":
                rows += imports()
            else:
                rows += (finite if case in FINITE else analytic)(case, peer, Path(name))
    write_rows(rows, [], _JSON.value)


if __name__ == "__main__":
    app.run(main)
