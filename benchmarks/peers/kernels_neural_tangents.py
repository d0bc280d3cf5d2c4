"""The side of benchmarks/kernels.py that runs neural-tangents, in an environment of its own.

    python kernels_neural_tangents.py folder

Reads a JSON request a line: {"case": a name in CASES, "double": whether in float64, "save": a file
of the folder for the figures, or nothing}; inputs stand in folder/CASE.npz. Answers
{"seconds": ...}, null where the library fails; the first request of a case compiles. CASES names
networks only, so that ours are made of the same: `networks(stax)`.
"""

import json
import sys
import time
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")

W, B = 1.5**0.5, 0.1


def networks(stax):
    """The networks of both sides by name."""

    def dense():
        return [stax.Dense(1, W, B), stax.Relu()]

    def conv(num=1):
        return [stax.Conv(1, (3, 3), padding="SAME", W_std=W, b_std=B), stax.Relu()] * num

    pool = stax.AvgPool((2, 2), strides=(2, 2))
    head = stax.Dense(1, W, B)
    myrtle = [*conv(2), pool, *conv(), pool, *conv(), pool, pool, pool, stax.Flatten(), head]
    return {
        "dense": stax.serial(*dense() * 5, head),
        "pooled": stax.serial(*conv(5), stax.GlobalAvgPool(), head),
        "myrtle": stax.serial(*myrtle),
        "flat": stax.serial(*conv(5), stax.Flatten(), head),
        "deep": stax.serial(*conv(21), stax.GlobalAvgPool(), head),
    }


def finite_networks(stax):
    """Networks of finite width for the empirical kernels."""
    relu = stax.Relu()
    mlp = [stax.Dense(1024, W, B), relu, stax.Dense(1024, W, B), relu, stax.Dense(10, W, B)]
    conv = stax.Conv(64, (3, 3), padding="SAME", W_std=W, b_std=B)
    cnn = [conv, relu, conv, relu, stax.GlobalAvgPool(), stax.Dense(10, W, B)]
    return {"mlp": stax.serial(*mlp), "cnn": stax.serial(*cnn)}


def main(folder):
    """Answers until the input ends."""
    import jax
    import jax.numpy as jnp
    import neural_tangents as nt
    import numpy as np
    from neural_tangents import stax

    analytic, finite, compiled, inputs = networks(stax), finite_networks(stax), {}, {}

    def program(case, double, how):
        if case in analytic:
            kernel_fn = analytic[case][2]
            return jax.jit(lambda x1, x2: tuple(kernel_fn(x1, x2, ("nngp", "ntk"))))
        ntk_fn = nt.empirical_ntk_fn(
            finite[case][1], trace_axes=(), vmap_axes=0, implementation=how
        )
        return jax.jit(lambda x1, x2, params: (ntk_fn(x1, x2, params),))

    for line in sys.stdin:
        request = json.loads(line)
        case, double, how = request["case"], request["double"], request.get("how")
        with jax.experimental.enable_x64(double):
            key = (case, double, how)
            if key not in compiled:
                arrays = np.load(folder / f"{case}.npz")
                dtype = np.float64 if double else np.float32
                leaves = [arrays[name].astype(dtype) for name in sorted(arrays)]
                compiled[key] = program(*key)
                args = [jnp.asarray(leaf) for leaf in leaves if leaf.size]
                if case in finite:
                    tree = jax.tree.structure(
                        finite[case][0](jax.random.key(0), (1, *args[0].shape[1:]))[1]
                    )
                    args = [args[0], None, jax.tree.unflatten(tree, args[1:])]
                inputs[key] = args if len(args) > 1 else [args[0], None]
            start = time.perf_counter()
            try:
                found = jax.block_until_ready(compiled[key](*inputs[key]))
            except AttributeError as error:  # its structured derivatives read what jax took away
                print(json.dumps({"seconds": None, "error": str(error)}), flush=True)
                continue
            seconds = time.perf_counter() - start
            if request.get("save"):
                np.savez(folder / request["save"], *map(np.asarray, found))
        print(json.dumps({"seconds": seconds}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
