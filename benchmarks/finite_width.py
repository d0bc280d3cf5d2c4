"""E[O_4] at width 1024 against nested gradients; diagrams against pairings; the vertex recursion.

    python -m benchmarks.finite_width --json=out/benchmarks/finite_width.json

O_4 of one input is 2 dddf(df,df,df) + 4 df.ddf.ddf.df, which `measure_all` takes by derivatives
along the gradient. Peers: each order the gradient of the one before, in jax and in torch.func, and
the same through a Hessian that is written down (one hidden layer: two have a million parameters).
Every row times both sides in this one run, in turn; `ratio` is how many times faster ours is.
Networks are drawn inside the timed part on all sides. A few minutes on two cores.
"""

import itertools
import time
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from benchmarks._finite_width_vertex import tiled_rows, vertex_rows
from benchmarks._harness import Peer, in_turn, row, timed, write_rows
from poster_jax.finite_width import feynman
from poster_jax.finite_width.feynman import correlator

FLAGS = flags.FLAGS
_JSON = flags.DEFINE_string("json", None, "file to write the rows to")
_PEERS = flags.DEFINE_string("peers_python", ".venv-peers/bin/python", "a Python that has torch")
_REPEATS = flags.DEFINE_integer("repeats", 3, "timed repeats of each side", lower_bound=1)
_WIDTH = flags.DEFINE_integer("width", 1024, "of the hidden layers", lower_bound=1)
_NETWORKS = flags.DEFINE_integer("networks", 8, "networks in each estimate", lower_bound=2)

TORCH = Path(__file__).parent / "peers" / "finite_width_torch.py"
INPUT = np.array([0.6, 0.8])
PARTS = [correlator("dddf(df, df, df)"), correlator("df.ddf.ddf.df")]


def ours(network: feynman.WidthNetwork, networks: int, seed: int) -> float:
    """The mean of O_4."""
    key, options = jax.random.key(seed), {"widths": [_WIDTH.value], "num_networks": networks}
    star, chain = feynman.measure_all(PARTS, *network, {"x": INPUT}, key, **options)
    return 2 * float(star.mean[0]) + 4 * float(chain.mean[0])


def nested(network: feynman.WidthNetwork, *, hessian: bool) -> Any:
    """O_4 over keys: each order a gradient; with `hessian`, O_3 through a matrix written down."""

    def one(key: Any) -> Any:
        params = network.init_fn(key, _WIDTH.value)
        flat, unravel = jax.flatten_util.ravel_pytree(params)

        def o1(p: Any) -> Any:
            return network.apply_fn(unravel(p), jnp.asarray(INPUT)[None])[0]

        def raised(operator: Any) -> Any:
            return lambda p: jax.grad(operator)(p) @ jax.grad(o1)(p)

        def o3(p: Any) -> Any:
            gradient = jax.grad(o1)(p)
            return 2 * gradient @ jax.hessian(o1)(p) @ gradient

        return raised(o3 if hessian else raised(raised(o1)))(flat)

    return jax.jit(lambda keys: jax.lax.map(one, keys).mean())


def operators(peer: Peer | None) -> list[dict]:
    """E[O_4] of tanh networks of two hidden layers, and of one against a written Hessian."""
    networks, rows = _NETWORKS.value, []
    deep, flat = (feynman.deep_network(jnp.tanh, depth=d, input_dim=2) for d in (2, 1))
    keys = jax.random.split(jax.random.key(0), networks)
    reverse = nested(deep, hessian=False)
    sides = {
        "ours": lambda: timed(lambda: ours(deep, networks, 0))[0],
        "jax": lambda: timed(reverse, keys)[0],
    }
    if peer is not None:
        sides["torch"] = lambda: peer.ask(width=_WIDTH.value, depth=2, networks=networks)["seconds"]
    seconds = in_turn(sides, _REPEATS.value)
    means = {"ours_mean": ours(deep, networks, 0), "peer_mean": float(reverse(keys))}
    case = f"E[O_4], 2 x {_WIDTH.value} tanh, {networks} networks, float64"
    rows.append(row(case, seconds["ours"], "nested jax.grad", seconds["jax"], 10, **means))
    if peer is not None:
        rows.append(row(case, seconds["ours"], "nested torch.func.grad", seconds["torch"], 10))
    written = nested(flat, hessian=True)
    seconds = in_turn(
        {
            "ours": lambda: timed(lambda: ours(flat, 2, 0))[0],
            "hessian": lambda: timed(written, keys[:2])[0],
        },
        1,
    )
    case = f"E[O_4], 1 x {_WIDTH.value} tanh, 2 networks, float64"
    name = "jax.grad through jax.hessian, materialised"
    rows.append(row(case, seconds["ours"], name, seconds["hessian"], 10))
    return rows


def naive(c: feynman.Correlator, depth: int) -> feynman.Polynomial:
    """All tuples of matchings, one by one."""
    total: Counter = Counter()
    for diagram in feynman.diagrams(c, depth=depth):
        total[-diagram.exponent,] += diagram.multiplicity
    return feynman.Polynomial(("n",), {power: Fraction(v) for power, v in total.items()})


def enumeration() -> tuple[list[dict], list[dict]]:
    """The transfer over layers against the sum over tuples, and how it grows."""
    rows, notes = [], []
    cases = itertools.product(["f^4", "f^6"], [2, 3])
    for spec, depth in cases:
        c = correlator(spec)
        fast, exact = timed(lambda: feynman.linear_polynomial(c, depth=depth))  # noqa: B023
        slow, brute = timed(lambda: naive(c, depth))  # noqa: B023
        assert exact == brute
        rows.append(row(f"E {spec}, depth {depth}", fast, "sum over all matchings", slow, 10))
    for size in (2, 4, 6, 8, 10):
        chain = correlator(".".join(["df", *["ddf"] * (size - 2), "df"]))
        start = time.process_time()
        feynman.linear_polynomial(chain, depth=3)
        seconds = time.process_time() - start
        notes.append({"case": f"chain of {size} tensors, depth 3", "cpu_s": seconds})
        print(notes[-1], flush=True)
    return rows, notes


def main(_: Any) -> None:
    """All rows."""
    rows, notes = enumeration()
    with jax.enable_x64(True):
        if Path(_PEERS.value).exists():
            with Peer(_PEERS.value, str(TORCH)) as peer:
                rows += operators(peer)
        else:
            rows += operators(None)
    rows += vertex_rows(_REPEATS.value) + tiled_rows()
    write_rows(rows, notes, _JSON.value)


if __name__ == "__main__":
    app.run(main)
