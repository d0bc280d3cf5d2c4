"""The rows of `benchmarks.finite_width` for the vertex recursion, against operations.

There is no peer library: the peer is one matrix product of as many operations, timed in turn. A
layer draws S neurons and compresses the S + R factors of P = N (N + 1) / 2 entries to R: three
products of 2 (S + R) P (R + 16) operations are nearly all of it. `lost` is the share of the vertex'
trace that compression leaves out, `error` the largest difference of V between two seeds of the
neurons, over its largest entry (on the first 20 inputs).
"""

import tempfile
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks._harness import compile_seconds, in_turn, row, timed
from poster_jax.finite_width import nongaussian as ng

NUM, SAMPLES, RANK, DEPTH = 200, 1024, 128, 2


def tiled_rows(num: int = 80, samples: int = 4096, depth: int = 3) -> list[dict[str, Any]]:
    """tanh networks in float64; half of the tiles are S P^2 operations a layer."""
    x = np.random.default_rng(0).normal(size=(num, 20))
    network = {"depth": depth, "C_W": 1.5, "C_b": 0.1, "num_samples": samples}
    with jax.enable_x64(True), tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        tiled = ng.vertex_to_disk(folder, "tanh", x, 64, **network)
        ours = time.perf_counter() - start
        dense = jax.block_until_ready(ng.finite_width_kernel("tanh", x, 64, **network))
        theirs = time.perf_counter() - start - ours
        error = float(np.abs(tiled.V - np.asarray(dense.V)).max() / np.abs(tiled.V).max())
    return [
        row(
            f"vertex in tiles on disk, {num} inputs, {depth} tanh layers",
            ours, "the dense form in memory", theirs, 1.0,
            operations=depth * samples * (num * (num + 1) // 2) ** 2, error=error,
        )
    ]  # fmt: skip


def vertex_rows(repeats: int, num: int = NUM) -> list[dict[str, Any]]:
    """ReLU networks in float32, V in factors."""
    x = np.random.default_rng(0).normal(size=(num, 20)).astype(np.float32)
    options = {"depth": DEPTH, "C_W": 2.0, "C_b": 0.1, "num_samples": SAMPLES, "rank": RANK}

    def kernel(x: Any, seed: int = 0) -> Any:
        return ng.finite_width_kernel("relu", x, 512, form="factored", seed=seed, **options)

    pairs = num * (num + 1) // 2
    operations = DEPTH * 3 * 2 * (SAMPLES + RANK) * pairs * (RANK + 16)
    side = round((operations / 2) ** (1 / 3))
    square = jnp.ones((side, side), jnp.float32)
    product = jax.jit(jnp.matmul)
    compile_s = compile_seconds(kernel, x)
    seconds = in_turn(
        {"ours": lambda: timed(kernel, x)[0], "peer": lambda: timed(product, square, square)[0]},
        repeats,
    )
    found = kernel(x)
    few = [ng.expand_vertex(k._replace(V=k.V[:, :20, :20])) for k in (found, kernel(x, 1))]
    error = float(jnp.abs(few[0] - few[1]).max() / jnp.abs(few[0]).max())
    return [
        row(
            f"factored vertex, {num} inputs, {DEPTH} ReLU layers, rank {RANK}",
            seconds["ours"], "matrix product of as many operations", seconds["peer"], 0.3,
            compile_s=compile_s, operations=operations, lost=float(found.lost), error=error,
        )
    ]  # fmt: skip
